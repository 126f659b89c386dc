"""Video files for tests."""

from __future__ import annotations

import cv2
import numpy as np


def write_video(path, images, rate=10, **options):
    """Write (H, W) or (H, W, 3) uint8 pictures as H.264."""
    import av

    height, width = images[0].shape[:2]
    with av.open(str(path), 'w', options=options) as container:
        stream = container.add_stream('libx264', rate=rate)
        stream.width, stream.height, stream.pix_fmt = width, height, 'yuv420p'
        stream.options = {'crf': '12', 'preset': 'ultrafast'}
        stream.thread_count = 1
        for image in images:
            colour = cv2.cvtColor(image, cv2.COLOR_GRAY2BGR) if image.ndim == 2 else image
            container.mux(stream.encode(av.VideoFrame.from_ndarray(colour, format='bgr24')))
        container.mux(stream.encode(None))
    return path


def cut(path, share=0.66):
    """Cut a file off; return the new file."""
    data = path.read_bytes()
    short = path.with_name(f'cut_{path.name}')
    short.write_bytes(data[: int(share * len(data))])
    return short


def pan(count, step, size=(160, 120), seed=0):
    """Return pictures of a camera that moves along a wall by `step` px a frame."""
    width, height = size
    rng = np.random.default_rng(seed)
    wall = rng.integers(0, 255, (height // 4, (width + step * count) // 4 + 2), np.uint8)
    wall = cv2.resize(wall, (wall.shape[1] * 4, wall.shape[0] * 4), interpolation=cv2.INTER_CUBIC)
    return [
        np.ascontiguousarray(wall[:height, step * index : step * index + width])
        for index in range(count)
    ]
