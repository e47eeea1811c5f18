"""A whole experiment of one arm in one call."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from fedprune import bill, check, mesh, progress
from fedprune.rounds import Round, RoundInfo, State
from fedprune.run.evaluate import client_evaluation, evaluation
from fedprune.run.programs import Arms, program, start
from fedprune.types import Clients, Key, Model


def simulate(
    algorithm: Round,
    model: Model,
    train: Clients,
    test: Clients,
    rounds: int,
    seed: int = 0,
    every: int | None = None,
) -> tuple[State, RoundInfo, Any]:
    """Runs one arm: the whole experiment in one call.

    A second call with the same ``algorithm``, ``model`` and number of rounds between two
    measurements compiles nothing.

    Args:
      algorithm: from ``rounds.build``.
      model: gives the initial weights and is evaluated at the end.
      train: the clients' examples.
      test: the test examples, pooled; those of the clients where they have personal parts.
      rounds: how many.
      seed: decides every random number.
      every: measures after each so many rounds, which gives a learning curve, and shows on standard
        error how far the rounds are and how long the rest will take. None: measures after the last
        round and shows nothing.

    Returns:
      (final state, infos [rounds] with bills as NumPy integers, final ``Metrics``;
      ``ClientMetrics`` with personal parts). With ``every``, the metrics are those after rounds
      ``every``, ``2 * every``, ..., ``rounds``, on a leading axis [rounds // every].

    Raises:
      TypeError: rounds or ``every`` is no whole number.
      ValueError: one of them is below 1, or ``every`` does not divide the rounds; a network of
        fewer outputs than the data have classes, or no test examples.
    """
    check.whole("rounds", rounds, 1)
    if every is not None:
        check.whole("every", every, 1)
        if rounds % every:
            raise ValueError(f"every={every}: must divide rounds={rounds}")
    begin, run = _compiled(_Same(algorithm), _Same(model), every or rounds)
    key = jax.random.key(seed)[None]
    arms = Arms((), key, begin(key), train.rows[None], train.size[None])
    infos, measured = [], []
    with progress.show([progress.Part("simulation", rounds)], every is not None) as shown:
        shown.start(0)
        for done in range(every or rounds, rounds + 1, every or rounds):
            state, info, metrics = run(arms, train, test)
            arms = arms._replace(state=state)
            infos.append(bill.on_host(_first(info)))
            measured.append(mesh.to_host(_first(metrics)))
            shown.advance(done, float(measured[-1].accuracy))
    state, info = _first(arms.state), jax.tree.map(lambda *v: np.concatenate(v), *infos)
    if every is None:
        return state, info, measured[0]
    return state, info, jax.tree.map(lambda *v: np.stack(v), *measured)


def _first(arms: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf[0], arms)


class _Same:
    """Equal to what has the same object: algorithms need not be hashable."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self.value is other.value

    def __hash__(self) -> int:
        return id(self.value)


@functools.lru_cache(maxsize=8)
def _compiled(
    algorithm: _Same, model: _Same, length: int
) -> tuple[Callable[[Key], State], mesh.Compiled]:
    """(key [1] -> initial state [1], program of so many rounds with an evaluation)."""
    algo: Round = algorithm.value
    network: Model = model.value
    evaluate = evaluation(network, algo.layout)
    own = algo.personal
    if own is not None and own.own_model:
        evaluate = client_evaluation(network, algo.layout, own.clients, own)
    begin = jax.jit(lambda key: start(lambda _: algo, network.init, (), key))
    return begin, program(lambda _: algo, algo.layout, length, evaluate)
