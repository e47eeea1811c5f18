"""What is set before JAX starts, in fresh processes."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from fedprune import backend

ROOT = Path(__file__).parents[1]
SCRIPT = """
import sys
import jax
from fedprune import backend
backend.configure(int(sys.argv[1]), cache=sys.argv[2] == "cache")
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
hits = []
jax.monitoring.register_event_listener(lambda name, **_: hits.append(name))
x = jax.jit(lambda x: jax.numpy.sin(x) @ x)(jax.numpy.ones((3, 3)))
print(jax.device_count(), sum("cache_hits" in name for name in hits), float(x[0, 0]).hex())
"""


def start(folder: Path, devices: int = 3, cache: str = "cache", **environment: str) -> list[str]:
    """What a fresh process prints, with ``folder`` as the user's cache folder."""
    own = {k: v for k, v in os.environ.items() if not k.startswith("JAX_")}
    result = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(devices), cache],
        cwd=ROOT,
        env={**own, "XDG_CACHE_HOME": str(folder), **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr[-2000:]
    return result.stdout.split()


def test_the_second_start_reads_what_the_first_compiled(tmp_path):
    devices, hits, value = start(tmp_path)
    assert (devices, hits) == ("3", "0")
    (folder,) = (tmp_path / "fedprune" / "xla").iterdir()
    assert list(folder.iterdir())
    devices, hits, again = start(tmp_path)
    assert devices == "3"
    assert int(hits) > 0
    assert again == value


@pytest.mark.parametrize("way", ["another folder", "turned off"])
def test_the_cache_can_be_moved_and_turned_off(way, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    if way == "another folder":
        start(tmp_path / "home", JAX_COMPILATION_CACHE_DIR=str(elsewhere))
    else:
        start(tmp_path / "home", cache="no")
    assert not (tmp_path / "home").exists()
    assert elsewhere.exists() == (way == "another folder")


def test_default_number_of_devices(tmp_path):
    assert start(tmp_path, 0)[0] == str(min(8, len(os.sched_getaffinity(0))))


def test_on_a_jax_that_was_used_it_only_says_so(monkeypatch, caplog):
    jax.device_count()
    before = os.environ.get("XLA_FLAGS")
    backend.configure(3)
    assert os.environ.get("XLA_FLAGS") == before
    assert f"it keeps its {jax.device_count()} devices" in caplog.text


def test_a_system_without_limits_on_cores(monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    assert backend.cores() == list(range(os.cpu_count()))
    assert 1 <= backend.cpu_devices() <= backend.MOST_CPU_DEVICES


@pytest.mark.parametrize("home", ["none", "not to be written"])
def test_a_user_without_a_home_has_no_cache(home, monkeypatch):
    def nobody():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    if home == "none":
        monkeypatch.setattr(Path, "home", nobody)
    else:
        monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert backend.cache_folder() is None


def test_what_changes_numbers_is_pinned_or_recorded():
    script = (
        "import logging, jax; logging.basicConfig(format='%(message)s')\n"
        "from fedprune import backend\n"
        "backend.pin(); print(backend.arithmetic(), jax.random.normal(jax.random.key(0), 2).dtype)"
    )
    limit = "--xla_cpu_collective_call_terminate_timeout_seconds=3"
    flags = f"--xla_cpu_enable_fast_math=true --xla_dump_to=/nowhere {limit}"
    own = {k: v for k, v in os.environ.items() if not k.startswith("JAX_")}
    own |= {"JAX_ENABLE_X64": "1", "JAX_DEFAULT_PRNG_IMPL": "rbg", "XLA_FLAGS": flags}
    own |= {"JAX_THREEFRY_PARTITIONABLE": "0", "JAX_DEFAULT_MATMUL_PRECISION": "highest"}
    command = [sys.executable, "-c", script]
    result = subprocess.run(command, cwd=ROOT, env=own, capture_output=True, text=True)
    recorded = {
        "JAX_DEFAULT_MATMUL_PRECISION": "highest",
        "--xla_cpu_enable_fast_math": "true",
    }
    assert result.stdout == f"{recorded} float32\n", result.stderr
    assert result.stderr.splitlines() == [
        "JAX_ENABLE_X64=True is not used: runs have False",
        "JAX_THREEFRY_PARTITIONABLE=False is not used: runs have True",
        "JAX_DEFAULT_PRNG_IMPL=rbg is not used: runs have threefry2x32",
    ]
