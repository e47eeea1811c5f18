"""report.html: well-formed, self-contained, with the numbers of the rows; what it refuses."""

import base64
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import drawings
import numpy as np
import pytest
from scipy import stats

from experiments import ota_pruning
from fedprune import config as cfg
from fedprune import report as rp
from fedprune.cli import report as command
from fedprune.report import page
from fedprune.report.page import plots
from fedprune.runs import RunDirectory

EVIL = "<script>alert('1')</script> & \"$x$\" --> {{ 7 * 7 }}"
ARMS = ("dense", "pruned-50", EVIL)
OWN = "<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'/>"
ENVIRONMENT = {"code": EVIL, "python": "3.11", "packages": {"jax": "1"}, "devices": {"cpu <b>": 2}}
ROUNDS = 6
VOID = {"meta", "img", "br", "link", "input", "hr"}


def rows(arms=ARMS, seeds=(0, 1, 2), shift=0.0, rounds=ROUNDS):
    """Tested in every second round, with everything that a row can say."""
    draw = np.random.default_rng(0)
    found = []
    for t in range(1, rounds + 1):
        for i, arm in enumerate(arms):
            for seed in seeds:
                row = {"program": "program0", "arm": arm, "seed": seed, "round": t}
                row |= {"train_loss": 1.0, "clients": 5, "excluded": int(t == 2), "kept": 100 - i}
                row |= {"sent": 500.0 - i, "ratio": 0.1 * i, "channel_uses": 1e4 * (i + 1) + seed}
                row |= {"side_information": 7, "seconds": 0.25 * (i + 1), "energy": draw.uniform()}
                share = {"share_low": 0.1, "share_high": 0.4}
                row["allocation"] = {"ratio_low": 0.05 * i, "ratio_high": 0.2 * i, **share}
                row["density"] = {"a/kernel": 1 - 0.1 * i, "<b>/kernel": 0.5 + 0.4 / t}
                if t % 2 == 0:
                    accuracy = 0.5 + shift + 0.04 * t - 0.05 * i + 0.02 * draw.uniform()
                    row |= {"test_accuracy": accuracy, "test_loss": 2.0 - accuracy}
                    row |= {"test_mean": accuracy, "test_worst": accuracy - 0.2}
                    row["test_histogram"] = [0] * 18 + [seed, 10 - seed]
                found.append(row)
    return found


def make(folder: Path, made=None, finished=True, **fields) -> Path:
    """A run directory as the launcher leaves it."""
    config = ota_pruning.get_config("fast")
    config.run.rounds = ROUNDS
    for path, value in fields.items():
        part, name = path.split("__")
        setattr(getattr(config, part), name, value)
    with RunDirectory(folder, cfg.to_json(config)) as directory:
        directory.record(ENVIRONMENT)
        made = rows() if made is None else made
        (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in made))
        if finished:
            (folder / "figures").mkdir()
            (folder / "figures" / "own.svg").write_text(OWN)
            verdicts = [
                rp.Verdict("a", "P0 <i>", f"claim {EVIL}", held, "1.5 ± 0.5 points", 3)
                for held in (True, False, None)
            ]
            names = list(dict.fromkeys(row["arm"] for row in made))
            tables = {EVIL: rp.table(["name", "x"], [[EVIL, "1"]]), "Convergence": "all <b> arms"}
            rp.write_run(folder, "e", cfg.to_json(config), made, names, tables, verdicts, "Claims")
            directory.ended()
    return folder


class Page(HTMLParser):
    """Fails where tags do not nest; keeps tables, images, addresses and the text."""

    def __init__(self, text: str):
        super().__init__(convert_charrefs=True)
        self.open, self.ids, self.links, self.images, self.tags = [], [], [], [], set()
        self.tables, self.headings, self.text, self.styles = [], [], "", ""
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.tags.add(tag)
        assert not any(name.startswith("on") for name in attrs)
        for name in ("src", "href", "srcset", "action", "data", "poster"):
            if name in attrs:
                self.links.append((tag, attrs[name]))
        if "id" in attrs:
            self.ids.append(attrs["id"])
        if tag == "img":
            self.images.append(attrs)
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])
        if tag in ("td", "th"):
            self.tables[-1][-1].append("")
        if tag in ("h2", "h3", "summary"):
            self.headings.append("")
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" in self.open:
            self.styles += data
            return
        self.text += data
        if self.open and self.open[-1] in ("h2", "h3", "summary"):
            self.headings[-1] += data
        if "td" in self.open or "th" in self.open:
            self.tables[-1][-1][-1] += data

    def table(self, *header):
        """The body of the only table whose header starts in this way."""
        (found,) = [t for t in self.tables if tuple(t[0][: len(header)]) == header]
        return found[1:]


def written(*folders: Path, out: Path | None = None) -> Page:
    file = out or folders[0] / page.NAME
    assert command.main(["report", *map(str, folders), *([f"--out={out}"] if out else [])]) == 0
    return Page(file.read_text())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make(tmp_path_factory.mktemp("page") / "run <1>")


@pytest.fixture(scope="module")
def one(folder):
    return written(folder)


def test_self_contained_and_escaped(one, folder):
    assert not one.tags & {"script", "link", "iframe", "object", "base", "b1", "svg"}
    for tag, address in one.links:
        assert address.startswith("data:image/svg+xml;base64,") if tag == "img" else True
        assert tag == "img" or (address.startswith("#") and address[1:] in one.ids)
    assert len(set(one.ids)) == len(one.ids)
    assert "url(" not in one.styles
    assert "@import" not in one.styles
    for image in one.images:
        svg = ElementTree.fromstring(base64.b64decode(image["src"].partition(",")[2]))
        for element in svg.iter():
            assert element.tag.rpartition("}")[2] not in ("script", "foreignObject")
            for name, value in element.attrib.items():
                outside = name.endswith("href") and not value.startswith(("#", "data:image/png"))
                assert not outside, value
        assert image["alt"].strip()
    # What names say is there as it was written, as text.
    for text in (f"claim {EVIL}", "run <1>", "2 × cpu <b>", "P0 <i>", "all <b> arms"):
        assert text in one.text
    assert "49" not in [cell for table in one.tables for line in table for cell in line]
    assert "http" not in re.sub(r'http-equiv="[^"]*"', "", (folder / page.NAME).read_text())


def test_numbers_are_those_of_the_rows(one, folder):
    found = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    arms = json.loads((folder / "summary.json").read_text())["arms"]
    results, costs = one.table("arm", "seeds", "rounds"), one.table("arm", "rounds", "weights sent")
    for arm, summary, result, cost in zip(ARMS, arms, results, costs, strict=True):
        mine = [row for row in found if row["arm"] == arm]
        last = [row for row in mine if row["round"] == ROUNDS]

        def shown(column, scale, digits, last=last):
            values = [scale * row[column] for row in last]
            mean = sum(values) / 3
            low, high = stats.ttest_1samp(values, 0).confidence_interval(0.95)
            return f"{mean:.{digits}f} ± {(high - low) / 2:.{digits}f}"

        accuracy = shown("test_accuracy", 100, 1)
        assert result[:5] == [arm, "3", str(ROUNDS), accuracy, shown("test_mean", 100, 1)]
        assert result[5:] == [
            shown("test_worst", 100, 1), shown("test_loss", 1, 3), str(last[0]["kept"]), "3",
        ]  # fmt: skip
        assert accuracy.split()[0] == f"{100 * summary['accuracy_mean']:.1f}"
        assert accuracy.split()[2] == f"{100 * summary['accuracy_ci95']:.1f}"
        total = {n: sum(row[n] for row in mine) / 3 for n in ("sent", "channel_uses", "energy")}
        assert cost[:2] == [arm, str(ROUNDS)]
        assert cost[2:4] == [f"{total['sent']:,.0f}", f"{total['channel_uses']:,.0f}"]
        assert cost[4:] == [
            str(7 * ROUNDS), f"{total['energy']:.4g}", f"{sum(r['seconds'] for r in mine) / 3:g}",
        ]  # fmt: skip
        assert float(cost[6]) == pytest.approx(summary["seconds"])
        assert float(cost[5]) == pytest.approx(summary["energy"], rel=1e-3)
    clients = one.table("arm", "0–")
    assert [line[0] for line in clients] == list(ARMS)
    assert all(line[1:] == [""] * 18 + ["3", "27"] for line in clients)


def test_claims_configuration_and_where(one):
    verdicts = [line[1:3] for line in one.table("claim", "verdict")]
    words = ["✓held", "✗did not hold", "?open"]
    assert verdicts == [[word, "1.5 ± 0.5 points"] for word in words]
    changed = {line[0]: line[1:] for line in one.table("field", "value", "default")}
    assert changed["run.rounds"] == [str(ROUNDS), "24", "number of rounds"]
    assert changed["methods"][:2] == ["one-shot, iterative", "–"]
    fields = {path: value for path, _, value in cfg.fields(ota_pruning.get_config("fast"))}
    plain = {path: value for path, _, value in cfg.fields(cfg.Config())}
    fields["run.rounds"] = ROUNDS
    differing = {path for path in fields if path not in plain or fields[path] != plain[path]}
    assert set(changed) == differing - {"experiment", "variant"}
    every = {line[0] for line in one.table("field", "value", "meaning")}
    assert every == set(fields)
    ((run, _, ended, code, *_, devices, packages),) = one.table("run", "start")
    assert (run, code, devices, packages) == ("run <1>", EVIL, "2 × cpu <b>", "jax 1")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", ended)
    assert re.search(r"Wall time: \d s in 1 start\.", one.text)


@pytest.fixture
def drawn(monkeypatch):
    """The lines of all panels, by (label of the axes, title, legend)."""
    found, real = {}, plots.lines

    def lines(title, drawn, axes):
        found.update({(axes.xlabel, axes.ylabel, title, line.label): line for line in drawn})
        return real(title, drawn, axes)

    monkeypatch.setattr(plots, "lines", lines)
    return found


COSTS = {"seconds": "simulated seconds", "energy": "joules", "channel_uses": "channel uses"}


def test_figures_draw_the_rows(folder, drawn, monkeypatch, tmp_path):
    stripes = {}
    monkeypatch.setattr(
        plots, "heat", lambda title, *data: stripes.update({title: data}) or "<svg/>"
    )
    page.write([folder], tmp_path / page.NAME)
    found = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    tested = range(2, ROUNDS + 1, 2)
    for arm in ARMS:
        mine = {(row["seed"], row["round"]): row for row in found if row["arm"] == arm}
        values = np.array([[100 * mine[s, t]["test_accuracy"] for t in tested] for s in range(3)])
        low, high = stats.ttest_1samp(values, 0).confidence_interval(0.95)
        spent = {"round": list(tested)}
        for column, name in COSTS.items():
            spent[f"{name} so far"] = [
                sum(mine[s, u][column] for s in range(3) for u in range(1, t + 1)) / 3
                for t in tested
            ]
        for xlabel, x in spent.items():
            line = drawn[xlabel, "test accuracy (%)", "", arm]
            np.testing.assert_allclose(line.x, x)
            np.testing.assert_allclose(line.y, values.mean(0))
            np.testing.assert_allclose([line.low, line.high], [low, high])
        share = drawn["round", "share of the band (%)", "", arm]
        np.testing.assert_allclose([share.low, share.high], [[10] * ROUNDS, [40] * ROUNDS])
        latency = drawn["round", "ms a round", "", arm].y
        np.testing.assert_allclose(latency, 1e3 * mine[0, 1]["seconds"])
        names, rounds, percent = stripes[arm]
        assert names == ["a", "<b>"]
        expected = [
            [100 * (1 - mine[0, t]["density"][f"{n}/kernel"]) for t in rounds] for n in names
        ]
        np.testing.assert_allclose(percent, expected)
    ratio = drawn["round", "ratio (%)", "", EVIL]
    np.testing.assert_allclose([ratio.y[0], ratio.low[0], ratio.high[0]], [20, 10, 40])


def test_many_arms_have_a_panel_for_each_family(tmp_path, drawn):
    arms = ["full", "half", *(f"{k}-{r}" for k in ("once", "often") for r in (30, 50, 70, 90))]
    written(make(tmp_path / "run", rows(arms), finished=False))
    panels = {}
    for (x, y, title, label), line in drawn.items():
        if (x, y) == ("round", "test accuracy (%)"):
            panels.setdefault(title, {})[label] = line.style
    styles = {f"once-{ratio}": i for i, ratio in enumerate((30, 50, 70, 90))}
    assert panels["once"] == {"full": None, **styles}
    assert panels["half"] == {"full": None, "half": 0}
    assert set(panels) == {"once", "often", "half"}


def test_a_panel_has_the_reference_of_its_own_setting(tmp_path, drawn):
    """The reference, and from it the differences paired by seed, with intervals of their own."""
    arms = [f"{who}/{how}@{snr}dB" for who in ("full", "half") for snr in (-5, 0)
            for how in ("dense", "often-90")]  # fmt: skip
    made = rows(arms)
    text = written(make(tmp_path / "run", made, finished=False)).text
    assert "Accuracy beside the reference" in text
    assert "nan" not in text
    for who in ("full", "half"):
        for snr in (-5, 0):
            title, ends = (
                f"{who}, {snr}dB",
                [f"{who}/{how}@{snr}dB" for how in ("dense", "often-90")],
            )
            panel = {k[3]: v for k, v in drawn.items() if k[1:3] == ("test accuracy (%)", title)}
            assert {name: line.style for name, line in panel.items()} == {ends[0]: None, ends[1]: 0}
            dense, often = (
                100 * np.array([[r["test_accuracy"] for r in made if r["arm"] == arm
                                 and r["seed"] == s and "test_accuracy" in r] for s in range(3)])
                for arm in ends
            )  # fmt: skip
            line = drawn["round", "points above the reference", title, ends[1]]
            low, high = stats.ttest_1samp(often - dense, 0).confidence_interval(0.95)
            np.testing.assert_allclose(line.y, (often - dense).mean(0))
            np.testing.assert_allclose([line.low, line.high], [low, high])


@pytest.mark.parametrize("names", [("a", "b", "c"), ("a long name of an arm, which is cut",) * 7])
@pytest.mark.parametrize(
    ("label", "log", "x"),
    [
        ("round", False, [1.0]),
        ("round", False, [1, 500, 1000]),
        ("joules", True, [0.013, 0.2]),
        ("joules", True, [1e-3, 3e9]),
        ("channel uses", True, [1.1e7, 1.4e8]),
        ("channel uses", False, [1234567.0, 1234577.0]),
        ("local.lr", False, [1e-5, 2e-5]),
    ],
)
def test_texts_of_a_panel_do_not_overlap(monkeypatch, names, label, log, x):
    found = []
    monkeypatch.setattr(plots, "_svg", lambda figure: found.append(figure) or "")
    at = np.array(x, float)
    lines = [plots.Line(n, i or None, at, 0 * at + 99, 0 * at + 90, 0 * at + 100)
             for i, n in enumerate(names)]  # fmt: skip
    limits = (at.min() / 1.1, at.max() * 1.1) if log or len(x) == 1 else (at.min(), at.max())
    axes = plots.Axes(label, "test accuracy (%)", log, limits, (90.0, 100.0))
    plots.lines("a title that is as long as there is room for it", lines, axes)
    plots.heat("a title", names, np.arange(1, 2 + len(x)), np.full((len(names), 1 + len(x)), 50.0))
    for figure in found:
        assert drawings.overlaps(list(drawings.texts(figure))) == []


@pytest.mark.parametrize("seeds", [1, 2])
def test_few_seeds_have_no_interval(tmp_path, drawn, seeds):
    found = written(make(tmp_path / "run", rows(seeds=range(seeds)), finished=False))
    assert "nan" not in found.text
    assert not [cell for line in found.table("arm", "seeds") for cell in line if "±" in cell]
    assert {line[1] for line in found.table("arm", "seeds")} == {str(seeds)}
    line = drawn["round", "test accuracy (%)", "", "pruned-50"]
    assert np.isnan([line.low, line.high]).all()


def test_equal_runs(tmp_path, capsys):
    folders = [make(tmp_path / name / "run") for name in ("a", "b")]
    text = written(*folders, out=tmp_path / "both.html").text
    assert "All runs have the same configuration." in text
    same = f"lie on one another: {folders[0]}, {folders[1]}."
    assert same in text
    assert "Fields in which the runs differ" not in text
    again = [str(folders[0]), f"{folders[0]}/../run", f"--out={tmp_path / 'again.html'}"]
    assert command.main(["report", *again]) == 2
    assert f"{folders[0]}: is given more than once" in capsys.readouterr().err
    assert not (tmp_path / "again.html").exists()


def test_comparison(tmp_path, drawn):
    other = rows(("dense", "alone"), shift=0.1)
    folders = [make(tmp_path / "a"), make(tmp_path / "b", other, local__lr=0.3)]
    found = written(*folders, out=tmp_path / "both.html")
    assert found.table("run", "local.lr") == [["a", "0.1"], ["b", "0.3"]]
    panel = ("round", "test accuracy (%)", "dense")
    both = {key[3]: line for key, line in drawn.items() if key[:3] == panel}
    assert set(both) == {"lr = 0.1", "lr = 0.3"}
    np.testing.assert_allclose(both["lr = 0.3"].y - both["lr = 0.1"].y, 10, atol=2)
    assert {line[0] for line in found.table("run", "claim")} == {"a", "b"}
    assert {tuple(line[:2]) for line in found.table("setting", "arm", "seeds")} == {
        *(("lr = 0.1", arm) for arm in ARMS), ("lr = 0.3", "dense"), ("lr = 0.3", "alone"),
    }  # fmt: skip


@pytest.mark.parametrize("place", [".", "trials"])
def test_sweep(tmp_path, drawn, place):
    """Three SNRs × two runs of other seeds each; one run is under way, one folder is no run."""
    made = {}
    for snr in (0.0, 5.0, 10.0):
        for seed in (0, 3):
            made[snr, seed] = rows(("dense",), (seed, seed + 1), shift=snr / 50)
            config = {"uplink__snr_db": snr, "run__seeds": 2}
            trial = make(
                tmp_path / place / f"trial-{snr:g}-{seed}", made[snr, seed], snr < 10, **config
            )
            text = json.loads((trial / "config.json").read_text())
            text["run"]["seed"] = seed
            (trial / "config.json").write_text(json.dumps(text))
    with (tmp_path / place / "trial-10-3" / "metrics.jsonl").open("a") as f:
        f.write('{"program": "prog')  # cut off
    (tmp_path / place / "logs").mkdir()
    found = written(tmp_path)
    assert "Not finished, or without a summary: trial-10-0, trial-10-3." in found.text
    assert "not on this page: logs." in found.text
    lines = found.table("setting", "arm", "seeds")
    assert [line[:3] for line in lines] == [
        [f"snr_db = {snr}", "dense", "4"] for snr in (0, 10, 5)
    ]  # fmt: skip
    (line,) = [line for key, line in drawn.items() if key[0] == "uplink.snr_db"]
    np.testing.assert_allclose(line.x, [0, 5, 10])
    for i, snr in enumerate(line.x):
        last = [
            100 * row["test_accuracy"]
            for seed in (0, 3) for row in made[snr, seed] if row["round"] == ROUNDS
        ]  # fmt: skip
        low, high = stats.ttest_1samp(last, 0).confidence_interval(0.95)
        shown = [line.y[i], line.low[i], line.high[i]]
        np.testing.assert_allclose(shown, [np.mean(last), low, high])


def test_what_is_not_finite_is_left_out(tmp_path, drawn):
    """Null costs of the last round, a null accuracy of one seed, a run before its first test."""
    made = rows(("dense",))
    for row in made:
        if row["round"] == ROUNDS:
            row["energy"] = None
        if (row["round"], row["seed"]) == (2, 0):
            row["test_accuracy"] = None
    written(make(tmp_path / "run", made, finished=False))
    line = drawn["joules so far", "test accuracy (%)", "", "dense"]
    # What costs without end has no place on the axis: the point of the last round is dropped, and
    # the last one shown has spent what the rounds up to its own did.
    tested = sorted({row["round"] for row in made if "test_accuracy" in row})
    assert tested[-1] == ROUNDS
    spent = [sum(row["energy"] for row in made if row["round"] <= at) / 3 for at in tested[:-1]]
    np.testing.assert_allclose(line.x, spent)
    assert np.isnan(line.y).tolist() == [True, False]  # and the last round is dropped
    early = [row for row in rows() if row["round"] == 1]
    assert "Accuracy against" not in written(make(tmp_path / "early", early, finished=False)).text


def test_runs_of_older_versions_and_runs_without_rows(tmp_path):
    new = ("sent", "density", "allocation", "seconds", "energy", "ratio", "test_histogram")
    old = [{k: v for k, v in row.items() if k not in new} for row in rows()]
    folder = make(tmp_path / "old", old, finished=False)
    (folder / "run.json").unlink()
    found = written(folder)
    assert found.table("arm", "rounds")[0][2:] == ["–", "60,006", "42", "–", "–"]
    assert "No starts were recorded." in found.text
    assert "those of older versions do not" in found.text

    bare = make(tmp_path / "bare", [])
    (bare / "metrics.jsonl").unlink()
    assert "There are no rows of rounds" in written(bare).text


@pytest.mark.parametrize(
    ("file", "content", "says"),
    [
        (None, None, "there is no such folder"),
        ("thesis.tex", "precious", "holds neither a run (no config.json) nor folders of runs"),
        ("run/config.json", "{", "run/config.json: cannot be read"),
        ("run/config.json", "[]", "run/config.json: is not a JSON object"),
        ("run/metrics.jsonl", '{"arm": "a"\n{}\n', "run/metrics.jsonl: line 1 is damaged"),
        ("run/metrics.jsonl", '{"arm": "a"}\n', "run/metrics.jsonl: line 1 is no row of fedprune"),
        ("run/metrics.jsonl", b"\xff\xfe\n", "run/metrics.jsonl: line 1 is damaged"),
        ("run/summary.json", '{"claims": [1]}', "run/summary.json: its tables or claims are not"),
        ("run/run.json", '{"starts": [{"at": "then"}]}', "run/run.json: its starts are not"),
    ],
)
def test_refuses_in_one_line(tmp_path, capsys, file, content, says):
    folder = tmp_path / "folder"
    if file is not None:
        folder.mkdir()
        if file.startswith("run/"):
            make(folder / "run")
        content = content if isinstance(content, bytes) else content.encode()
        (folder / file).write_bytes(content)
        (folder / page.NAME).write_text('<meta name="generator" content="fedprune 0.0.1">')
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    for arguments in ([str(folder)], [str(folder), f"--out={tmp_path / 'new.html'}"]):
        assert command.main(["report", *arguments]) == 2
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert line.startswith(f"error: {folder}")
        assert says in line
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before


def test_refuses_usage(tmp_path, capsys, folder):
    notes = tmp_path / "notes.html"
    notes.write_text("<p>mine")
    for arguments, says in (
        ([], "give at least one run directory"),
        (["--colour=red", "x"], "Unknown command line flag 'colour'"),
        ([str(folder), str(folder)], "--out is missing: give --out=FILE for 2 folders"),
        ([str(folder), f"--out={notes}"], "is there already, and no report of fedprune"),
        ([str(folder), f"--out={tmp_path / 'no' / 'x.html'}"], "No such file or directory"),
    ):
        assert command.main(["report", *arguments]) == 2
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert line.startswith("error: ")
        assert says in line
    assert notes.read_text() == "<p>mine"


CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
MEASURE = """<script>addEventListener("load", () => {
  const wide = [...document.querySelectorAll("body *")].filter(
    e => e.getBoundingClientRect().right > innerWidth + 1 || e.scrollWidth > e.clientWidth + 1 &&
         getComputedStyle(e).overflowX !== "visible");
  document.body.dataset.found = JSON.stringify({
    wide: wide.map(e => e.tagName + "." + e.className),
    page: document.documentElement.scrollWidth - innerWidth,
    blank: [...document.images].filter(i => !i.complete || !i.naturalWidth).length,
    loaded: performance.getEntriesByType("resource").map(e => e.name)
      .filter(name => !name.startsWith("data:")),
  });
})</script>"""


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium (Debian package chromium)")
def test_in_a_browser(folder, one, tmp_path):
    """No complaint, nothing loaded, no image blank, nothing wider than a laptop's window."""

    def opened(text: str) -> tuple[str, str]:
        file = tmp_path / "page.html"
        file.write_text(text)
        flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--window-size=1280,800"]
        flags += ["--enable-logging=stderr", f"--user-data-dir={tmp_path / 'profile'}"]
        result = subprocess.run(
            [CHROMIUM, *flags, "--dump-dom", file.as_uri()],
            capture_output=True, text=True, timeout=120,
        )  # fmt: skip
        assert result.returncode == 0, result.stderr
        complaints = [line for line in result.stderr.splitlines() if "CONSOLE" in line]
        return result.stdout, "".join(complaints)

    text = (folder / page.NAME).read_text()
    dom, complaints = opened(text)
    assert "What ran where" in dom
    assert complaints == ""
    policy = re.search(r"<meta http-equiv[^>]*>", text)[0]
    assert "default-src 'none'" in policy
    dom, complaints = opened(text.replace(policy, "").replace("</body>", MEASURE + "</body>"))
    assert complaints == ""
    found = json.loads(re.search(r'data-found="([^"]*)"', dom)[1].replace("&quot;", '"'))
    assert found.pop("page") <= 0
    assert found == {"wide": [], "blank": 0, "loaded": []}
