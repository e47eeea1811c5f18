"""What a device has to compute and to send in a round, and what it takes in seconds and joules.

A device keeps the share x = 1 - rho of the weights that may be pruned. Everything that P2 and P4
count is affine in x:

    cycles = fixed + warm-up + x prunable          T_cmp = cycles / f
    bits   = fixed + x prunable                    T_up  = bits / R
    T      = T_cmp + T_up                          P2 (14), P4 (27)
    joules = capacitance f^2 cycles + p T_up

P2, with W_c convolution weights and W_f others, T steps of C cycles a weight, q bits a value:
    cycles T C W_c + x T C W_f, bits q W_c + x q W_f               (6), (9), (11)
P4, with N_v personal weights that are never sent and N_u global ones, tau_v and tau_u steps:
    cycles tau_v C N_v + x tau_u C N_u, bits x q N_u               (24), (25)
The warm-up, from which the masks are made, takes tau C cycles for all weights that it trains: W in
P2, whose (9) leaves it out, and N_u in P4.

P2 (11) bills values alone, though the receiver has to know which ones they are. ``payload``:
    values   q bits a kept weight
    bitmap   and one bit for every weight that may be pruned
    index    and ceil(log2 W_f) bits for every kept one of them
Weights that cannot be pruned need no position.

x is used in place of rho because 1 - rho loses all digits where hardly anything is kept. Sources:
P2 section III-C, P4 section III-A; the energy of a processor is the usual model, which neither has.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedprune import check

PAYLOADS = ("values", "bitmap", "index")


class Work(NamedTuple):
    """A round's work of one device, or of many in the shape of the cycles' parameters."""

    fixed_cycles: jax.Array | float
    """of weights that are never pruned"""
    warm_cycles: jax.Array | float
    """of the steps before the masks are known"""
    prunable_cycles: jax.Array | float
    """of weights that may be pruned, if all of them are kept"""
    fixed_bits: jax.Array | float
    prunable_bits: jax.Array | float
    """above 0"""
    fixed_weights: int
    """that are sent whatever is pruned"""
    prunable_weights: int


def hierarchical(
    fixed_weights: int,
    prunable_weights: int,
    steps: jax.Array | float,
    cycles: jax.Array | float,
    value_bits: jax.Array | float,
    warm_steps: jax.Array | float = 0.0,
    payload: str = "values",
) -> Work:
    """P2: all weights are trained and sent.

    Args:
      fixed_weights: W_c.
      prunable_weights: W_f.
      steps: T.
      cycles: C_n, processor cycles for one step of one weight; [] or [N].
      value_bits: q.
      warm_steps: steps of the whole model before pruning; P2 (9) has none.
      payload: one of ``PAYLOADS``.

    Raises:
      ValueError: an unknown payload.
    """
    check.whole("fixed_weights", fixed_weights, 0)
    check.whole("prunable_weights", prunable_weights, 0)
    check.numbers("steps", steps, 0)
    check.numbers("cycles", cycles, 0)
    check.numbers("value_bits", value_bits, above=0)
    check.numbers("warm_steps", warm_steps, 0)
    fixed_bits, prunable_bits = _payload(prunable_weights, value_bits, payload)
    return Work(
        fixed_cycles=steps * cycles * fixed_weights,
        warm_cycles=warm_steps * cycles * (fixed_weights + prunable_weights),
        prunable_cycles=steps * cycles * prunable_weights,
        fixed_bits=value_bits * fixed_weights + fixed_bits,
        prunable_bits=prunable_bits,
        fixed_weights=fixed_weights,
        prunable_weights=prunable_weights,
    )


def personalized(
    personal_weights: int,
    global_weights: int,
    personal_steps: jax.Array | float,
    global_steps: jax.Array | float,
    cycles: jax.Array | float,
    value_bits: jax.Array | float,
    warm_steps: jax.Array | float = 0.0,
    payload: str = "values",
    fixed_weights: int = 0,
) -> Work:
    """P4: personal weights stay on the device, global ones are pruned and sent.

    Args:
      personal_weights: N_v.
      global_weights: N_u, those that may be pruned.
      personal_steps: tau_v.
      global_steps: tau_u.
      cycles: C_k, processor cycles for one step of one weight; [] or [N].
      value_bits: q.
      warm_steps: tau^_u, steps of the global part before pruning; 0 for the unpruned (8).
      payload: one of ``PAYLOADS``.
      fixed_weights: global weights that are never pruned; P4 has none.

    Raises:
      ValueError: an unknown payload.
    """
    check.whole("personal_weights", personal_weights, 0)
    check.numbers("personal_steps", personal_steps, 0)
    work = hierarchical(
        fixed_weights, global_weights, global_steps, cycles, value_bits, warm_steps, payload
    )
    own = personal_steps * cycles * personal_weights
    return work._replace(fixed_cycles=work.fixed_cycles + own)


def compute_seconds(work: Work, keep: jax.Array, frequency: jax.Array | float) -> jax.Array:
    """T_cmp, P2 (9), P4 (24): keep x [..., N] in [0, 1], frequency in Hz, [] or [..., N]."""
    check.numbers("frequency", frequency, above=0)
    return _cycles(work, keep) / frequency


def uplink_seconds(work: Work, keep: jax.Array, rate: jax.Array) -> jax.Array:
    """T_up, P2 (11), P4 (25): x [..., N], rate [..., N] in bits a second.

    Sending nothing takes no time at any rate, 0 included; P4 (25) is 0/0 there.
    """
    check.numbers("rate", rate, 0)
    bits = bits_sent(work, keep)
    return jnp.where(bits > 0, bits / jnp.where(bits > 0, rate, 1.0), 0.0)


def seconds(
    work: Work, keep: jax.Array, frequency: jax.Array | float, rate: jax.Array
) -> jax.Array:
    """T_n = T_cmp + T_up, P2 (14), P4 (27)."""
    return compute_seconds(work, keep, frequency) + uplink_seconds(work, keep, rate)


def energy(
    work: Work,
    keep: jax.Array,
    frequency: jax.Array | float,
    rate: jax.Array,
    power: jax.Array | float,
    capacitance: jax.Array | float = 1e-28,
) -> jax.Array:
    """Of computing and of sending, in J, [..., N]. Without power nothing is radiated, for ever.

    Args:
      work: of the devices.
      keep: x [..., N].
      frequency: f in Hz, [] or [..., N].
      rate: R [..., N] in bits a second.
      power: p in W, [] or [..., N].
      capacitance: joules a cycle are capacitance f^2, in F; 1e-28 is 0.9 nJ at 3 GHz.
    """
    check.numbers("frequency", frequency, above=0)
    check.numbers("power", power, 0)
    check.number("capacitance", capacitance, 0)
    # The factors in this order stay within float32's range.
    computing = (capacitance * frequency) * (frequency * _cycles(work, keep))
    return computing + power * jnp.where(power > 0, uplink_seconds(work, keep, rate), 0.0)


def bits_sent(work: Work, keep: jax.Array) -> jax.Array:
    """Bits on the air, [..., N]."""
    return work.fixed_bits + keep * work.prunable_bits


def weights_sent(work: Work, keep: jax.Array) -> jax.Array:
    """Weights on the air, [..., N]: what both papers call the communication cost."""
    return work.fixed_weights + keep * work.prunable_weights


def round_seconds(seconds: jax.Array, edge: jax.Array, edges: int) -> jax.Array:
    """Time of a cloud round: the slowest edge server's sum over its rounds of the slowest device.

    Args:
      seconds: T_n of every edge round and device, [E, N].
      edge: the server to which each device belongs, [N] int32 in 0..edges-1.
      edges: servers; one without devices takes no time.

    Returns:
      [] seconds, max_k sum_e max_n T: P2 (16) for one server and round; P2 leaves the rest open.

    Raises:
      ValueError: servers outside 0..edges-1.
    """
    check.whole("edges", edges, 1)
    check.wholes("edge", edge, 0, edges - 1)
    slowest = jax.vmap(lambda t: jax.ops.segment_max(t, edge, edges))(seconds)  # [E, K]
    return jnp.max(jnp.sum(jnp.maximum(slowest, 0.0), 0))


def _cycles(work: Work, keep: jax.Array) -> jax.Array:
    return work.fixed_cycles + work.warm_cycles + keep * work.prunable_cycles


def _payload(prunable: int, value_bits: jax.Array | float, payload: str):
    """Bits beside the values: fixed ones, and all of the prunable weights' if they are kept."""
    if payload not in PAYLOADS:
        raise ValueError(f"payload={payload!r}: must be one of {', '.join(PAYLOADS)}")
    position = (prunable - 1).bit_length() if payload == "index" else 0
    return (prunable if payload == "bitmap" else 0), (value_bits + position) * prunable
