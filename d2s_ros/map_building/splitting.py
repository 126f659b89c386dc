"""Which images of a large log make one map: parts by covisibility, with overlap at the borders."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from d2s_ros.config import option, validate
from d2s_ros.reconstruction.reconstruction import MappedImage

if TYPE_CHECKING:
    import scipy.sparse

#: A cut may lie so far from where parts are of equal size, as a share of the images.
_SLACK = 0.15
#: An image that shows fewer points of another part than this is not of its border.
_MIN_SHARED = 30
#: Up to this many images all eigenvectors are computed, which is exact.
_DENSE = 400
#: Added to the Laplacian, which is singular.
_SHIFT = 1e-6

#: Number of things that two images (i, j), i < j, both show.
Covisibility = Mapping[tuple[int, int], int]


@dataclass(frozen=True)
class SplitConfig:
    """How a log is split into maps."""

    images_per_place: int = option(
        400, 'Images of a map about; parts are of nearly equal size.', minimum=8
    )
    overlap: float = option(
        0.2,
        'Images of neighbours that a map has beside its own, as a share of these.',
        minimum=0.0,
        maximum=1.0,
    )

    def __post_init__(self) -> None:
        validate(self)


def split_images(count: int, shared: Covisibility, config: SplitConfig) -> list[list[int]]:
    """Split images into parts that share little, and give each part a border of its neighbours.

    Each part is cut in two where the images show the least in common (the second eigenvector of the
    normalised Laplacian orders them), until parts are small enough.

    Args:
        count: Number of images.
        shared: What pairs of images have in common.
        config: Size and overlap of parts.

    Returns:
        Of each part the sorted images; every image is in at least one.
    """
    import scipy.sparse

    num_parts = max(1, round(count / config.images_per_place))
    pairs = np.array(list(shared), np.int64).reshape(-1, 2)
    weights = np.array(list(shared.values()), np.float64)
    graph = scipy.sparse.coo_matrix((weights, (pairs[:, 0], pairs[:, 1])), (count, count))
    graph = (graph + graph.T).tocsr()
    parts = sorted(
        _cut(np.arange(count), graph, num_parts), key=lambda part: float(np.median(part))
    )
    return [_with_border(part, graph, config.overlap) for part in parts]


def shared_points(images: Sequence[MappedImage], num_points: int) -> dict[tuple[int, int], int]:
    """Return how many points each pair of images shows, of pairs that show any."""
    import scipy.sparse

    rows = [np.unique(image.point_idx[image.point_idx >= 0]) for image in images]
    ends = np.r_[0, np.cumsum([len(row) for row in rows])]
    seen = scipy.sparse.csr_matrix(
        (np.ones(ends[-1], np.int32), np.concatenate(rows), ends), (len(images), num_points)
    )
    both = scipy.sparse.triu(seen @ seen.T, k=1).tocoo()
    return dict(
        zip(zip(both.row.tolist(), both.col.tolist(), strict=True), both.data.tolist(), strict=True)
    )


def _cut(
    members: NDArray[np.int64], graph: scipy.sparse.csr_matrix, num_parts: int
) -> list[NDArray[np.int64]]:
    """Cut members into so many parts."""
    if num_parts == 1 or len(members) < 2 * num_parts:
        return [members]
    first_parts = num_parts // 2
    inside = graph[members][:, members]
    order = _ordered(inside)
    position = _cheapest_cut(inside[order][:, order], first_parts / num_parts)
    first, second = members[order[:position]], members[order[position:]]
    return [
        *_cut(np.sort(first), graph, first_parts),
        *_cut(np.sort(second), graph, num_parts - first_parts),
    ]


def _ordered(graph: scipy.sparse.csr_matrix) -> NDArray[np.int64]:
    """Return the order (N,) of images in which those that share much are near each other."""
    import scipy.sparse.csgraph

    count, labels = scipy.sparse.csgraph.connected_components(graph, directed=False)
    # By their first image: what is not connected keeps the order of the log.
    firsts = [int(np.flatnonzero(labels == label)[0]) for label in range(count)]
    parts = []
    for label in np.argsort(firsts):
        members = np.flatnonzero(labels == label)
        values = _second_eigenvector(graph[members][:, members])
        # Its sign is arbitrary: the log goes on as it went before.
        if np.polyfit(members, values, 1)[0] < 0 if len(members) > 1 else False:
            values = -values
        parts.append(members[np.lexsort((members, values))])
    return np.concatenate(parts)


def _second_eigenvector(graph: scipy.sparse.csr_matrix) -> NDArray[np.float64]:
    """Return the second eigenvector (N,) of the normalised Laplacian of a connected graph."""
    import scipy.sparse.linalg

    count = graph.shape[0]
    if count < 3:
        return np.arange(count, dtype=np.float64)
    roots = 1.0 / np.sqrt(np.asarray(graph.sum(axis=1)).ravel())
    scale = scipy.sparse.diags(roots)
    normalised = scale @ graph @ scale
    if count <= _DENSE:
        _, vectors = np.linalg.eigh(normalised.toarray())
        return np.asarray(vectors[:, -2] * roots)
    # The smallest eigenvalues of long corridors lie close together: solving with the matrix tells
    # them apart, multiplying does not. The start is given, so that a log is always split alike.
    laplacian = scipy.sparse.identity(count) - normalised
    start = np.linspace(-1.0, 1.0, count)
    values, vectors = scipy.sparse.linalg.eigsh(
        laplacian.tocsc(), k=2, sigma=-_SHIFT, which='LM', v0=start
    )
    return np.asarray(vectors[:, int(np.argmax(values))] * roots)


def _cheapest_cut(graph: scipy.sparse.csr_matrix, share: float) -> int:
    """Return where to cut ordered images so that the parts share least, near a share of them."""
    count = graph.shape[0]
    upper = graph.tocoo()
    forward = upper.row < upper.col
    crossing = np.zeros(count + 1)
    # A pair (i, j) is cut by all positions i + 1 to j.
    np.add.at(crossing, upper.row[forward] + 1, upper.data[forward])
    np.add.at(crossing, upper.col[forward] + 1, -upper.data[forward])
    crossing = np.cumsum(crossing)
    slack = _SLACK * min(share, 1.0 - share) * count
    low = max(1, int(np.ceil(share * count - slack)))
    high = max(low, min(count - 1, int(share * count + slack)))
    return low + int(np.argmin(crossing[low : high + 1]))


def _with_border(
    part: NDArray[np.int64], graph: scipy.sparse.csr_matrix, overlap: float
) -> list[int]:
    """Return a part with the images of others that show the most of it."""
    seen = np.asarray(graph[:, part].sum(axis=1)).ravel()
    seen[part] = 0
    most = np.argsort(-seen, kind='stable')[: int(overlap * len(part))]
    border = most[seen[most] >= _MIN_SHARED]
    return sorted([*part.tolist(), *border.tolist()])
