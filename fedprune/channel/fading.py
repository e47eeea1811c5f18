"""Fading: channels of a round's clients, large-scale and small-scale, and how they are combined.

    sqrt(g_k) u_kb                 client k's channel to the M receive antennas, [M] complex
    h_kb = sqrt(g_k) f^H u_kb      its gain after combining by f of unit norm, [] complex

  b    a block of symbols that fade together, 0..B-1: a subcarrier of an OFDM symbol, or a coherence
       block. Symbol i of an array is sent in block i mod B (``channel.packing``). B is 1 in flat
       block fading, in which a whole transmission has one channel.
  u_kb small-scale fading of a round. Rayleigh: u ~ CN(0, I). Rician with factor kappa:
       sqrt(kappa / (kappa+1)) + sqrt(1 / (kappa+1)) CN(0, I). E|u_m|^2 = 1 in both. The scattered
       part is that of L taps with powers p_l that add up to 1, each CN(0, p_l I), and
       sum_l tap_l exp(-2 pi i b l / B) on block b: L = 1 is flat, L = B equal taps are independent
       blocks.
  g_k  large-scale gain 10^(-PL/10), PL(d) = 128.1 + 37.6 log10(d / km) dB; 1 without placement.
       The place of a client is drawn once a run, uniformly over an annulus.
  f    depends on who sends at the same time. Where all clients superpose (``superposed``) there is
       one f a block, along the sum of the channels of those whom the receiver hears. A client in
       channel uses of its own (``separate``) has maximum-ratio combining, f along u_kb: h_kb =
       sqrt(g_k) ||u_kb||, whoever else is in the cohort. With one antenna f only turns the phase.

From round to round the scattered part is drawn anew, or is a Gauss-Markov process of correlation
rho: tap(t) = rho tap(t-1) + sqrt(1 - rho^2) w(t), w(t) as in a new draw; all K clients have one,
also in rounds in which they do not take part.

Clients know an estimate of h_kb: h_hat = h + e, e ~ CN(0, sigma_e^2 g_k) (imperfect CSI).
Sources: P2 section II for block fading; the path loss is 3GPP's for macro cells.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import log10
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedprune import check, rng
from fedprune.types import Key, PyTree


class Instant(NamedTuple):
    """Whose channels are drawn, and when."""

    key: Key
    """root key of the run"""
    round: jax.Array
    """[] int32"""
    ids: jax.Array
    """[S] int32, the clients"""
    state: PyTree = None
    """what the fading keeps from round to round"""


class Channels(NamedTuple):
    """The channels of a round's clients, as fading draws them."""

    antennas: jax.Array
    """[S, B, M] complex64, from each client to each receive antenna, for each block"""
    error: jax.Array
    """[S, B] complex64, e: what is wrong with the client's estimate of its gain after combining"""


class Gains(NamedTuple):
    """Gains after the receiver's combining: [S, B] of a cohort, [B] of one client."""

    true: jax.Array
    """complex64, h"""
    known: jax.Array
    """complex64, the clients' estimates of h"""


class Fading(NamedTuple):
    """Draws the channels of each round: the one contract of every kind of fading."""

    draw: Callable[[Instant], tuple[Channels, PyTree]]
    """-> (channels of ``Instant.ids``, state). Two draws of one round give the same channels; the
    second may be given the state that the first returned."""
    blocks: int = 1
    """B"""
    init: Callable[[], PyTree] | None = None
    """-> state of all clients before the first round, which uplinks keep at the server; None: every
    round is drawn by itself"""
    clients: int | None = None
    """K, where there is a state"""


def none() -> Fading:
    """One antenna and h = 1, known: pure AWGN."""

    def draw(at: Instant) -> tuple[Channels, None]:
        one = jnp.ones((*at.ids.shape, 1, 1), jnp.complex64)
        return Channels(one, jnp.zeros((*at.ids.shape, 1), jnp.complex64)), None

    return Fading(draw)


def superposed(channels: Channels, server: jax.Array | None = None, servers: int = 1) -> Gains:
    """Gains where all clients send in the same channel uses: one combiner a receiver and block.

    Args:
      channels: of the cohort.
      server: [S] int32, which of ``servers`` receivers hears each client; None: one hears all.
      servers: how many receivers there are.
    """
    h = channels.antennas
    if server is None:
        along = h.sum(0)  # [B, M]
        norm = jnp.linalg.norm(along, axis=1, keepdims=True)
        true = (h * (along / norm.astype(jnp.complex64)).conj()[None]).sum(2)
    else:
        along = jax.ops.segment_sum(h, server, servers)  # [G, B, M]
        norm = jnp.linalg.norm(along, axis=2, keepdims=True)
        combiner = along / jnp.where(norm > 0, norm, 1.0).astype(jnp.complex64)
        true = (h * combiner[server].conj()).sum(2)
    return Gains(true, true + channels.error)


def separate(channels: Channels) -> Gains:
    """Gains where every client has channel uses of its own: maximum-ratio combining of each."""
    true = jnp.linalg.norm(channels.antennas, axis=2).astype(jnp.complex64)
    return Gains(true, true + channels.error)


def power(gains: jax.Array) -> jax.Array:
    """Power gain |h|^2 of each client, the mean over its blocks: [S, B] complex -> [S]."""
    return jnp.square(jnp.abs(gains)).mean(1)


class _Track(NamedTuple):
    """A Gauss-Markov process of every client."""

    round: jax.Array
    """[] int32, of what ``taps`` holds; -1 before the first"""
    taps: jax.Array
    """[K, L, M, 2] float32, real and imaginary parts before their powers"""


def block_fading(
    antennas: int = 1,
    rician: jax.Array | float = 0.0,
    csi_error: jax.Array | float = 0.0,
    annulus: tuple[float, float] | None = None,
    blocks: int = 1,
    taps: Sequence[float] = (1.0,),
    correlation: jax.Array | float = 0.0,
    clients: int | None = None,
) -> Fading:
    """Rayleigh or Rician block fading, flat or frequency-selective, new or correlated in time.

    Args:
      antennas: M at the receiver.
      rician: power of the line of sight over that of the scattered paths, kappa; 0 is Rayleigh.
      csi_error: sigma_e^2, variance of the estimate's error relative to the large-scale gain.
      annulus: (nearest, farthest) distance of clients in metres; None: no path loss.
      blocks: B, blocks of symbols that fade together.
      taps: relative powers of the L <= B taps, which are divided by their sum.
      correlation: rho in [0, 1), from round to round; needs ``clients``.
      clients: K, for a process that goes on from round to round; None: every round is drawn anew.

    Raises:
      ValueError: no antenna, not 0 < nearest <= farthest, more taps than blocks, a correlation
        outside [0, 1), or one without ``clients``.
    """
    check.whole("antennas", antennas, 1)
    check.number("rician", rician, 0)
    check.number("csi_error", csi_error, 0)
    check.whole("blocks", blocks, 1)
    check.numbers("taps", taps, above=0)
    check.number("correlation", correlation, 0, below=1)
    if not 1 <= len(taps) <= blocks:
        raise ValueError(f"taps={tuple(taps)} must be 1 to blocks={blocks} numbers")
    if clients is not None:
        check.whole("clients", clients, 1)
    elif not isinstance(correlation, int | float) or correlation > 0:
        raise ValueError(f"clients=None must be their number for correlation={correlation}")
    _annulus(annulus)
    amplitudes = np.sqrt(np.asarray(taps) / np.sum(taps)).astype(np.complex64)
    turns = np.outer(np.arange(blocks), np.arange(len(taps))) / blocks
    spectrum = np.exp(-2j * np.pi * turns).astype(np.complex64) * amplitudes  # [B, L]

    def fresh(root: Key, t: jax.Array, k: jax.Array) -> jax.Array:
        return _complex_normal(rng.stream(root, "fading", t, k), (len(taps), antennas))

    def of_client(root: Key, t: jax.Array, k: jax.Array, scattered: jax.Array):
        on_blocks = scattered
        if blocks > 1:
            on_blocks = jnp.matmul(spectrum, scattered, precision="highest")  # [B, M]
        kappa = jnp.asarray(rician, jnp.float32)
        sight = jnp.sqrt(kappa / (kappa + 1)).astype(jnp.complex64)
        small = sight + jnp.sqrt(1 / (kappa + 1)).astype(jnp.complex64) * on_blocks
        large = jnp.float32(1.0) if annulus is None else path_gain(_place(root, k, annulus))
        error = _complex_normal(rng.stream(root, "csi", t, k), (blocks,))
        amplitude = jnp.sqrt(large).astype(jnp.complex64)
        inaccuracy = jnp.sqrt(jnp.asarray(csi_error, jnp.float32)).astype(jnp.complex64)
        return amplitude * small, amplitude * inaccuracy * error

    def anew(at: Instant) -> tuple[Channels, None]:
        def one(k: jax.Array):
            return of_client(at.key, at.round, k, fresh(at.key, at.round, k))

        return Channels(*jax.vmap(one)(at.ids)), None

    def init() -> _Track:
        return _Track(jnp.int32(-1), jnp.zeros((clients, len(taps), antennas, 2)))

    def going_on(at: Instant) -> tuple[Channels, _Track]:
        old: _Track = at.state
        drawn = jax.vmap(lambda k: fresh(at.key, at.round, k))(jnp.arange(clients))
        new = jnp.stack([drawn.real, drawn.imag], axis=-1)
        rho = jnp.asarray(correlation, jnp.float32)
        later = jnp.where(old.round < 0, new, rho * old.taps + jnp.sqrt(1 - rho**2) * new)
        now = _Track(at.round, jnp.where(old.round == at.round, old.taps, later))
        scattered = jax.lax.complex(now.taps[..., 0], now.taps[..., 1])[at.ids]
        found = jax.vmap(of_client, (None, None, 0, 0))(at.key, at.round, at.ids, scattered)
        return Channels(*found), now

    if clients is None:
        return Fading(anew, blocks)
    return Fading(going_on, blocks, init, clients)


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
