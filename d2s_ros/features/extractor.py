"""How a feature extractor is made."""

from __future__ import annotations

from pathlib import Path

from d2s_ros.device import has_fast_int8, has_torch, require_torch
from d2s_ros.errors import ConfigError, WeightsError
from d2s_ros.features.types import FeatureConfig, FeatureExtractor


def create_extractor(
    config: FeatureConfig,
    *,
    device: str = 'cpu',
    weights: str | None = None,
    precision: str = 'fp32',
) -> FeatureExtractor:
    """Make the extractor a config asks for.

    Args:
        config: Feature type and limits.
        device: 'cpu' or 'cuda' (see `SuperPoint`); RootSIFT runs on the CPU.
        weights: Path of a weight file for network features; without, the packaged one.
        precision: Of network features: 'fp32', 'int8', or 'auto' for the fastest here, which on
            a CPU without fast products of bytes is the compiled network in float32; without
            PyTorch 'auto' alone.

    Raises:
        WeightsError: SuperPoint without weights, or weights of another architecture.
        UsageError: what is asked for needs PyTorch, which is not installed.
    """
    if config.name == 'rootsift':
        from d2s_ros.features.rootsift import RootSift

        return RootSift(config)
    if config.name == 'superpoint':
        from d2s_ros.features.superpoint.files import default_weights_path

        path = default_weights_path() if weights is None else weights
        if path is None:
            raise WeightsError(
                'superpoint needs a weight file; give --weights PATH, or use --features rootsift'
            )
        from d2s_ros.features.superpoint.compiled import CompiledSuperPoint, is_faster

        fastest = device == 'cpu' and precision == 'auto'
        if not fastest:
            require_torch(f'superpoint on {device} with the precision {precision}')
        if fastest and (not has_torch() or is_faster(Path(path))):
            return CompiledSuperPoint(path, config=config)
        from d2s_ros.features.superpoint.extractor import SuperPoint

        return SuperPoint.from_pretrained(path, config=config, device=device, precision=precision)
    if config.name == 'aliked':
        if weights is None:
            raise WeightsError('aliked needs a weight file; give --weights PATH')
        require_torch('aliked')
        from d2s_ros.features.aliked import Aliked

        return Aliked(weights, config, device=device)
    if config.name == 'xfeat':
        require_torch('xfeat')
        from d2s_ros.features.xfeat import XFeat

        return XFeat(config, weights, device=device)
    raise ConfigError(f'unknown features {config.name!r}')


def create_mapping_extractor(
    config: FeatureConfig, *, device: str = 'cpu', weights: str | None = None
) -> FeatureExtractor:
    """Make the extractor of a build or an update: in float32, by the faster network.

    Arguments and errors are those of `create_extractor`.
    """
    precision = 'fp32' if has_fast_int8() else 'auto'
    return create_extractor(config, device=device, weights=weights, precision=precision)
