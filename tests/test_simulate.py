"""``run.simulate``: the learning curve, what it compiles, what it shows."""

import jax
import numpy as np
import optax
import pytest

import fedprune as fp
from fedprune import local, prune

ROUNDS = 6
MODEL = fp.models.mlp((4,))


@pytest.fixture(scope="module")
def federation():
    images = fp.data.first(fp.data.load("fashion_mnist_10k"), 200)
    return fp.data.federate(images, fp.data.iid(4)(images.y_train, images.y_test, seed=0))


@pytest.fixture(scope="module")
def algorithm():
    return fp.rounds.build(
        local=local.sgd(MODEL, optax.sgd(0.1), batch=8, steps=2),
        uplink=fp.link.ideal(),
        server=fp.server.average(),
        participation=fp.server.uniform(4, 2),
        pruner=prune.scheduled(prune.one_shot(0.5, start=3)),
        layout=fp.mesh.make(clients=1),
    )


@pytest.fixture
def compilations():
    """A list that grows by one whenever anything is compiled."""
    found = []

    def listen(event, seconds, **_):
        if event == "/jax/core/compile/backend_compile_duration":
            found.append(seconds)

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield found
    jax.monitoring.unregister_event_duration_listener(listen)


def test_the_curve_is_that_of_shorter_runs(algorithm, federation):
    """The metrics after k rounds, and all that is reported, are those of a run that ends there."""
    state, info, curve = fp.run.simulate(algorithm, MODEL, *federation, ROUNDS, every=2)
    assert curve.accuracy.shape == curve.loss.shape == (3,)
    for index, rounds in enumerate((2, 4, 6)):
        ended, short, metrics = fp.run.simulate(algorithm, MODEL, *federation, rounds)
        assert curve.accuracy[index] == metrics.accuracy
        np.testing.assert_allclose(curve.loss[index], metrics.loss, rtol=1e-6)
        for whole, part in zip(jax.tree.leaves(info), jax.tree.leaves(short), strict=True):
            np.testing.assert_allclose(whole[:rounds], part, rtol=1e-6)
    assert (int(state.round), int(ended.round)) == (6, 6)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7),
        state.params,
        ended.params,
    )
    assert list(info.kept) == [info.kept[0]] * 3 + [info.kept[-1]] * 3
    assert info.kept[-1] < info.kept[0]


def test_a_second_call_compiles_nothing(algorithm, federation, compilations):
    first = fp.run.simulate(algorithm, MODEL, *federation, 4, every=2)
    del compilations[:]
    again = fp.run.simulate(algorithm, MODEL, *federation, ROUNDS, every=2)
    other = fp.run.simulate(algorithm, MODEL, *federation, 4, seed=1, every=2)
    assert compilations == []
    assert list(again[2].loss[:2]) == list(first[2].loss)
    assert list(other[2].loss) != list(first[2].loss)
    fp.run.simulate(algorithm, MODEL, *federation, 4, every=1)
    assert compilations  # so the listener hears what is compiled


def test_what_it_shows(algorithm, federation, capsys):
    fp.run.simulate(algorithm, MODEL, *federation, 4)
    assert capsys.readouterr() == ("", "")
    _, _, curve = fp.run.simulate(algorithm, MODEL, *federation, 4, every=2)
    out, err = capsys.readouterr()
    lines = err.splitlines()
    assert out == ""
    assert lines[0] == "simulation: compiling"
    assert lines[-1].startswith(f"simulation: round 4 of 4, mean accuracy {curve.accuracy[-1]:.3f}")


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"rounds": 6, "every": 4}, "every=4: must divide rounds=6"),
        ({"rounds": 6, "every": 0}, "every=0: must be"),
        ({"rounds": 0}, "rounds=0: must be"),
    ],
)
def test_refused(algorithm, federation, given, says):
    with pytest.raises(ValueError, match=says):
        fp.run.simulate(algorithm, MODEL, *federation, **given)
