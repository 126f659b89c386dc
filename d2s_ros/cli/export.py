"""`d2s export`: a map's networks as ONNX files."""

from __future__ import annotations

import argparse

from d2s_ros.cli.options import add_weights, user_path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument(
        'map', type=user_path, metavar='MAP', help='map folder of SuperPoint features'
    )
    parser.add_argument('out', type=user_path, metavar='OUT_DIR', help='folder to write')
    add_weights(parser)


def run(args: argparse.Namespace) -> int:
    """Write and check the files; returns the exit code.

    Raises:
        UsageError: the map has other features or another scene model.
    """
    from pathlib import Path

    from d2s_ros.cli.localize import write_json
    from d2s_ros.features.extractor import create_extractor
    from d2s_ros.maps.scene_map import SceneMap

    scene_map = SceneMap.open(args.map)
    extractor = create_extractor(
        scene_map.manifest.features, device='cpu', weights=args.weights, precision='fp32'
    )
    report = {
        'map_version': scene_map.manifest.version,
        **scene_map.model.export_onnx(extractor, Path(args.out)),
    }
    write_json(Path(args.out) / 'export.json', report)
    print(f'{args.out}: {", ".join(report["files"])}; opset {report["opset"]}')
    print(
        f'{report["provider"]} against PyTorch: scores differ by {report["score_error"]:.1e}, unit '
        f'descriptors by {report["descriptor_error"]:.1e}, {report["same_landmarks"]:.1%} of the '
        f'landmarks are the same, reliability differs by {report["reliability_error"]:.1e}'
    )
    return 0
