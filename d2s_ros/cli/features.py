"""`d2s features evaluate`: compare local features by one command."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from d2s_ros.cli.options import add_device, user_file

#: Photographs of the picture, from scikit-image.
_PICTURE_PHOTOGRAPHS = ('astronaut', 'coffee', 'stereo_motorcycle', 'rocket')


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument(
        'action',
        choices=('evaluate',),
        help='evaluate: RootSIFT, ORB and SuperPoint side by side, as a table and a picture',
    )
    parser.add_argument(
        '--photographs',
        type=user_file,
        metavar='DIR',
        help='photographs to warp; only the tenth that training never sees is used',
    )
    parser.add_argument(
        '--posed',
        type=user_file,
        action='append',
        default=[],
        metavar='DIR',
        help='images with known poses (images/, images.txt, cameras.txt); may be repeated',
    )
    parser.add_argument(
        '--weights',
        type=user_file,
        action='append',
        default=[],
        metavar='FILE',
        help='SuperPoint weights to compare besides the packaged ones; may be repeated',
    )
    parser.add_argument('--keypoints', type=int, default=512, help='per image (default: 512)')
    parser.add_argument('--limit', type=int, default=0, help='number of photographs; 0: all')
    parser.add_argument('--pairs', type=int, default=24, help='per posed set (default: 24)')
    parser.add_argument(
        '--out', type=user_file, metavar='DIR', help='write JSON, markdown and picture'
    )
    parser.add_argument('--seed', type=int, default=0)
    add_device(parser)


def run(args: argparse.Namespace) -> int:
    """Evaluate, print the tables, and write them with a picture of matches; returns the exit code.

    Raises:
        UsageError: if there is nothing to evaluate on.
        InputError: if a folder has no usable images.
    """
    from d2s_ros.errors import InputError, UsageError
    from d2s_ros.features.evaluation import evaluate_warps
    from d2s_ros.features.evaluation_report import markdown
    from d2s_ros.features.posed_pairs import evaluate_posed_images, load_posed_images
    from d2s_ros.features.warped_pairs import held_out_photographs

    if args.photographs is None and not args.posed:
        raise UsageError('nothing to evaluate on; give --photographs DIR or --posed DIR')
    if args.keypoints < 16 or args.pairs < 1 or args.limit < 0:
        raise UsageError('--keypoints must be at least 16, --pairs at least 1, --limit at least 0')
    extractors = _extractors(args)
    results: dict[str, Any] = {}
    if args.photographs is not None:
        photographs = [
            image for _, image in held_out_photographs(args.photographs, limit=args.limit)
        ]
        if not photographs:
            raise InputError(
                f'{args.photographs} has no held-out photograph; one in ten file names is held out'
            )
        results['warps'] = evaluate_warps(
            photographs, extractors, keypoints=args.keypoints, seed=args.seed
        )
    for folder in args.posed:
        results[folder.name] = evaluate_posed_images(
            load_posed_images(folder),
            extractors,
            pairs=args.pairs,
            keypoints=2 * args.keypoints,
            seed=args.seed,
        )
    table = markdown(results)
    print(table)
    if args.out is not None:
        args.out.mkdir(parents=True, exist_ok=True)
        settings = {
            'keypoints': args.keypoints,
            'pairs': args.pairs,
            'seed': args.seed,
            'photographs': len(photographs) if args.photographs is not None else 0,
            'features': {name: e.weights_hash for name, e in extractors.items()},
        }
        document = {'settings': settings, 'results': results}
        (args.out / 'features.json').write_text(json.dumps(document, indent=1) + '\n')
        (args.out / 'features.md').write_text(table)
        _write_picture(args.out / 'features_matches.png', extractors)
    return 0


def _extractors(args: argparse.Namespace) -> dict[str, Any]:
    from d2s_ros.device import resolve_device
    from d2s_ros.features.evaluation import Orb
    from d2s_ros.features.extractor import create_extractor
    from d2s_ros.features.superpoint.extractor import SuperPoint
    from d2s_ros.features.superpoint.files import default_weights_path
    from d2s_ros.features.types import FeatureConfig

    device = resolve_device(args.device)
    limits = {'max_keypoints': max(64, 2 * args.keypoints)}
    extractors: dict[str, Any] = {
        'RootSIFT': create_extractor(FeatureConfig(name='rootsift', **limits)),
        'ORB': Orb(FeatureConfig(name='rootsift', **limits)),
    }
    config = FeatureConfig(name='superpoint', **limits)
    if default_weights_path() is not None:
        extractors['SuperPoint (ours)'] = create_extractor(config, device=device)
    for path in args.weights:
        extractors[f'SuperPoint ({path.stem})'] = SuperPoint.from_pretrained(
            path, config=config, device=device
        )
    return extractors


def _write_picture(path: Path, extractors: dict[str, Any]) -> None:
    """Draw matches on scikit-image's sample photographs; without scikit-image, no picture."""
    import cv2
    import numpy as np

    from d2s_ros.features.evaluation_report import draw_matches
    from d2s_ros.features.types import to_grey

    try:
        from skimage import data
    except ImportError:
        print('no picture of matches: it needs scikit-image')
        return
    photographs = []
    for name in _PICTURE_PHOTOGRAPHS:
        loaded = getattr(data, name)()
        colour = loaded[0] if isinstance(loaded, tuple) else loaded
        photographs.append(to_grey(np.ascontiguousarray(colour[:, :, ::-1])))
    shown = {name: e for name, e in extractors.items() if name != 'ORB'}
    picture = draw_matches(photographs, shown)
    cv2.imwrite(str(path), picture, [cv2.IMWRITE_PNG_COMPRESSION, 9])
