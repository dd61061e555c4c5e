"""Pictures of errors against size, written by matplotlib without a display."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kflats.errors import MissingExtraError
from kflats.files import whole_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Curve = tuple[Sequence[float], Sequence[float]]


def new_figure(columns: int) -> tuple[Figure, list[Axes]]:
    """Return a figure with a row of axes.

    Raises
    ------
    MissingExtraError
        If matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError("matplotlib", "report") from error
    figure = Figure(figsize=(6.4 * columns, 4.8), layout="constrained")
    axes = figure.subplots(1, columns, squeeze=False)[0]
    return figure, list(axes)


def draw_curves(
    axes: Axes,
    curves: Mapping[str, Curve],
    *,
    title: str,
    x_label: str,
    y_label: str,
    rings: Container[str] = (),
) -> None:
    """Draw one line with markers per name; the baseline 'SVD' is grey and dashed.

    Those named in ``rings`` lie on others and are drawn as rings around their points.
    """
    for name, (x, y) in curves.items():
        style: dict[str, Any] = {"marker": "o"}
        if name == "SVD":
            style |= {"color": "0.35", "linestyle": "--"}
        if name in rings:
            style |= {"color": "0.1", "linestyle": "", "markersize": 11, "fillstyle": "none"}
        axes.plot(x, y, label=name, **style)
    axes.set_title(title)
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.grid(visible=True, alpha=0.3)
    axes.legend()


def write_figure(figure: Figure, path: Path) -> None:
    """Write a PNG beside ``path`` and move it into place.

    Raises
    ------
    CheckpointError
        If the folder cannot be written.
    """
    with whole_file(path) as partial:
        figure.savefig(partial, dpi=120, format="png")
