"""A whole experiment of one arm in one call."""

from __future__ import annotations

from typing import Any

import jax

from fedprune import bill
from fedprune.rounds import Round, RoundInfo, State
from fedprune.run.evaluate import client_evaluation, evaluation
from fedprune.run.programs import Arms, program, start
from fedprune.types import Clients, Model


def simulate(
    algorithm: Round,
    model: Model,
    train: Clients,
    test: Clients,
    rounds: int,
    seed: int = 0,
) -> tuple[State, RoundInfo, Any]:
    """Runs one arm: the whole experiment in one call.

    Args:
      algorithm: from ``rounds.build``.
      model: gives the initial weights and is evaluated at the end.
      train: the clients' examples.
      test: the test examples, pooled; those of the clients where they have personal parts.
      rounds: how many.
      seed: decides every random number.

    Returns:
      (final state, infos [rounds] with bills as NumPy integers, final ``Metrics``;
      ``ClientMetrics`` with personal parts).

    Raises:
      ValueError: a network of fewer outputs than the data have classes, or no test examples.
    """
    hyper, key = (), jax.random.key(seed)[None]
    layout = algorithm.layout
    state = start(lambda _: algorithm, model.init, hyper, key)
    arms = Arms(hyper, key, state, train.rows[None], train.size[None])
    own = algorithm.personal
    evaluate = evaluation(model, layout)
    if own is not None and own.own_model:
        evaluate = client_evaluation(model, layout, own.clients, own)
    run = program(lambda _: algorithm, layout, rounds, evaluate)
    state, infos, metrics = jax.tree.map(lambda leaf: leaf[0], run(arms, train, test))
    return state, bill.on_host(infos), metrics
