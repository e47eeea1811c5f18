"""Reports of P2's experiments from rows made by hand: what is judged, and how."""

import json

import pytest

from experiments import hfl_adaptive, hfl_pruning

SEEDS, ROUNDS = 3, 6


def rows(arms, curve, loss, **columns):
    """Accuracy ``curve(arm, seed, round)``; other columns are ``columns[name](arm)``."""
    fixed = {"channel_uses": 10, "side_information": 0, "energy": 2.0, "kept": 5, "excluded": 0}
    return [
        {
            "program": "program0", "arm": arm, "seed": seed, "round": t,
            "test_accuracy": curve(arm, seed, t), "test_loss": loss(arm), **fixed,
            **{name: value(arm) for name, value in columns.items()},
        }
        for arm in arms for seed in range(SEEDS) for t in range(1, ROUNDS + 1)
    ]  # fmt: skip


def claims(folder):
    summary = json.loads((folder / "summary.json").read_text())
    return {claim["id"]: claim for claim in summary["claims"]}, summary["tables"]


def test_adaptive(tmp_path):
    config = hfl_adaptive.get_config("fast")
    names = [arm.name for arm in hfl_adaptive.arms(config)]
    assert names == [
        "optimal-25", "optimal-30", "optimal-35", "optimal-40", "equal", "unpruned", "flat",
        "flat-steps", "non-iid",
    ]  # fmt: skip
    end = {"optimal-25": 0.78, "optimal-40": 0.80, "flat": 0.4, "unpruned": 0.795}

    def curve(arm, seed, t):
        late = 2 if arm == "optimal-25" else 0
        return end.get(arm, 0.79) + 0.001 * seed - 0.1 * max(0, 3 + late - t)

    made = rows(
        names, curve, lambda arm: 1 - end.get(arm, 0.79),
        seconds=lambda arm: config.edges.rounds * (0.06 if arm == "unpruned" else 0.03),
        ratio=lambda arm: {"unpruned": 0.0, "flat": 0.5}.get(arm, 0.6),
    )  # fmt: skip
    hfl_adaptive.report(config, made, tmp_path)
    found, tables = claims(tmp_path)
    held = {name for name, claim in found.items() if claim["held"]}
    assert held == {
        "near-unpruned", "half-latency", "above-flat", "limit", "limit-loss", "limit-rounds"
    }  # fmt: skip
    assert found["communication"]["held"] is False
    for same in ("iid", "above-equal", "hierarchy"):  # equal curves decide nothing
        assert found[same]["held"] is None
    assert found["half-latency"]["value"].startswith("50.0 ")
    # 60 % of 25,168 of 43,888 weights; 25 ms reaches 76 % in round 5, 40 ms in round 3.
    assert found["communication"]["value"].startswith(f"{60 * 25_168 / 43_888:.1f} ")
    assert found["limit-rounds"]["value"].startswith("2.0 ")
    assert found["near-unpruned"]["value"].startswith("-0.5 ")
    table = next(iter(tables.values()))
    line = {row.split("|")[1].strip(): row.split("|") for row in table.splitlines()}
    assert float(line["flat"][6]) == 50.0
    assert float(line["unpruned"][6]) == 100.0
    assert line["optimal-30"][4].split()[0] == "30.0"
    for name in ("limits", "limits_loss", "schemes", "schemes_loss", "ratios", "seconds"):
        assert (tmp_path / "figures" / f"{name}.png").stat().st_size > 1000


def test_pruning(tmp_path):
    config = hfl_pruning.get_config("full")
    names = [arm.name for arm in hfl_pruning.arms(config)]
    assert names == ["0 %", "30 %", "50 %", "70 %", "90 %", "0 %, literal"]
    end = dict(zip(names, [0.86, 0.86, 0.85, 0.84, 0.8, 0.3], strict=True))
    made = rows(
        names, lambda arm, seed, t: end[arm] + 0.001 * seed - 0.01 * (ROUNDS - t),
        lambda arm: 1 - end[arm], seconds=lambda arm: 0.0, ratio=lambda arm: 0.0,
    )  # fmt: skip
    hfl_pruning.report(config, made, tmp_path)
    found, _ = claims(tmp_path)
    assert all(claim["held"] for claim in found.values())
    assert found["test_accuracy-0-90"]["value"].startswith("6 ")
    assert float(found["test_loss-50-90"]["value"].split()[0]) == pytest.approx(0.05)
    assert found["reaches-85"]["value"].startswith("86.1 ")
    for name in ("accuracy", "loss", "ratios"):
        assert (tmp_path / "figures" / f"{name}.png").stat().st_size > 1000
