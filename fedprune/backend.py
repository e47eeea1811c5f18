"""What has to be set before JAX starts: virtual CPU devices and the compilation cache; and a record
of the versions and devices that there are.

The launcher and the benchmarks call ``configure``; whoever uses the package as a library may.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import logging
import math
import os
import platform
import re
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

import jax

from fedprune import processes

log = logging.getLogger(__name__)

MOST_CPU_DEVICES = 8
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "tensorstore", "numpy", "scipy")
"""those that numbers or files depend on"""

PINNED = {
    "jax_enable_x64": False,
    "jax_threefry_partitionable": True,
    "jax_default_prng_impl": "threefry2x32",
    "jax_random_seed_offset": 0,
}
"""settings of JAX on which every random number depends"""
ARITHMETIC = PINNED | {
    "jax_default_matmul_precision": None,
    "jax_disable_jit": False,
    "jax_disable_most_optimizations": False,
    "jax_high_dynamic_range_gumbel": False,
    "jax_softmax_custom_jvp": False,
}
"""all on which numbers depend, with their defaults"""
_SAME_NUMBERS = re.compile(
    r"--xla_dump_|--xla_force_host_platform_device_count|.*_timeout|.*profil"
)
"""flags of XLA on which none does"""


def configure(devices: int = 0, cache: bool = True) -> None:
    """Sets JAX up for simulations. On a JAX that has touched a device already it has no effect, and
    says so.

    XLA kills a program in which one CPU device waits 40 seconds for another. A client's training
    may well take longer, so the limit is raised, unless the user set it.

    Args:
      devices: virtual CPU devices, which accelerators ignore; 0: ``cpu_devices()``.
      cache: keep compiled programs in ``cache_folder()``, unless JAX was given another place
        (``JAX_COMPILATION_CACHE_DIR``). ``JAX_ENABLE_COMPILATION_CACHE=false`` turns it off.
    """
    try:
        jax.config.update("jax_num_cpu_devices", devices or cpu_devices())
    except RuntimeError:  # so says JAX once it has devices
        log.warning("JAX has been used before: it keeps its %d devices", jax.device_count())
        return
    limit = "--xla_cpu_collective_call_terminate_timeout_seconds=86400"
    os.environ["XLA_FLAGS"] = f"{limit} {os.environ.get('XLA_FLAGS', '')}"
    folder = cache_folder()
    if cache and folder and not jax.config.values.get("jax_compilation_cache_dir"):
        jax.config.update("jax_compilation_cache_dir", str(folder))


def pin() -> None:
    """Sets what every random number depends on, which a shell may have changed for other programs,
    and says so."""
    for name, value in PINNED.items():
        found = getattr(jax.config, name)
        if found != value:
            log.warning("%s=%s is not used: runs have %s", name.upper(), found, value)
            jax.config.update(name, value)


def arithmetic() -> dict[str, Any]:
    """What changes numbers and stands in no configuration: name -> value, as plain values.

    Settings of JAX that are not its defaults, flags of XLA, and variables of the environment.
    """
    found = {name: getattr(jax.config, name, default) for name, default in ARITHMETIC.items()}
    known = {name.upper(): v for name, v in found.items() if v != ARITHMETIC[name]}
    for flag in os.environ.get("XLA_FLAGS", "").split():
        name, _, value = flag.partition("=")
        if not _SAME_NUMBERS.match(name):
            known[name] = value
    names = ("NVIDIA_TF32_OVERRIDE", "LIBTPU_INIT_ARGS")
    return known | {name: os.environ[name] for name in names if name in os.environ}


def memory() -> float:
    """Bytes of memory of the devices of all processes; infinite where they do not say it.

    CPU devices share the machine's, or what the control group of this process may use of it.
    """
    if jax.default_backend() != "cpu":
        stats = [device.memory_stats() or {} for device in jax.local_devices()]
        return processes.count() * sum(s.get("bytes_limit", math.inf) for s in stats)
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for file in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        with contextlib.suppress(OSError, ValueError):  # "max"
            limits.append(int(Path(file).read_text(encoding="utf-8")))
    return processes.count() * min(limits)


def cpu_devices() -> int:
    """One device for each core that this process may use, up to ``MOST_CPU_DEVICES``.

    More devices than cores help nobody who trains with matrix products; see docs/performance.md.
    """
    return min(MOST_CPU_DEVICES, len(cores()))


def cores() -> list[int]:
    """The cores that this process may use; all there are where the system, as macOS, has no such
    limits."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def cache_folder() -> Path | None:
    """``fedprune/xla/PROCESSOR`` in the user's cache folder ($XDG_CACHE_HOME, else ~/.cache).

    Programs for a CPU contain instructions that another one may lack, and home folders are shared
    between machines; so each kind of processor has a folder of its own. None for a user without a
    home folder that can be written: a folder for everybody could hold programs of others.
    """
    try:
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError:
        return None
    there = next(folder for folder in (home, *home.absolute().parents) if os.path.exists(folder))
    if not os.access(there, os.W_OK):
        return None
    return home / "fedprune" / "xla" / _processor()


def _processor() -> str:
    """A name for the instructions that this machine's processor knows."""
    known = f"{platform.system()} {platform.machine()} {platform.processor()}"
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = cpuinfo.read_text(encoding="utf-8").splitlines()
        wanted = ("model name", "flags", "Features", "CPU part")
        known += "".join(sorted({line for line in lines if line.startswith(wanted)}))
    return hashlib.sha256(known.encode()).hexdigest()[:16]


def environment() -> dict[str, Any]:
    """What a run's numbers may depend on beside its configuration: versions, devices, platform.

    ``code`` is ``git describe`` of the checkout that the package lies in; "" if it is in none.
    ``source`` is that of ``source_hash``, ``arithmetic`` that of the function.
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
        "arithmetic": arithmetic(),
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
