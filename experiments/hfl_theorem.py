"""P2's Theorem 1 with constants measured in a run, as printed and as derived from its lemmas.

    fedprune run hfl_theorem:fast --workdir=runs/hfl_theorem

The setting is ``hfl_pruning:fast`` with 50 % pruned, 6 cloud rounds, 3 seeds; a few minutes on 2
cores. The left side of (22) is the mean of ||grad F(w_q)||^2 over the models at the start of the
cloud rounds, over the number of weights. Constants, measured at the same models:

  L        largest ratio of differences of grad F and of models: a lower bound
  phi^2, s^2  second moment and variance of the gradients of single batches, at the device and the
           model where they are largest
  D^2      largest ||w - w m||^2 / rho over devices, beside ||w||^2, which (18) takes and which only
           magnitude masks guarantee
  Gamma*   fewest devices of an edge server that hold a weight, over servers, weights and rounds
  F*       taken for 0, its lower bound

Fixed before the numbers: the derived and the printed bound hold if the left side is below them in
the 95 % interval over seeds, at a Gamma* of 1 where 0 is measured, which makes them infinite; and
masks (2) keep ||w - w m||^2 <= rho ||w||^2.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from fedprune import build, data, local, rng, run, theory, tree
from fedprune import report as rp
from fedprune.config import PRUNABLE, Arm, Config, ConfigError, to_json
from fedprune.runs import Row
from fedprune.studies.hfl import setting
from fedprune.types import Clients, Model, Params

VARIANTS = ("fast",)
BATCHES = 8
"""gradients of single batches, of each device and model"""


class Measured(NamedTuple):
    """Of one run."""

    constants: theory.Constants
    gap: float
    """F(w_0), at least F(w_0) - F*"""
    left: float
    """mean of ||grad F||^2 over rounds and weights"""
    holders: int
    """Gamma*"""
    square: float
    """||w||^2 of the prunable weights at the model and device whose D^2 over it is largest"""


def get_config(variant: str = "fast") -> Config:
    """The configuration of a variant."""
    if variant != "fast":
        raise ConfigError(f"variant {variant!r} of hfl_theorem: must be fast")
    config = Config(experiment="hfl_theorem", variant=variant)
    setting(config, variant)
    config.local.lr, config.local.clip = 0.2, 0.0  # the theorem is on plain SGD
    config.pruning.schedule, config.pruning.start, config.pruning.ratio = "one_shot", 0, 0.5
    config.run.rounds = 6
    return config


def arms(config: Config) -> list[Arm]:
    """None: the report makes its own runs."""
    return []


def models(config: Config, network: Model, clients: Clients, seed: int) -> list[Params]:
    """The global models at the start of every cloud round."""
    layout = build.layout(config.mesh, 1)
    algorithm = build.algorithm(config, network, layout)
    key = jax.random.key(seed)[None]
    state = run.start(lambda _: algorithm, network.init, (), key)
    here = run.Arms((), key, state, clients.rows[None], clients.size[None])
    step = run.program(lambda _: algorithm, layout, rounds=1)
    found = []
    for _ in range(config.run.rounds):
        found.append(jax.device_get(jax.tree.map(lambda leaf: leaf[0], here.state.params)))
        here = here._replace(state=step(here, clients, clients)[0])
    return found


def flat(values: Params) -> jax.Array:
    """All leaves as one vector."""
    return jnp.concatenate([leaf.ravel() for leaf in jax.tree.leaves(values)])


def measure(config: Config, dataset: data.Dataset, seed: int) -> Measured:
    """Trains once and looks at the models on the way.

    Raises:
      ConfigError: no edge servers.
    """
    split = build.partitioner(config.data, dataset)(dataset.y_train, dataset.y_test, seed)
    clients = data.federate(dataset, split).train
    network, tiers = build.model(config, dataset), build.edges(config)
    if tiers is None:
        raise ConfigError("edges.servers=0: must be at least 1")
    server_of, servers = tiers.of, tiers.servers
    path = models(config, network, clients, seed)
    devices, batch = jnp.arange(config.data.clients), config.local.batch
    update, key = build.local_update(config, network), jax.random.key(seed)

    def loss(params: Params, x: jax.Array, y: jax.Array) -> jax.Array:
        return local.cross_entropy(network.apply(params, x), y).mean()

    @jax.jit
    def look(params: Params, t: jax.Array):
        def of_device(k: jax.Array):
            client = clients.client(k)
            whole = loss(params, *client.take(jnp.arange(client.rows.shape[0])))

            def one(b: jax.Array) -> jax.Array:
                draw = rng.stream(key, "gradient", t, k, b)
                x, y = client.take(jax.random.randint(draw, (batch,), 0, client.size))
                return flat(jax.grad(loss)(params, x, y))

            gradients = lax.map(one, jnp.arange(BATCHES))[None]
            held = update(rng.stream(key, "local", t, k), t, params, None, client).held
            weights = flat(prunable(params))
            lost = theory.pruning_error(weights, flat(prunable(held)))
            moments = theory.second_moment(gradients), theory.gradient_variance(gradients)
            everything = client.take(jnp.arange(client.rows.shape[0]))
            slope = flat(jax.grad(loss)(params, *everything))
            return whole, slope, *moments, lost, flat(held)

        values, slopes, moment, variance, lost, held = lax.map(of_device, devices)
        count = jax.ops.segment_sum(held.astype(jnp.int32), server_of, servers)
        square = jnp.sum(jnp.square(flat(prunable(params))))
        return (
            values.mean(), slopes.mean(0), moment.max(), variance.max(), lost.max(), count.min(),
            square,
        )  # fmt: skip

    def prunable(values: Params) -> Params:
        chosen = tree.match_path(PRUNABLE[config.pruning.layers].build(), values)
        pairs = zip(jax.tree.leaves(values), jax.tree.leaves(chosen), strict=True)
        return [leaf for leaf, c in pairs if c]

    looks = [jax.device_get(look(params, jnp.int32(t))) for t, params in enumerate(path)]
    values, slopes, moment, variance, lost, count, square = map(
        np.asarray, zip(*looks, strict=True)
    )
    points = jnp.stack([flat(params) for params in path])
    worst = int(np.argmax(lost / square))
    return Measured(
        theory.Constants(
            smoothness=float(theory.smoothness(points, jnp.asarray(slopes))),
            gradient=float(np.sqrt(moment.max())),
            noise=float(np.sqrt(variance.max())),
            pruning=float(np.sqrt(lost[worst])),
        ),
        gap=float(values[0]),
        left=float((slopes**2).sum(1).mean() / slopes.shape[1]),
        holders=int(count.min()),
        square=float(square[worst]),
    )


def report(config: Config, rows: Sequence[Row], folder: Path) -> str:
    """Writes summary and table; returns the text to print."""
    dataset = build.dataset(config.data)
    found = [measure(config, dataset, seed) for seed in range(config.run.seeds)]
    weights = sum(
        leaf.size
        for leaf in jax.tree.leaves(
            jax.eval_shape(build.model(config, dataset).init, jax.random.key(0))
        )
    )
    edges, devices = config.edges.rounds, config.data.clients

    def bound(m: Measured, form: str, holders: int) -> theory.Bound:
        return theory.hierarchical(
            m.constants, m.gap, edges * devices * config.pruning.ratio, config.run.rounds, edges,
            config.local.steps, config.local.lr, devices, weights, holders, form,
        )  # fmt: skip

    def line(name: str, values: Sequence[float]) -> list[str]:
        inside = rp.interval(values)
        mean, half = f"{inside.mean:.3g}", inside.high - inside.mean
        return [name, mean if math.isnan(half) else f"{mean} ± {half:.2g}"]

    constants = [
        line("L", [float(m.constants.smoothness) for m in found]),
        line("phi", [float(m.constants.gradient) for m in found]),
        line("s", [float(m.constants.noise) for m in found]),
        line("D^2", [float(m.constants.pruning) ** 2 for m in found]),
        line("||w||^2 there", [m.square for m in found]),
        line("F(w_0)", [m.gap for m in found]),
        line("Gamma*", [m.holders for m in found]),
        line("left side", [m.left for m in found]),
    ]
    forms, verdicts = [], []
    for form in ("derived", "printed"):
        for holders in (1, 5):
            total = [float(bound(m, form, holders).total) for m in found]
            slope = [float(bound(m, form, holders).slope) for m in found]
            forms.append([form, str(holders), line("", total)[1], line("", slope)[1]])
        above = [float(bound(m, form, max(1, m.holders)).total) / m.left for m in found]
        text = f"{form}: the bound over the left side is above 1"
        rule = rp.Rule(form, "P2 (22)", text, 0.0, np.log10(above), "")
        verdicts.append(rp.verdict(rule, "10^({:.1f})"))
    share = np.array([float(m.constants.pruning) ** 2 / m.square for m in found])
    rule = rp.Rule("assumption", "P2 (18)", "||w - w m||^2 <= rho ||w||^2 for masks (2)", 0.0,
                   1 - share)  # fmt: skip
    verdicts.append(
        rp.verdict(rule, f"D^2 is {rp.interval(share, rp.NOT_NEGATIVE):.2f} of ||w||^2")
    )
    tables = {
        f"Measured, {rp.over_seeds(config.run.seeds)}": rp.table(["constant", "value"], constants),
        "The bound": rp.table(["form", "Gamma*", "bound", "slope in R"], forms),
    }
    return rp.write_run(
        folder, "hfl_theorem", to_json(config), rows, [], tables, verdicts, "Claims"
    )
