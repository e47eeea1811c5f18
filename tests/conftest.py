"""Every test runs on eight virtual CPU devices, with implicit promotion and warnings as errors."""

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
