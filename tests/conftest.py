"""Every test runs on eight virtual CPU devices, with implicit promotion and warnings as errors."""

import os
import tempfile

import jax
import pytest

# Eight devices on two busy cores may well wait for each other longer than XLA's 40 seconds.
limit = "--xla_cpu_collective_call_terminate_timeout_seconds=600"
flags = f"{limit} {os.environ.get('XLA_FLAGS', '')}"
# Where nothing is optimized, JAX 0.10 compiles twice as fast with its older emitters of loops.
if "xla_backend_optimization_level=0" in flags and jax.__version_info__ < (0, 11):
    flags += " --xla_cpu_use_fusion_emitters=false"
os.environ["XLA_FLAGS"] = flags
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")

# The processes of a run of pytest, and those that tests start, share what they compile, and leave
# the user's cache alone.
compiled = tempfile.TemporaryDirectory(prefix="fedprune-tests-")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", compiled.name)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")
jax.config.update("jax_compilation_cache_dir", os.environ["JAX_COMPILATION_CACHE_DIR"])
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


def pytest_addoption(parser):
    parser.addoption(
        "--one-each", action="store_true", help="of a test with parameters, only the first ones"
    )


def pytest_collection_modifyitems(config, items):
    if config.getoption("--one-each"):
        first = {item.nodeid.partition("[")[0]: item for item in reversed(items)}
        others = [item for item in items if first[item.nodeid.partition("[")[0]] is not item]
        config.hook.pytest_deselected(items=others)
        items[:] = [item for item in items if item not in set(others)]


@pytest.fixture(scope="session")
def dataset():
    """The embedded images."""
    from fedprune import data

    return data.load("fashion_mnist_10k")
