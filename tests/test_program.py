"""How programs are compiled and what memory they take."""

import jax
import numpy as np
import optax
import pytest

import fedprune as fp


def small(dataset, clients: int, layout: fp.mesh.Layout, donate: bool = False):
    """A program of one round, and its arguments."""
    split = fp.data.iid(clients)(dataset.y_train, dataset.y_test, 0)
    train, test = fp.data.federate(dataset, split)
    model = fp.models.mlp(hidden=(16,))
    algorithm = fp.rounds.build(
        local=fp.local.sgd(model, optax.sgd(0.1), batch=8, steps=2),
        uplink=fp.link.ideal(),
        server=fp.server.average(),
        participation=fp.server.full(clients),
        layout=layout,
    )
    key = jax.random.key(0)[None]
    state = fp.run.start(lambda _: algorithm, model.init, (), key)
    arms = fp.run.Arms((), key, state, train.rows[None], train.size[None])
    program = fp.run.program(lambda _: algorithm, layout, 1, donate=donate)
    return program, (arms, train, test)


@pytest.mark.parametrize("devices", [1, 2])
def test_results_are_arguments_again_without_compiling(devices, dataset):
    program, (arms, train, test) = small(dataset, 4, fp.mesh.make(clients=devices))
    state = program(arms, train, test)[0]
    compiled = []
    listen = lambda name, _, **__: compiled.append(name) if "backend_compile" in name else None
    jax.monitoring.register_event_duration_secs_listener(listen)
    for _ in range(2):
        state = program(arms._replace(state=state), train, test)[0]
    assert compiled == []
    jax.jit(lambda x: x + 1)(state.round)
    assert len(compiled) == 1, "the listener hears compilations"
    assert int(state.round[0]) == 3


@pytest.mark.parametrize("devices", [1, 2])
def test_nothing_moves_between_host_and_device_by_itself(devices, dataset):
    """After the first call, with fresh arguments and with a call's own results."""
    program, (arms, train, test) = small(dataset, 4, fp.mesh.make(clients=devices))
    state = program(arms, train, test)[0]
    with jax.transfer_guard("disallow"):
        for _ in range(2):
            state, infos, _ = program(arms._replace(state=state), train, test)
        with pytest.raises(Exception, match="Disallowed host-to-device transfer"):
            jax.jit(lambda x: x + 1)(np.ones(3))  # the guard sees transfers
    assert int(state.round[0]) == 3
    assert np.isfinite(infos.train_loss).all()


def test_state_given_away(dataset):
    """The same bits, and the old state is gone while keys and tables stay."""
    layout = fp.mesh.make(clients=2)
    kept, arguments = small(dataset, 4, layout)
    want = kept(*arguments)[0]
    given, (arms, train, test) = small(dataset, 4, layout, donate=True)
    arms = arms._replace(state=jax.device_put(arms.state, layout.per_arm()))
    first = given(arms, train, test)[0]
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(arms.state.params))
    assert not arms.rows.is_deleted()
    for a, b in zip(jax.tree.leaves(want), jax.tree.leaves(first), strict=True):
        np.testing.assert_array_equal(a, b)


def test_memory_does_not_grow_with_the_clients(dataset):
    """XLA's own count of a program's temporary memory, at one client in a chunk."""

    def temporary(clients: int) -> int:
        program, arguments = small(dataset, clients, fp.mesh.make(clients=2))
        return program.lower(*arguments).compile().memory_analysis().temp_size_in_bytes

    few, many = temporary(10), temporary(1000)
    assert few > 0
    assert many < 1.1 * few
