"""Experiments are files: where they are found, and how one becomes a module.

A file has ``get_config(variant)``, whose argument has a default, ``arms(config)`` and
``report(config, rows, folder)``; ``VARIANTS`` may name its variants, for lists and refusals. It may
have ``model(config, dataset)``, which makes a network of its own: then ``model.name`` is "own",
unless a flag or an arm says otherwise; ``structure(params)`` says what of that can be pruned as a
whole. It is given as

    NAME[:VARIANT]             one that ships with fedprune
    path/to/FILE.py[:VARIANT]  any other, from anywhere

and loaded once, from the bytes whose hash is recorded. The module is passed on: nothing is
imported by the name that stands in a configuration. It has a name of its own in ``sys.modules``, so
a file may be called as a module of Python or as an experiment that ships, and hides neither. The
file's folder comes last in Python's search path, for modules of the user's beside it.
"""

from __future__ import annotations

import ast
import dataclasses
import hashlib
import importlib.util
import inspect
import os
import re
import sys
import traceback
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from fedprune import config as cfg

if TYPE_CHECKING:
    from fedprune import build, data
    from fedprune.types import Model

FUNCTIONS = ("get_config", "arms", "report")
_OLD = "experiments."
"""before the names of experiments, in what versions up to 0.1 have recorded"""
T = TypeVar("T")


class ExperimentError(Exception):
    """An experiment that is not there or cannot be used; the message is one line."""


class Experiment(NamedTuple):
    """A file that has been loaded, and one of its variants."""

    name: str
    """the file's, without its ending"""
    variant: str
    file: Path
    """absolute"""
    sha256: str
    """of the file's bytes"""
    module: ModuleType

    def given(self) -> str:
        """How a command line names it, from any folder."""
        name = self.name if self.file.parent == folder() else str(self.file)
        return f"{name}:{self.variant}" if self.variant else name

    def origin(self) -> dict[str, str | None]:
        """What a run directory records of it; those that ship are found by their name again."""
        own = None if self.file.parent == folder() else str(self.file)
        return {"name": self.name, "file": own, "sha256": self.sha256}

    def arms(self, config: cfg.Config) -> list[cfg.Arm]:
        """Its arms.

        Raises:
          ConfigError: a value of the configuration that the arms cannot have.
          ExperimentError: there is a fault in the file.
        """
        try:
            found = list(self.module.arms(config))
        except cfg.ConfigError:
            raise
        except Exception as e:
            said = where(e, self.file)
            raise ExperimentError(f"{self.file}: its arms cannot be made ({said})") from e
        for arm in found:
            if not isinstance(arm, cfg.Arm):
                raise ExperimentError(f"{self.file}: its arms must be fedprune Arms, not {arm!r}")
        return found

    def own(self) -> build.Own | None:
        """Its network, if it has one of its own. A network that is asked for is refused with an
        ExperimentError if it is no ``Model``, or there is a fault in it."""
        from fedprune import build

        if not callable(getattr(self.module, "model", None)):
            return None
        structure = getattr(self.module, "structure", None)
        return build.Own(self._model, structure if callable(structure) else None)

    def _model(self, config: cfg.Config, dataset: data.Dataset) -> Model:
        import jax

        from fedprune.types import Model

        try:
            made = self.module.model(config, dataset)
            if isinstance(made, Model):  # and it takes the examples
                example = jax.ShapeDtypeStruct((1, *dataset.x_train.shape[1:]), "float32")
                params = jax.eval_shape(made.init, jax.random.key(0))
                jax.eval_shape(made.apply, params, example)
                return made
        except cfg.ConfigError:
            raise
        except Exception as e:
            said = where(e, self.file)
            raise ExperimentError(f"{self.file}: its model cannot be made ({said})") from e
        raise ExperimentError(f"{self.file}: its model must return a fedprune Model, not {made!r}")

    def report(self, config: cfg.Config, rows: Sequence[Mapping[str, Any]], folder: Path) -> str:
        """Its report, which is written; returns the text to print."""
        os.environ.setdefault("MPLBACKEND", "Agg")  # of a file that leaves it to Matplotlib
        return self.module.report(config, rows, folder) or ""


class About(NamedTuple):
    """What a file says of itself without being loaded."""

    name: str
    summary: str
    variants: tuple[str, ...]


# Finding -----


def folder() -> Path:
    """Where the experiments are that ship: in the package, or beside it in a checkout."""
    package = Path(__file__).resolve().parents[1]
    inside = package / "experiments"
    return inside if inside.is_dir() else package.parent / "experiments"


def shipped() -> list[About]:
    """The experiments that ship, by name."""
    found = (about(file) for file in sorted(folder().glob("*.py")))
    return [experiment for experiment in found if experiment is not None]


def about(file: Path) -> About | None:
    """What a file says of itself; None if it is no experiment."""
    text = file.read_text(encoding="utf-8")
    if "def get_config" not in text:
        return None
    tree, variants = ast.parse(text), ()
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and node.name == "get_config" and not variants:
            variants = tuple(map(ast.literal_eval, node.args.defaults))
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "VARIANTS":
            variants = ast.literal_eval(node.value)
    summary = (ast.get_docstring(tree) or "").partition("\n\n")[0]
    return About(file.stem, " ".join(summary.split()), variants)


def docstring(file: Path) -> str:
    """What a file says of itself at its top, without being loaded; "" if it cannot be read."""
    try:
        return ast.get_docstring(ast.parse(file.read_bytes())) or ""
    except (SyntaxError, ValueError):
        return ""


def find(given: str, said: str) -> tuple[Path, str | None]:
    """(file, variant) of ``NAME[:VARIANT]`` or ``FILE.py[:VARIANT]``.

    Raises:
      ExperimentError: there is no such file; ``said`` is how it was asked for.
    """
    path = re.fullmatch(r"(.+?\.py)(?::(.*))?", given, re.DOTALL)
    if path:
        file = Path(path[1])
        with_home = Path(os.path.expanduser(path[1]))
        if not with_home.is_file():
            near = cfg.suggestion(file, map(str, file.parent.glob("*.py")))
            raise ExperimentError(f"{said}: there is no such experiment file{near}")
        return with_home.resolve(), path[2]
    name, colon, variant = given.partition(":")
    known = [experiment.name for experiment in shipped()]
    if name in known:
        return folder() / f"{name}.py", variant if colon else None
    if Path(f"{name}.py").is_file():
        raise ExperimentError(
            f"{said}: there is no such experiment; a file of your own is given as ./{name}.py"
        )
    near = cfg.suggestion(name, known)
    raise ExperimentError(
        f"{said}: there is no such experiment{near}; must be a FILE.py or one of {', '.join(known)}"
    )


# Loading -----


def load(given: str, said: str | None = None) -> tuple[Experiment, cfg.Config]:
    """An experiment, and the configuration of its variant, which is labelled with both.

    Args:
      given: as ``find`` takes it.
      said: how it was asked for, for errors; None: as ``given``.

    Raises:
      ExperimentError: there is none, or the file has a fault.
      ConfigError: what the file itself refuses, as a variant that it has not.
    """
    said = said or given
    file, variant = find(given, said)
    module, sha256 = _guarded(said, lambda: loaded(file))
    get_config = getattr(module, "get_config", None)
    if not callable(get_config):
        raise ExperimentError(f"{said}: must have a function get_config")
    arguments = [] if variant is None else [variant]
    try:
        inspect.signature(get_config).bind(*arguments)
    except TypeError:
        fault = "no variants" if arguments else "no default variant, so one must be named"
        raise ExperimentError(f"{said}: its get_config has {fault}") from None
    allowed = getattr(module, "VARIANTS", arguments)
    if variant is not None and variant not in allowed:
        names = ", ".join(map(str, allowed))
        names = names if len(allowed) == 1 else f"one of {names}"
        raise ExperimentError(f"variant {variant!r} of {file.stem}: must be {names}")
    config = _guarded(said, lambda: get_config(*arguments))
    if not isinstance(config, cfg.Config):
        raise ExperimentError(
            f"{said}: its get_config must return a fedprune Config, not {config!r}"
        )
    _guarded(said, lambda: _resolve(type(config)))
    for name in FUNCTIONS:
        if not callable(getattr(module, name, None)):
            raise ExperimentError(f"{said}: must have a function {name}")
    if callable(getattr(module, "model", None)):
        default = cfg.Model().name
        if config.model.name not in (default, cfg.OWN):
            raise ExperimentError(
                f"{said}: has a function model, but its get_config sets"
                f" model.name={config.model.name!r}; must leave it alone, or set {cfg.OWN!r}"
            )
        config.model.name = cfg.OWN
    config.experiment = file.stem
    config.variant = config.variant if variant is None else variant
    return Experiment(file.stem, config.variant, file, sha256, module), config


def loaded(file: Path) -> tuple[ModuleType, str]:
    """The module that a file's bytes make, and their hash."""
    code = file.read_bytes()
    sha256, place = hashlib.sha256(code).hexdigest(), hashlib.sha256(str(file).encode()).hexdigest()
    name = f"_experiment_{re.sub(r'[^0-9a-zA-Z]', '_', file.stem)}_{place[:8]}_{sha256[:8]}"
    if name in sys.modules:
        return sys.modules[name], sha256
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    if file.parent != folder() and str(file.parent) not in sys.path:
        sys.path.append(str(file.parent))
    try:  # not by the loader, whose cache may be that of an older file
        exec(compile(code, str(file), "exec", dont_inherit=True), vars(module))
    except BaseException:
        del sys.modules[name]
        raise
    return module, sha256


def _resolve(kind: type) -> None:
    """Gives the fields of a configuration their types where the file postponed them, as with
    ``from __future__ import annotations``: ranges and flags need types, and not their names."""
    if any(isinstance(field.type, str) for field in dataclasses.fields(kind)):
        found = typing.get_type_hints(kind)
        for field in dataclasses.fields(kind):
            field.type = found[field.name]
    for field in dataclasses.fields(kind):
        if dataclasses.is_dataclass(field.type) and isinstance(field.type, type):
            _resolve(field.type)


def _guarded(said: str, fn: Callable[[], T]) -> T:
    """What a function of a user's file returns; its faults are one line."""
    try:
        return fn()
    except cfg.ConfigError:
        raise
    except SystemExit as e:
        raise ExperimentError(f"{said}: must return a Config, and exits with {e.code}") from e
    except Exception as e:
        raise ExperimentError(f"{said}: cannot be loaded ({type(e).__name__}: {e})") from e


def where(error: Exception, file: Path) -> str:
    """An error in words, with the last line of a file on the way to where it was raised; without
    one, the line that raised it."""
    frames = traceback.extract_tb(error.__traceback__)
    at = ([frame for frame in frames if frame.filename == str(file)] or frames)[-1]
    return f"{type(error).__name__}: {error}, in {Path(at.filename).name}:{at.lineno}"


# What was recorded -----


def recorded(
    origin: Mapping[str, Any] | None, config: Mapping[str, Any], said: str, otherwise: str
) -> str:
    """What ``load`` takes, of an experiment that a directory has recorded.

    Args:
      origin: ``Experiment.origin``; None in directories of versions up to 0.1, which have shipped
        experiments by name.
      config: the configuration, as plain values.
      said: names the directory, for errors.
      otherwise: how to say where it is.

    Raises:
      ExperimentError: it is not there.
    """
    name = origin["name"] if origin else str(config.get("experiment", "")).removeprefix(_OLD)
    own = origin["file"] if origin else None
    if own is not None and not Path(own).is_file():
        raise ExperimentError(f"{said}: its experiment {own} is not there any more; {otherwise}")
    if own is None and name not in [experiment.name for experiment in shipped()]:
        raise ExperimentError(f"{said}: its experiment {name!r} is none that ships; {otherwise}")
    variant = config.get("variant")
    return f"{own or name}:{variant}" if variant else own or name


def restored(config: cfg.Config, values: Mapping[str, Any], said: str) -> cfg.Config:
    """A configuration with the values that were recorded.

    Raises:
      ExperimentError: it has a field that it had not then; ``said`` names file and directory.
    """
    changes = {}
    for path, _, _ in cfg.fields(config):
        value: Any = values
        for part in path.split("."):
            if part not in value:
                raise ExperimentError(f"{said} has the field {path}, which it had not then")
            value = value[part]
        changes[path] = tuple(value) if isinstance(value, list) else value
    return cfg.override(config, changes | {"experiment": config.experiment})
