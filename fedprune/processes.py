"""Several processes that run one program together: how they connect, agree and part.

Every process runs the same Python code on devices of its own, and compiled programs communicate by
themselves. What the host code has to agree on goes through ``gather``, by the store of keys that
process 0 keeps for JAX. Process 0 alone touches the run directory.

Only processes of one run come together: ``meeting`` has how, and why JAX alone does not see to it.

A process without others is the first of one: ``gather`` then returns what it is given.

JAX ends a process with SIGABRT if another one does not join in time or is heard of no more; the
launcher sees to it that this has a reason of one line.
"""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import jax
import numpy as np
from jax._src import distributed  # the store of keys and the count before devices are touched
from jax._src.clusters import ClusterEnv
from jax.experimental import multihost_utils

from fedprune import meeting

LONGEST_WAIT = 3600
"""Seconds that a process waits in ``gather`` for one that is alive."""

Json = Any
T = TypeVar("T")

_turn = itertools.count()
_parted = False
_met: meeting.Meeting | None = None


class ProcessesError(Exception):
    """Processes that do not find or do not fit each other; the message is one line."""


def connect(
    run: Mapping[str, Json],
    coordinator: str | None = None,
    count: int | None = None,
    index: int | None = None,
    initialization_timeout: int = 300,
    heartbeat_timeout: int = 100,
) -> None:
    """Joins the other processes of a run. To be called before any device is touched.

    Args:
      run: what every process of this run knows of it, name -> value. One that differs is refused.
      coordinator: HOST:PORT of process 0, at which it listens; None: the cluster says it, which may
        be Slurm, Open MPI, Cloud TPU or Kubernetes (``jax.distributed.initialize``).
      count: processes; None: the cluster says it.
      index: which of them this is; None: the cluster says it.
      initialization_timeout: seconds to wait for the others.
      heartbeat_timeout: seconds after which a process that is not heard of counts as lost; JAX ends
        all others then.

    Raises:
      ProcessesError: nothing says where the others are.
      meeting.AddressError: the coordinator's address cannot be used.
      meeting.RefusedError: process 0 is one of another run, or has this process already.
      meeting.MissingError: not all have come in time.
    """
    global _met
    # SIGTERM is the launcher's: JAX would take it, and tell of it only whom it asks at every step.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        coordinator, count, index = _places(coordinator, count, index, initialization_timeout)
    except (ValueError, RuntimeError) as e:
        raise ProcessesError(f"the other processes were not found: {_one_line(e)}") from e
    at = meeting.address(coordinator)
    run = {"processes": count, **run}

    def initialize(port: int, bind: str | None = None) -> None:
        jax.distributed.initialize(
            meeting.as_text((at[0], port)),
            count,
            index,
            initialization_timeout=initialization_timeout,
            heartbeat_timeout_seconds=heartbeat_timeout,
            shutdown_timeout_seconds=heartbeat_timeout,
            coordinator_bind_address=bind,
        )

    if index:
        initialize(meeting.join(at, run, index, initialization_timeout))
        return
    listen = meeting.address(os.environ.get("JAX_COORDINATOR_BIND_ADDRESS", coordinator))
    host = meeting.where_to_listen(listen)
    _met = meeting.begin((host, listen[1]), run, count)
    meeting.wait(_met, initialization_timeout)
    with meeting.free_port(host) as port:
        meeting.let_in(_met, port)
        initialize(port, meeting.as_text((host, port)))


def count() -> int:
    """Processes; 1 after ``part``."""
    return 1 if _parted else distributed.global_state.num_processes


def index() -> int:
    """Which of them this is, from 0."""
    return distributed.global_state.process_id


def is_first() -> bool:
    """Whether this is process 0, which alone reads and writes the run directory."""
    return index() == 0


def devices() -> list[jax.Device]:
    """Those of all processes; this one's after ``part``."""
    return jax.local_devices() if _parted else jax.devices()


def gather(fn: Callable[[], Json]) -> list[Json]:
    """Calls ``fn`` on every process; the results of all, in the order of the processes.

    All processes must call it, in the same order. Where it fails on one, it fails on all, and
    they part.

    Raises:
      ProcessesError: ``fn`` raised on another process, or one does not come. What ``fn`` raises
        here is raised as it is.
    """
    if count() == 1:
        return [fn()]
    turn, error = next(_turn), None
    try:
        said = json.dumps({"value": fn()})
    except Exception as e:
        error, said = e, json.dumps({"error": _one_line(e)})
    client = distributed.global_state.client
    assert client is not None
    client.key_value_set(_key(turn, index()), said)
    found = []
    for other in range(count()):
        try:
            found.append(client.blocking_key_value_get(_key(turn, other), 1000 * LONGEST_WAIT))
        except jax.errors.JaxRuntimeError as e:
            if "DEADLINE_EXCEEDED" not in str(e):
                raise
            raise ProcessesError(f"process {other} did not come for {LONGEST_WAIT} s") from e
    if turn:  # everybody is here, so nobody still reads what was said before
        client.key_value_delete(_key(turn - 1, index()))
    results = [json.loads(text) for text in found]
    for other, result in enumerate(results):
        if "error" in result:
            part()
            raise error or ProcessesError(f"process {other}: {result['error']}")
    return [result["value"] for result in results]


def together(fn: Callable[[], T]) -> T:
    """``fn()``, which fails on all processes if it fails on one, as in ``gather``."""
    found: list[T] = []
    gather(lambda: found.append(fn()))
    return found[0]


def require_same(facts: Callable[[], Mapping[str, Json]]) -> None:
    """Parts all processes with an error if what they know differs.

    Processes that run different programs would not notice: their collectives would add up numbers
    that do not belong together.

    Args:
      facts: gives name -> value; not called if there are no others.

    Raises:
      ProcessesError: a fact differs; it is named, with two of its values.
    """
    if count() == 1:
        return
    said = gather(facts)
    for other, theirs in enumerate(said):
        difference = meeting.difference(said[0], theirs, other)
        if difference:
            part()
            raise ProcessesError(difference)


def broadcast(values: T) -> T:
    """Process 0's arrays, as NumPy arrays, on all. The others give arrays of the same shapes."""
    if count() == 1:
        return values

    def one(leaf: np.ndarray) -> np.ndarray:
        # As bytes: a sum of floats with zeros would turn -0.0 into 0.0.
        leaf = np.ascontiguousarray(leaf)
        found = multihost_utils.broadcast_one_to_all(leaf.reshape(-1).view(np.uint8))
        return np.asarray(found).view(leaf.dtype).reshape(leaf.shape)

    return jax.tree.map(one, values)


def part() -> None:
    """Ends the connection when all processes have come here; each is alone from then on."""
    global _parted
    if count() > 1:
        gather(lambda: None)
        _parted = True
        jax.distributed.shutdown()
        if _met:
            meeting.end(_met)


def _places(
    coordinator: str | None, count: int | None, index: int | None, timeout: int
) -> tuple[str, int, int]:
    """The coordinator's HOST:PORT, the number of processes and which one this is.

    Raises:
      ValueError: nothing says it, or they do not fit each other.
    """
    coordinator = coordinator or os.environ.get("JAX_COORDINATOR_ADDRESS")
    detect = ClusterEnv.auto_detect_unset_distributed_params
    # No devices are asked for: JAX finds them later.
    coordinator, count, index, _ = detect(coordinator, count, index, [], None, timeout)
    if coordinator is None or count is None or index is None:
        raise ValueError("no cluster says it; give --coordinator, --processes and --process")
    if not 0 <= index < count:
        raise ValueError(f"process {index} of {count}: processes count from 0")
    return coordinator, count, index


def _key(turn: int, process: int) -> str:
    return f"fedprune/{turn}/{process}"


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
