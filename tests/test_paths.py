"""Paths as users give them: what they mean, and what is refused before anything is written."""

import os
from pathlib import Path

import pytest

from fedprune import data, paths

REFUSED = ["", "gs://b/run", "s3://b/run", "file:///tmp/run", "run/gs:", "a\\b", "a\0b", "\udcff"]
REFUSED += ["x" * 256, "/".join(["x" * 200] * 25), "~nobody_of_this_name/run"]
ODD = [
    "a[1]",
    "[!a]",
    "a*",
    "a?b",
    "a b",
    "a\nb",
    "ä日",
    "x" * 200,
    "a%20b",
    "-x",
    "gs",
    "{a}",
    "~a",
]


@pytest.mark.parametrize("given", REFUSED, ids=lambda given: repr(given[:20]))
def test_what_cannot_be_used_is_refused_in_one_line(given, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(paths.PathError) as error:
        paths.local("--workdir", given)
    assert str(error.value).startswith(f"--workdir={given!r}: must be")
    assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("given", ODD, ids=lambda given: repr(given[:20]))
def test_other_names_are_what_they_are(given, tmp_path):
    assert paths.local("--workdir", tmp_path / given) == tmp_path / given


def test_where_the_process_runs_is_a_part_of_a_path(tmp_path, monkeypatch):
    (tmp_path / "a\\b").mkdir()
    monkeypatch.chdir(tmp_path / "a\\b")
    with pytest.raises(paths.PathError, match="without backslashes"):
        paths.local("--workdir", "run")


def test_the_home_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert paths.local("--workdir", "~/run") == tmp_path / "run"
    assert paths.local("--workdir", "~") == tmp_path
    assert paths.local("--workdir", "run/~") == Path("run/~")


@pytest.mark.parametrize("way", ["data.dir", "$FEDPRUNE_DATA"])
def test_data_are_looked_for_in_the_home_folder(way, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("FEDPRUNE_DATA", "~/sets" if way == "$FEDPRUNE_DATA" else "")
    folder = tmp_path / "sets" / "mnist"
    folder.mkdir(parents=True)
    (folder / "train-images-idx3-ubyte").write_bytes(b"damaged")
    with pytest.raises(data.DataError, match=f"{folder}"):
        data.load("mnist", "~/sets" if way == "data.dir" else None)
    monkeypatch.setenv("FEDPRUNE_DATA", "gs://sets")
    with pytest.raises(
        paths.PathError, match=r"^\$FEDPRUNE_DATA='gs://sets': must be a path of this"
    ):
        data.load("mnist")
    assert os.listdir(tmp_path) == ["sets"]
