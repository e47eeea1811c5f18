"""Shannon-Kotel'nikov spirals 1:2^n: a weight is a point on Archimedes' double spiral.

    theta(w) = (w cos(g w), w sin(g |w|))            |theta(w)| = |w|, theta(-w) = -theta(w)

Adjacent arms, one of positive and one of negative weights, are pi / g apart, g = gamma. A larger g
stretches the curve, which divides small noise by 1 + g^2 w^2, but noise that reaches the next arm
turns the weight's sign. Expansion 1:2^n applies theta to each symbol again; the factor sqrt(2^n)
then gives symbols of unit power. So with v the noise variance per symbol of unit power, the plane
of theta has noise v / 2^n per coordinate.

Decoders:

  ml    the point of the spiral that is nearest, level by level from the last expansion back. With
        (r, phi) the polar coordinates of what is received, t = |w| and s the sign, it minimises
        f_s(t) = t^2 - 2 s t r cos(g t - phi). Since f_s(t) + r^2 >= (t - r)^2, with equality at
        arms (pi / g apart), the minimum lies within one spacing of arms around r, where each sign
        has one stretch with s cos > 0: a coarse search per sign, Newton steps within its bracket,
        and the better of the two signs is the *global* minimum, at every gamma.
  mmse  posterior mean under a prior of the weights, on a grid; the whole curve in 2^n dimensions at
        once. It never errs more than ml on average over that prior.

Source: P3 (2), (3), (4). There x = (Delta / pi) theta with Delta = 1; the power normalisation takes
any Delta in at the end, and Delta = pi between levels lets gamma mean the same at each. P3 (4)
prints one theta for both coordinates and a sign that is already in w.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from fedprune import check, tree
from fedprune.coding.code import Code, chunked

DECODERS = ("ml", "mmse")
COARSE = 16
"""intervals of the coarse search, at most pi / 16 of phase each"""
NEWTON = 6
"""Newton steps, which bring float32 to its limit from there"""
BEST_GAMMA = (0.1, 0.68, 1.38, 2.7, 4.7, 8.0, 13.4, 22.0)
"""least mean squared error of ml for a normal weight, 1:2, at 0, 5, ..., 35 dB; found by simulation
with 200,000 weights for each of 30 gammas. The optimum is flat, and that of 1:4 is the same within
20 % of gamma and 0.2 dB of error"""
CHUNK = 1 << 18
"""weights decoded at a time by ml; mmse takes as many as fill ``GRID_FLOATS``"""
GRID_FLOATS = 1 << 23


def spiral(
    gamma: jax.Array | float,
    levels: int = 1,
    decoder: str = "ml",
    limit: float = float("inf"),
    points: int = 4096,
    log_prior: Callable[[jax.Array], jax.Array] = lambda w: -0.5 * jnp.square(w),
) -> Code:
    """The code 1:2^levels.

    Args:
      gamma: g > 0, per unit of root mean square weight; may be traced.
      levels: n, number of expansions, at least 1.
      decoder: "ml" or "mmse".
      limit: largest |w| that is decoded; ``mmse`` takes 6 where it is infinite.
      points: of the grid of ``mmse``. Its step, 2 limit / points, has to stay below the deviation
      of
        the posterior, sqrt(v / (2^n (1 + g^2 w^2))) for n = 1.
      log_prior: weights of unit mean square [p] -> log density up to a constant [p], for ``mmse``;
        normal by default.

    Raises:
      ValueError: no level, or an unknown decoder.
    """
    check.number("gamma", gamma, above=0)
    check.whole("levels", levels, 1)
    check.number("limit", limit, above=0, infinite=True)
    check.whole("points", points, 2)
    check.function("log_prior", log_prior)
    if decoder not in DECODERS:
        raise ValueError(f"decoder={decoder!r} is not one of {DECODERS}")
    symbols = 2**levels
    scale = symbols**0.5

    def encode(weights: jax.Array) -> jax.Array:
        points = weights[..., None]
        for _ in range(levels):
            points = theta(points, gamma).reshape(*weights.shape, -1)
        return scale * points

    def nearest(received: jax.Array) -> jax.Array:
        points = received / scale
        for _ in range(levels):
            points = nearest_on_spiral(points.reshape(points.shape[0], -1, 2), gamma, limit)
        return points[:, 0]

    def decode(received: jax.Array, variance: jax.Array | float) -> jax.Array:
        if decoder == "ml":
            return chunked(nearest, received, CHUNK // (symbols // 2))
        end = min(limit, 6.0)
        grid = jnp.linspace(-end, end, points)
        mean = partial(_posterior_mean, grid, encode(grid), log_prior(grid), variance)
        return chunked(mean, received, max(GRID_FLOATS // points, 1))

    return Code(symbols, encode, decode)


def theta(weights: jax.Array, gamma: jax.Array | float) -> jax.Array:
    """The double spiral, weights [...] -> points [..., 2]."""
    turn = gamma * jnp.abs(weights)
    return jnp.stack([weights * jnp.cos(turn), weights * jnp.sin(turn)], -1)


def nearest_on_spiral(
    points: jax.Array, gamma: jax.Array | float, limit: jax.Array | float = float("inf")
) -> jax.Array:
    """The signed w, |w| <= limit, with theta(w) nearest to each point: [..., 2] -> [...]."""
    check.numbers("gamma", gamma, above=0)
    check.numbers("limit", limit, above=0, infinite=True)
    gamma, limit = jnp.asarray(gamma, jnp.float32), jnp.asarray(limit, jnp.float32)
    x, y = points[..., 0], points[..., 1]
    r, phi = jnp.hypot(x, y), jnp.arctan2(y, x)
    arms = jnp.minimum(jnp.pi / gamma, 2e30)  # finite, so that limits may be infinite
    high = jnp.minimum(jnp.minimum(r + arms / 2, 2 * r), limit)
    low = jnp.maximum(jnp.minimum(r - arms / 2, limit - arms), 0.0)
    step = (high - low) / COARSE

    def coarse(i: jax.Array, best: tuple) -> tuple:
        t = low + i.astype(jnp.float32) * step
        cross = 2 * t * r * jnp.cos(gamma * t - phi)
        found = []
        for sign, (least, where) in zip((1.0, -1.0), best, strict=True):
            f = t * t - sign * cross
            found.append((jnp.minimum(f, least), jnp.where(f < least, t, where)))
        return tuple(found)

    def refine(sign: float, t: jax.Array) -> tuple[jax.Array, jax.Array]:
        def newton(_, bracket):
            t, left, right = bracket
            angle = gamma * t - phi
            sine, cosine = sign * r * jnp.sin(angle), sign * r * jnp.cos(angle)
            slope = t - cosine + gamma * t * sine
            curvature = 1.0 + 2 * gamma * sine + gamma * gamma * t * cosine
            left, right = jnp.where(slope < 0, t, left), jnp.where(slope < 0, right, t)
            guess = jnp.clip(t - slope / curvature, left, right)
            return jnp.where(curvature > 0, guess, (left + right) / 2), left, right

        bracket = (t, jnp.maximum(t - step, low), jnp.minimum(t + step, high))
        t = lax.fori_loop(0, NEWTON, newton, bracket)[0]
        return t * t - 2 * sign * t * r * jnp.cos(gamma * t - phi), sign * t

    start = tree.match((jnp.full_like(r, jnp.inf), low))
    (_, positive), (_, negative) = lax.fori_loop(0, COARSE + 1, coarse, (start, start))
    f_positive, w_positive = refine(1.0, positive)
    f_negative, w_negative = refine(-1.0, negative)
    return jnp.where(f_positive <= f_negative, w_positive, w_negative)


def best_gamma(snr_db: jax.Array | float) -> jax.Array:
    """The gamma that suits an SNR per real symbol: ``BEST_GAMMA``, interpolated in its logarithm.

    Towards low SNR it goes to 0, where a spiral is a straight line that sends all its energy in one
    symbol, as good as repetition; below 0 and above 35 dB it stays.
    """
    check.numbers("snr_db", snr_db)
    known = jnp.log(jnp.asarray(BEST_GAMMA, jnp.float32))
    at = 5.0 * jnp.arange(len(BEST_GAMMA), dtype=jnp.float32)
    return jnp.exp(jnp.interp(jnp.asarray(snr_db, jnp.float32), at, known))


def spiral_error(variance: jax.Array | float, gamma: jax.Array | float) -> jax.Array:
    """Mean squared error of 1:2 at high SNR for a normal weight, E[(v/2) / (1 + g^2 w^2)].

    (v / 2) sqrt(pi / 2) / g exp(1 / (2 g^2)) erfc(1 / (g sqrt(2))). Jumps between arms, which it
    leaves out, dominate below roughly 5, 10 and 16 dB of SNR for gamma of 1, 2 and 4.
    """
    check.numbers("variance", variance, 0)
    check.numbers("gamma", gamma, above=0)
    inverse = 1.0 / jnp.asarray(gamma, jnp.float32)
    tail = jnp.exp(0.5 * inverse * inverse + jax.scipy.special.log_ndtr(-inverse))
    return variance * jnp.sqrt(jnp.pi / 2) * inverse * tail


def _posterior_mean(
    grid: jax.Array,
    curve: jax.Array,
    log_prior: jax.Array,
    variance: jax.Array | float,
    received: jax.Array,
) -> jax.Array:
    """E[w | received]: grid [p], curve [p, r], log_prior [p], received [n, r] -> [n]."""
    match = jnp.dot(received, curve.T, precision="highest")
    energy = 0.5 * jnp.square(curve).sum(-1)
    logits = (match - energy[None]) / variance + log_prior[None]
    return jnp.dot(jax.nn.softmax(logits, -1), grid, precision="highest")
