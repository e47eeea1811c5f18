"""Random allocation problems in NumPy, with their solution conditions straight from the papers."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy.optimize import brentq

from fedprune import allocation, resources

CONV, DENSE = 18_720, 25_168
BAND = 20e6


class Instance(NamedTuple):
    """One server's devices, in SI units and float64."""

    paper: str
    snr: np.ndarray
    """[N] g p / sigma^2"""
    frequency: np.ndarray
    """[N] Hz"""
    cycles: np.ndarray
    """[N] C"""
    warm: float
    """steps of warm-up"""
    rho_max: float
    threshold: float

    @property
    def rate(self) -> np.ndarray:
        return BAND * np.log2(1 + self.snr)

    @property
    def least_keep(self) -> float:
        return 1 - self.rho_max

    @property
    def times(self) -> tuple[np.ndarray, np.ndarray]:
        """Seconds of computing: what is not pruned, with the warm-up; what is, all kept."""
        c = self.cycles / self.frequency
        if self.paper == "P2":
            return 10 * c * CONV + self.warm * c * (CONV + DENSE), 10 * c * DENSE
        return 10 * c * CONV + self.warm * c * DENSE, 5 * c * DENSE

    @property
    def bits(self) -> tuple[float, float]:
        return (64.0 * CONV, 64.0 * DENSE) if self.paper == "P2" else (0.0, 32.0 * DENSE)

    @property
    def v(self) -> tuple[np.ndarray, ...]:
        """V1..V4 as the papers define them, with the warm-up."""
        fixed, prunable = self.times
        return (
            self.rate * (self.threshold - fixed),
            np.full_like(self.rate, self.bits[0]),
            self.rate * prunable,
            np.full_like(self.rate, self.bits[1]),
        )

    def box(self) -> tuple[np.ndarray, np.ndarray]:
        v1, v2, v3, v4 = self.v
        z = self.least_keep
        with np.errstate(divide="ignore"):
            low = np.where(v1 > z * v3, (v2 + z * v4) / (v1 - z * v3), np.inf)
            high = np.where(v1 > v3, (v2 + v4) / (v1 - v3), 1.0)
        return low, np.maximum(np.minimum(high, 1.0), low)

    def feasible(self) -> bool:
        return bool(self.box()[0].sum() <= 1)

    def rho(self, share: np.ndarray) -> np.ndarray:
        v1, v2, v3, v4 = self.v
        return 1 - (share * v1 - v2) / (share * v3 + v4)

    def seconds(self, share: np.ndarray, keep: np.ndarray) -> np.ndarray:
        fixed, prunable = self.times
        bits = self.bits[0] + keep * self.bits[1]
        with np.errstate(divide="ignore", invalid="ignore"):
            sending = np.where(bits > 0, bits / (share * self.rate), 0.0)
        return fixed + keep * prunable + sending

    def least(self) -> float:
        """T_min by root finding."""
        fixed, prunable = self.times
        z = self.least_keep
        start = fixed + z * prunable
        air = (self.bits[0] + z * self.bits[1]) / self.rate
        if not air.any():
            return float(start.max())
        excess = lambda x: np.log((air / (x + start.max() - start)).sum())
        own = air[start.argmax()]
        return start.max() + brentq(excess, own / 2, 2 * air.sum(), xtol=1e-18, rtol=1e-14)

    def work(self) -> resources.Work:
        if self.paper == "P2":
            return resources.hierarchical(CONV, DENSE, 10.0, self.cycles, 64.0, self.warm)
        return resources.personalized(CONV, DENSE, 10.0, 5.0, self.cycles, 32.0, self.warm)

    def problem(self, dtype: str, form: str = "derived") -> allocation.Problem:
        rate = jnp.asarray(self.rate, dtype)
        return allocation.problem(self.work(), self.frequency, rate, self.threshold, form)


def draw(rng: np.random.Generator, size: int, kind: str) -> Instance:
    """A problem of N = size devices.

    kind: "usual", "extreme" (-30 to 120 dB), "free" (computing takes no time, V3 = 0), "mixed"
    (for some devices it takes none), "infeasible", or "interior" (close to what the closed form
    solves).
    """
    spread = {"extreme": (-30, 120), "interior": (52, 56)}.get(kind, (-5, 60))
    cycles = 10 ** rng.uniform(0, 2.5, size)
    frequency = rng.uniform(0.5e9, 3e9, size)
    if kind == "free":
        cycles = np.zeros(size)
    if kind == "mixed":
        cycles = np.where(rng.random(size) < 0.5, 0.0, cycles)
    if kind == "interior":
        cycles, frequency = np.full(size, rng.uniform(50, 200)), np.full(size, 3e9)
    trial = Instance(
        paper=rng.choice(["P2", "P4"]),
        snr=10 ** (rng.uniform(*spread, size) / 10),
        frequency=frequency,
        cycles=cycles,
        warm=float(rng.choice([0, 1, 3])),
        rho_max=float(rng.choice([1.0, 1.0, 0.9, 0.5])) if kind != "interior" else 1.0,
        threshold=np.nan,
    )
    factor = rng.uniform(0.3, 0.99) if kind == "infeasible" else 1 + 10 ** rng.uniform(-2, 0.7)
    least = trial.least()  # 0 where nothing has to be computed nor sent
    scale = trial._replace(rho_max=0.5).least() if least == 0 else least
    return trial._replace(threshold=factor * scale)


def stacked(instances: list[Instance], dtype: str) -> tuple[allocation.Problem, jax.Array]:
    """Problems of equal N and their rho_max, with a leading axis."""
    stack = lambda values: np.stack([np.broadcast_to(v, instances[0].snr.shape) for v in values])
    work = resources.Work(*map(stack, zip(*(x.work() for x in instances), strict=True)))
    values = (work, stack(x.frequency for x in instances), stack(x.rate for x in instances))
    values += (np.array([x.threshold for x in instances]),)
    problems = jax.vmap(allocation.problem)(*jax.tree.map(lambda v: jnp.asarray(v, dtype), values))
    return problems, jnp.asarray([x.rho_max for x in instances], dtype)


@functools.cache
def program(solver):
    return jax.jit(jax.vmap(solver))


def solve(instances: list[Instance], dtype: str = "float64", solver=allocation.optimal):
    """Allocations of problems of equal N as NumPy arrays, by one vmapped program."""
    with jax.enable_x64(dtype == "float64"):
        found = program(solver)(*stacked(instances, dtype))
        assert found.share.dtype == dtype
        return jax.tree.map(np.asarray, found)
