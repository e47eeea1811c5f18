"""What is set before JAX starts, in fresh processes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

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
