"""How figures look, and how they are saved. No backend of Matplotlib is chosen."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedprune.report.statistics import Range
from fedprune.runs import write_bytes

if TYPE_CHECKING:
    from matplotlib.figure import Figure


STYLE: Any = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "svg.hashsalt": "fedprune",  # with no date, equal runs write equal files
}
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
"""Okabe and Ito's colours that have contrast with white, told apart by all kinds of colour vision;
dashes tell the lines apart on grey paper."""
DASHES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (1.5, 1)), (0, (6, 1, 1.5, 1)))
MARKERS = "os^DvpX"
"""One more than colours, so that points with a cycle of both are told apart."""
REFERENCE: dict[str, Any] = {"color": "black", "ls": (0, (2, 2)), "zorder": 4}
"""how the arm is drawn with which others are compared"""


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


def line_styles(labels: Sequence[str]) -> list[dict[str, Any]]:
    """Colour and dashes of lines. Lines whose labels agree up to a comma have one colour."""
    families = list(dict.fromkeys(label.split(",")[0] for label in labels))
    seen: dict[str, int] = {}
    styles = []
    for label in labels:
        family = label.split(",")[0]
        i = families.index(family)
        seen[family] = seen.get(family, -1) + 1
        dashes = DASHES[(i // len(COLOURS) + seen[family]) % len(DASHES)]
        styles.append({"color": COLOURS[i % len(COLOURS)], "ls": dashes})
    return styles


def keep_within(axes: Any, within: Range) -> None:
    """No axis, and so no tick, beyond what its values can be."""
    low, high = axes.get_ylim()
    axes.set_ylim(max(low, within[0]), min(high, within[1]))


def label_rounds(axes: Any, rounds: Any, most: int = 5) -> None:
    """An axis of rounds with whole numbers, from the first to the last one."""
    from matplotlib.ticker import MaxNLocator

    first, last = rounds[0], rounds[-1]
    axes.set_xlim((first, last) if last > first else (first - 0.5, last + 0.5))
    axes.xaxis.set_major_locator(MaxNLocator(most, integer=True, steps=[1, 2, 5, 10]))


def label_decades(axes: Any) -> None:
    """Labels on a logarithmic axis that do not overlap, whatever its range is."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    low, high = axes.get_xlim()

    def name(x: float, _: int) -> str:
        return f"{x:g}" if 1e-3 <= x < 1e4 else f"{x:.0e}".replace("e+0", "e").replace("e-0", "e-")

    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if high < 60 * low else (1.0,)))
    axes.xaxis.set_major_formatter(FuncFormatter(name))
    axes.xaxis.set_minor_formatter(NullFormatter())


def legend_above(axes: Any, columns: int, title: str | None = None) -> None:
    """A legend of one panel that covers none of its curves."""
    axes.legend(frameon=False, fontsize=8, title=title, ncols=columns, loc="lower center",
                bbox_to_anchor=(0.5, 1.0))  # fmt: skip


def save(figure: Any, path: Path) -> None:
    """As PNG and as SVG, with nothing in them that differs between equal runs."""
    about: dict[str, Any] = {".png": {"dpi": 200}, ".svg": {"metadata": {"Date": None}}}
    for ending, options in about.items():
        drawn = io.BytesIO()
        figure.savefig(drawn, format=ending[1:], **options)
        write_bytes(path.with_suffix(ending), drawn.getvalue())
