"""What to do about a refused image, for people; docs/operate/refusals.md says it with more."""

from __future__ import annotations

#: By status; a test compares this with the table of that document.
_WHAT_TO_DO = {
    'bad_image': (
        'Look at the driver; record a few images and open them. The reason names the encoding.'
    ),
    'no_calibration': (
        'Calibrate the camera; check `ros2 topic echo` of camera_info, or set `camera_info_topic`.'
    ),
    'calibration_mismatch': (
        'Calibrate at the focus and resolution in use. For rectified images set `rectified: true`. '
        'If the camera that the map was made with was the wrong one, build the map again.'
    ),
    'too_few_keypoints': (
        'Light, a shorter exposure, slower turns; a wider lens. SuperPoint maps '
        '(`--features superpoint`) need less light.'
    ),
    'too_few_reliable': 'Is this the mapped place? Then record this view and update the map.',
    'no_pose': 'As above. Indoors it is often a place that was not mapped.',
    'too_few_inliers': (
        'Record this view and update. Check that it is not a place that only looks alike.'
    ),
    'low_inlier_share': 'People or vehicles before the camera? Else the place has changed: update.',
    'poor_spread': 'A wider lens, or a camera that looks at more than one object.',
    'moved_thing': (
        'If the object was moved, nothing: the refusal is right. If the surroundings '
        'changed, update.'
    ),
    'uncertain': (
        'Usually far objects only. Raise `localizer.max_relative_translation_sigma` if '
        'your use allows it.'
    ),
    'ambiguous_place': (
        'Turn the camera to what only this place has. If the robot is in a place that '
        'the area lacks, build its map.'
    ),
    'no_stamp': 'Fix the driver; stamps are needed for transforms.',
    'no_extrinsic': 'Publish it on `/tf_static`, or set `base_from_camera`.',
    'implausible': (
        'If the robot was carried, the next image resolves it. Else check `max_speed` '
        'and `odometry_drift`.'
    ),
    'camera_moved': (
        'Drive half a metre: if it was the robot, poses come again. If the reason says '
        '"on its mount", fix the camera and mend its transform; if the transform is '
        'right, call `reinitialize` of the node.'
    ),
    'duplicate_stamp': 'Two publishers on one topic, or a driver that repeats images.',
    'out_of_order': (
        'Network or driver; a bag that starts again resets the node if it jumps by more '
        'than `time_jump_threshold`.'
    ),
    'future_stamp': 'Synchronize clocks (chrony, PTP); `use_sim_time` for bags.',
    'too_old': 'A shorter way of the image, or a larger value.',
    'internal_error': 'The log has the details; please report it with the image.',
}


def what_to_do(status: str) -> str:
    """Return what to do about the status of a frame; '' if it is no refusal."""
    return _WHAT_TO_DO.get(status, '')
