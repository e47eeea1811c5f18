"""Intervals, verdicts and tables against SciPy and by hand."""

import json
import subprocess
import sys

import drawings
import numpy as np
import pytest
from scipy import stats

from fedprune import report

VALUES = [81.2, 79.9, 82.4, 80.1, 80.0]


def test_interval_is_students():
    found = report.interval(VALUES)
    low, high = stats.ttest_1samp(VALUES, 0).confidence_interval(0.95)
    np.testing.assert_allclose(found, [np.mean(VALUES), low, high])
    for few in ([3.0], [3.0, 4.0]):
        assert np.isnan(report.interval(few)[1:]).all()


def test_an_interval_is_cut_to_what_a_mean_can_be():
    values = [97.0, 99.9, 94.0]
    low, high = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert high > 100
    found = report.interval(values, report.PERCENT)
    np.testing.assert_allclose(found, [np.mean(values), low, 100.0])
    assert str(found) == f"97.0 ({low:.1f} to 100.0)"
    assert str(report.interval([1.0, 2.0, 3.0], report.PERCENT)) == "2.0 (0.0 to 4.5)"
    assert str(report.interval([-0.04, 0.0, 0.0])) == "0.0 ± 0.1"
    assert str(report.interval([np.nan])) == "–"


@pytest.mark.parametrize(
    ("difference", "above", "held"),
    [([2.0, 2.1, 1.9], 0.0, True), ([-2.0, -2.1, -1.9], 0.0, False), ([1, -1, 0.5], 0.0, None)],
)
def test_judge(difference, above, held):
    verdict, found = report.judge(difference, above)
    assert verdict is held
    test = stats.ttest_1samp(difference, above, alternative="two-sided")
    assert (test.pvalue < 0.05) == (held is not None)
    assert found.mean == pytest.approx(np.mean(difference))


def rows():
    return [
        {"program": "p", "arm": arm, "seed": seed, "round": r, "kept": 10}
        | {"channel_uses": 5, "side_information": 2, "excluded": int(r == 1)}
        | {"seconds": 0.5, "energy": 2.0}
        | ({"test_accuracy": base + 0.01 * seed + 0.1 * r, "test_loss": 1.0} if r % 2 else {})
        for arm, base in (("a", 0.1), ("b", 0.2))
        for seed in (0, 1)
        for r in (1, 2, 3)
    ]


def test_curves_and_summary():
    rounds, values = report.curves(rows(), "a", "test_accuracy")
    np.testing.assert_array_equal(rounds, [1, 3])
    np.testing.assert_allclose(values, [[0.2, 0.4], [0.21, 0.41]])
    np.testing.assert_allclose(report.final(rows(), "b", "test_accuracy"), [0.5, 0.51])
    summary = report.arm_summary(rows(), "a")
    assert summary["accuracy_mean"] == pytest.approx(0.405)
    assert (summary["seeds"], summary["rounds"], summary["kept_weights"]) == (2, 3, 10)
    assert (summary["channel_uses"], summary["side_information"]) == (15, 6)
    assert (summary["seconds"], summary["energy"]) == (1.5, 6.0)
    assert summary["excluded_updates"] == 2


def test_table_reads_as_plain_text():
    text = report.table(["name", "x"], [["long name", "1"], ["b", "22"]])
    assert text.splitlines() == [
        "| name      | x  |",
        "|-----------|----|",
        "| long name | 1  |",
        "| b         | 22 |",
    ]


def test_differences_are_paired_by_seed():
    """Of the seeds and rounds that both arms have; a common course of the seeds cancels."""
    made = rows()
    for row in made:
        if row["arm"] == "b" and row["round"] == 3:
            row["test_accuracy"] += 0.05 + 0.01 * row["seed"]
    made = [row for row in made if (row["arm"], row["seed"], row["round"]) != ("b", 0, 1)]
    rounds, values = report.differences(made, "b", "a", "test_accuracy")
    np.testing.assert_array_equal(rounds, [1, 3])
    np.testing.assert_allclose(values, [[np.nan, 0.15], [0.1, 0.16]])
    assert [len(v) for v in report.differences(made, "b", "none", "test_accuracy")] == [0, 0]


def test_figure_is_written_twice_the_same(tmp_path):
    panels = report.beside({"a": "A", "b": "B"}, [2])
    for name in ("one", "two"):
        report.accuracy_figure(tmp_path / name, rows(), panels, "title")
        assert (tmp_path / f"{name}.png").stat().st_size > 1000
    assert (tmp_path / "one.svg").read_bytes() == (tmp_path / "two.svg").read_bytes()


def many(seeds, rounds=9, arms=12):
    """Accuracies near 100 %, with intervals beyond it, of arms in two settings."""
    draw = np.random.default_rng(3)
    return [
        {"arm": f"{who}/{i}", "seed": s, "round": t, "seconds": 10.0 ** (i % 3 - 1)}
        | {"test_accuracy": min(1.0, 0.93 + 0.01 * i * (who == "x") + 0.06 * draw.uniform())}
        | {"test_loss": 0.2 * draw.uniform()}
        for who in "xy" for i in range(arms // 2)
        for s in range(seeds) for t in range(1, rounds + 1)
    ]  # fmt: skip


def draw_all(folder, seeds, rounds=9):
    """Every figure of rows, of made-up numbers."""
    made = many(seeds, rounds)
    names = {row["arm"]: f"{row['arm']}, a long name" for row in made}
    panels = [
        report.Panel(f"arm {i} of {who}", {f"{who}/0": "reference", f"{who}/{i}": "other"},
                     {f"{who}/{i}": [2, 5]})
        for who in "xy" for i in range(1, 6)
    ]  # fmt: skip
    last = {n: 100 * report.final(made, n, "test_accuracy") for n in names}
    cost, y = "seconds", "accuracy (%)"
    report.accuracy_figure(folder / "panels", made, panels, "title")
    report.accuracy_figure(folder / "loss", made, report.beside(names), "", "test_loss")
    report.accuracy_figure(folder / "one", made, report.beside({"x/0": "accuracy"}))
    report.cost_figure(folder / "cost", made, names, cost, "seconds")
    points = {n: (10.0 + 9 * i, v) for i, (n, v) in enumerate(last.items())}
    report.tradeoff_figure(folder / "tradeoff", points, cost, y, report.PERCENT)
    for x in ([0, 2500.0, 5000.0], [1e-4, 2e-4, 3e-4]):
        lines = {n: [v, v, v] for n, v in last.items()}
        report.line_figure(folder / "line", x, lines, "x", y, report.PERCENT)
    report.partition_figure(folder / "clients", np.full((20, 3), 4000), ["a", "b", "c"], "title")


@pytest.fixture
def drawn(monkeypatch):
    """The figures that are saved, laid out but not written, as (name, figure)."""
    found = []
    for module in (report.figures, report.panels):
        monkeypatch.setattr(module, "save", lambda figure, path: found.append((path.name, figure)))
    return found


@pytest.mark.parametrize(("seeds", "rounds"), [(3, 9), (2, 1), (1, 1000)])
def test_no_texts_overlap_and_none_is_nan(tmp_path, drawn, seeds, rounds):
    draw_all(tmp_path, seeds, rounds)
    assert len(drawn) == 8
    for name, figure in drawn:
        found = list(drawings.texts(figure))
        assert drawings.overlaps(found) == [], name
        words = [text for text, _ in found]
        assert not [text for text in words if "nan" in text]
        if name != "clients":
            told = " ".join(words)
            assert f"{seeds} seed" in told
            assert ("no intervals" in told) == (seeds < 3)


def test_accuracies_stay_within_0_and_100(tmp_path, drawn):
    draw_all(tmp_path, 3)
    for name, figure in drawn:
        for axes in figure.axes:
            if "accuracy" in axes.get_ylabel():
                assert 0 <= axes.get_ylim()[0] < axes.get_ylim()[1] <= 100, name
                for band in axes.collections:
                    for path in band.get_paths():
                        assert np.nanmax(path.vertices[:, 1]) <= 100, name


@pytest.mark.parametrize("seeds", [2, 3])
def test_panels_draw_their_own_reference_and_paired_intervals(tmp_path, drawn, seeds):
    draw_all(tmp_path, seeds)
    made, figure = many(seeds), dict(drawn)["panels"]
    titled = [axes for axes in figure.axes if axes.get_title()]
    assert len(titled) == 10
    for upper in titled:
        _, i, _, who = upper.get_title().split()
        dense, arm = (100 * report.curves(made, f"{who}/{n}", "test_accuracy")[1] for n in (0, i))
        for line, values in zip(upper.lines, (dense, arm), strict=False):
            np.testing.assert_allclose(line.get_ydata(), values.mean(0))
        assert upper.lines[0].get_label() == "reference"
        at = upper.get_subplotspec()
        (lower,) = [
            a for a in figure.axes
            if a.get_subplotspec().rowspan.start == at.rowspan.start + 1
            and a.get_subplotspec().colspan == at.colspan
        ]  # fmt: skip
        np.testing.assert_allclose(lower.lines[0].get_ydata(), (arm - dense).mean(0))
        (band,) = lower.collections
        edges = np.concatenate([path.vertices for path in band.get_paths()] or [np.zeros((0, 2))])
        if seeds < 3:
            assert not np.isfinite(edges).all() or not len(edges)
            continue
        low, high = stats.ttest_1samp(arm - dense, 0).confidence_interval(0.95)
        for t in range(9):
            ends = edges[edges[:, 0] == t + 1][:, 1]
            np.testing.assert_allclose([ends.min(), ends.max()], [low[t], high[t]])


def test_infinite_costs_and_losses_that_are_no_numbers(tmp_path):
    """Rows have null for both; a run in which a link has no capacity still has its summary."""
    costs = dict.fromkeys(("channel_uses", "side_information", "seconds", "energy"), 2.0)
    row = {"program": "p", "arm": "a", "kept": 1, "excluded": 0, "test_loss": None, **costs}
    rows = [
        {**row, "seed": s, "round": r, "test_accuracy": 0.5, "energy": None if r == 2 else 1.0}
        for r in (1, 2)
        for s in (0, 1)
    ]
    assert report.spent(rows, "a", "energy", np.array([0, 1, 2])).tolist() == [0.0, 1.0, np.inf]
    report.write_summary(tmp_path, "e", {"variant": "v"}, rows, ["a"], {}, [])
    text = (tmp_path / "summary.json").read_text()
    (arm,) = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))["arms"]
    assert float(arm["energy"]) == np.inf
    assert (arm["energy"], arm["seconds"], arm["loss_mean"]) == ("inf", 4.0, None)


def test_few_seeds_have_no_interval_and_say_so():
    one, two, three = (
        report.verdict(report.Rule("a", "P0", "claim", 0.0, np.array(values)))
        for values in ([2.0], [2.0, 2.1], [2.0, 2.1, 1.9])
    )
    assert (one.held, one.value, one.seeds) == (None, "2.0 points", 1)
    assert (two.held, two.value) == (None, "2.0 points")
    assert (three.held, three.value) == (True, "2.0 ± 0.2 points")
    found = [
        line.split("|")[2].strip() for line in report.verdict_table([one, two, three]).split("\n")
    ]
    assert found[2:] == ["open (1 seed)", "open (2 seeds)", "held"]
    assert report.word(False, None) == "did not hold"  # of a run that did not write their number
    assert f"{report.interval([1.234]):.2f} {report.interval([1.2])}" == "1.23 1.2"
    assert f"{report.interval(VALUES):.2f}".startswith("80.72 ± ")
    assert report.over_seeds(1) == "1 seed"
    assert report.over_seeds(2) == "mean over 2 seeds"
    assert report.over_seeds(3) == "mean ± 95 % interval over 3 seeds"


def test_figures_ask_for_no_backend(tmp_path):
    code = (
        "import fedprune.airnet, fedprune.report as rp, pathlib, sys, matplotlib\n"
        "rp.line_figure(pathlib.Path(sys.argv[1]), [0, 1], {'a': [[1.0, 2.0], [2.0]]}, 'x', 'y')\n"
        "print(matplotlib.get_backend(auto_select=False), 'matplotlib.pyplot' in sys.modules)\n"
    )
    asked = [sys.executable, "-c", code, str(tmp_path / "drawn")]
    result = subprocess.run(asked, capture_output=True, text=True, check=True)
    assert result.stdout == "None False\n"
    assert (tmp_path / "drawn.png").stat().st_size > 1000
    assert (tmp_path / "drawn.svg").stat().st_size > 1000
