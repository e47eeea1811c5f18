"""Data of the user's own: arrays, npz, CSV and images, with and without whose they are."""

import logging
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fedprune import build, data
from fedprune import config as cfg
from fedprune.cli import main

X = np.arange(24, dtype=np.float64).reshape(12, 2)
Y = ["dog", "cat", "ant"] * 4
WHO = [7, 7, 7, 7, 7, 7, 10, 10, 10, 2, 2, 2]
ROWS = [f"{a},{b},{y},{who}" for (a, b), y, who in zip(X, Y, WHO, strict=True)]


def table(path: Path, *rows: str, head: str = "a,b,label,who") -> Path:
    path.write_text("\n".join([head, *rows]) + "\n")
    return path


def image(path: Path, value=0, size=(4, 3), mode="L") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, value).save(path)
    return path


def together(dataset):
    """Every example with what its class and client are called, in the order of the examples."""
    x = np.concatenate([dataset.x_train, dataset.x_test])
    y = dataset.names[np.concatenate([dataset.y_train, dataset.y_test])]
    who = [None] * len(y)
    if dataset.group_names is not None:
        who = dataset.group_names[np.concatenate([dataset.group_train, dataset.group_test])]
    rows = [
        (*map(float, np.ravel(a)), str(b), c and str(c)) for a, b, c in zip(x, y, who, strict=True)
    ]
    return sorted(rows)


def wanted(whose=True):
    return sorted(
        (*map(float, a), b, str(c) if whose else None) for a, b, c in zip(X, Y, WHO, strict=True)
    )


# What is read -----


def test_every_way_reads_the_same(tmp_path):
    """Arrays, npz and CSV; classes in the order of their letters, clients in that of numbers."""
    np.savez(tmp_path / "a.npz", x=X, y=Y, client=WHO, other=[1])
    table(tmp_path / "a.csv", *ROWS)
    one = data.from_arrays(X, Y, client=WHO)
    others = [data.read_npz(tmp_path / "a.npz"), data.read_csv(tmp_path / "a.csv", client="who")]
    assert list(one.names) == ["ant", "cat", "dog"]
    assert list(one.group_names) == ["2", "7", "10"]
    assert one.x_train.dtype == np.float32
    for dataset in (one, *others):
        assert together(dataset) == wanted()
        for field, value in one._asdict().items():
            if field not in ("name", "source"):
                np.testing.assert_array_equal(getattr(dataset, field), value, err_msg=field)


def test_the_share_is_taken_from_every_client_and_all_classes():
    """round(share n) of each client's n, and as even over classes as that allows."""
    y = np.tile(np.arange(4), 50)
    client = np.repeat([0, 1, 2], [100, 60, 40])
    x = np.arange(200.0)[:, None]
    one, same, other = (
        data.from_arrays(x, y, client=client, test_share=0.25, seed=s) for s in (0, 0, 1)
    )
    assert list(np.bincount(one.group_test)) == [25, 15, 10]
    counts = np.array([np.bincount(one.y_test[one.group_test == k]) for k in range(3)])
    assert (counts.max(1) - counts.min(1)).max() <= 1
    assert together(one) == together(other)
    np.testing.assert_array_equal(one.x_test, same.x_test)
    assert (one.x_test != other.x_test).any()


def test_the_only_example_of_a_class_or_client_is_trained_on():
    y = [0] * 30 + [1]
    client = ["a"] * 30 + ["b"]
    for seed in range(5):
        dataset = data.from_arrays(np.zeros((31, 1)), y, client=client, test_share=0.9, seed=seed)
        assert set(dataset.y_train) == set(dataset.group_train) == {0, 1}
        assert len(dataset.y_test) == 27


def test_a_test_set_of_its_own(tmp_path):
    """Columns of the test table may stand in another order."""
    table(tmp_path / "train.csv", *ROWS)
    table(tmp_path / "test.csv", "7,cat,1.5,2.5", head="who,label,a,b")
    dataset = data.read_csv(tmp_path, client="who")
    assert together(dataset) == sorted([*wanted(), (1.5, 2.5, "cat", "7")])
    np.testing.assert_array_equal(dataset.x_test, [[1.5, 2.5]])
    np.savez(tmp_path / "a.npz", x_train=X, y_train=Y, x_test=[[1.5, 2.5]], y_test=["cat"])
    np.testing.assert_array_equal(data.read_npz(tmp_path / "a.npz").x_test, [[1.5, 2.5]])


def test_columns_that_are_left_out_and_labels_that_are_numbers(tmp_path):
    """Gaps between labels are closed; 2 comes before 10, and 1.0 is 1."""
    rows = ["x1,10,1.0", "x2,2,2", "x3,10,1", "x4,2,2.0", "x5,2,2"]
    path = table(tmp_path / "a.csv", *rows, head="id,label,a")
    dataset = data.read_csv(path, ignore=["id"])
    assert list(dataset.names) == ["2", "10"]
    assert dataset.x_train.shape[1] == 1
    assert list(data.read_csv(path, label="a", ignore=["id"]).names) == ["1", "2"]


@pytest.mark.parametrize(
    ("layout", "place"),
    [("class", "{y}/{i}.png"), ("client/class", "{who}/{y}/{i}.png"),
     ("class/client", "{y}/{who}/{i}.png")],
)  # fmt: skip
@pytest.mark.parametrize("split", [False, True])
def test_folders_of_images(tmp_path, layout, place, split):
    """One colour image makes all of them colour images; what begins with a dot is not read."""
    expected = []
    for side in ("train", "test") if split else ("",):
        for i, (y, who) in enumerate(zip(Y, WHO, strict=True)):
            value = i + 100 * (side == "test")
            mode, pixel = ("RGB", (value, 1, 2)) if i == 5 else ("L", value)
            image(tmp_path / side / place.format(y=y, who=who, i=i), pixel, mode=mode)
            pixel = pixel if i == 5 else (value,) * 3
            expected.append((*map(float, pixel * 12), y, str(who) if "client" in layout else None))
    (tmp_path / ".DS_Store").write_text("")
    dataset = data.read_images(tmp_path, layout)
    assert dataset.x_train.dtype == np.uint8
    assert dataset.x_train.shape[1:] == (3, 4, 3)
    assert together(dataset) == sorted(expected)
    if split:
        assert set(dataset.x_test[..., 0].ravel()) == set(range(100, 112))


def test_grey_images_and_what_training_sees(tmp_path):
    """Federated examples are standardized by the training set, for columns and channels alike."""
    for y, value in (("a", 10), ("a", 30), ("b", 250), ("b", 90)):
        image(tmp_path / y / f"{value}.png", value)
    dataset = data.read_images(tmp_path, test_share=0.5)
    assert dataset.x_train.shape[1:] == (3, 4, 1)
    train, _ = data.federate(dataset, data.iid(1)(dataset.y_train, dataset.y_test, 0))
    x, _ = train.client(0).take(np.arange(2))
    raw = dataset.x_train.astype(float)
    np.testing.assert_allclose(x, (raw - raw.mean()) / raw.std(), rtol=1e-5)


# What is refused -----


def numbers(**changes):
    return lambda folder: data.from_arrays(**({"x": X, "y": Y} | changes), name="mine")


def rows(*lines, head="a,b,label,who", **options):
    return lambda folder: data.read_csv(table(folder / "t.csv", *lines, head=head), **options)


def both(train, test, heads):
    def read(folder):
        for side, lines, head in zip(("train", "test"), (train, test), heads, strict=True):
            table(folder / f"{side}.csv", *lines, head=head)
        return data.read_csv(folder)

    return read


def npz(**arrays):
    def read(folder):
        np.savez(folder / "t.npz", **arrays)
        return data.read_npz(folder / "t.npz")

    return read


def pictures(*makers, layout="class"):
    def read(folder):
        for make in makers:
            make(folder)
        return data.read_images(folder, layout)

    return read


def png(path, *args):
    return lambda folder: image(folder / path, *args)


def bare(name, text=""):
    def make(folder):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)

    return make


GOOD = png("a/1.png")
WRONG = {
    "NaN": (numbers(x=np.where(X == 5, np.nan, X)), r"mine: x\[2, 1\] is nan, not a number"),
    "fractions": (numbers(y=np.arange(12) / 2), r"mine: y\[1\] is 0.5, not an integer or a word"),
    "numbers of labels": (numbers(y=Y[:3]), r"y \[3\] must be one of each of the 12 examples"),
    "flat": (numbers(x=X[:, 0]), r"mine: x \[12\] is not \[n, ..., channels\]"),
    "half a test set": (numbers(x_test=X), "mine: has x_test, but no y_test"),
    "whose test set": (numbers(x_test=X, y_test=Y, client=WHO), "has x_test, but no client_test"),
    "a share of what is split": (numbers(x_test=X, y_test=Y, test_share=0.5), "of its own, so"),
    "no test example": (numbers(test_share=0.01), "test_share=0.01 of 12 examples leaves none"),
    "an unknown class": (
        numbers(x_test=X[:1], y_test=["cow"]),
        "class 'cow' has test examples but",
    ),
    "an unknown client": (
        numbers(x_test=X[:1], y_test=["cat"], client=WHO, client_test=[3]),
        "client 3 has test examples but no training examples",
    ),
    "words and numbers": (numbers(x_test=X[:1], y_test=[1]), "an integer on one side and a word"),
    "no label column": (rows("1,2,3,4", label="kind"), r"t.csv: has no column 'kind', but a, b, l"),
    "no client column": (rows("1,2,3,4", client="whose"), "t.csv: has no column 'whose', but a"),
    "no such column to ignore": (rows("1,2,3,4", ignore=["c"]), "t.csv: has no column 'c', but a"),
    "one column for two": (rows("1,2,3,4", client="label"), "must name different columns"),
    "a word": (rows(*ROWS[:2], "1,tall,cat,7"), r"line 4, column 'b': 'tall' is not a number from"),
    "an empty cell": (rows(",2,cat,7"), r"t.csv: line 2, column 'a': '' is not a number from"),
    "a cell of NaN": (rows("1,NaN,cat,7"), r"line 2, column 'b': 'NaN' is not a number from"),
    "a cell too large": (rows("1,1e300,cat,7"), r"'1e300' is not a number from .* to 9.22"),
    "no label": (rows("1,2,,7"), r"line 2, column 'label': '' is missing"),
    "a measurement for a label": (rows("1,2,0.5,7", "1,2,1,7"), "'0.5' is not an integer or a w"),
    "a short line": (rows(*ROWS[:1], "1,2"), "line 3 has 2 cells, but there are 4 columns"),
    "a name twice": (rows("1,2", head="a,a"), "column 2 has the name 'a' again"),
    "the index of pandas": (rows("0,1,2", head=",a,label"), "column 1 has no name"),
    "only names": (rows(), "must have a line of names and at least one"),
    "no features": (rows("1", head="label"), "has no column of features beside label"),
    "a column more for testing": (
        both(["1,cat", "2,dog"], ["1,2,cat"], ["a,label", "a,b,label"]),
        "test.csv: has the column 'b', which .*train.csv has not",
    ),
    "a column less for testing": (
        both(["1,2,cat"], ["1,cat"], ["a,b,label", "a,label"]),
        "test.csv: has no column 'b', but a, label",
    ),
    "no such file": (lambda folder: data.read_csv(folder / "no.csv"), "no.csv: cannot be read"),
    "half a folder": (
        lambda folder: data.read_csv(table(folder / "train.csv", *ROWS).parent),
        "test.csv: cannot be read",
    ),
    "no x": (npz(z=X), r"t.npz: has no entry x or x_train, but z"),
    "x twice": (npz(x=X, x_train=X), "has both x and x_train"),
    "objects": (npz(x=np.array([None])), "t.npz: cannot be read .*allow_pickle=False"),
    "no archive": (
        lambda folder: data.read_npz(table(folder / "t.npz", "1")),
        "t.npz: cannot be read",
    ),
    "other sizes": (
        pictures(GOOD, png("b/1.png", 0, (5, 3))),
        "b/1.png: has 5×3 pixels, but .*a/1.png has 4×3",
    ),
    "no images": (pictures(GOOD, bare("b/.keep")), r"/b: is an empty folder"),
    "an empty folder": (pictures(), "is an empty folder"),
    "a file among classes": (pictures(GOOD, bare("README")), "README: is not expected .* a class"),
    "one level too many": (pictures(png("a/b/1.png")), "a/b: is not expected .* images only"),
    "one level too few": (pictures(GOOD, layout="class/client"), "1.png: is not exp.* a client"),
    "no image": (pictures(bare("a/1.txt", "x")), "a/1.txt: cannot be read as an image"),
    "16 bits": (pictures(png("a/1.png", 0, (4, 3), "I;16")), "1.png: has pixels of mode I;16"),
    "transparent": (pictures(png("a/1.png", (1, 2, 3, 9), (4, 3), "RGBA")), "is transparent in"),
    "no such layout": (pictures(layout="client"), "layout='client' is not one of class, client/"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_one_line_that_names_it(case, tmp_path):
    read, says = WRONG[case]
    with pytest.raises(data.DataError, match=says) as caught:
        read(tmp_path)
    assert "\n" not in str(caught.value)


# From the command line -----


def configured(**changes):
    return cfg.override(
        cfg.Config(), {"data." + k.replace("__", "."): v for k, v in changes.items()}
    )


def test_a_configuration_loads_what_the_reader_does(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    path = table(tmp_path / "a.csv", *ROWS)
    d = configured(
        name="csv", dir=str(path), csv__client="who", csv__ignore=("b",), test_share=0.5,
        test_seed=3, partition="natural", clients=3,
    ).data  # fmt: skip
    dataset = build.dataset(d)
    same = data.read_csv(path, client="who", ignore=["b"], test_share=0.5, seed=3)
    np.testing.assert_array_equal(dataset.x_test, same.x_test)
    assert "classes 0 = ant, 1 = cat, 2 = dog" in caplog.text
    assert "clients 0 = 2, 1 = 7, 2 = 10" in caplog.text
    split = build.partitioner(d, dataset)(dataset.y_train, dataset.y_test, 0)
    assert sum(len(part) for part in split.train) == len(dataset.y_train)
    for k, mine in enumerate(split.train):
        assert set(dataset.group_train[mine]) == {k}
    d.clients = 20
    with pytest.raises(
        cfg.ConfigError, match=r"^data\.clients=20: must be 3, as many as there are"
    ):
        build.partitioner(d, dataset)
    d.csv.client = ""
    with pytest.raises(cfg.ConfigError, match=r"natural': a\.csv does not say whose its examples"):
        build.partitioner(d, build.dataset(d))
    d.examples = 1
    with pytest.raises(data.DataError, match=r"examples=1: the first 1 training .* none of class"):
        build.dataset(d)


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--config.data.name=csv"], "data.dir='': must be the path of a CSV file, or a folder"),
        (["--config.data.csv.label=kind"], "is only for data.name='csv', not 'fashion_mnist_10k'"),
        (["--config.data.test_share=0.5"], "is only for data.name='npz' or 'csv' or 'images'"),
        (["--config.data.name=csv", "--config.data.dir=a", "--config.data.download=true"],
         "data.download=true: csv are files of your own"),
    ],
)  # fmt: skip
def test_flags_that_cannot_be_used(flags, says, capsys):
    assert main.main(["fedprune", "run", "single:tiny", *flags]) == 2
    said = capsys.readouterr().err
    assert says in said
    assert said.count("\n") == 1
