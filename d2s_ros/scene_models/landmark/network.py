"""The landmark head: coordinates taken from learned landmarks, chosen by a small network.

Each landmark has a key (the mean descriptor of its track), a 3D point and the point's covariance.
A keypoint's candidates are the landmarks whose keys are nearest to its descriptor. The network sees
a keypoint with its candidates, how similar they are, and how similar other keypoints of the image
are to them, and decides which candidate is right, or that none is. The probability of the choice is
the reliability. Attention layers, if there are any, let it see all keypoints of the image.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from d2s_ros.kernels.tensors import fourier
from d2s_ros.scene_models.attention import AttentionLayer
from d2s_ros.scene_models.landmark.config import LandmarkConfig
from d2s_ros.scene_models.landmark.descriptor_network import DescriptorNetwork

#: Numbers that describe how a candidate compares: see `candidate_evidence`.
_EVIDENCE = 4


class LandmarkNetwork(nn.Module):
    """Chooses among candidate landmarks; the table itself is held by `LandmarkTable`."""

    def __init__(self, config: LandmarkConfig) -> None:
        super().__init__()
        self.config = config
        width, frequencies = config.width, config.num_frequencies
        self.from_descriptor = nn.Linear(config.descriptor_dim, width)
        self.from_evidence = nn.Linear(_EVIDENCE * config.num_candidates, width)
        self.from_points = nn.Linear(2 * (3 + 6 * frequencies), width)
        self.from_keypoint = nn.Linear(3 + 4 * frequencies, width)
        self.layers = nn.ModuleList(
            AttentionLayer(width, config.num_heads, norm=True, zero_init=True)
            for _ in range(config.num_layers)
        )
        self.query = nn.Linear(width, width)
        self.candidate_in = nn.Linear(3 + 6 * frequencies + _EVIDENCE, width)
        self.candidate_out = nn.Linear(width, width)
        self.none = nn.Linear(width, 1)
        self.gain = nn.Parameter(torch.tensor(15.0))
        #: Descriptors pass it before keys are made of them or compared with; `forward` takes what
        #: comes out. It is trained before the rest (`descriptor_training`).
        self.descriptors = DescriptorNetwork(config) if config.descriptor_width else None
        # At the start the network is the bare table: the nearest key wins.
        nn.init.zeros_(self.candidate_out.weight)
        nn.init.zeros_(self.candidate_out.bias)

    def forward(
        self,
        descriptors: Tensor,
        evidence: Tensor,
        candidate_points: Tensor,
        keypoints: Tensor,
        log_scales: Tensor,
        mask: Tensor | None = None,
    ) -> Tensor:
        """Score candidates.

        Args:
            descriptors: (B, N, D), L2-normalised, as the descriptor network gives them.
            evidence: (B, N, C, 4) from `candidate_evidence`.
            candidate_points: (B, N, C, 3) points of the candidates, centred and scaled to about 1.
            keypoints: (B, N, 2) undistorted image-plane coordinates x/z, y/z.
            log_scales: (B, N) natural logarithm of the keypoint scales.
            mask: (B, N) bool, False for padding.

        Returns:
            Logits (B, N, C + 1); the last is 'none of them'.
        """
        hidden_inputs = self.config.hidden_inputs
        if 'descriptors' in hidden_inputs:
            descriptors = torch.zeros_like(descriptors)
        if 'candidate_points' in hidden_inputs:
            candidate_points = torch.zeros_like(candidate_points)
        if 'keypoints' in hidden_inputs:
            keypoints, log_scales = torch.zeros_like(keypoints), torch.zeros_like(log_scales)
        points = fourier(candidate_points, self.config.num_frequencies)
        second = min(1, self.config.num_candidates - 1)
        two_best = torch.cat([points[..., 0, :], points[..., second, :]], dim=-1)
        place = torch.cat(
            [fourier(keypoints, self.config.num_frequencies), log_scales[..., None]], dim=-1
        )
        x = (
            # Unit descriptors of many dimensions have small entries: bring them to about 1.
            self.from_descriptor(descriptors * math.sqrt(self.config.descriptor_dim) * 0.7)
            + self.from_evidence(evidence.flatten(-2))
            + self.from_points(two_best)
            + self.from_keypoint(place)
        )
        context = context_of(x.shape[1], self.config.max_context, x.device)
        for layer in self.layers:
            x = layer(x, mask, context)
        hidden = functional.relu(self.candidate_in(torch.cat([points, evidence], dim=-1)))
        learned = (self.candidate_out(hidden) * self.query(x)[..., None, :]).sum(dim=-1)
        logits = self.gain * evidence[..., 2] + learned
        return torch.cat([logits, self.none(x)], dim=-1)


def context_of(count: int, max_context: int, device: torch.device) -> Tensor | None:
    """Return the keypoints that are attended to, (max_context,) int64; None for all of them.

    Keypoints come strongest first: each k-th is a fair sample, of the size seen in training, and
    the cost no longer grows with the square of their number.
    """
    if count <= max_context:
        return None
    return torch.linspace(0, count - 1, max_context, device=device).long()
