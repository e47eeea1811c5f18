"""Fading: channels of a round's clients, large-scale and small-scale, and how they are combined.

    sqrt(g_k) u_k                  client k's channel to the M receive antennas, [M] complex
    h_k = sqrt(g_k) f^H u_k        its gain after combining by f of unit norm, [] complex

  u_k  small-scale fading, constant over a round (block fading), drawn anew for every round and
       client. Rayleigh: u ~ CN(0, I). Rician with factor kappa:
       sqrt(kappa / (kappa+1)) + sqrt(1 / (kappa+1)) CN(0, I). E|u_m|^2 = 1 in both.
  g_k  large-scale gain 10^(-PL/10), PL(d) = 128.1 + 37.6 log10(d / km) dB; 1 without placement.
       The place of a client is drawn once a run, uniformly over an annulus.
  f    depends on who sends at the same time. Where all clients superpose (``superposed``) there is
       one f, along the sum of the channels of those whom the receiver hears. A client in channel
       uses of its own (``separate``) has maximum-ratio combining, f along u_k: h_k =
       sqrt(g_k) ||u_k||, whoever else is in the cohort. With one antenna f only turns the phase.

Clients know an estimate of h_k: h_hat = h + e, e ~ CN(0, sigma_e^2 g_k) (imperfect CSI).
Sources: P2 section II for block fading; the path loss is 3GPP's for macro cells.
"""

from __future__ import annotations

from collections.abc import Callable
from math import log10
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedprune import check, rng
from fedprune.types import Key


class Channels(NamedTuple):
    """The channels of a round's cohort, as fading draws them."""

    antennas: jax.Array
    """[S, M] complex64, from each client to each receive antenna"""
    error: jax.Array
    """[S] complex64, e: what is wrong with the client's estimate of its gain after combining"""


class Gains(NamedTuple):
    """The gains of a round's cohort after the receiver's combining."""

    true: jax.Array
    """[S] complex64, h_k"""
    known: jax.Array
    """[S] complex64, the clients' estimates of h_k"""


Fading = Callable[[Key, jax.Array, jax.Array], Channels]
"""(root key of the run, round [] int32, client ids [S]) -> channels"""


def none() -> Fading:
    """One antenna and h = 1, known: pure AWGN."""

    def channels(root: Key, t: jax.Array, ids: jax.Array) -> Channels:
        return Channels(
            jnp.ones((*ids.shape, 1), jnp.complex64), jnp.zeros(ids.shape, jnp.complex64)
        )

    return channels


def superposed(channels: Channels, server: jax.Array | None = None, servers: int = 1) -> Gains:
    """Gains where all clients send in the same channel uses: one combiner a receiver.

    Args:
      channels: of the cohort.
      server: [S] int32, which of ``servers`` receivers hears each client; None: one hears all.
      servers: how many receivers there are.
    """
    h = channels.antennas
    if server is None:
        along = h.sum(0)
        true = h @ (along / jnp.linalg.norm(along).astype(jnp.complex64)).conj()
    else:
        along = jax.ops.segment_sum(h, server, servers)  # [G, M]
        norm = jnp.linalg.norm(along, axis=1, keepdims=True)
        combiner = along / jnp.where(norm > 0, norm, 1.0).astype(jnp.complex64)
        true = (h * combiner[server].conj()).sum(1)
    return Gains(true, true + channels.error)


def separate(channels: Channels) -> Gains:
    """Gains where every client has channel uses of its own: maximum-ratio combining of each."""
    true = jnp.linalg.norm(channels.antennas, axis=1).astype(jnp.complex64)
    return Gains(true, true + channels.error)


def block_fading(
    antennas: int = 1,
    rician: jax.Array | float = 0.0,
    csi_error: jax.Array | float = 0.0,
    annulus: tuple[float, float] | None = None,
) -> Fading:
    """Rayleigh or Rician block fading.

    Args:
      antennas: M at the receiver.
      rician: power of the line of sight over that of the scattered paths, kappa; 0 is Rayleigh.
      csi_error: sigma_e^2, variance of the estimate's error relative to the large-scale gain.
      annulus: (nearest, farthest) distance of clients in metres; None: no path loss.

    Raises:
      ValueError: no antenna, or not 0 < nearest <= farthest.
    """
    check.whole("antennas", antennas, 1)
    check.number("rician", rician, 0)
    check.number("csi_error", csi_error, 0)
    _annulus(annulus)

    def of_client(root: Key, t: jax.Array, k: jax.Array):
        scattered = _complex_normal(rng.stream(root, "fading", t, k), (antennas,))
        kappa = jnp.asarray(rician, jnp.float32)
        sight = jnp.sqrt(kappa / (kappa + 1)).astype(jnp.complex64)
        small = sight + jnp.sqrt(1 / (kappa + 1)).astype(jnp.complex64) * scattered
        large = jnp.float32(1.0) if annulus is None else path_gain(_place(root, k, annulus))
        error = _complex_normal(rng.stream(root, "csi", t, k), ())
        amplitude = jnp.sqrt(large).astype(jnp.complex64)
        inaccuracy = jnp.sqrt(jnp.asarray(csi_error, jnp.float32)).astype(jnp.complex64)
        return amplitude * small, amplitude * inaccuracy * error

    def channels(root: Key, t: jax.Array, ids: jax.Array) -> Channels:
        return Channels(*jax.vmap(of_client, (None, None, 0))(root, t, ids))

    return channels


def orthogonal_gains(
    root: Key, t: jax.Array, ids: jax.Array, distance: jax.Array, antennas: int = 1
) -> jax.Array:
    """Power gains of clients with channel uses of their own, each combined for itself.

    g = 10^(-PL/10) ||u||^2 / M: maximum-ratio combining at M antennas whose array gain is left
    out, Gamma(M, 1/M) about the large-scale gain. M = 1 is Rayleigh fading; large M hardly fades.
    u is that of ``block_fading``.

    Args:
      root: key of the run.
      t: round, [] int32.
      ids: clients, [S].
      distance: of each in metres, [S].
      antennas: M, at least 1.

    Returns:
      [S] float32.
    """
    check.whole("antennas", antennas, 1)

    def small(k: jax.Array) -> jax.Array:
        u = _complex_normal(rng.stream(root, "fading", t, k), (antennas,))
        return jnp.mean(jnp.square(jnp.abs(u)))

    return path_gain(distance) * jax.vmap(small)(ids)


def places(root: Key, ids: jax.Array, annulus: tuple[float, float]) -> jax.Array:
    """Distances of clients in metres, [S], as ``block_fading`` draws them: once a run."""
    _annulus(annulus)
    return jax.vmap(lambda k: _place(root, k, annulus))(ids)


def path_gain(distance: jax.Array) -> jax.Array:
    """10^(-PL/10) with PL = 128.1 + 37.6 log10(d / km) dB, for distances in metres."""
    check.numbers("distance", distance, above=0)
    loss_db = 128.1 + 37.6 * jnp.log10(distance / 1000.0)
    return 10.0 ** (-loss_db / 10.0)


def budget_db(power: float, bandwidth: float, noise_density_dbm: float = -174.0) -> float:
    """P / (N0 B) in dB: what ``snr_db`` is where gains include path loss.

    Args:
      power: P in W.
      bandwidth: B in Hz.
      noise_density_dbm: N0 in dBm per Hz.
    """
    check.number("power", power, above=0)
    check.number("bandwidth", bandwidth, above=0)
    check.number("noise_density_dbm", noise_density_dbm)
    return 10 * log10(power) + 30 - noise_density_dbm - 10 * log10(bandwidth)


def _annulus(annulus: tuple[float, float] | None) -> None:
    if annulus is not None:
        check.numbers("annulus", annulus, above=0)
        if np.shape(annulus) != (2,) or annulus[0] > annulus[1]:
            raise ValueError(f"annulus={annulus} must satisfy 0 < nearest <= farthest")


def _place(root: Key, k: jax.Array, annulus: tuple[float, float]) -> jax.Array:
    """Distance of client k in metres, uniform over the annulus's area."""
    share = jax.random.uniform(rng.stream(root, "place", k))
    near, far = annulus
    return jnp.sqrt(near**2 + share * (far**2 - near**2))


def _complex_normal(key: Key, shape: tuple[int, ...]) -> jax.Array:
    """CN(0, 1): variance 1/2 per real dimension."""
    real, imaginary = jax.random.normal(key, (2, *shape)) * jnp.sqrt(0.5)
    return jax.lax.complex(real, imaginary)
