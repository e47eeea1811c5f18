"""How figures look, and how they are saved. No backend of Matplotlib is chosen."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedprune.runs import write_bytes

if TYPE_CHECKING:
    from matplotlib.figure import Figure


STYLE: Any = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "svg.hashsalt": "fedprune",  # with no date, equal runs write equal files
}


@contextlib.contextmanager
def styled() -> Iterator[None]:
    """Figures that are made inside look as ours do."""
    import matplotlib

    with matplotlib.rc_context(STYLE):
        yield


def canvas(width: float, height: float, panels: int = 1) -> tuple[Figure, Any]:
    """A figure and its panels beside one another, without any backend: it can be saved only."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(1, panels)


def colour(name: str, where: Any) -> Any:
    """Of a map of colours, at numbers from 0 to 1."""
    import matplotlib

    return matplotlib.colormaps[name](where)


def label_decades(axes: Any) -> None:
    """Labels on a logarithmic axis that do not overlap, whatever its range is."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    low, high = axes.get_xlim()

    def name(x: float, _: int) -> str:
        return f"{x:g}" if 1e-3 <= x < 1e4 else f"{x:.0e}".replace("e+0", "e").replace("e-0", "e-")

    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if high < 60 * low else (1.0,)))
    axes.xaxis.set_major_formatter(FuncFormatter(name))
    axes.xaxis.set_minor_formatter(NullFormatter())


def save(figure: Any, path: Path) -> None:
    """As PNG and as SVG, with nothing in them that differs between equal runs."""
    about: dict[str, Any] = {".png": {"dpi": 200}, ".svg": {"metadata": {"Date": None}}}
    for ending, options in about.items():
        drawn = io.BytesIO()
        figure.savefig(drawn, format=ending[1:], **options)
        write_bytes(path.with_suffix(ending), drawn.getvalue())
