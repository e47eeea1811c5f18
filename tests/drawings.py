"""The texts of a figure, as they are laid out."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox


def texts(figure: Figure) -> Iterator[tuple[str, Bbox]]:
    """(text, its box in pixels) of ticks, labels, titles and legends that are seen."""
    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw(renderer)
    found = [figure._suptitle] if figure._suptitle else []
    for axes in figure.axes:
        if not axes.axison:
            continue
        found += [axes.title, axes._left_title, axes.xaxis.label, axes.yaxis.label]
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            found += [t.label1 for t in axis.get_major_ticks() if low <= t.get_loc() <= high]
            found.append(axis.get_offset_text())
    for legend in [*figure.legends, *filter(None, (a.get_legend() for a in figure.axes))]:
        found += [*legend.get_texts(), legend.get_title()]
    for text in found:
        if text.get_visible() and text.get_text():
            yield text.get_text(), text.get_window_extent(renderer)


def overlaps(found: Sequence[tuple[str, Bbox]]) -> list[tuple[str, str]]:
    """Pairs of texts whose boxes overlap by more than a pixel."""
    pairs = itertools.combinations([(text, box.padded(-0.5)) for text, box in found], 2)
    return [(one, other) for (one, a), (other, b) in pairs if a.overlaps(b)]
