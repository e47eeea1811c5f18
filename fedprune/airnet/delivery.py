"""Nets sent through the link (``link.analog``) as often as there are draws, and their accuracy.

Accuracies are means over draws of the channel, noise and h, for each seed (P3 section VII).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedprune import link, local, run
from fedprune.airnet.lab import Lab, joined
from fedprune.airnet.settings import LARGEST


class Case(NamedTuple):
    """A delivery of one net."""

    net: str
    snr_db: float = 0.0
    fading: str = "none"
    family: str = "repetition"
    repeats: str = ""
    """name of the expansion (``Lab.expansions``); "": every weight once"""
    gamma: float | None = None
    span: tuple[float, float, float] | None = None
    """of a pair: SNR_min, SNR_max and bend"""


def deliver(lab: Lab, cases: Sequence[Case]) -> dict[Case, np.ndarray]:
    """Accuracies of every case in percent, [seeds]: means over draws of the channel."""
    groups: dict[tuple, list[Case]] = {}
    for case in cases:
        static = (case.fading, case.family, case.gamma is None, case.span is None)
        groups.setdefault(static, []).append(case)
    found: dict[Case, np.ndarray] = {}
    for (fading, family, best, single), group in groups.items():
        values = _delivered(lab, group, _receive(lab, fading, family, best, single))
        per_seed = 100 * values.mean(1).reshape(len(group), lab.seeds)
        found |= dict(zip(group, per_seed, strict=True))
        lab.log(f"{len(group)} cases delivered ({family}, fading {fading})")
    return found


def lines(
    lab: Lab, shown: Mapping[str, Case], snrs_db: Sequence[float]
) -> dict[str, dict[float, np.ndarray]]:
    """Accuracies of every seed against SNR: name -> SNR -> [seeds].

    Args:
      lab: with the nets.
      shown: name -> the case, at any SNR; "{:g}" in the name of its net stands for the SNR.
      snrs_db: SNRs.
    """
    cases = {
        (name, snr): case._replace(net=case.net.format(snr), snr_db=snr)
        for name, case in shown.items()
        for snr in snrs_db
    }
    found = deliver(lab, list(cases.values()))
    return {name: {snr: found[cases[name, snr]] for snr in snrs_db} for name in shown}


def clean(lab: Lab, params: Any, mask: Any) -> np.ndarray:
    """Accuracies in percent [n] of models [n, ...] without any channel."""
    plain = lambda values: lambda key, params, mask: params
    evaluate = run.delivery(lab.model, lab.layout, plain, 1)
    count = jax.tree.leaves(params)[0].shape[0]
    keys = jnp.stack([jax.random.key(0)] * count)
    return 100 * np.asarray(evaluate((), keys, params, mask, lab.test))[:, 0]


def _receive(lab: Lab, fading: str, family: str, best: bool, single: bool) -> Callable:
    """What ``run.delivery`` asks for, for cases that differ in numbers only."""

    def receive(values: Mapping[str, Any]) -> Callable:
        gamma = None if best else values["gamma"]
        protection = link.Protection(values["repeats"], family, LARGEST[family], gamma)
        down = link.analog(values["snr"], protection, lab.config.downlink.analog.packing, fading)

        def at_receiver(key: jax.Array, params: Any, mask: Any) -> Any:
            if not single:
                params = local.interpolated(*values["span"])(params, values["snr"])
                mask = mask["low"]
            return down.send(key, params, mask)

        return at_receiver

    return receive


def _delivered(lab: Lab, cases: Sequence[Case], receive: Callable) -> np.ndarray:
    """Accuracies [cases times seeds, draws]."""
    c = lab.config
    span = [case.span or (0.0, 1.0, 0.5) for case in cases]
    hyper = {
        "snr": lab.column([case.snr_db for case in cases]),
        "gamma": lab.column([case.gamma or 0.0 for case in cases]),
        "repeats": joined([lab.expansions.get(case.repeats, lab.ones()) for case in cases]),
        "span": jnp.repeat(jnp.asarray(span, jnp.float32), lab.seeds, 0),
    }
    nets = joined([lab.nets[case.net] for case in cases])
    draws = c.draws if cases[0].fading == "none" else c.fading_draws
    evaluate = run.delivery(lab.model, lab.layout, receive, draws)
    keys = jnp.concatenate([lab.keys] * len(cases))
    return np.asarray(evaluate(hyper, keys, nets.params, nets.mask, lab.test))
