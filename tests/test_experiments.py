"""Experiments as files: which one runs, what it may be called, and what is said of its faults."""

import json
import os
import pickle
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from fedprune import config as cfg
from fedprune.cli import experiments, parse, run, sweep_flags
from fedprune.cli.experiments import ExperimentError
from fedprune.runs import execution

ROOT = Path(__file__).parents[1]
SINGLE = (ROOT / "experiments" / "single.py").read_text()
OWN = SINGLE.replace("Arm(ARM, {})", 'Arm(ARM, {}), Arm("ideal", {"uplink.link": "ideal"})')
OWN = OWN.replace("rows, [ARM]", 'rows, [ARM, "ideal"]')
QUICK = ["--config.run.rounds=4", "--config.pruning.steps=1", "--config.mesh.devices=1"]


def start(*words, cwd: Path = ROOT) -> subprocess.CompletedProcess:
    found = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", *map(str, words)]
    return subprocess.run(command, cwd=cwd, env=found, capture_output=True, text=True, timeout=300)


def arms_of(folder: Path) -> set[str]:
    rows = (folder / "metrics.jsonl").read_text().splitlines()
    return {json.loads(row)["arm"] for row in rows}


@pytest.mark.parametrize(
    "words",
    [["fedprune", "run", "./single.py:tiny"], ["launch.main", "--config={file}:tiny"]],
    ids=lambda words: words[0],
)
def test_a_copy_with_other_arms_runs_its_own(words, tmp_path):
    """Though it has the name, and the text, of one that ships."""
    assert OWN.count("ideal") == 3
    (tmp_path / "single.py").write_text(OWN)
    words = [word.format(file=tmp_path / "single.py") for word in words]
    cwd = tmp_path if words[0] == "fedprune" else ROOT
    result = start(*words, *QUICK, f"--workdir={tmp_path / 'run'}", cwd=cwd)
    assert result.returncode == 0, result.stderr
    assert arms_of(tmp_path / "run") == {"run", "ideal"}
    (begun,) = json.loads((tmp_path / "run" / "run.json").read_text())["starts"]
    assert begun["experiment"]["file"] == str(tmp_path / "single.py")
    assert "ideal" in (tmp_path / "run" / "summary.json").read_text()


def test_a_run_of_ones_own_and_its_report(tmp_path):
    """In the folder that is named by default, resumed with a changed file, and reported again."""
    (tmp_path / "mine.py").write_text(OWN)
    result = start("fedprune", "run", "mine.py:tiny", *QUICK, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    folder = tmp_path / "runs" / "mine_tiny"
    assert json.loads((folder / "config.json").read_text())["experiment"] == "mine"
    before = (folder / "report.md").read_bytes()

    (tmp_path / "mine.py").write_text(OWN.replace('"The whole run', '"The entire run'))
    result = start("fedprune", "run", "mine.py:tiny", *QUICK, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    said = [line for line in result.stderr.splitlines() if "has changed" in line]
    assert [line.partition(":")[0] for line in said] == [
        f"resuming with another {tmp_path / 'mine.py'}"
    ]
    assert b"The entire run" in (folder / "report.md").read_bytes()

    (tmp_path / "mine.py").rename(tmp_path / "moved.py")
    result = start("fedprune", "report", "runs/mine_tiny", cwd=tmp_path)
    assert result.returncode == 0, result.stderr  # the page needs no experiment
    result = start("fedprune", "report", "runs/mine_tiny", "--remake", cwd=tmp_path)
    assert result.returncode == 2
    assert result.stderr == (
        f"error: runs/mine_tiny: its experiment {tmp_path}/mine.py is not there any more; give"
        " --experiment=FILE\n"
    )
    (tmp_path / "moved.py").write_text(OWN)
    again = ["runs/mine_tiny", "--remake", "--experiment=moved.py"]
    result = start("fedprune", "report", *again, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert (folder / "report.md").read_bytes() == before


def test_a_run_of_version_0_1_goes_on(tmp_path):
    """Its configuration named a module, and nothing said which file that was."""
    words = ["single:tiny", *QUICK, f"--workdir={tmp_path}"]
    assert start("fedprune", "run", *words).returncode == 0
    config, record = (json.loads((tmp_path / f"{n}.json").read_text()) for n in ("config", "run"))
    assert config["experiment"] == "single"
    (tmp_path / "config.json").write_text(json.dumps(config | {"experiment": "experiments.single"}))
    for begun in record["starts"]:
        del begun["experiment"]
    (tmp_path / "run.json").write_text(json.dumps(record))
    result = start("fedprune", "report", tmp_path, "--remake")
    assert result.returncode == 0, result.stderr
    (tmp_path / "config.json").write_text(json.dumps(config | {"experiment": "experiments.lost"}))
    result = start("fedprune", "report", tmp_path, "--remake")
    assert result.returncode == 2
    says = f"error: {tmp_path}: its experiment 'lost' is none that ships; give --experiment=FILE\n"
    assert result.stderr == says
    (tmp_path / "config.json").write_text(json.dumps(config | {"experiment": "experiments.single"}))
    result = start("launch.main", "--config=experiments/single.py:tiny", *words[1:])
    assert result.returncode == 0, result.stderr


# In this process -----


def own(tmp_path: Path, text: str, name: str = "own.py") -> Path:
    file = tmp_path / name
    file.write_text(text)
    return file


POSTPONED = """
from __future__ import annotations
import colorsys
import dataclasses
import helper_of_mine
from fedprune.config import Arm, Config, spec

@dataclasses.dataclass
class Part:
    size: int = spec(3, "size", low=1)

@dataclasses.dataclass
class Mine(Config):
    part: Part = dataclasses.field(default_factory=Part)
    names: tuple[str, ...] = spec(("a",), "names")

def get_config():
    return Mine()

def arms(config):
    return [Arm(f"{helper_of_mine.NAME}{config.part.size}", {})]

def report(config, rows, folder):
    import another_of_mine
    return another_of_mine.NAME
"""


def test_dataclasses_helpers_and_names(tmp_path, monkeypatch):
    """A file named as a module of Python, with postponed types and modules beside it, of which one
    is imported late, hides nothing; it is loaded once, and what it defines can be pickled."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    before = sys.modules.get("random")
    own(tmp_path, "NAME = 'help'", "helper_of_mine.py")
    own(tmp_path, "NAME = 'late'", "another_of_mine.py")
    own(tmp_path, "raise ImportError('hidden')", "colorsys.py")
    monkeypatch.delitem(sys.modules, "colorsys", raising=False)
    file = own(tmp_path, POSTPONED, "random.py")
    words = ["run", str(file), "--config.part.size=5", "--config.names=('b','c')"]
    given = parse.parse(words, run.define)
    experiment, config = given.experiment, given.config
    cfg.validate(config)
    assert (config.experiment, config.variant, config.names) == ("random", "", ("b", "c"))
    assert [arm.name for arm in experiment.arms(config)] == ["help5"]
    assert experiment.report(config, [], tmp_path) == "late"
    assert pickle.loads(pickle.dumps(config)) == config
    assert parse.parse(words, run.define).experiment.module is experiment.module
    assert sys.modules.get("random") in (before, __import__("random"))
    assert not hasattr(__import__("random"), "get_config")
    with pytest.raises(cfg.ConfigError, match=r"^part.size=0: must be an integer and at least 1$"):
        cfg.validate(cfg.override(config, {"part.size": 0}))


def test_a_folder_hides_no_module_of_python(tmp_path):
    """Where the command is started, which ``python -m`` puts first in the search path."""
    for name in ("random.py", "json.py"):
        own(tmp_path, OWN, name)
    result = start("fedprune", "run", "./random.py:tiny", "--help_config", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "  experiment = 'random'" in result.stdout
    result = start("fedprune", "run", "./json.py:huge", cwd=tmp_path)
    assert result.stderr == "error: variant 'huge' of json: must be one of fast, tiny\n"


def test_a_file_that_has_changed_is_loaded_again(tmp_path):
    """Also within the second, and as long as before: nothing is taken from a cache."""
    for name in ("one", "two"):
        file = own(tmp_path, OWN.replace('"run"', f'"{name}"'))
        experiment, config = experiments.load(f"{file}:tiny")
        assert experiment.arms(config)[0].name == name
    assert experiment.module.get_config.__annotations__["variant"] is str  # nothing is postponed
    assert not list(tmp_path.glob("__pycache__"))


HEAD = "from fedprune.config import Arm, Config, ConfigError\n"
GET, ARMS = "def get_config(variant='a'): return Config()\n", "def arms(config): return []\n"


@pytest.mark.parametrize(
    ("text", "variant", "says"),
    [
        ("def arms(: pass", "", r"cannot be loaded \(SyntaxError: invalid syntax \(own.py, line"),
        ("x = 1", "", "must have a function get_config"),
        ("get_config = 3", "", "must have a function get_config"),
        (f"{HEAD}def get_config(): return Config()", ":a", "its get_config has no variants"),
        (f"{HEAD}def get_config(v): return Config()", "", "its get_config has no default variant"),
        (HEAD + GET, "", "must have a function arms"),
        (HEAD + GET + ARMS, "", "must have a function report"),
        (
            "import nowhere",
            "",
            r"cannot be loaded \(ModuleNotFoundError: No module named 'nowhere'",
        ),
    ],
)
def test_a_file_with_a_fault_is_named(text, variant, says, tmp_path):
    file = own(tmp_path, text)
    names = set(sys.modules)
    with pytest.raises(ExperimentError, match=f"^{file}{variant}: {says}") as error:
        experiments.load(f"{file}{variant}")
    assert "\n" not in str(error.value)
    if "loaded" in says:
        assert not [name for name in {*sys.modules} - names if name.startswith("_experiment")]


def test_a_variant_that_there_is_not(tmp_path):
    file = own(tmp_path, f"VARIANTS = 'a', 'b'\n{HEAD}{GET}{ARMS}def report(*a): pass")
    assert experiments.load(f"{file}:b")[1].variant == "b"
    with pytest.raises(ExperimentError, match=r"^variant 'c' of own: must be one of a, b$"):
        experiments.load(f"{file}:c")


@pytest.mark.parametrize(
    ("arms", "says"),
    [
        ("[][1]", r"its arms cannot be made \(IndexError: list index out of range, in own.py:4\)"),
        ("['a']", "its arms must be fedprune Arms, not 'a'"),
        ("None", r"its arms cannot be made \(TypeError: 'NoneType' object is not iterable"),
    ],
)
def test_arms_that_cannot_be_made(arms, says, tmp_path):
    text = f"{HEAD}{GET}def arms(config):\n    return {arms}\ndef report(*a): pass"
    experiment, config = experiments.load(str(own(tmp_path, text)))
    with pytest.raises(ExperimentError, match=f"^{experiment.file}: {says}"):
        experiment.arms(config)


def test_what_is_found(tmp_path, monkeypatch):
    """Names are of those that ship, files are of the current folder or from anywhere."""
    monkeypatch.chdir(tmp_path)
    own(tmp_path, OWN, "mine.py")
    (tmp_path / "a:b.py").mkdir()
    own(tmp_path / "a:b.py", OWN, "x.py")
    single = ROOT / "experiments" / "single.py"
    assert experiments.find("single", "") == (single, None)
    assert experiments.find(f"{single}:tiny", "") == (single, "tiny")
    assert experiments.find("mine.py:a:b", "") == (tmp_path / "mine.py", "a:b")
    for given, says in {
        "mine:tiny": "a file of your own is given as ./mine.py",
        "mien.py": r"no such experiment file \(did you mean mine.py\?\)",
        "nothing/mine.py": "no such experiment file",
        "model_sizes": "no such experiment",
        "": "no such experiment",
    }.items():
        with pytest.raises(ExperimentError, match=says):
            experiments.find(given, given)
    experiment, _ = experiments.load("mine.py:tiny")
    assert experiment.given() == f"{tmp_path}/mine.py:tiny"
    assert experiments.load(f"{single}:tiny")[0].given() == "single:tiny"


def test_what_ships_says_which_variants_it_has():
    """Those that its refusal of another one names."""
    listed = {about.name: about for about in experiments.shipped()}
    files = {file.stem for file in (ROOT / "experiments").glob("*.py")}
    assert files - set(listed) == {"__init__", "model_sizes"}
    for name, about in listed.items():
        assert about.summary.endswith((".", ".)", "?"))
        assert about.variants
        module = experiments.load(name)[0].module
        with pytest.raises(cfg.ConfigError, match="must be ") as refused:
            module.get_config("huge")
        with pytest.raises((cfg.ConfigError, ExperimentError), match=f"'huge' of {name}: must be"):
            experiments.load(f"{name}:huge")
        allowed = str(refused.value).rpartition("must be ")[2].removeprefix("one of ").split(", ")
        assert set(about.variants) == set(allowed)


def test_words_of_a_command_line(tmp_path):
    """Values may be words of their own, and the experiment may stand anywhere."""
    flags = tmp_path / "flags"
    flags.write_text("--config.local.lr=0.3\n")
    words = ["run", "--workdir", "a b", "--config.uplink.snr_db", "-5", "--fresh", "single:tiny"]
    given = parse.parse([*words, f"--flagfile={flags}", "--config.model.mlp.hidden=8,"], run.define)
    assert given.experiment.given() == "single:tiny"
    assert (given.values.workdir, given.values.fresh) == ("a b", True)
    c = given.config
    assert (c.uplink.snr_db, c.local.lr, c.model.mlp.hidden) == (-5.0, 0.3, (8,))
    for word in ("--config=single:tiny", "-config=single:tiny"):
        assert parse.parse(["run", word], run.define).config.variant == "tiny"
    with pytest.raises(parse.UsageError, match="Missing value for flag --workdir"):
        parse.parse(["run", "single:tiny", "--workdir"], run.define)
    with pytest.raises(parse.UsageError, match="flagfile"):
        parse.parse(["run", f"--flagfile={tmp_path}/nothing"], run.define)


# Help, and how long it takes -----


@pytest.mark.parametrize(
    "words",
    [
        ["fedprune"],
        ["fedprune", "--help"],
        ["fedprune", "run", "--help"],
        ["fedprune", "sweep", "--help"],
        ["fedprune", "report", "--help"],
        ["fedprune", "run", "single", "-h"],
        ["fedprune", "run"],
        ["launch.main", "--help"],
        ["launch.sweep", "--helpfull"],
        ["launch.report", "--help"],
    ],
    ids=" ".join,
)
def test_help(words):
    result = start(*words)
    assert (result.returncode, result.stderr) == (0, "")
    assert max(map(len, result.stdout.splitlines())) <= 120
    program = words[0] if words[0] == "fedprune" else f"python -m {words[0]}"
    if len(words) > 1 and words[-1] != "run":
        assert f"usage: {program} " in result.stdout
    else:
        assert "fedprune run" in result.stdout
    if words[-1] == "-h":
        assert "One federation, as its configuration says" in result.stdout


def test_help_has_every_flag_with_words():
    for define in (run.define, sweep_flags.define):
        text = parse.help_text(["x"], "", "", define)
        assert text.count("\n  --") == text.count("\n      ") > 10 or "(default: " in text


def test_help_on_a_file_with_a_fault(tmp_path):
    words = ["run", str(own(tmp_path, "'What it does.' def")), "--help"]
    assert parse.help_text(words, "", "", run.define).endswith("own.py:\n\n")
    words[1] = str(own(tmp_path, "'What it does.'\nimport nowhere"))
    assert parse.help_text(words, "", "", run.define).endswith("own.py:\n\n  What it does.")


def test_a_command_that_there_is_not():
    result = start("fedprune", "rum")
    assert result.returncode == 2
    assert result.stderr == (
        "error: rum: there is no such command, must be one of run, sweep, report (did you mean"
        " run?)\n"
    )


@pytest.mark.parametrize(
    "words",
    [
        ["--help"],
        ["run", "--help"],
        ["run"],
        ["sweep", "--help"],
        ["report", "--help"],
        ["run", "ota_pruning:fast", "--config.run.rounds=-1"],
        ["run", "single:huge"],
        ["sweep", "single:tiny", "--workdir=/nowhere/s", "--grid=ratio=2", "--on=local"],
    ],
    ids=" ".join,
)
def test_a_quick_answer_does_without_jax(words):
    """So help and refusals take a fraction of the second that JAX and matplotlib take."""
    code = "import sys; from fedprune.cli import main; status = main.main(sys.argv)\n"
    code += "heavy = {'jax', 'matplotlib', 'scipy', 'orbax', 'flax', 'tensorboardX'}\n"
    code += "print(status, sorted(heavy & {*sys.modules}), file=sys.stderr)"
    began = time.monotonic()
    result = subprocess.run(
        [sys.executable, "-c", code, *words], cwd=ROOT, capture_output=True, text=True
    )
    status = 0 if words[-1] in ("--help", "run") else 2
    assert result.stderr.splitlines()[-1] == f"{status} []", result.stderr
    assert time.monotonic() - began < 10  # on a machine that is busy with other tests


NETWORK = """
import jax
import jax.numpy as jnp
from fedprune.types import Model


def model(config, dataset):
    features = dataset.x_train[0].size

    def init(key):
        w = jax.random.normal(key, (features, dataset.classes)) / features
        return {"kernel": w, "bias": jnp.zeros(dataset.classes)}

    def apply(params, x):
        return jnp.tanh(x.reshape(len(x), -1) @ params["kernel"]) + params["bias"][None]

    return Model(init, apply)
"""
WITH_NETWORK = SINGLE.replace(
    'config.model.name, config.model.mlp.hidden = 4, "mlp", (8,)', '_ = 4, ""'
)
WITH_NETWORK += NETWORK


def test_a_network_and_data_of_ones_own(tmp_path):
    """From an experiment's file and a table to a report; the same command refuses another table."""
    (tmp_path / "mine.py").write_text(WITH_NETWORK)
    noise = np.random.default_rng(0)
    lines = [f"{noise.normal() + 5 * (i % 2):.3f},{i % 2},{'abc'[i % 3]}" for i in range(90)]
    (tmp_path / "t.csv").write_text("\n".join(["a,label,who", *lines]))
    words = ["fedprune", "run", "mine.py:tiny", *QUICK, "--workdir=run", *TABLE]
    result = start(*words, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    rows = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert json.loads(rows[-1])["density"].keys() == {"kernel"}
    assert json.loads(rows[-1])["test_accuracy"] > 0.8
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["model"]["name"] == "own"

    (tmp_path / "t.csv").write_text("\n".join(["a,label,who", *lines[1:]]))
    result = start(*words, cwd=tmp_path)
    assert result.returncode == 1
    assert "run: was begun with another content of the data; put that back" in result.stderr


TABLE = ["--config.data.name=csv", "--config.data.dir=t.csv", "--config.data.csv.client=who"]
TABLE += [
    "--config.data.partition=natural",
    "--config.data.clients=3",
    "--config.pruning.ratio=0.3",
]


def test_a_run_goes_on_with_its_own_network_only(tmp_path):
    def identity(text):
        experiment, config = parsed(f"{own(tmp_path, text)}:tiny", *QUICK)
        return execution.plan(config, experiment.arms(config), experiment.own()).identity

    begun = identity(WITH_NETWORK)
    assert identity(WITH_NETWORK + "# a remark") == begun
    other = identity(WITH_NETWORK.replace("jnp.tanh", "jnp.sin"))
    differ = [name.partition(",")[0] for name in begun if other[name] != begun[name]]
    assert differ == ["network of program0"]


def test_a_flag_chooses_another_network_than_the_files(tmp_path):
    _, config = parsed(f"{own(tmp_path, WITH_NETWORK)}:tiny", "--config.model.name=mlp")
    assert config.model.name == "mlp"


def parsed(*words):
    given = parse.parse(["fedprune", *words], run.define)
    return given.experiment, given.config


@pytest.mark.parametrize(
    ("old", "new", "flags", "says"),
    [
        ("return Model(init, apply)", "return apply", [], r"own.py: its model must return a fed"),
        ("[0].size", "[0].sice", [], r"cannot be made \(AttributeError: .*, in own.py:\d+\)"),
        ("(features,", "(7,", [], r"be made \(TypeError: dot_general .*, in own.py:\d+\)"),
        ("", "", ["--config.pruning.granularity=unit"], r"'unit': .* function structure"),
        (NETWORK, "", ["--config.model.name=own"], "'own': the experiment's file has no function"),
    ],
    ids=["no model", "a fault", "other examples", "units", "no function"],
)
def test_a_network_that_cannot_be_used(old, new, flags, says, tmp_path):
    path = own(tmp_path, WITH_NETWORK.replace(old, new))
    experiment, config = parsed(f"{path}:tiny", *QUICK, *flags)
    with pytest.raises((ExperimentError, cfg.ConfigError), match=says):
        execution.plan(config, experiment.arms(config), experiment.own())


def test_a_network_beside_one_that_is_named(tmp_path):
    path = own(tmp_path, SINGLE + NETWORK)
    with pytest.raises(ExperimentError, match=r"its get_config sets model\.name='mlp'; must leave"):
        experiments.load(f"{path}:tiny")
