"""Stages of training: nets for a noisy link, from one another.

P3 delivers one model over one link. Here a net is trained as a federation of one client with a
perfect uplink (``rounds.build``), with noise in its weights as the link would put it there
(``link.injection``). How a net comes about:

  1. dense    trained without noise; the starting point of all others, and the teacher
  2. pruned   structured pruning in ``pruning.steps`` steps, each followed by fine-tuning with
              noise and distillation
  3. expanded the pruned net trained on, under the noise that its expansion leaves
  4. pair     two boundary networks from one pruned net, for a range of SNRs

A stage has ``run.rounds`` rounds. With ``restart`` a course is ``pruning.every`` rounds, in which
the learning rate runs through its schedule; a stage with pruning has one course for every pruning
step, and the other stages have one.

Stages 1 to 3 are one compiled program for each length: SNR, budget, distillation and symbols a
weight are traced, and masks keep shapes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedprune import config as cfg
from fedprune import link, local, prune, rounds, run, server
from fedprune.airnet.lab import Kept, Lab, Net, joined
from fedprune.airnet.settings import SILENT, TEMPERATURE, AirNet
from fedprune.types import Pruner, Reception


def course(c: AirNet) -> int:
    """Rounds in which the learning rate runs through its schedule once."""
    return c.pruning.every if c.restart else c.run.rounds


def decay(c: AirNet) -> local.Decay | None:
    """The factor on the learning rate of every round of a stage."""
    length = course(c)
    once = cfg.DECAYS[c.local.schedule].build(c.local, length)
    if once is None or length == c.run.rounds:
        return once
    return lambda t: once(t % length)


def dense(lab: Lab) -> Kept:
    """Stage 1: the net "dense"."""
    if "dense" not in lab.nets:
        start = lab.untrained()
        train(lab, "dense", [Net("dense", distil=0.0)], {"dense": start}, teacher=start)
    return lab.nets["dense"]


def pruned(lab: Lab, stage: str, nets: Sequence[Net], single: bool = False) -> None:
    """Stage 2: nets pruned from the dense one; ``single`` prunes weights and not units."""
    start = dense(lab)
    length = lab.config.run.rounds
    train(lab, stage, nets, {net.name: start for net in nets}, single=single, length=length)


def train(
    lab: Lab,
    stage: str,
    nets: Sequence[Net],
    start: Mapping[str, Kept],
    repeats: Mapping[str, np.ndarray] | None = None,
    teacher: Kept | None = None,
    single: bool = False,
    length: int = 0,
) -> None:
    """Trains nets of the program of stages 1 to 3, for all seeds.

    Args:
      lab: which gets the nets.
      stage: name of the file that keeps them.
      nets: what for.
      start: their names -> the nets from which they start; their masks stay in force.
      repeats: their names -> symbols a weight [seeds, L] in the noise of training.
      teacher: of all; None: the dense net.
      single: single weights are pruned, not units.
      length: rounds; 0: one course.
    """
    if lab.load(stage, [net.name for net in nets]):
        return
    length, kind = length or course(lab.config), "weight" if single else "unit"
    hyper = _hyper(lab, nets, repeats or {}, teacher or dense(lab), length)
    hyper["ratio"] = lab.column([1.0 - n.share for n in nets])
    starts = joined([start[net.name] for net in nets])
    lab.keep(stage, [net.name for net in nets], _run(lab, hyper, starts, kind, length, nets))


def pair(
    lab: Lab,
    stage: str,
    nets: Sequence[Net],
    start: Mapping[str, Kept],
    bends: Sequence[float],
    repeats: Mapping[str, np.ndarray] | None = None,
) -> None:
    """Stage 4: pairs of boundary networks, each for its net's range of SNRs."""
    if lab.load(stage, [net.name for net in nets]):
        return
    length = course(lab.config)
    hyper = _hyper(lab, nets, repeats or {}, dense(lab), length)
    hyper |= {"ratio": lab.column([0.0] * len(nets)), "bend": lab.column(bends)}
    starts = Kept(*map(local.pair, joined([start[net.name] for net in nets])))
    lab.keep(stage, [net.name for net in nets], _run(lab, hyper, starts, "pair", length, nets))


def _hyper(
    lab: Lab,
    nets: Sequence[Net],
    repeats: Mapping[str, np.ndarray],
    teacher: Kept,
    length: int,
) -> dict[str, Any]:
    """What is traced, with a leading axis [nets times seeds]."""
    steps = length * _steps(lab)
    return {
        "low": lab.column([n.low_db for n in nets]),
        "high": lab.column([n.low_db if n.high_db is None else n.high_db for n in nets]),
        "distil": lab.column([n.distil for n in nets]),
        "quiet": lab.column([n.quiet * steps for n in nets]),
        "repeats": joined([repeats.get(n.name, lab.ones()) for n in nets]),
        "teacher": joined([teacher.params] * len(nets)),
    }


def _steps(lab: Lab) -> int:
    """Steps of a round."""
    c = lab.config.local
    return c.steps or c.epochs * -(-lab.train_set.rows.shape[-1] // c.batch)


def _run(
    lab: Lab, hyper: dict[str, Any], start: Kept, kind: str, length: int, nets: Sequence[Net]
) -> Kept:
    """Runs a stage of ``length`` rounds."""
    (fading,) = {net.fading for net in nets}
    algorithm = lambda values: _round(lab, values, kind, fading)

    def state(hyper: dict[str, Any], start: Kept) -> rounds.State:
        made = algorithm(hyper).init(start.params)
        # The masks that a net starts with stay in force: they are the pruner's state.
        of_pruner = made.pruner if kind == "weight" else start.mask
        return made._replace(mask=start.mask, pruner=of_pruner)

    count = hyper["low"].shape[0]
    repeated = lambda v: jnp.concatenate([v] * (count // lab.seeds))
    rows, size = repeated(lab.train_set.rows), repeated(lab.train_set.size)
    began = jax.jit(jax.vmap(state))(hyper, start)
    arms = run.Arms(hyper, repeated(lab.keys), began, rows, size)
    name = (kind, length, fading)
    if name not in lab.programs:
        lab.programs[name] = run.program(algorithm, lab.layout, length)
    devices = lab.layout.arm_devices
    padded = run.pad(arms, -(-count // devices) * devices)
    ended, _, _ = lab.programs[name](padded, lab.train_set, lab.test)
    ended = run.head(ended, count)
    return Kept(ended.params, ended.mask)


def _round(lab: Lab, values: Mapping[str, Any], kind: str, fading: str) -> rounds.Round:
    c = lab.config
    lr = c.local.lr
    if c.teacher_rate == "divided":
        # The teacher's part makes the loss, and so its gradient, larger by this factor.
        lr = lr / (1.0 + TEMPERATURE**2 * values["distil"])
    optimizer = cfg.OPTIMIZERS[c.local.optimizer].build(c.local, lr)
    teacher = local.distillation(lab.model, values["teacher"], TEMPERATURE, values["distil"])
    return rounds.build(
        local=local.sgd(
            lab.model,
            local.adjusted(optimizer, clip=c.local.clip or None),
            batch=c.local.batch,
            steps=c.local.steps or None,
            epochs=c.local.epochs or None,
            decay=decay(c),
            reception=_reception(c, values, kind, fading),
            distillation=teacher,
        ),
        uplink=link.ideal(),
        server=server.average(),
        participation=server.full(1),
        pruner=_pruner(lab, values["ratio"], kind),
        layout=lab.layout,
    )


def _reception(c: AirNet, values: Mapping[str, Any], kind: str, fading: str) -> Reception:
    """The noise of training."""
    sandwich = local.sandwich(values["low"], values["high"])

    def snr_db(key: jax.Array, number: jax.Array) -> jax.Array:
        loud = number.astype(jnp.float32) >= values["quiet"]
        return jnp.where(loud, sandwich(key, number), SILENT)

    if kind == "pair":
        of = local.interpolated(values["low"], values["high"], values["bend"])
    else:
        of = lambda params, snr: params
    noise = link.injection(snr_db, values["repeats"], c.downlink.analog.packing, fading, of)

    def receive(key: jax.Array, number: jax.Array, params: Any, mask: Any) -> Any:
        return noise(key, number, params, mask["low"] if kind == "pair" else mask)

    return receive


def _pruner(lab: Lab, ratio: jax.Array, kind: str) -> Pruner:
    p = lab.config.pruning
    if kind == "pair":  # its state is its mask, once and for all
        return Pruner(lambda params: (), lambda mask, before: (mask, mask))
    schedule = prune.iterative(ratio, p.start, p.every, p.steps)
    if kind == "weight":
        return prune.scheduled(schedule, distribution=p.distribution)
    return prune.structured(schedule, lab.structure, p.distribution)
