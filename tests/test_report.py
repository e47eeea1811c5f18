"""Intervals, verdicts and tables against SciPy and by hand."""

import json
import subprocess
import sys

import numpy as np
import pytest
from scipy import stats

from fedprune import report

VALUES = [81.2, 79.9, 82.4, 80.1, 80.0]


def test_interval_is_students():
    found = report.interval(VALUES)
    low, high = stats.ttest_1samp(VALUES, 0).confidence_interval(0.95)
    np.testing.assert_allclose([found.mean - found.half, found.mean + found.half], [low, high])
    assert np.isnan(report.interval([3.0]).half)


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


def test_figure_is_written_twice_the_same(tmp_path):
    data = rows()
    for name in ("one", "two"):
        report.accuracy_figure(tmp_path / name, data, {"a": "A", "b": "B"}, "title", (0, 100), [2])
        assert (tmp_path / f"{name}.png").stat().st_size > 1000
    assert (tmp_path / "one.svg").read_bytes() == (tmp_path / "two.svg").read_bytes()


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
    assert (two.held, two.value) == (True, "2.0 ± 0.6 points")  # t = 12.7 with 1 degree of freedom
    assert (three.held, three.value) == (True, "2.0 ± 0.2 points")
    found = [
        line.split("|")[2].strip() for line in report.verdict_table([one, two, three]).split("\n")
    ]
    assert found[2:] == ["open (one seed)", "held (two seeds)", "held"]
    assert report.word(False, None) == "did not hold"  # of a run that did not write their number
    assert f"{report.interval([1.234]):.2f} {report.interval([1.2])}" == "1.23 1.2"
    assert f"{report.interval(VALUES):.2f}".startswith("80.72 ± ")
    assert report.over_seeds(1) == "one seed"
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
