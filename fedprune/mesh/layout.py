"""How a program lies on the devices."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import jax
from jax.sharding import AxisType, Mesh, NamedSharding

from fedprune import processes

ARMS, CLIENTS = "arms", "clients"
ARMS, CLIENTS = "arms", "clients"


@dataclass(frozen=True)
class Layout:
    """How a program lies on the devices.

    Raises:
      ValueError: if strict lanes cannot be shared out evenly, or a number is not positive.
    """

    mesh: Mesh
    reduction: Literal["fast", "strict"] = "fast"
    lanes: int = 8
    """lanes of strict mode; a multiple of the devices on the clients axis"""
    chunk: int = 1
    """clients trained together, by vmap, in each lane"""

    def __post_init__(self) -> None:
        if self.reduction not in ("fast", "strict"):
            raise ValueError(f"reduction={self.reduction!r} is neither 'fast' nor 'strict'")
        if self.chunk < 1 or self.lanes < 1:
            raise ValueError(f"chunk={self.chunk} and lanes={self.lanes} must be at least 1")
        if self.reduction == "strict" and self.lanes % self.client_devices:
            raise ValueError(
                f"lanes={self.lanes} must be a multiple of the {self.client_devices} devices on"
                " the clients axis in strict mode"
            )

    @property
    def client_devices(self) -> int:
        return self.mesh.shape[CLIENTS]

    @property
    def arm_devices(self) -> int:
        return self.mesh.shape[ARMS]

    @property
    def platform(self) -> str:
        """ "cpu", "gpu" or "tpu": of the devices, which need not be those of this process."""
        return self.mesh.devices.flat[0].platform

    @property
    def local_lanes(self) -> int:
        """Lanes on each device."""
        return 1 if self.reduction == "fast" else self.lanes // self.client_devices

    def replicated(self) -> NamedSharding:
        return NamedSharding(self.mesh, spec(0))

    def per_arm(self) -> NamedSharding:
        """Arrays whose leading axis counts arms."""
        return NamedSharding(self.mesh, spec(1))


def make(clients: int | None = None, arms: int = 1, **layout: Any) -> Layout:
    """A layout over ``arms`` × ``clients`` devices; by default all devices on the clients axis.

    Args:
      clients: devices on the clients axis; None takes all that ``arms`` leaves.
      arms: devices on the arms axis.
      **layout: the other fields of ``Layout``.

    Raises:
      ValueError: if there are fewer devices than asked for, or none of a process's is among them.
    """
    available = len(processes.devices())
    clients = max(1, available // arms) if clients is None else clients
    if min(arms, clients) < 1 or arms * clients > available:
        raise ValueError(f"arms={arms} x clients={clients} devices asked for, {available} exist")
    axes = (AxisType.Auto, AxisType.Auto)
    devices = processes.devices()[: arms * clients]
    if len({device.process_index for device in devices}) < processes.count():
        raise ValueError(
            f"arms={arms} x clients={clients} devices leave some of the {processes.count()}"
            f" processes without one, {available} exist"
        )
    return Layout(jax.make_mesh((arms, clients), (ARMS, CLIENTS), axes, devices=devices), **layout)


def spec(axes: int) -> jax.P:
    """How an array lies on the mesh of whose leading axes so many are divided over devices.

    0: none, 1: the first, which counts arms, 2: and the second, which counts clients.
    """
    return jax.P(*(ARMS, CLIENTS)[:axes])
