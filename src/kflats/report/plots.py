"""Pictures of errors against size, written by matplotlib without a display."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from kflats.errors import MissingExtraError
from kflats.files import whole_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Curve = tuple[Sequence[float], Sequence[float]]


def new_figure(panels: int, *, columns: int = 4) -> tuple[Figure, list[Axes]]:
    """Return a figure with axes for so many panels, at most ``columns`` in a row.

    Raises
    ------
    MissingExtraError
        If matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError("matplotlib", "report") from error
    columns = min(columns, panels)
    rows = -(-panels // columns)
    figure = Figure(figsize=(6.4 * columns, 4.8 * rows), layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for unused in axes[panels:]:
        figure.delaxes(unused)
    return figure, axes[:panels]


def draw_curves(
    axes: Axes,
    curves: Mapping[str, Curve],
    *,
    title: str,
    x_label: str,
    y_label: str,
    rings: Container[str] = (),
    spreads: Mapping[str, Sequence[float]] = MappingProxyType({}),
) -> None:
    """Draw one line with markers per name; the baseline 'SVD' is grey and dashed.

    Those named in ``rings`` lie on others and are drawn as rings around their points. ``spreads``
    has the length of an error bar, up and down, for every point of a line.
    """
    for name, (x, y) in curves.items():
        style: dict[str, Any] = {"marker": "o"}
        if name == "SVD":
            style |= {"color": "0.35", "linestyle": "--"}
        if name in rings:
            style |= {"color": "0.1", "linestyle": "", "markersize": 11, "fillstyle": "none"}
        if name in spreads:
            style |= {"yerr": spreads[name], "elinewidth": 1, "capsize": 3}
        axes.errorbar(x, y, label=name, **style)
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
