"""Pose solver, gating and the localizer that chains the stages."""
