"""A whole configuration, its arms, and whether both may be run."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fedprune.config import data, downlink, edges, machine, model, pruning, training, uplink
from fedprune.config.data import Data
from fedprune.config.downlink import Downlink
from fedprune.config.edges import Edges
from fedprune.config.fields import (
    ConfigError,
    check_each,
    fields,
    override,
    own_fields,
    section,
    spec,
    traced_paths,
)
from fedprune.config.machine import WHOLE, Mesh, Run
from fedprune.config.model import Model
from fedprune.config.pruning import Pruning
from fedprune.config.server import Server
from fedprune.config.training import Cohort, Local, Personal
from fedprune.config.uplink import Uplink


@dataclass
class Config:
    """A whole experiment. ``experiment`` and ``variant`` are labels; the command line sets them."""

    experiment: str = spec("", "name of the experiment's file, a label; the command line sets it")
    variant: str = spec(
        "", "variant of the experiment, a label; the command line sets it", resumes=True
    )
    data: Data = section(Data)
    model: Model = section(Model)
    local: Local = section(Local)
    cohort: Cohort = section(Cohort)
    personal: Personal = section(Personal)
    edges: Edges = section(Edges)
    pruning: Pruning = section(Pruning)
    uplink: Uplink = section(Uplink)
    downlink: Downlink = section(Downlink)
    server: Server = section(Server)
    mesh: Mesh = section(Mesh)
    run: Run = section(Run)


@dataclass(frozen=True)
class Arm:
    """One line of a figure: a name, and where it differs from the configuration."""

    name: str
    overrides: Mapping[str, Any]


def program_groups(config: Config, arms: Sequence[Arm]) -> dict[tuple, list[Arm]]:
    """Arms by the fields in which they differ and which shape a program: (path, value) pairs."""
    traced = traced_paths(config)
    groups: dict[tuple, list[Arm]] = {}
    for arm in arms:
        static = tuple(sorted((k, v) for k, v in arm.overrides.items() if k not in traced))
        groups.setdefault(static, []).append(arm)
    return groups


def validate(config: Config) -> None:
    """Checks every field by itself, then the fields together.

    Raises:
      ConfigError: the first fault.
    """
    check_each(config)
    for part in (data, training, model, pruning, uplink, downlink, edges, machine):
        part.check(config)


def validate_arms(config: Config, arms: Sequence[Arm], given: Collection[str] = ()) -> None:
    """Checks a configuration by itself, then with each of its arms.

    Args:
      config: the experiment's.
      arms: the experiment's.
      given: paths of the fields that the user has set: each must mean something for the kinds that
        the configuration or an arm chooses. What an experiment sets for another kind may stay.

    Raises:
      ConfigError: the first fault.
    """
    validate(config)
    if not arms and config.run.seed:
        raise ConfigError(
            f"run.seed={config.run.seed}: must be 0 for {config.experiment}, which has no arms"
        )
    if len({arm.name for arm in arms}) < len(arms):
        raise ConfigError(f"arms: names repeat: {[arm.name for arm in arms]}")
    for arm in arms:
        try:
            for path in arm.overrides.keys() & WHOLE:
                raise ConfigError(f"{path}: must be the same for all arms")
            validate(override(config, arm.overrides))
        except ConfigError as e:
            raise ConfigError(f"{e} (arm {arm.name})") from e
    _require_used(config, arms, given)


def _require_used(config: Config, arms: Sequence[Arm], given: Collection[str]) -> None:
    """Refuses a value that means nothing: given by the user for a kind that is not chosen, neither
    by the configuration nor by an arm; or that an arm sets beside another kind, unless it is the
    default.

    Raises:
      ConfigError: there is one.
    """
    values = {path: value for path, _, value in fields(config)}
    changed = [(arm, values | dict(arm.overrides)) for arm in arms]
    for path, field, chooser, kinds in own_fields(config):
        names = " or ".join(map(repr, kinds))
        for arm, with_arm in changed:
            value, chosen = with_arm[path], with_arm[chooser]
            if path in arm.overrides and value != field.default and chosen not in kinds:
                raise ConfigError(
                    f"{path}={value!r}: is only for {chooser}={names}, not {chosen!r} (arm"
                    f" {arm.name})"
                )
        every = {values[chooser], *(with_arm[chooser] for _, with_arm in changed)}
        if path in given and not every & set(kinds):
            raise ConfigError(
                f"{path}={values[path]!r}: is only for {chooser}={names}, not {values[chooser]!r}"
            )
