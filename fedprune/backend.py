"""What has to be set before JAX starts: virtual CPU devices and the compilation cache; and a record
of the versions and devices that there are.

The launcher and the benchmarks call ``configure``; whoever uses the package as a library may.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import platform
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

import jax

from fedprune import processes

MOST_CPU_DEVICES = 8
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "tensorstore", "numpy", "scipy")
"""those that numbers or files depend on"""


def configure(devices: int = 0, cache: bool = True) -> None:
    """Sets JAX up for simulations. Has no effect on a JAX that has touched a device already.

    XLA kills a program in which one CPU device waits 40 seconds for another. A client's training
    may well take longer, so the limit is raised, unless the user set it.

    Args:
      devices: virtual CPU devices, which accelerators ignore; 0: ``cpu_devices()``.
      cache: keep compiled programs in ``cache_folder()``, unless JAX was given another place
        (``JAX_COMPILATION_CACHE_DIR``). ``JAX_ENABLE_COMPILATION_CACHE=false`` turns it off.
    """
    limit = "--xla_cpu_collective_call_terminate_timeout_seconds=86400"
    os.environ["XLA_FLAGS"] = f"{limit} {os.environ.get('XLA_FLAGS', '')}"
    jax.config.update("jax_num_cpu_devices", devices or cpu_devices())
    if cache and not jax.config.values.get("jax_compilation_cache_dir"):
        jax.config.update("jax_compilation_cache_dir", str(cache_folder()))


def cpu_devices() -> int:
    """One device for each core that this process may use, up to ``MOST_CPU_DEVICES``.

    More devices than cores help nobody who trains with matrix products; see docs/performance.md.
    """
    return min(MOST_CPU_DEVICES, len(os.sched_getaffinity(0)))


def cache_folder() -> Path:
    """``fedprune/xla/PROCESSOR`` in the user's cache folder ($XDG_CACHE_HOME, else ~/.cache).

    Programs for a CPU contain instructions that another one may lack, and home folders are shared
    between machines; so each kind of processor has a folder of its own.
    """
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "fedprune" / "xla" / _processor()


def _processor() -> str:
    """A name for the instructions that this machine's processor knows."""
    known = f"{platform.system()} {platform.machine()} {platform.processor()}"
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = cpuinfo.read_text().splitlines()
        wanted = ("model name", "flags", "Features", "CPU part")
        known += "".join(sorted({line for line in lines if line.startswith(wanted)}))
    return hashlib.sha256(known.encode()).hexdigest()[:16]


def environment() -> dict[str, Any]:
    """What a run's numbers may depend on beside its configuration: versions, devices, platform.

    ``code`` is ``git describe`` of the checkout that the package lies in; "" if it is in none.
    ``source`` is that of ``source_hash``.
    """
    devices = Counter(f"{device.platform} {device.device_kind}" for device in jax.devices())
    return {
        "code": _code_version(),
        "source": source_hash(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: importlib.metadata.version(name) for name in PACKAGES},
        "devices": dict(devices),
        "processes": processes.count(),
        "processor": _processor(),
    }


def source_hash() -> str:
    """SHA-256 of the package's Python files and their names."""
    folder, found = Path(__file__).resolve().parent, hashlib.sha256()
    for file in sorted(folder.rglob("*.py")):
        found.update(f"{file.relative_to(folder)}\n".encode() + file.read_bytes() + b"\0")
    return found.hexdigest()


def _code_version() -> str:
    checkout = Path(__file__).resolve().parents[1]
    if not (checkout / ".git").exists():
        return ""
    command = ["git", "-C", str(checkout), "describe", "--always", "--dirty", "--tags"]
    try:
        return subprocess.run(command, capture_output=True, text=True).stdout.strip()
    except OSError:  # no git
        return ""
