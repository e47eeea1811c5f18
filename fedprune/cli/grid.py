"""Grids of configurations: what ``--grid`` says, the trials that it asks for, and their names.

    uplink.snr_db=0,5,10,20 pruning.ratio=0.3,0.9 seed=0:5

Fields are separated by spaces and named as in the configuration, or by the end of their name where
that is enough (``seed`` for ``run.seed``). Values are separated by commas; ``a:b`` stands for the
integers from a to b - 1. A value of a field that holds a list stands in brackets, as in
``hidden=[8],[8,16]``. The trials are all combinations, the last field changing fastest.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from fedprune import config as cfg

Grid = Mapping[str, Sequence[Any]]
"""dotted path of a field -> its values"""

BOOLEANS = {"true": True, "false": False}
LARGEST = 10_000
"""trials of a sweep"""
LONGEST = 150
"""characters of a trial's name; names of files end at 255"""
SEED = "run.seed"


class Trial(NamedTuple):
    """One combination of a grid's values."""

    name: str
    """from the values alone, fit for a folder: it stays the same when a grid is extended"""
    values: dict[str, Any]
    """dotted path -> value"""


def parse(text: str, config: cfg.Config) -> Grid:
    """What a grid says, with the values in the types of a configuration's fields.

    Raises:
      ConfigError: a field or value that there is not, or that is there twice; an empty grid.
    """
    known = {path: field for path, field, _ in cfg.fields(config)}
    grid: dict[str, tuple[Any, ...]] = {}
    for part in text.split():
        word, equals, listed = part.partition("=")
        if not equals:
            raise cfg.ConfigError(f"--grid: {part!r}: must be FIELD=VALUE,VALUE,...")
        path = _path(word, known, config)
        if path in grid:
            raise cfg.ConfigError(f"--grid: {path} is there twice")
        values = [
            value
            for item in re.split(r",(?![^\[]*\])", listed)
            for value in _values(path, item, known[path])
        ]
        if len(set(values)) < len(values):
            raise cfg.ConfigError(f"--grid: {part}: a value is there twice")
        grid[path] = tuple(values)
    if not grid or math.prod(map(len, grid.values())) > LARGEST:
        raise cfg.ConfigError(f"--grid={text!r}: must have 1 to {LARGEST} trials")
    return grid


def _path(word: str, known: Mapping[str, Any], config: cfg.Config) -> str:
    """The one field that has a name, or whose name ends with it; of several those that mean
    anything for the kinds that the configuration has chosen."""
    found = [path for path in known if path == word] or [
        path for path in known if path.endswith(f".{word}")
    ]
    if len(found) > 1:
        values = {path: value for path, _, value in cfg.fields(config)}
        idle = {p for p, _, by, kinds in cfg.own_fields(config) if values[by] not in kinds}
        found = [path for path in found if path not in idle] or found
    if not found:
        ends = [path.rpartition(".")[2] for path in known]
        close = cfg.suggestion(word, known) or cfg.suggestion(word, ends)
        raise cfg.ConfigError(f"{word}: there is no such field{close}")
    if len(found) > 1:
        raise cfg.ConfigError(f"{word}: is ambiguous, must be one of {', '.join(found)}")
    if found[0] in ("experiment", "variant"):
        raise cfg.ConfigError(f"{found[0]}: cannot be swept, it is a label of the experiment")
    return found[0]


def _values(path: str, text: str, field: dataclasses.Field) -> Sequence[Any]:
    """The values of one item between commas."""
    kind, single = cfg.element_type(field), cfg.one_value(field)
    interval = re.fullmatch(r"(-?\d+):(-?\d+)", text) if single and kind in (int, float) else None
    if interval:
        first, end = map(int, interval.groups())
        if not 0 < end - first <= LARGEST:
            raise cfg.ConfigError(
                f"{path}={text}: must be FIRST:END with FIRST < END and at most {LARGEST} integers"
            )
        return [kind(i) for i in range(first, end)]
    try:
        if single:
            if text == "" and kind is not str:
                raise ValueError
            return [BOOLEANS[text] if kind is bool else kind(text)]
        inside = text[1:-1] if text.startswith("[") and text.endswith("]") else text
        return [tuple(kind(v) for v in inside.split(",") if v)]
    except (ValueError, KeyError):
        raise cfg.ConfigError(f"{path}={text!r}: must be {cfg.describe(field)}") from None


def trials(grid: Grid) -> list[Trial]:
    """All combinations, in order."""
    combined = (dict(zip(grid, one, strict=True)) for one in itertools.product(*grid.values()))
    return [Trial(_name(values), values) for values in combined]


def label(values: Mapping[str, Any]) -> str:
    """Fields and values for people: "uplink.snr_db=5, pruning.ratio=0.3"."""
    return ", ".join(f"{path}={written(value)}" for path, value in values.items())


def _name(values: Mapping[str, Any]) -> str:
    exact = ",".join(f"{path}={written(value)}" for path, value in values.items())
    name = re.sub(r"[^\w.=,+-]", "_", exact)
    if name == exact and len(name) <= LONGEST:
        return name
    return f"{name[:LONGEST]}-{hashlib.sha256(exact.encode()).hexdigest()[:8]}"


def written(value: Any) -> str:
    """A value as short as it can be without losing digits; a list's elements joined by +."""
    if isinstance(value, tuple):
        return "+".join(map(written, value)) or "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        short = f"{value:g}"
        return short if float(short) == value else repr(value)
    return str(value)


def argument(path: str, value: Any) -> str:
    """The launcher's argument that sets a field."""
    if isinstance(value, tuple):
        return f"--config.{path}={','.join(map(str, value))}" + ("," if len(value) == 1 else "")
    return f"--config.{path}={written(value) if isinstance(value, bool) else value}"


def check(config: cfg.Config, grid: Grid, arms: Callable[[Any], Sequence[cfg.Arm]]) -> None:
    """Validates every trial with every arm of it.

    Args:
      config: the common configuration.
      grid: what the trials change.
      arms: configuration -> arms of the experiment.

    Raises:
      ConfigError: the first fault; or a field that no result can depend on.
    """
    unused = set(grid)
    for trial in trials(grid):
        changed = cfg.override(config, trial.values)
        try:
            cfg.validate(changed)
            found = arms(changed)
            cfg.validate_arms(changed, found, trial.values)
        except cfg.ConfigError as e:
            raise cfg.ConfigError(f"{e} (trial {trial.name})") from e
        if not found:
            raise cfg.ConfigError(f"{config.experiment}: has no arms, so there is nothing to sweep")
        for arm in found:
            unused -= {path for path in unused if path not in arm.overrides}
    for path in unused:
        raise cfg.ConfigError(
            f"{path}: every arm of {config.experiment} sets it itself, so that all of its values"
            " would give the same"
        )
