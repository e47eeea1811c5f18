"""Fields of a configuration: each knows its meaning, unit and range, and how to say so."""

import copy
import dataclasses
import difflib
import inspect
import math
import re
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import field
from functools import partial
from typing import Any, NamedTuple, get_args


class ConfigError(ValueError):
    """A bad configuration; one line that names the field, its value and what is allowed."""


def require(condition: bool, message: str) -> None:
    """Refuses fields that do not fit each other.

    Raises:
      ConfigError: the condition does not hold.
    """
    if not condition:
        raise ConfigError(message)


class Kind(NamedTuple):
    """What one name of a choice stands for: the line by which something is added."""

    build: Callable[..., Any]
    """gives the thing; see the table for what it is given"""
    part: str = ""
    """the part of the section that has the fields of this kind alone; empty: it has none"""


def spec(
    default: Any,
    meaning: str,
    *,
    low: float | None = None,
    high: float | None = None,
    above: float | None = None,
    below: float | None = None,
    choices: Iterable[str] | None = None,
    unit: str = "",
    traced: bool = False,
    resumes: bool = False,
    of: tuple[str, ...] = (),
) -> Any:
    """A field with its meaning, unit and range: low <= value <= high, above < value < below.

    Args:
      default: its value.
      meaning: in words.
      low, high, above, below: limits.
      choices: names that are allowed, such as a table of kinds.
      unit: of the value.
      traced: a number that may differ between the arms of one compiled program.
      resumes: a run may go on with another value: neither the shapes nor the meaning of a
        checkpoint depend on it.
      of: (chooser, kinds...): another field of the section, and those of its values for which this
        field means anything.
    """
    limits = {"low": low, "high": high, "above": above, "below": below}
    names = None if choices is None else tuple(choices)
    kinds = dict(choices) if isinstance(choices, Mapping) else {}
    words = {"meaning": meaning, "unit": unit, "traced": traced, "resumes": resumes, "of": of}
    return field(default=default, metadata={**words, **limits, "choices": names, "kinds": kinds})


free = partial(spec, resumes=True)
"""A field with another value of which a run may go on."""


def part(chooser: str, section: type) -> Any:
    """The fields that only some kinds have, those whose ``Kind.part`` is the name of this one.

    Args:
      chooser: the field of the same section that chooses the kind.
      section: the dataclass of the fields.
    """
    return field(default_factory=section, metadata={"of": (chooser,)})


def section(kind: type) -> Any:
    """A section of the configuration."""
    return field(default_factory=kind, metadata={"of": ()})


# Reading and changing -----


def fields(config: Any, prefix: str = "") -> Iterator[tuple[str, dataclasses.Field, Any]]:
    """Every leaf field as (dotted path, field, value)."""
    for f in dataclasses.fields(config):
        value = getattr(config, f.name)
        if dataclasses.is_dataclass(value):
            yield from fields(value, f"{prefix}{f.name}.")
        else:
            yield prefix + f.name, f, value


def override(config: Any, values: Mapping[str, Any]) -> Any:
    """A copy with some fields changed, by dotted path; values may be tracers.

    Raises:
      ConfigError: an unknown path.
    """
    known = [path for path, _, _ in fields(config)]
    config = copy.deepcopy(config)
    for path, value in values.items():
        if path not in known:
            raise ConfigError(f"{path}: there is no such field{suggestion(path, known)}")
        *parents, name = path.split(".")
        owner = config
        for parent in parents:
            owner = getattr(owner, parent)
        setattr(owner, name, value)
    return config


def traced_paths(config: Any) -> set[str]:
    """Paths of the fields that may differ between the arms of one program."""
    return {path for path, f, _ in fields(config) if f.metadata.get("traced")}


def resumable(config: Any, prefix: str = "") -> tuple[str, ...]:
    """Paths of the fields with other values of which a run may go on; ``section.*`` for all of a
    section's."""
    found: list[str] = []
    for f in dataclasses.fields(config):
        value, path = getattr(config, f.name), prefix + f.name
        if not dataclasses.is_dataclass(value):
            found += [path] if f.metadata.get("resumes") else []
        elif all(leaf.metadata.get("resumes") for _, leaf, _ in fields(value)):
            found.append(f"{path}.*")
        else:
            found += resumable(value, f"{path}.")
    return tuple(found)


def to_json(config: Any) -> dict[str, Any]:
    """The configuration as plain nested values."""
    return dataclasses.asdict(config)


def from_json(config: Any, values: Mapping[str, Any]) -> Any:
    """A copy with every field as in plain nested values, such as ``to_json`` gives.

    Raises:
      ConfigError: a field that only one of the two has.
    """

    def leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
        for name, value in values.items():
            if isinstance(value, Mapping):
                yield from leaves(value, f"{prefix}{name}.")
            else:
                yield prefix + name, value

    given, known = dict(leaves(values)), {path for path, _, _ in fields(config)}
    for path in sorted(given.keys() ^ known):
        where = "its values" if path in given else "this version of fedprune"
        raise ConfigError(f"{path}: is a field of {where} only")
    return override(config, with_tuples(config, given))


def with_tuples(config: Any, values: Mapping[str, Any]) -> dict[str, Any]:
    """Values of fields by dotted path, in which JSON's lists are the fields' tuples."""
    several = {path for path, f, _ in fields(config) if not one_value(f)}
    return {path: tuple(value) if path in several else value for path, value in values.items()}


def own_fields(config: Any) -> Iterator[tuple[str, dataclasses.Field, str, tuple[str, ...]]]:
    """Every leaf field that only some kinds have: (path, field, path of what chooses, kinds)."""

    def within(section: Any, prefix: str) -> Iterator[Any]:
        known = {f.name: f for f in dataclasses.fields(section)}
        for f in known.values():
            value, (chooser, *kinds) = getattr(section, f.name), (f.metadata.get("of") or ("",))
            if not dataclasses.is_dataclass(value):
                if chooser:
                    yield prefix + f.name, f, prefix + chooser, tuple(kinds)
                continue
            if chooser:
                table = known[chooser].metadata["kinds"]
                kinds = [name for name, kind in table.items() if kind.part == f.name]
                for path, leaf, _ in fields(value, f"{prefix}{f.name}."):
                    yield path, leaf, prefix + chooser, tuple(kinds)
            yield from within(value, f"{prefix}{f.name}.")

    yield from within(config, "")


# In words -----


def describe(f: dataclasses.Field) -> str:
    """What a field allows, in words."""
    m = f.metadata
    if m.get("choices"):
        one = "one of " + ", ".join(m["choices"])
        return one if one_value(f) else f"a list, each {one}"
    words = {
        "low": "at least {}",
        "above": "above {}",
        "high": "at most {}",
        "below": "below {}",
    }
    ends = {name: m[name] for name in words if m.get(name) is not None}
    bounds = [words[name].format(_short(end)) for name, end in ends.items()]
    kinds = {bool: "true or false", int: "an integer", float: "a number", str: "a string"}
    one = kinds[element_type(f)]
    return " and ".join([one if one_value(f) else f"a list, each {one}", *bounds])


def _short(number: float) -> str:
    """1,000,000 for integers, 1e6 for floats."""
    return f"{number:,}" if isinstance(number, int) else re.sub(r"e\+?0*", "e", f"{number:g}")


def explain(config: Any) -> str:
    """Every field of a configuration, by section: its value, unit, meaning and what it allows."""
    only = {path: (chooser, kinds) for path, _, chooser, kinds in own_fields(config)}
    blocks: dict[str, list[str]] = {}
    for path, f, value in fields(config):
        unit = f" {f.metadata['unit']}" if f.metadata["unit"] else ""
        text = f"{f.metadata['meaning']}. Must be {describe(f)}."
        if path in only:
            chooser, kinds = only[path]
            text += f" Only for {chooser}={' or '.join(kinds)}."
        about = textwrap.fill(
            text, 96, initial_indent="    ", subsequent_indent="    ", break_on_hyphens=False
        )
        blocks.setdefault(path.rpartition(".")[0], []).append(
            f"  {path} = {value!r}{unit}\n{about}"
        )
    lines = []
    for name, entries in blocks.items():
        owner = config
        for step in filter(None, name.split(".")):
            owner = getattr(owner, step)
        lines += [inspect.getdoc(owner) or "", *entries, ""]
    return "\n".join(lines)


def suggestion(word: Any, known: Iterable[str]) -> str:
    """`` (did you mean X?)`` for what is close to a word, or has the same last part; or nothing."""
    known, last = list(known), str(word).rpartition(".")[2]
    close = difflib.get_close_matches(str(word), known, n=1)
    close = close or [path for path in known if path.rpartition(".")[2] == last]
    return f" (did you mean {close[0]}?)" if close else ""


# One field by itself -----


def one_value(f: dataclasses.Field) -> bool:
    """Whether a field holds one value, and not a tuple of them."""
    return not get_args(f.type)


def element_type(f: dataclasses.Field) -> type:
    """bool, int, float or str: of the field, or of a tuple field's elements."""
    kind: Any = f.type if one_value(f) else get_args(f.type)[0]
    return kind


def check_each(config: Any) -> None:
    """Checks every field by itself.

    Raises:
      ConfigError: the first fault.
    """
    for path, f, value in fields(config):
        single = one_value(f)
        values = (value,) if single else value
        if not (single or isinstance(value, tuple)) or not all(
            _right_type(f, v) and _in_range(f, v) for v in values
        ):
            close = "".join(_suggestions(f, value))
            raise ConfigError(f"{path}={value!r}: must be {describe(f)}{close}")


def _suggestions(f: dataclasses.Field, value: Any) -> list[str]:
    known = f.metadata["choices"] or ()
    words = value if isinstance(value, tuple) else (value,)
    return [suggestion(word, known) for word in words if word not in known]


def _right_type(f: dataclasses.Field, value: Any) -> bool:
    kind = element_type(f)
    allowed = int | float if kind is float else kind
    finite = not isinstance(value, float) or math.isfinite(value)
    return isinstance(value, allowed) and isinstance(value, bool) == (kind is bool) and finite


def _in_range(f: dataclasses.Field, value: Any) -> bool:
    m = f.metadata
    return (
        (m.get("choices") is None or value in m["choices"])
        and (m.get("low") is None or value >= m["low"])
        and (m.get("high") is None or value <= m["high"])
        and (m.get("above") is None or value > m["above"])
        and (m.get("below") is None or value < m["below"])
    )
