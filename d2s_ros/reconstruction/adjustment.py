"""Rounds of triangulation and bundle adjustment, from wide tolerances to narrow ones."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from d2s_ros.pycolmap_import import import_pycolmap
from d2s_ros.reconstruction.colmap_database import (
    adjustment_options,
    limit_errors,
    pipeline_options,
)
from d2s_ros.reconstruction.reconstruction import ImageInput

#: Limits of the rounds are in px at this focal length: what an error of a pose costs is an angle.
_FOCAL_PX = 500.0


def focal_of(images: Sequence[ImageInput]) -> float:
    """Return the usual focal length of images, px."""
    return float(np.median([0.5 * (image.camera.fx + image.camera.fy) for image in images]))


def px_at_focal(limit: float, focal: float) -> float:
    """Return a limit at a focal length of 500 px as px of images of this focal length."""
    return limit * focal / _FOCAL_PX


def triangulate_again(
    model: Any, database: Path, folder: Path, limit: float, focal: float, min_angle_deg: float
) -> Any:
    """Return the model with points made anew from its poses and all matches of the database.

    Args:
        model: pycolmap's reconstruction.
        database: pycolmap's database.
        folder: Where pycolmap may write.
        limit: Largest reprojection error, px at a focal length of 500 px.
        focal: Focal length, px.
        min_angle_deg: Points seen under a smaller angle are dropped.
    """
    options = pipeline_options(min_angle_deg)
    limit_errors(options, px_at_focal(limit, focal))
    options.triangulation.create_max_angle_error = np.degrees(limit / _FOCAL_PX)
    options.triangulation.continue_max_angle_error = np.degrees(limit / _FOCAL_PX)
    output = folder / f'model_{limit:g}'
    output.mkdir(exist_ok=True)
    return import_pycolmap().triangulate_points(
        model, str(database), str(folder), str(output), True, options
    )


def adjust_freely(
    model: Any, loss_px: float, *, min_observations: int, intrinsics: bool = False
) -> None:
    """Adjust poses and points in place; nothing but the images holds them.

    Args:
        model: pycolmap's reconstruction.
        loss_px: Scale of the Cauchy loss of an observation, px.
        min_observations: Images with fewer stay as they are.
        intrinsics: Adjust focal length and distortion as well.
    """
    pycolmap = import_pycolmap()
    options = adjustment_options(loss_px, 1e-6)
    options.refine_focal_length = options.refine_extra_params = intrinsics
    config = pycolmap.BundleAdjustmentConfig()
    for image in model.images.values():
        if image.has_pose and image.num_points3D >= min_observations:
            config.add_image(image.image_id)
    config.fix_gauge(pycolmap.BundleAdjustmentGauge.TWO_CAMS_FROM_WORLD)
    pycolmap.create_default_bundle_adjuster(options, config, model).solve()
    model.update_point_3d_errors()
