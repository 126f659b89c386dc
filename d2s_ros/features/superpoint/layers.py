"""The layers of SuperPoint's network, named as in `superpoint_v1.pth`."""

#: Name, input and output channels, kernel size of each.
LAYERS: tuple[tuple[str, int, int, int], ...] = (
    ('conv1a', 1, 64, 3),
    ('conv1b', 64, 64, 3),
    ('conv2a', 64, 64, 3),
    ('conv2b', 64, 64, 3),
    ('conv3a', 64, 128, 3),
    ('conv3b', 128, 128, 3),
    ('conv4a', 128, 128, 3),
    ('conv4b', 128, 128, 3),
    ('convPa', 128, 256, 3),
    ('convPb', 256, 65, 1),
    ('convDa', 128, 256, 3),
    ('convDb', 256, 256, 1),
)
#: The layers that end a head: no ReLU.
LINEAR_LAYERS = ('convPb', 'convDb')
#: Height of the strips that the first stage is computed in on a CPU, even.
STRIP_ROWS = 64
