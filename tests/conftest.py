"""Every test runs on eight virtual CPU devices, with implicit promotion and warnings as errors."""

import os

# Eight devices on two busy cores may well wait for each other longer than XLA's 40 seconds.
os.environ.setdefault("XLA_FLAGS", "--xla_cpu_collective_call_terminate_timeout_seconds=600")

import jax
import pytest

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")


@pytest.fixture(scope="session")
def dataset():
    """The embedded images."""
    from fedprune import data

    return data.load("fashion_mnist_10k")
