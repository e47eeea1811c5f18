"""Federated learning with model pruning over wireless channels, as one jit function a round.

Rooms are imported when they are first used, so that the command's help and its refusals do not wait
for JAX.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedprune import algorithms as algorithms
    from fedprune import allocation as allocation
    from fedprune import backend as backend
    from fedprune import channel as channel
    from fedprune import coding as coding
    from fedprune import data as data
    from fedprune import link as link
    from fedprune import local as local
    from fedprune import mesh as mesh
    from fedprune import models as models
    from fedprune import nn as nn
    from fedprune import payload as payload
    from fedprune import prune as prune
    from fedprune import resources as resources
    from fedprune import rng as rng
    from fedprune import rounds as rounds
    from fedprune import run as run
    from fedprune import runs as runs
    from fedprune import server as server
    from fedprune import theory as theory
    from fedprune import tree as tree
    from fedprune.runs.loading import load as load_run

__version__ = "0.1.0"
__all__ = (
    *("algorithms", "allocation", "backend", "channel", "coding", "data", "link", "local", "mesh"),
    *("models", "nn", "payload", "prune", "resources", "rng", "rounds", "run", "runs", "server"),
    *("theory", "tree"),
    "load_run",
)


def __getattr__(name: str) -> Any:
    """A room, as ``fedprune.rounds``, or ``load_run``, imported now."""
    if name == "load_run":
        return importlib.import_module(f"{__name__}.runs.loading").load
    whole = f"{__name__}.{name}"
    if not name.startswith("_"):
        try:
            return importlib.import_module(whole)
        except ModuleNotFoundError as e:
            if e.name != whole:
                raise
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
