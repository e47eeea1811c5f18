"""From a command line to an experiment, its configuration and flags, or a line of what is wrong.

Flags are absl's, and ``--config.FIELD=VALUE`` is read by ``ml_collections``. The experiment is a
word without a flag, or the value of ``--config``. Every command has flags of its own, so nothing is
global.
"""

from __future__ import annotations

import itertools
import logging
import textwrap
from collections.abc import Callable, Sequence
from typing import NamedTuple

from absl import flags
from ml_collections import config_flags

from fedprune import config as cfg
from fedprune.cli import experiments
from fedprune.cli.experiments import Experiment

EXAMPLE = "give the name of one that ships, or a file of your own, as ./mine.py"
WIDTH = 79
"""columns of a line of help"""
LABELS = ("experiment", "variant")
"""fields that say what the command line has named"""


class UsageError(Exception):
    """A command line that cannot be used; the message is one line."""


class Given(NamedTuple):
    """A command line that has been read."""

    experiment: Experiment | None
    config: cfg.Config | None
    """the experiment's, with the changes"""
    changes: tuple[str, ...]
    """as --config.FIELD=VALUE"""
    values: flags.FlagValues
    """of the command's own flags"""


Define = Callable[[flags.FlagValues], None]
"""declares a command's flags"""


def parse(argv: Sequence[str], define: Define) -> Given:
    """What a command line asks for; ``argv[0]`` is the program.

    Raises:
      UsageError: anything wrong with the command line.
      ExperimentError, ConfigError: an experiment that is not there or cannot be used.
    """
    values = flags.FlagValues()
    define(values)
    named, changes, rest = _sorted(argv, values)
    if len(named) > 1:
        raise UsageError(
            f"{named[1][0]}: one experiment at a time, which is {named[0][0]}; all else are flags,"
            " as --name=value"
        )
    logging.getLogger("absl").setLevel(logging.ERROR)  # it warns of what is an error below
    experiment = config = None
    if named:
        experiment, config = experiments.load(named[0][1], named[0][0])
    elif changes:
        raise UsageError(f"{changes[0]}: needs an experiment: {EXAMPLE}")
    if config is not None:
        known = {path: field for path, field, _ in cfg.fields(config)}
        for change in changes:
            path = change.removeprefix("--config.").partition("=")[0]
            if path in LABELS:
                raise UsageError(f"{change}: cannot be set, the experiment that is named sets it")
            if path not in known:
                near = cfg.suggestion(path, known)
                raise UsageError(f"{change}: there is no such field{near}")
    try:
        if config is not None:
            config_flags.DEFINE_config_dataclass(
                "config", config, flag_values=values, sys_argv=changes
            )
        values([argv[0], *rest, *changes])
    except Exception as e:  # absl and ml_collections raise many kinds
        raise UsageError(_explained(e, config, changes)) from e
    if config is not None:
        config = values.config
    return Given(experiment, config, tuple(changes), values)


def _sorted(
    argv: Sequence[str], values: flags.FlagValues
) -> tuple[list[tuple[str, str]], list[str], list[str]]:
    """The words of a command line: experiments as (as it is said, as it is found), changes of the
    configuration, and all else.

    Raises:
      UsageError: a file of flags cannot be read.
    """
    named: list[tuple[str, str]] = []
    changes, rest = [], []
    try:
        words = iter(values.read_flags_from_files(list(argv[1:]), force_gnu=True))
    except flags.Error as e:
        raise UsageError(str(e)) from e
    for word in words:
        if not word.startswith("-"):
            named.append((word, word))
            continue
        name, equals, value = word.lstrip("-").partition("=")
        if name == "config" or name.startswith("config."):
            value = value if equals else next(words, "")
            if name == "config":
                named.append((f"--config={value}", value))
            else:
                changes.append(f"--{name}={value}")
            continue
        rest.append(word)
        if not equals and name in values and not values[name].boolean:
            rest.extend(itertools.islice(words, 1))
    return named, changes, rest


def _explained(error: Exception, config: cfg.Config | None, changes: Sequence[str]) -> str:
    """One line for what absl or ml_collections raised."""
    text = str(error)
    known = {} if config is None else {path: field for path, field, _ in cfg.fields(config)}
    for change in changes:
        path, _, value = change.removeprefix("--config.").partition("=")
        if f"--config.{path}={value}" in text:
            return f"{path}={value!r}: must be {cfg.describe(known[path])}"
    return text


# Help -----


def wants_help(argv: Sequence[str]) -> bool:
    return any(word in ("--help", "-help", "-h", "--helpfull", "-?") for word in argv[1:])


def help_text(argv: Sequence[str], usage: str, about: str, define: Define) -> str:
    """What ``--help`` prints: how a command is called, its flags, and what the experiment that is
    named says of itself."""
    values = flags.FlagValues()
    define(values)
    call = f"usage: {argv[0]} {usage}"
    lines = [*wrapped(call, after="    "), "", *wrapped(about), "", "flags:"]
    for name in values:
        flag = values[name]
        default = "" if flag.default in (None, False, []) else f" (default: {flag.default})"
        kind = "" if flag.boolean else "=VALUE"
        lines.append(f"  --{name}{kind}")
        lines += wrapped(f"{flag.help}{default}", before="      ")
    for name, value in _sorted(argv, values)[0]:
        file, _ = experiments.find(value, name)
        lines += ["", f"{name}:", "", textwrap.indent(experiments.docstring(file), "  ")]
    return "\n".join(lines)


def wrapped(text: str, before: str = "", after: str | None = None) -> list[str]:
    """Lines that an ordinary terminal does not break.

    Args:
      text: one paragraph.
      before: in front of the first line.
      after: in front of the others; None: as ``before``.
    """
    return textwrap.wrap(
        " ".join(text.split()),
        WIDTH,
        initial_indent=before,
        subsequent_indent=before if after is None else after,
        break_long_words=False,
        break_on_hyphens=False,
    )
