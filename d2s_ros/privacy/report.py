"""The attack's pictures side by side, as PNG and as a page, and its figures as JSON."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from d2s_ros.errors import InputError
from d2s_ros.evaluation.report import write_page
from d2s_ros.privacy.metrics import Likeness, Picture, to_table

#: Photographs on the PNG that shows all kinds.
_SHOWN = 4
TRUTH = 'photograph'


@dataclass(frozen=True, eq=False)
class Found:
    """What the attack made of one kind of content.

    Attributes:
        name, meaning, dim: Of the content.
        points: Median number of points of a photograph.
        pictures: By name of the photograph.
        likeness: Of each picture, by the same names.
        steps, loss: Of the training.
    """

    name: str
    meaning: str
    dim: int
    points: float
    pictures: dict[str, Picture]
    likeness: dict[str, Likeness]
    steps: int
    loss: float

    def figures(self) -> dict[str, Any]:
        """Return the row of the report."""
        return {
            'meaning': self.meaning,
            'dim': self.dim,
            'points': self.points,
            'photographs': len(self.likeness),
            **Likeness.mean(list(self.likeness.values())).rounded(),
            'steps': self.steps,
            'loss': round(self.loss, 4),
        }


def document(
    found: Sequence[Found],
    blank: Mapping[str, Likeness],
    *,
    maps: Sequence[str],
    options: dict[str, Any],
    own_photographs: int,
) -> dict[str, Any]:
    """Return the report as JSON types.

    Args:
        found: What the attack made of each kind.
        blank: How alike an even grey picture is, by photograph.
        maps: Names of the maps.
        options: Of the attack.
        own_photographs: Number of the attacker's photographs.
    """
    return {
        'maps': list(maps),
        'attack': options,
        'attacker_photographs': own_photographs,
        'blank': Likeness.mean(list(blank.values())).rounded(),
        'kinds': {item.name: item.figures() for item in found},
        'photographs': {
            name: {
                item.name: item.likeness[name].rounded() for item in found if name in item.likeness
            }
            for name in blank
        },
    }


def write(
    folder: Path,
    report: dict[str, Any],
    found: Sequence[Found],
    truths: Mapping[str, Picture],
) -> None:
    """Write report.json, table.md, pictures.png and report.html.

    Raises:
        InputError: the folder cannot be written.
    """
    table = to_table(report['kinds'])
    blank = report['blank']
    rows = [
        ('', 'PSNR [dB] / SSIM / MAE / feature distance / gradient correlation'),
        *((name, _cells(row)) for name, row in report['kinds'].items()),
        ('nothing (even grey)', _cells(blank)),
        *((name, row['meaning']) for name, row in report['kinds'].items()),
    ]
    names = list(truths)
    shown = [
        names[index]
        for index in np.unique(np.linspace(0, len(names) - 1, min(_SHOWN, len(names))).round())
        .astype(int)
        .tolist()
    ]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / 'report.json').write_text(json.dumps(report, indent=1) + '\n')
        (folder / 'table.md').write_text(table)
        (folder / 'pictures.png').write_bytes(draw(found, truths, shown))
        write_page(
            folder / 'report.html',
            f'What {" and ".join(report["maps"])} give away',
            rows,
            [(name, draw(found, truths, [name])) for name in names],
        )
    except OSError as error:
        raise InputError(f'cannot write {folder}: {error.strerror}') from error


def _cells(row: Mapping[str, Any]) -> str:
    return (
        f'{row["psnr_db"]:.2f} / {row["ssim"]:.3f} / {row["mae"]:.3f} / '
        f'{row["feature_distance"]:.3f} / {row["gradient_correlation"]:.2f}'
    )


def draw(found: Sequence[Found], truths: Mapping[str, Picture], names: Sequence[str]) -> bytes:
    """Return a PNG: a row for each photograph, a column for it and for each kind of content."""
    from matplotlib.figure import Figure

    height, width = truths[names[0]].shape
    columns = 1 + len(found)
    figure = Figure(
        figsize=(1.9 * columns, (1.9 * height / width) * len(names) + 0.5), layout='constrained'
    )
    panels = figure.subplots(len(names), columns, squeeze=False)
    for number, (row, name) in enumerate(zip(panels, names, strict=True)):
        pictures: list[tuple[str, NDArray[np.float32] | None]] = [
            (TRUTH, truths[name]),
            *((item.name, item.pictures.get(name)) for item in found),
        ]
        for axes, (title, picture) in zip(row, pictures, strict=True):
            axes.set_axis_off()
            if number == 0:
                axes.set_title(title, fontsize=8)
            if picture is not None:
                axes.imshow(picture, cmap='gray', vmin=0, vmax=1, interpolation='nearest')
    buffer = io.BytesIO()
    figure.savefig(buffer, format='png', dpi=100)
    return buffer.getvalue()
