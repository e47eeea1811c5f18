"""Numbers of clients and servers that disagree are refused when a round meets the data."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from problems import federation, mlp

import fedprune as fp
from fedprune import allocation, link, local, resources, server
from fedprune.rounds import Edges, hierarchical
from fedprune.types import Air, Cohort, Participation, Uplink

K = 5
MODEL = mlp()
WORK = resources.hierarchical(100, 200, steps=2, cycles=1e5, value_bits=32)


def trainer():
    return local.sgd(MODEL, optax.sgd(0.1), batch=4, steps=1)


def ofdma(**changes):
    given = {
        "work": WORK,
        "gains": lambda root, t, ids: jnp.full(ids.shape, 1e-9),
        "threshold": 1.0,
        "frequency": 1e9,
        "power": 0.1,
        "noise": 1e-12,
        "bandwidth": 1e6,
    }
    return link.ofdma(**{**given, **changes})


def traced(clients=K, tiers=None, data=None, **stages):
    """Traces one round with the data of K clients, and nothing more."""
    layout = fp.mesh.make(clients=1)
    stages = {"local": trainer(), "uplink": link.ideal(), "participation": server.full(K)} | stages
    build = fp.rounds.build if tiers is None else hierarchical.build
    algorithm = build(server=server.average(), layout=layout, **stages, **(tiers or {}))
    key, state = jax.random.key(0), jax.eval_shape(algorithm.init, MODEL.init(jax.random.key(0)))
    step = fp.mesh.spread(algorithm.step, layout, (0, 0, 0), 0)
    jax.eval_shape(step, key, state, federation(clients) if data is None else data)


def tiers(of, servers=2, cloud=None):
    of = jnp.asarray(of)
    return {"edges": Edges(of, servers), "edge_rounds": 1, "cloud": cloud or link.ideal()}


def short(uplink):
    """Its channels are those of one client less."""

    def prepare(cohort):
        air: Air = uplink.prepare(cohort)
        return air._replace(active=air.active[1:])

    return Uplink(prepare, uplink.encode, uplink.finish)


OWN = {"local": local.tuned(trainer())}
CASES = {
    "full": (
        {"participation": server.full(50)},
        "participation: for 50 clients, but the data has 5",
    ),
    "fewer": (
        {"participation": server.full(4)},
        "participation: for 4 clients, but the data has 5",
    ),
    "uniform": ({"participation": server.uniform(100, 3)}, "participation: for 100 clients"),
    "cohort": (
        {"participation": Participation(3, lambda _: jnp.arange(4), K)},
        r"select gives \(4,\), but size=3",
    ),
    "personal": ({**OWN, "personal": local.copies(4)}, "personal: for 4 clients"),
    "parts": (
        {**OWN, "personal": local.parts(lambda path, leaf: "Dense_1" in path, 10)},
        "personal: for 10 clients",
    ),
    "edges": ({"tiers": tiers([0, 1, 0, 1])}, "edges: for 4 clients"),
    "servers": (
        {"tiers": tiers([0, 1, 2, 1, 0])},
        r"edges.of\[2\]=2: must be whole numbers from 0 to 1",
    ),
    "cloud": (
        {"tiers": tiers([0, 1, 0, 1, 0], cloud=ofdma(power=jnp.full(3, 0.1)))},
        "cloud: for 3 servers, but edges has 2",
    ),
    "bands": ({"uplink": ofdma(edge=jnp.zeros(7, jnp.int32))}, "uplink: for 7 clients"),
    "cycles": (
        {"uplink": ofdma(work=WORK._replace(fixed_cycles=jnp.ones(3)))},
        "uplink: for 3 clients",
    ),
    "holders": (
        {"uplink": link.holders(ofdma(power=jnp.full(6, 0.1)), link.ideal(), 0.1)},
        "uplink: for 6 clients",
    ),
    "gains": (
        {"uplink": ofdma(gains=lambda root, t, ids: jnp.full(3, 1e-9))},
        r"gains: \(3,\) for 5 clients",
    ),
    "air": ({"uplink": short(link.ideal())}, r"uplink: prepare gives \(4,\) for 5 clients"),
    "sizes": (
        {"data": federation(K)._replace(size=jnp.ones(4, jnp.int32))},
        "sizes: for 4 clients, but the data has 5",
    ),
}


@pytest.mark.parametrize("name", list(CASES))
def test_counts_that_disagree_are_refused(name):
    stages, message = CASES[name]
    with pytest.raises(ValueError, match=message):
        traced(**stages)


def test_counts_that_agree_pass():
    traced()
    traced(uplink=ofdma(edge=jnp.zeros(K, jnp.int32), power=jnp.full(K, 0.1)))
    traced(tiers=tiers([0, 1, 0, 1, 0]), participation=server.uniform(K, 3))


def test_clients_of_an_evaluation():
    layout = fp.mesh.make(clients=1)
    evaluate = fp.run.client_evaluation(MODEL, layout, 4)
    state = fp.rounds.initial(MODEL.init(jax.random.key(0)), None, server.average())
    with pytest.raises(ValueError, match="evaluation: for 4 clients, but the data has 5"):
        jax.eval_shape(fp.mesh.spread(evaluate, layout, (0, 0), 0), state, federation(K))


def test_a_personal_state_of_other_clients():
    layout = fp.mesh.make(clients=1)
    stages = {"uplink": link.ideal(), "server": server.average(), "layout": layout}
    build = lambda clients: fp.rounds.build(
        **OWN, **stages, participation=server.full(K), personal=local.copies(clients)
    )
    train = federation(K)
    key = jax.random.key(0)[None]
    state = fp.run.start(lambda _: build(4), MODEL.init, (), key)
    arms = fp.run.Arms((), key, state, train.rows[None], train.size[None])
    program = fp.run.program(lambda _: build(K), layout, 1)
    with pytest.raises(ValueError, match="personal: a state of 4 clients, but the data has 5"):
        program.lower(arms, train, train)


def test_arguments_of_ofdma_that_disagree():
    with pytest.raises(ValueError, match="are for 3 and 4 clients: must be equal"):
        ofdma(edge=jnp.zeros(3, jnp.int32), power=jnp.full(4, 0.1))
    with pytest.raises(ValueError, match=r"edge\[1\]=2: must be whole numbers from 0 to 1"):
        ofdma(edge=jnp.asarray([0, 2]), edges=2)
    with pytest.raises(ValueError, match="values is for 3 clients, but masks for 4"):
        link.holders(ofdma(power=jnp.ones(3)), ofdma(power=jnp.ones(4)), 0.1)


def test_what_ofdma_knows_of_a_device_goes_by_its_id_and_not_by_its_place_in_the_cohort():
    cycles = jnp.asarray([1.0, 2.0, 3.0, 4.0, 5.0]) * 1e8
    power = jnp.asarray([0.1, 0.2, 0.3, 0.4, 0.5])
    uplink = ofdma(work=WORK._replace(fixed_cycles=cycles), power=power, scheme="unpruned")
    air = uplink.prepare(Cohort(jax.random.key(0), jnp.int32(0), jnp.asarray([4, 1])))
    rate = 0.5 * 1e6 * np.log2(1 + 1e-9 * np.array([0.5, 0.2]) / 1e-12)  # half the band for each
    computing = (np.array([5e8, 2e8]) + 2 * 1e5 * 200) / 1e9
    np.testing.assert_allclose(air.state.seconds, computing + 300 * 32 / rate, rtol=1e-5)


def test_servers_that_do_not_exist():
    with pytest.raises(ValueError, match=r"edge\[1\]=2: must be whole numbers from 0 to 1"):
        resources.round_seconds(jnp.ones((1, 2)), jnp.asarray([0, 2]), 2)
    problem = allocation.problem(WORK, 1e9, jnp.full(2, 1e6), 1.0)
    with pytest.raises(ValueError, match=r"edge\[0\]=-1: must be whole numbers from 0 to 1"):
        allocation.by_edge(problem, jnp.asarray([-1, 0]), 2)
