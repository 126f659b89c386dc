"""Train a network on made-up samples as one of torchrun's processes: HEAD OUTPUT."""

from __future__ import annotations

import os
import sys

from d2s_ros.threads import set_passive_omp_wait

set_passive_omp_wait()

import torch  # noqa: E402
from scene_models.made_up_scene import made_up_reconstruction  # noqa: E402
from scene_models.test_landmark_trainer import NETWORK, make_samples  # noqa: E402

from d2s_ros import distributed  # noqa: E402
from d2s_ros.scene_models.landmark.trainer import (  # noqa: E402
    LandmarkTrainingConfig,
    train_landmark_network,
)
from d2s_ros.scene_models.regression.network import RegressionConfig  # noqa: E402
from d2s_ros.scene_models.regression.samples import CoordinateFrame, samples_of_images  # noqa: E402
from d2s_ros.scene_models.regression.trainer import (  # noqa: E402
    RegressionTrainingConfig,
    train_regression_network,
)


def train(head, steps):
    if head == 'landmark':
        # Images of 28 and 40 keypoints: the shares of the processes differ in size.
        config = LandmarkTrainingConfig(
            steps=steps, images_per_step=3, keypoints_per_image=32, learning_rate=0.01
        )
        return train_landmark_network(make_samples(), NETWORK, config)
    reconstruction = made_up_reconstruction(num_images=6, num_points=60, num_clutter=10)
    samples = samples_of_images(reconstruction, CoordinateFrame.identity())
    return train_regression_network(
        [[sample] for sample in samples],
        RegressionConfig(descriptor_dim=32, num_layers=1, num_heads=2, hidden=(32,)),
        RegressionTrainingConfig(steps=steps, images_per_step=4, learning_rate=1e-3),
    )


if __name__ == '__main__':
    torch.set_num_threads(1)
    with distributed.group('cpu'):
        network, figures = train(sys.argv[1], 20)
        rank = os.environ['RANK']
        torch.save(
            {'network': network.state_dict(), 'figures': figures}, f'{sys.argv[2]}.{rank}.pt'
        )
        start, _ = train(sys.argv[1], 0)
        if rank == '0':
            torch.save({'network': start.state_dict()}, f'{sys.argv[2]}.start.pt')
