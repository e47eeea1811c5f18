"""Values and numbers as a page has them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from fedprune.report import statistics


def span(values: Sequence[Any]) -> str:
    if not values:
        return "none"
    return str(values[0]) if len(values) == 1 else f"{values[0]} to {values[-1]}"


def interval(values: np.ndarray, digits: int, within: statistics.Range = statistics.ANY) -> str:
    return f"{statistics.interval(values, within):,.{digits}f}"


def number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 or value == int(value) else f"{value:.4g}"


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def value_text(value: Any) -> str:
    """A field's value in words."""
    if isinstance(value, list):
        return ", ".join(map(value_text, value)) or "none"
    if isinstance(value, float):
        return f"{value:g}"
    return "–" if value is None else str(value) or "empty"
