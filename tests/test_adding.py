"""What is chosen by name is one file and one line, as CONTRIBUTING.md says it."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# name -> (file, its text, the table's file, its first line, the line that is added, flags)
NEW = {
    "network": (
        "models/lenet.py",
        """
import flax.linen as linen
from fedprune.models import from_linen


class Lenet(linen.Module):
    hidden: tuple
    classes: int

    @linen.compact
    def __call__(self, x):
        x = x.reshape(x.shape[0], -1)
        for width in self.hidden:
            x = linen.tanh(linen.Dense(width)(x))
        return linen.Dense(self.classes)(x)


def lenet(hidden, classes, shape):
    return from_linen(Lenet(tuple(hidden), classes), shape)
""",
        "config/model.py",
        "NETWORKS = {",
        '"lenet": Network(lambda m, *given: import_module("fedprune.models.lenet")'
        '.lenet(m.hidden, *given), "mlp", _chain),',
        ["--config.model.name=lenet", "--config.model.mlp.hidden=6,"],
    ),
    "dataset": (
        "data/stripes.py",
        """
import numpy as np


def find(name, root):
    def read():
        y = np.arange(200) % 4
        x = np.zeros((200, 28, 28), np.uint8)
        for i, label in enumerate(y):
            x[i, 7 * label : 7 * label + 7] = 255
        return {"x_train": x, "y_train": y, "x_test": x[:40], "y_test": y[:40]}

    return "made here", read
""",
        "data/sources.py",
        "SOURCES = {",
        '"stripes": Source(lambda *given: import_module("fedprune.data.stripes").find(*given)),',
        ["--config.data.name=stripes"],
    ),
    "fading": (
        "channel/two_states.py",
        """
import jax
import jax.numpy as jnp
from fedprune import rng
from fedprune.channel import Channels, Fading


def two_states():
    def draw(at):
        one = lambda k: jax.random.bernoulli(rng.stream(at.key, "state", at.round, k))
        h = jnp.where(jax.vmap(one)(at.ids), 1.0, 0.1).astype(jnp.complex64)[:, None]
        return Channels(h[..., None], jnp.zeros_like(h)), None

    return Fading(draw)
""",
        "config/uplink.py",
        "FADINGS = {",
        '"two_states": Kind(lambda c: import_module("fedprune.channel.two_states").two_states()),',
        ["--config.uplink.fading=two_states"],
    ),
    "selection": (
        "server/rotating.py",
        """
import jax.numpy as jnp
from fedprune.types import Participation


def rotating(clients, size):
    def select(candidates):
        return (candidates.round * size + jnp.arange(size)) % clients

    return Participation(size, select, clients)
""",
        "config/training.py",
        "SELECTIONS = {",
        '"rotating": Kind(lambda c, size: import_module("fedprune.server.rotating")'
        ".rotating(c.data.clients, size)),",
        ["--config.cohort.selection=rotating", "--config.cohort.size=2"],
    ),
    "uplink": (
        "link/lossy.py",
        """
import jax.numpy as jnp
from fedprune import link


def lossy():
    plain = link.ideal()

    def prepare(cohort):
        air = plain.prepare(cohort)
        return air._replace(active=(cohort.ids + cohort.round) % 3 > 0)

    return plain._replace(prepare=prepare)
""",
        "config/uplink.py",
        "UPLINKS = {",
        '"lossy": Kind(lambda c, network: import_module("fedprune.link.lossy").lossy()),',
        ["--config.uplink.link=lossy"],
    ),
    "pruning method": (
        "prune/random.py",
        """
import jax
from fedprune import rng, tree
from fedprune.types import Pruner


def random(share):
    def update(state, before):
        def keep(path, leaf):
            key = rng.stream(before.key, tree.path_name(path))
            kept = jax.random.bernoulli(key, 1 - share, leaf.shape)
            return kept | (not tree.is_kernel(tree.path_name(path), leaf))

        first = jax.tree_util.tree_map_with_path(keep, before.params)
        return tree.where(before.round == 0, first, before.mask), state

    return Pruner(lambda params: (), update)
""",
        "config/pruning.py",
        "METHODS = {",
        '"random": Kind(lambda p, schedule, structure: import_module("fedprune.prune.random")'
        ".random(p.ratio)),",
        [
            "--config.pruning.granularity=random",
            "--config.pruning.schedule=one_shot",
            "--config.pruning.start=0",
        ],
    ),
    "server": (
        "server/signs.py",
        """
import jax
import jax.numpy as jnp
from fedprune.types import Server


def signs(rate):
    def update(state, outcome):
        step = lambda w, u: w + rate * jnp.sign(u)
        return jax.tree.map(step, outcome.params, outcome.update), state

    return Server(lambda params: (), update)
""",
        "config/server.py",
        "SERVERS = {",
        '"signs": Kind(lambda s: import_module("fedprune.server.signs").signs(s.lr)),',
        ["--config.server.optimizer=signs", "--config.server.lr=0.01"],
    ),
}


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    """A copy of the package in which everything is added."""
    root = tmp_path_factory.mktemp("package")
    shutil.copytree(ROOT / "fedprune", root / "fedprune", ignore=shutil.ignore_patterns("*.pyc"))
    shutil.copytree(ROOT / "experiments", root / "experiments")
    for file, text, table, first, line, _ in NEW.values():
        (root / "fedprune" / file).write_text(text)
        path = root / "fedprune" / table
        old = path.read_text()
        assert old.count(f"{first}\n") == 1
        path.write_text(old.replace(f"{first}\n", f"{first}\n    {line}\n"))
        if "import import_module" not in old:
            path.write_text(path.read_text() + "\n\nfrom importlib import import_module\n")
    return root


def fedprune(package, *words):
    return subprocess.run(
        [sys.executable, "-m", "fedprune", *words], cwd=package, capture_output=True, text=True
    )


def test_everything_that_is_added_runs(package):
    """Two rounds with all of it at once."""
    flags = [flag for *_, given in NEW.values() for flag in given if "uplink.link" not in flag]
    done = fedprune(package, "run", "single:tiny", "--workdir=run", *flags)
    assert done.returncode == 0, done.stderr
    assert (package / "run" / "report.md").exists()
    other = fedprune(package, "run", "single:tiny", "--workdir=other", *NEW["uplink"][-1])
    assert other.returncode == 0, other.stderr


def test_choices_help_and_errors_have_it(package):
    said = fedprune(package, "run", "single:tiny", "--help_config").stdout
    for *_, flags in NEW.values():
        name = flags[0].partition("=")[2]
        assert name in said
    wrong = fedprune(package, "run", "single:tiny", "--config.model.name=lenett")
    assert wrong.returncode == 2
    assert "(did you mean lenet?)" in wrong.stderr
    other = fedprune(package, "run", "single:tiny", "--config.model.name=lenet",
                     "--config.model.cnn.kernel=5")  # fmt: skip
    assert other.returncode == 2
    assert "is only for model.name='cnn', not 'lenet'" in other.stderr
