"""One model over one analog link: P3's AirNet, as a downlink and as noise for training.

Kernels are the layers: each weight is sent as r real symbols of a code, all layers share the power
budget (``coding.layers``), and the receiver equalises and decodes. All other leaves (biases, norms,
running statistics) reach it without error beside the symbols, and are billed as side information
with the 2 reals of each layer. Pruned weights are not sent. The mask itself is billed as side
information of one bit a weight, 32 of which count as a real, for every kernel in which anything is
pruned, with every broadcast; a mask of whole units could be told in fewer bits.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedprune import bill as bills
from fedprune import channel, check, coding, rng, tree
from fedprune.types import (
    Air,
    Arrival,
    Cohort,
    Cost,
    Downlink,
    Key,
    Mask,
    Params,
    PyTree,
    Received,
    Reception,
    Sender,
    Sent,
    Total,
    Uplink,
)

FADINGS = ("none", "rayleigh")


class Protection(NamedTuple):
    """How the weights of each layer are coded."""

    repeats: jax.Array | int = 1
    """[L], or one for all: symbols a weight; may be traced"""
    family: str = "repetition"
    """one of ``coding.FAMILIES``"""
    largest: int = 1
    """at least all repeats"""
    gamma: jax.Array | float | None = None
    """of spirals; None: for each layer the best at the SNR of its own symbols; the receiver knows
    that SNR and so computes the same value (``coding.best_gamma``)"""
    decoder: str | None = None
    """of the family; None: its default"""


class _Layers(NamedTuple):
    """What decides the power of each layer, all [L]."""

    weights: list[jax.Array]
    sizes: jax.Array
    """float32, weights that are sent"""
    repeats: jax.Array
    """int32"""
    amplitude: jax.Array
    rms: jax.Array


def analog(
    snr_db: jax.Array | float,
    protection: Protection | None = None,
    packing: str = "complex",
    fading: str = "none",
    csi_error: jax.Array | float = 0.0,
    power: jax.Array | float = 1.0,
    bandwidth: jax.Array | float = 1e6,
) -> Downlink:
    """The link from layers to layers.

    Args:
      snr_db: P / no in dB with E|h|^2 = 1, P the power budget per complex symbol; may be traced.
      protection: the codes; None: every weight once.
      packing: "complex", two reals a symbol, or "real", one.
      fading: "none", h = 1; or "rayleigh", one h ~ CN(0, 1) for the block.
      csi_error: variance of the error in the receiver's estimate of h.
      power: P in W, for the energy.
      bandwidth: channel uses a second, in Hz.

    Raises:
      ValueError: an unknown packing, fading, family or decoder.

    Source: P3 sections III-A and V.
    """
    if fading not in FADINGS:
        raise ValueError(f"fading={fading!r} is not one of {FADINGS}")
    check.number("snr_db", snr_db, above=-check.INFINITY, infinite=True)
    check.number("csi_error", csi_error, 0)
    check.number("power", power, 0)
    check.number("bandwidth", bandwidth, above=0)
    coded = Protection() if protection is None else protection
    budget = channel.real_power(packing)
    check.whole("largest", coded.largest, 1)
    check.wholes("repeats", coded.repeats, 1, coded.largest)
    if coded.gamma is not None:
        check.number("gamma", coded.gamma, above=0)
    coding.expansion(coded.family, 1, coded.largest, 1.0, coded.decoder)

    def send(key: Key, params: Params, mask: Mask) -> Params:
        layers = _layers(params, mask, coded.repeats, budget)
        codes = _codes(layers, coded, snr_db)
        symbols, side = coding.encode_layers(layers.weights, codes, budget, sizes=layers.sizes)
        if fading == "none":
            gains = channel.clear()
        else:
            gains = channel.slow_rayleigh(rng.stream(key, "gain"), csi_error)
        noise = rng.stream(key, "noise")
        sent = None if mask is None else coding.sent(tree.kernel_leaves(mask), codes)
        received = channel.transmit(noise, symbols, snr_db, packing, gains, sent)
        shapes = [w.shape for w in layers.weights]
        variance = channel.noise_after(snr_db, gains)
        found = coding.decode_layers(received, side, codes, shapes, variance)
        return tree.apply_mask(mask, _replaced(params, found))

    def bill(params: Params, mask: Mask, knows_mask: bool = False) -> Cost:
        layers = _layers(params, mask, coded.repeats, budget)
        reals = jnp.sum(layers.sizes.astype(jnp.int32) * layers.repeats)
        uses = bills.count(channel.channel_uses(reals, packing))
        rest = tree.count(mask, params) - jnp.sum(layers.sizes.astype(jnp.int32))
        side = rest + 2 * len(layers.weights)
        if not knows_mask:
            side += _mask_reals(mask)
        seconds = bills.approximate(uses) / bandwidth
        return Cost(uses, bills.count(side), jnp.float32(0.0), seconds, power * seconds)

    return Downlink(send, bill)


def injection(
    snr_db: Callable[[Key, jax.Array], jax.Array],
    repeats: jax.Array | int = 1,
    packing: str = "complex",
    fading: str = "none",
    of: Callable[[Params, jax.Array], Params] = lambda params, snr_db: params,
    gain_floor: float = 0.1,
) -> Reception:
    """Training at what the channel would deliver: weights with its noise, drawn anew every step.

        w + n,   n ~ N(0, sigma_real^2 / (|h|^2 alpha_i^2 r_i)) on the kept weights of layer i,

    with no gradient through alpha: the exact law of ``analog`` with repetition (decoder ls) and
    known h. For spirals P3 scales the noise in the same way. Gradients pass to w unchanged.

    Args:
      snr_db: (key, number of the step) -> SNR [] in dB, such as ``local.sandwich``.
      repeats: r_i, [L] or one for all; may be traced.
      packing: as for ``analog``.
      fading: as for ``analog``; h is drawn anew every step.
      of: (trained params, SNR) -> the network's params, such as ``local.interpolated``; the mask
        must have the structure of its result.
      gain_floor: least |h| in training. Noise in proportion to 1 / |h| has no finite variance, and
        single steps in a deep fade would decide the weights.

    Raises:
      ValueError: an unknown packing or fading.
    """
    check.function("snr_db", snr_db)
    check.wholes("repeats", repeats, 1)
    check.number("gain_floor", gain_floor, above=0)
    channel.real_power(packing)
    if fading not in FADINGS:
        raise ValueError(f"fading={fading!r} is not one of {FADINGS}")

    def receive(key: Key, number: jax.Array, params: Params, mask: Mask) -> Params:
        snr = snr_db(rng.stream(key, "snr"), number)
        network = of(params, snr)
        weights = _weights(network, mask)
        gain: jax.Array | float = 1.0
        if fading != "none":
            gains = channel.slow_rayleigh(rng.stream(key, "gain"))
            gain = jnp.maximum(jnp.abs(gains.true), gain_floor)
        deviation = deviations(network, mask, repeats, snr, packing, gain)
        keys = rng.stream(key, "noise")
        noisy = [
            w + deviation[i] * jax.random.normal(rng.stream(keys, "layer", i), w.shape)
            for i, w in enumerate(weights)
        ]
        return tree.apply_mask(mask, _replaced(network, noisy))

    return receive


def one_by_one(link: Downlink) -> Uplink:
    """An uplink on which every client sends its update in channel uses of its own.

    Nothing adds up on the air, so any code will do, spirals too. The bills of all clients add up.
    The server knows the round's mask; a client with a mask of its own is billed for sending it.

    Args:
      link: from one sender to one receiver, such as ``analog``.
    """
    check.kind("link", link, Downlink)

    def prepare(cohort: Cohort) -> Air:
        everybody = jnp.ones(cohort.ids.shape, bool)
        keys = jax.vmap(lambda k: rng.stream(cohort.key, "uplink", cohort.round, k))(cohort.ids)
        return Air(everybody, everybody, keys)

    def encode(sender: Sender) -> Sent:
        trained, weight = sender.trained, sender.weight
        held = sender.mask if trained.held is None else trained.held
        received = link.send(sender.state, trained.delta, held)
        cost = link.bill(trained.delta, held, trained.held is None)
        return Sent(Total((tree.scale(weight, received), weight, cost), ()))

    def finish(arrival: Arrival) -> Received:
        signal, weight, cost = arrival.total.sum
        return Received(tree.mean(signal, weight), bills.settled(cost))

    return Uplink(prepare, encode, finish)


def deviations(
    params: Params,
    mask: Mask,
    repeats: jax.Array | int,
    snr_db: jax.Array | float,
    packing: str = "complex",
    gain: jax.Array | float = 1.0,
) -> jax.Array:
    """Standard deviation [L] of the noise on the weights of each layer, with repetition.

    Arguments as for ``injection``, with |h| = ``gain``; ``channel.weight_deviation`` has the law.
    """
    layers = _layers(params, mask, repeats, channel.real_power(packing))
    return channel.weight_deviation(layers.amplitude, layers.repeats, snr_db, gain)


def layer_names(params: Params) -> list[str]:
    """Paths of the leaves that are sent as symbols, in the order of the layers."""
    flat = jax.tree_util.tree_flatten_with_path(params)[0]
    return [name for path, leaf in flat if tree.is_kernel(name := tree.path_name(path), leaf)]


def _weights(params: Params, mask: Mask) -> list[jax.Array]:
    return tree.kernel_leaves(tree.apply_mask(mask, params))


def _mask_reals(mask: Mask) -> jax.Array:
    """Reals of 32 bits that tell the receiver the mask, one bit a weight of every kernel in which
    anything is pruned, [] int32."""
    if mask is None:
        return jnp.int32(0)
    bits = [jnp.where(m.all(), 0, m.size) for m in tree.kernel_leaves(mask)]
    return (jnp.stack(bits).sum() + 31) // 32


def _layers(params: Params, mask: Mask, repeats: jax.Array | int, power: float) -> _Layers:
    weights = _weights(params, mask)
    if mask is None:
        sizes = jnp.asarray([w.size for w in weights], jnp.float32)
    else:
        sizes = jnp.stack([jnp.sum(m, dtype=jnp.float32) for m in tree.kernel_leaves(mask)])
    times = jnp.broadcast_to(jnp.asarray(repeats, jnp.int32), (len(weights),))
    energy = jnp.stack([jnp.square(w).sum() for w in weights])
    amplitude = coding.amplitudes(energy, sizes, times, power)
    return _Layers(weights, sizes, times, amplitude, coding.root_mean_square(energy, sizes))


def _codes(layers: _Layers, coded: Protection, snr_db: jax.Array | float) -> list[coding.Code]:
    strength = jnp.square(layers.amplitude * layers.rms) / channel.real_noise(snr_db)
    decibel = 10.0 * jnp.log10(jnp.maximum(strength, 1e-6))
    best = coding.best_gamma(decibel)
    return [
        coding.expansion(
            coded.family,
            layers.repeats[i],
            coded.largest,
            best[i] if coded.gamma is None else coded.gamma,
            coded.decoder,
        )
        for i in range(len(layers.weights))
    ]


def _replaced(params: Params, layers: list[jax.Array]) -> PyTree:
    """``params`` with other kernels."""
    new = iter(layers)
    return jax.tree.map(lambda leaf, k: next(new) if k else leaf, params, tree.kernels(params))
