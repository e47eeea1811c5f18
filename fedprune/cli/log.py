"""The flag ``--log``: where the numbers of every round go beside ``metrics.jsonl``.

--log=tensorboard                       the default
--log=none
--log=tensorboard,mlflow --mlflow_uri=sqlite:///mlflow.db
--log=./FILE.py or ./FILE.py:FUNCTION   FUNCTION, else ``writer``, is a ``runs.writers.Open``
"""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from absl import flags

from fedprune import config as cfg
from fedprune.cli import experiments
from fedprune.cli.parse import UsageError
from fedprune.runs import RunDirectory
from fedprune.runs.writers import About, Open, Writer, WriterError, guarded

NAMES = ("tensorboard", "mlflow")
FUNCTION = "writer"
URI = "MLFLOW_TRACKING_URI"


class Choice(NamedTuple):
    """What a command line says of it."""

    names: tuple[str, ...] = ("tensorboard",)
    """of ``NAMES``, and absolute FILE.py:FUNCTION; () is none"""
    mlflow_uri: str | None = None
    """None: that of the environment"""

    def arguments(self) -> list[str]:
        """The flags again, for another process: none for what is the default."""
        words = [] if self.names == Choice().names else [f"--log={','.join(self.names) or 'none'}"]
        return words + ([f"--mlflow_uri={self.mlflow_uri}"] if self.mlflow_uri else [])


def define(values: flags.FlagValues) -> None:
    """The command's flags."""
    about = (
        "where numbers go beside metrics.jsonl: tensorboard, mlflow, ./FILE.py[:FUNCTION], several"
        " separated by commas, or none"
    )
    flags.DEFINE_string("log", "tensorboard", about, flag_values=values)
    about = f"mlflow: sqlite:///FILE.db or a server's http://HOST:PORT; else ${URI}"
    flags.DEFINE_string("mlflow_uri", None, about, flag_values=values)


def chosen(values: flags.FlagValues) -> Choice:
    """What the flags say, checked as far as that takes neither JAX nor a connection.

    Raises:
      UsageError: a name, a file or a flag that cannot be.
    """
    said = values.log
    names = [] if said == "none" else [_name(word, said) for word in said.split(",")]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice:
        raise UsageError(f"--log={said}: names {twice} twice")
    choice = Choice(tuple(names), values.mlflow_uri)
    if "mlflow" not in names and choice.mlflow_uri is not None:
        raise UsageError(f"--mlflow_uri={choice.mlflow_uri}: needs --log=mlflow")
    if "mlflow" in names:
        if importlib.util.find_spec("mlflow") is None:
            raise UsageError(
                f"--log={said}: needs the extra mlflow: pip install 'fedprune[mlflow]'"
            )
        if not (choice.mlflow_uri or os.environ.get(URI)):
            raise UsageError(
                f"--log={said}: must know the store: give --mlflow_uri=sqlite:///mlflow.db, a"
                f" server's http://HOST:PORT, or set {URI}"
            )
    for name in names:
        if name not in NAMES:
            _function(name)
    return choice


def connect(choice: Choice) -> list[Open]:
    """What opens the writers; a store has answered.

    Raises:
      WriterError: it does not.
    """
    return [_open(name, choice.mlflow_uri) for name in choice.names]


def about(
    directory: RunDirectory, config: cfg.Config, arms: Mapping[str, Mapping[str, Any]]
) -> About:
    """What writers are told of a run, given what each arm overrides."""
    label = f"{config.experiment}:{config.variant}" if config.variant else config.experiment
    values = {
        name: {path: value for path, _, value in cfg.fields(cfg.override(config, changes))}
        for name, changes in arms.items()
    }
    return About(directory.id, label, directory.path, values)


def shared(writers: Mapping[str, Writer]) -> Writer:
    """A writer of arms that are called KEY/ARM: the arms ARM of the writers of these keys."""

    def to(pick: Callable[[Writer], Callable[..., Any]]) -> Callable[..., Any]:
        def call(arm: str, *given: Any) -> Any:
            key, _, own = arm.partition("/")
            return pick(writers[key])(own, *given)

        return call

    def close(ended: str) -> None:
        for writer in writers.values():
            writer.close(ended)

    return Writer(to(lambda w: w.begin), to(lambda w: w.write), close)


def _name(word: str, said: str) -> str:
    """A name as ``Choice`` has it."""
    path = re.fullmatch(r"(.+?\.py)(?::(\w+))?", word)
    if path:
        file = Path(os.path.expanduser(path[1])).resolve()
        if not file.is_file():
            raise UsageError(f"--log={said}: there is no such file {path[1]}")
        return f"{file}:{path[2] or FUNCTION}"
    if word not in NAMES:
        near = cfg.suggestion(word, NAMES)
        raise UsageError(
            f"--log={said}: {word!r} must be one of {', '.join(NAMES)}, a ./FILE.py[:FUNCTION], or"
            f" none alone{near}"
        )
    return word


def _function(name: str) -> Open:
    """That of a user's file.

    Raises:
      UsageError: the file cannot be loaded, or has no such function.
    """
    file, _, function = name.rpartition(":")
    try:
        module, _ = experiments.loaded(Path(file))
    except Exception as e:
        raise UsageError(f"--log={file}: cannot be loaded ({type(e).__name__}: {e})") from e
    found = getattr(module, function, None)
    if not callable(found):
        raise UsageError(f"--log={file}: must have a function {function}")
    return found


def _open(name: str, mlflow_uri: str | None) -> Open:
    if name == "tensorboard":
        from fedprune.runs import tensorboard

        return tensorboard.open
    if name == "mlflow":
        from fedprune.runs import mlflow

        return mlflow.connect(mlflow_uri or os.environ[URI])
    function = _function(name)

    def said(error: Exception) -> str:
        file = Path(name.rpartition(":")[0])
        return f"log {name} failed ({experiments.where(error, file)})"

    def open(about: About) -> Writer:
        try:
            made = function(about)
        except Exception as e:
            raise WriterError(said(e)) from e
        if not isinstance(made, Writer):
            raise WriterError(f"log {name}: must return a fedprune Writer, not {made!r}")
        return guarded(made, said)

    return open
