"""Latency of a round with optimal, equal and no pruning: P2's Table III and P4's Table I.

    fedprune run latency_tables:all --workdir=runs/latency_tables

Takes less than a minute on 2 cores; nothing is trained. Neither paper gives distances, antennas,
cycles a weight, the kernels' size or P4's numbers of steps, so the settings below are fitted. Which
numbers are results, then?

* 30, 350, 25 and 45 ms are thresholds: definitions that any feasible setting meets.
* The rows without pruning are fitted by the distances, those of equal resources, in one of their
  readings, by the ratio of the farthest to the nearest distance. Standard deviations are not
  fitted.
* Cycles a weight (C) hardly matter for the tables and are not identified by them.

Model sizes follow from the numbers in the tables (section "What the tables need" of the report):
3x3 kernels (18,720 weights), dense layers of width 8 (25,168 weights), without biases. P4 states
width 128, whose 55 ms would need 117 bit/s/Hz in 20 MHz.

"Equal resource pruning" has a literal reading, P2 (31) and P4 (47) at a share of 1/N, and one in
which the pruning ratios of the optimal allocation are kept at equal shares. The first meets the
threshold by its construction, which the papers' numbers do not; see ``fedprune.allocation``.

Setting ``interior`` is for learning runs: slow processors and near devices, such that no pruning
ratio is at a limit, the printed closed form is exact, and no device loses all its weights.

Fixed before the numbers of this file were seen: 5 seeds of 200 rounds; intervals are Student's over
the seeds' means; a claim held, or did not, if its 95 % interval lies above, or below, its limit.
P2's Fig. 6 (``processors``, two claims and a figure) was added later, its rules before its numbers.
"""

import math
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from fedprune import allocation, channel, resources, rng
from fedprune import report as rp
from fedprune.config import Arm, Config, ConfigError, to_json
from fedprune.runs import Row
from fedprune.studies.latency import (
    BANDWIDTH,
    DENSE,
    FREQUENCY,
    NOISE,
    POWER,
    PRESETS,
    SCHEMES,
    Rounds,
    simulate,
)

VARIANTS = ("all",)


def get_config(variant: str = "all") -> Config:
    """The configuration of a variant; ``run.rounds`` and ``run.seeds`` are what counts in it."""
    if variant != "all":
        raise ConfigError(f"variant {variant!r} of latency_tables: must be all")
    config = Config(experiment="latency_tables", variant=variant)
    config.run.rounds, config.run.seeds = 200, 5
    return config


def arms(config: Config) -> list[Arm]:
    """None: nothing is trained."""
    return []


def report(config: Config, rows: Sequence[Row], folder: Path) -> str:
    """Writes summary, tables and figure; returns the text to print."""
    found = {name: simulate(p, config.run.seeds, config.run.rounds) for name, p in PRESETS.items()}
    (folder / "figures").mkdir(exist_ok=True)
    figure(folder / "figures" / "allocation", found)
    capability_figure(folder / "figures" / "capability")
    heading = (
        f"Latency of a round in ms: {rp.over_seeds(config.run.seeds)}, and"
        f" standard deviation over all {config.run.seeds * config.run.rounds} rounds"
    )
    tables = {
        heading: latency_table(found),
        "The optimal allocation": allocation_table(found),
        "What the tables need": needs_table(),
    }
    return rp.write_run(
        folder, "latency_tables", to_json(config), rows, [], tables,
        claims(found) + capability(config.run.seeds, config.run.rounds), "Claims",
    )  # fmt: skip


def latency_table(found: dict[str, Rounds]) -> str:
    """Every scheme beside the paper's number."""
    body = []
    for name, rounds in found.items():
        preset = PRESETS[name]
        for scheme in SCHEMES:
            took = rounds.milliseconds[scheme]
            over_seeds = rp.interval(took.mean(1), rp.NOT_NEGATIVE)
            mean, spread = preset.paper.get(scheme, (float("nan"), 0.0))
            stated = f"{mean:g}" + (f" ± {spread:g}" if spread else "")
            body.append([
                preset.title, SCHEMES[scheme], stated if scheme in preset.paper else "–",
                f"{over_seeds:.2f}", f"{took.std():.2f}",
                f"{over_seeds.mean - mean:+.2f}" if scheme in preset.paper else "–",
            ])  # fmt: skip
    return rp.table(["setting", "scheme", "paper", "found", "std", "residual"], body)


def allocation_table(found: dict[str, Rounds]) -> str:
    """Pruning, feasibility, the closed form, and who gets the band."""
    body = []
    for name, rounds in found.items():
        ratio = rounds.ratio
        body.append([
            PRESETS[name].title,
            *(f"{100 * x:.1f}" for x in (ratio.mean(), ratio.min(-1).mean(), ratio.max(-1).mean())),
            f"{100 * rounds.feasible.mean():.0f}",
            f"{1e3 * rounds.least.mean():.2f}",
            f"{100 * rounds.exact.mean():.1f}",
            str(rp.interval(worse_gets_more(rounds), rp.PERCENT)),
            str(rp.interval(worse_gets_more(rounds, inside=True), rp.PERCENT)),
            f"{100 * rounds.energy.mean():.0f}",
            f"{100 * rounds.weights.mean():.0f}",
        ])  # fmt: skip
    header = [
        "setting", "mean ratio (%)", "least", "largest", "feasible (%)", "T_min (ms)",
        "(34)/(54) optimal (%)", "worse gets more (% of pairs)", "of unclipped pairs",
        "joules (% of unpruned)", "weights sent (%)",
    ]  # fmt: skip
    return rp.table(header, body)


def worse_gets_more(rounds: Rounds, inside: bool = False) -> np.ndarray:
    """Percent of pairs of devices in which the lower rate has the larger share, [S].

    Args:
      rounds: of a setting whose devices differ in their channels only.
      inside: only pairs that are both pruned in part, neither of them at a limit.
    """
    lower = rounds.rate[..., :, None] < rounds.rate[..., None, :]
    if inside:
        free = (rounds.ratio > 1e-4) & (rounds.ratio < 1 - 1e-4)
        lower &= free[..., :, None] & free[..., None, :]
    more = lower & (rounds.share[..., :, None] > rounds.share[..., None, :])
    return 100 * more.sum((1, 2, 3)) / lower.sum((1, 2, 3))


def needs_table() -> str:
    """Bits a second and Hz that the unpruned rounds need if computing takes no time at all."""
    body = []
    for paper, devices, bits, milliseconds, conv, dense, model in [
        ("P2", 5, 64, 52, 18_720, 25_168, "3x3 kernels, width 8"),
        ("P2", 5, 64, 52, 52_000, 25_168, "5x5 kernels, width 8"),
        ("P2", 5, 64, 52, 18_720, 402_688, "3x3 kernels, width 128"),
        ("P4", 10, 32, 55, 0, 25_168, "width 8"),
        ("P4", 10, 32, 55, 0, 402_688, "width 128 (as stated)"),
    ]:
        total = devices * bits * (conv + dense)
        best = resources.full_rate(jnp.float32(1.0), POWER, NOISE, BANDWIDTH)
        needed = total / (BANDWIDTH * milliseconds * 1e-3)
        body.append([paper, model, f"{milliseconds}", f"{needed:.1f}", f"{1e3 * total / best:.1f}"])
    header = ["paper", "model", "ms stated", "bit/s/Hz needed", "ms without any path loss"]
    return rp.table(header, body)


def claims(found: dict[str, Rounds]) -> list[rp.Verdict]:
    """What the papers say of these numbers."""

    def mean(name: str, scheme: str) -> np.ndarray:
        return found[name].milliseconds[scheme].mean(1)

    def saving(name: str) -> np.ndarray:
        return 100 * (1 - mean(name, "optimal") / mean(name, "unpruned"))

    def beside(name: str, scheme: str) -> np.ndarray:
        return -100 * np.abs(mean(name, scheme) / PRESETS[name].paper[scheme][0] - 1)

    rules = [
        ("p2-half", "P2 abstract", "P2: at least 45 % less latency than without pruning", 45.0,
         saving("hfl"), "%"),
        ("p4-half", "P4 abstract", "P4: at least 45 % less latency than without pruning", 45.0,
         saving("personalized"), "%"),
    ]  # fmt: skip
    for name in ("hfl", "flat", "personalized"):
        title, paper = PRESETS[name].title, "P4 I" if name == "personalized" else "P2 III"
        for scheme in ("literal", "post_hoc"):
            text = f"{title}: {SCHEMES[scheme]} is at most 2 % off the table"
            rules.append((f"{name}-{scheme}", paper, text, -2.0, beside(name, scheme), "%"))
    for name, rounds in found.items():
        text = f"{PRESETS[name].title}: of two devices the worse channel has more band (95 %)"
        paper = "P4 remark 3" if PRESETS[name].title.startswith("P4") else "P2 remark 2"
        rules.append((f"worse-{name}", paper, text, 95.0, worse_gets_more(rounds), "% of pairs"))
    within = {"%": (-math.inf, 100.0), "% of pairs": rp.PERCENT}
    return [
        rp.verdict(rp.Rule(id, paper, text, above, values, unit, within[unit]))
        for id, paper, text, above, values, unit in rules
    ]


def processors(seeds: int, rounds: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Setting ``interior`` with processors of 2 to 4 GHz, drawn anew in every round (P2 Fig. 6).

    Returns:
      Frequencies in Hz, optimal shares and pruning ratios, each [S, R, N].
    """
    preset = PRESETS["interior"]
    distance, ids = jnp.linspace(*preset.places), jnp.arange(preset.places[2])

    def of_round(seed: jax.Array, t: jax.Array):
        key = jax.random.key(seed)
        gain = channel.orthogonal_gains(key, t, ids, distance, preset.antennas)
        rate = resources.full_rate(gain, POWER, NOISE, BANDWIDTH)
        draw = rng.stream(key, "frequency", t)
        frequency = jax.random.uniform(draw, ids.shape, minval=2e9, maxval=4e9)
        best = allocation.optimal(
            allocation.problem(preset.work, frequency, rate, preset.threshold)
        )
        return frequency, best.share, best.ratio

    every = jax.jit(jax.vmap(jax.vmap(of_round, (None, 0)), (0, None)))
    frequency, share, ratio = map(np.asarray, every(jnp.arange(seeds), jnp.arange(rounds)))
    return frequency, share, ratio


def capability(seeds: int, rounds: int) -> list[rp.Verdict]:
    """What P2 says of its Fig. 6, over all pairs of devices in ``processors``."""
    frequency, share, ratio = processors(seeds, rounds)
    faster = frequency[..., :, None] > frequency[..., None, :]

    def percent(better: np.ndarray) -> np.ndarray:
        return 100 * (faster & better).sum((1, 2, 3)) / faster.sum((1, 2, 3))

    found = {
        "band": percent(share[..., :, None] > share[..., None, :]),
        "pruning": percent(ratio[..., :, None] < ratio[..., None, :]),
    }
    texts = {"band": "has more band", "pruning": "prunes less"}
    return [
        rp.verdict(
            rp.Rule(
                f"faster-{name}",
                "P2 Fig. 6",
                f"interior: of two devices the faster one {texts[name]} (95 %)",
                95.0,
                values,
                "% of pairs",
                rp.PERCENT,
            )
        )
        for name, values in found.items()
    ]


def capability_figure(path: Path) -> None:
    """Share and pruning ratio of one of five equally far P2 devices against its processor."""
    preset = PRESETS["interior"]
    frequency = np.linspace(1.5e9, 6e9, 200)
    every = jnp.full((200, 5), FREQUENCY).at[:, 0].set(frequency)
    gain = channel.path_gain(jnp.full(5, np.mean(preset.places[:2])))
    rate = resources.full_rate(gain, POWER, NOISE, BANDWIDTH)

    def solve(f: jax.Array, limit: float):
        best = allocation.optimal(allocation.problem(preset.work, f, rate, limit))
        return best.share[0], best.ratio[0]

    with rp.styled():
        drawing, axes = rp.canvas(8.4, 3.5, 2)
        colours = rp.colour("viridis", np.linspace(0.05, 0.85, 4))
        for ms, colour in zip((25, 30, 35, 40), colours, strict=True):
            share, ratio = jax.jit(jax.vmap(lambda f, t=ms / 1e3: solve(f, t)))(every)
            axes[0].plot(frequency / 1e9, share, color=colour, label=f"{ms} ms")
            axes[1].plot(frequency / 1e9, 100 * ratio, color=colour)
        axes[0].set(
            xlabel="processor of one device (GHz); the others: 3", ylabel="share of the band"
        )
        axes[1].set(
            xlabel="processor of one device (GHz); the others: 3", ylabel="pruning ratio (%)"
        )
        rp.legend_above(axes[0], 4, "latency threshold")
        for each in axes:
            each.grid(alpha=0.25, lw=0.6)
        rp.save(drawing, path)


def figure(path: Path, found: dict[str, Rounds]) -> None:
    """Optimal shares against the rate, and against the distance in the settings above."""
    with rp.styled():
        drawing, (left, right) = rp.canvas(8.4, 3.7, 2)
        _against_rate(left)
        for name, rounds in found.items():
            devices = rounds.share.shape[-1]
            share = devices * rounds.share.mean((0, 1))
            right.plot(np.linspace(0, 1, devices), share, "o-", ms=3, label=PRESETS[name].title)
        right.axhline(1, color="0.6", lw=0.8)
        right.set(xlabel="device, nearest (0) to farthest (1)", ylabel="share of the band × N")
        rp.legend_above(right, 3)
        for axes in (left, right):
            axes.grid(alpha=0.25, lw=0.6)
        rp.save(drawing, path)


def _against_rate(axes) -> None:
    """One of five P4 devices has another rate than the four others, which have 8 bit/s/Hz.

    V4/V3 is that of the four. A line is thick where the device's share falls with its rate, thin
    where it rises, dotted where the device is not pruned or pruned altogether.
    """
    efficiency = np.geomspace(1, 64, 800)
    common = 8.0 * BANDWIDTH
    rate = jnp.full((efficiency.size, 5), common).at[:, 0].set(BANDWIDTH * efficiency)
    solve = jax.jit(jax.vmap(allocation.optimal))
    for i, quotient in enumerate((0.02, 0.1, 0.3, 1.0, 10.0)):
        air = 32.0 * DENSE / common
        cycles = air / quotient * FREQUENCY / (10.0 * DENSE)
        work = resources.personalized(0, DENSE, 0.0, 10.0, cycles, 32.0)
        threshold = 0.6 * (air / quotient + 5 * air)
        problems = jax.vmap(lambda r, w=work, t=threshold: allocation.problem(w, FREQUENCY, r, t))
        best = solve(problems(rate))
        share, ratio = np.asarray(best.share[:, 0]), np.asarray(best.ratio[:, 0])
        inside = (ratio > 1e-4) & (ratio < 1 - 1e-4)
        falls = np.gradient(share) < 0
        colour = rp.colour("viridis", 0.22 * i)
        parts = ((~inside, ":", 1.2), (inside & ~falls, "-", 1.2), (inside & falls, "-", 3.0))
        for where, style, width in parts:
            axes.plot(efficiency, np.where(where, share, np.nan), style, color=colour, lw=width)
        axes.plot([], [], color=colour, label=f"{quotient:g}")
    rp.legend_above(axes, 5, "V4/V3")
    axes.set(xscale="log", xlabel="rate of one of five devices (bit/s/Hz)", ylabel="its share")
    axes.set_ylim(bottom=0)
