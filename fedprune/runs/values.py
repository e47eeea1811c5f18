"""Plain values, nested as JSON has them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any


def flat(
    values: Mapping[str, Any], separator: str = "/", above: str = ""
) -> Iterator[tuple[str, Any]]:
    """(name, value) of everything in nested mappings; a name is the keys that lead to the value."""
    for key, value in values.items():
        if isinstance(value, dict):
            yield from flat(value, separator, f"{above}{key}{separator}")
        else:
            yield f"{above}{key}", value


def differences(old: Any, new: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """(path, the same in words) of every value that differs."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted({*old, *new}):
            yield from differences(old.get(key), new.get(key), f"{path}.{key}" if path else key)
    elif old != new:
        yield path, f"{path} was {old!r}, is {new!r}"


def relabelled(config: dict[str, Any]) -> dict[str, Any]:
    """A configuration, as plain values, in which an experiment is called by its file's name alone.

    Up to version 0.1 it was the module ``experiments.NAME``. A program of several trials has its
    configuration under the key "config".
    """
    if isinstance(config.get("config"), dict):
        return config | {"config": relabelled(config["config"])}
    if "experiment" not in config:
        return config
    return config | {"experiment": str(config["experiment"]).removeprefix("experiments.")}


def strict(value: Any, infinities: bool = True) -> Any:
    """A value as JSON can have it: NaN is null, and an infinity is its name, or null as well."""
    if isinstance(value, dict):
        return {k: strict(v, infinities) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [strict(v, infinities) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) or not infinities else str(float(value))
    return value
