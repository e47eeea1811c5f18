"""Configurations: every value is refused or accepted with a reason, and names agree."""

import dataclasses
import importlib
import math
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments import (
    bearing,
    bearing_personal,
    hfl_adaptive,
    hfl_pruning,
    hfl_theorem,
    latency_tables,
    ota_masks,
    ota_pruning,
    ota_uplinks,
    personalization,
    single,
)
from fedprune import config as cfg
from fedprune import data, link
from fedprune.link.ofdma import SCHEMES
from fedprune.prune.neurons import FORMS

FIELDS = {path: field for path, field, _ in cfg.fields(ota_pruning.get_config("fast"))}
OFDMA = {"uplink.link": "ofdma", "uplink.fading": "rayleigh"}
OFDMA |= {"uplink.nearest": 50.0, "uplink.farthest": 90.0}
FREE = {"experiment", "variant", "data.dir", "data.csv.label", "data.csv.client"}
FREE |= {"data.csv.ignore", "personal.layers"}


def test_choices_are_those_that_can_be_built():
    choices = {path: set(f.metadata.get("choices") or ()) for path, f in FIELDS.items()}
    assert choices["data.name"] == set(data.SOURCES)
    assert choices["pruning.form"] == set(FORMS)
    assert choices["uplink.ofdma.scheme"] == set(SCHEMES)
    assert choices["uplink.over_the_air.normalisation"] == set(link.NORMALISATIONS)


@pytest.mark.parametrize("path", sorted(FIELDS.keys() - FREE))
def test_every_field_says_what_it_means(path):
    assert FIELDS[path].metadata["meaning"]


def bad_values(field: dataclasses.Field):
    """Values that a field must refuse: outside its range, or of another type."""
    m = field.metadata
    kind = cfg.element_type(field)
    wrong = [st.none(), st.dictionaries(st.text(), st.text())]
    if kind is bool:
        return st.one_of(st.text(), st.integers(), st.floats(), *wrong)
    if m.get("choices"):
        return st.one_of(st.text().filter(lambda s: s not in m["choices"]), *wrong)
    if kind is int:
        wrong.append(st.floats())
    wrong += [st.text(), st.sampled_from([math.nan, math.inf, -math.inf]), st.booleans()]
    if m.get("low") is not None:
        wrong.append(st.integers(max_value=int(m["low"]) - 1))
    if m.get("high") is not None:
        wrong.append(st.integers(min_value=int(m["high"]) + 1))
    if m.get("above") is not None:
        wrong.append(st.floats(max_value=m["above"]))
    if m.get("below") is not None:
        wrong.append(st.floats(min_value=m["below"]))
    one = st.one_of(wrong)
    return one if cfg.one_value(field) else st.one_of(one, st.tuples(one))


CASES = st.sampled_from(sorted(FIELDS.keys() - FREE)).flatmap(
    lambda path: st.tuples(st.just(path), bad_values(FIELDS[path]))
)


@settings(max_examples=400, deadline=None)
@given(CASES)
def test_bad_values_are_refused_in_one_line(case):
    path, value = case
    config = cfg.override(ota_pruning.get_config("fast"), {path: value})
    with pytest.raises(cfg.ConfigError) as error:
        cfg.validate(config)
    message = str(error.value)
    assert "\n" not in message
    assert message.startswith(f"{path}={value!r}: must be ")


def faults(field: dataclasses.Field) -> list:
    """Just beyond every limit, a slip of the finger in every choice, and values of other types."""
    m = field.metadata
    wrong = [None, {}, b"1", *((0, 1, "true") if cfg.element_type(field) is bool else (True,))]
    if m["choices"]:
        wrong += ["", *(c[:-1] + c[-1] * 2 for c in m["choices"])]
    elif cfg.element_type(field) is str:
        wrong += [1, 0.5]
    else:
        whole = cfg.element_type(field) is int
        wrong += ["1", math.nan, math.inf, -math.inf] + ([0.5] if whole else [])
        wrong += [m[name] for name in ("above", "below") if m[name] is not None]
        for name, end in (("low", -1), ("high", 1)):
            if m[name] is not None:
                wrong.append(m[name] + end if whole else math.nextafter(m[name], end * math.inf))
    return wrong if cfg.one_value(field) else [*wrong, *((v,) for v in wrong), [1]]


def every_field() -> list[tuple[cfg.Config, str, dataclasses.Field]]:
    """The fields of all experiments, each once, with a configuration that has it."""
    found = {}
    for file in sorted((Path(__file__).parents[1] / "experiments").glob("*.py")):
        module = importlib.import_module(f"experiments.{file.stem}")
        config = module.get_config() if hasattr(module, "get_config") else cfg.Config()
        for path, field, _ in cfg.fields(config):
            found.setdefault((path, field), (config, path, field))  # else inherited
    return list(found.values())


def test_every_number_has_both_ends():
    numbers = [(p, f) for _, p, f in every_field() if cfg.element_type(f) in (int, float)]
    assert len(numbers) > 90
    for path, field in numbers:
        m = field.metadata
        assert m["low"] is not None or m["above"] is not None, path
        assert m["high"] is not None or m["below"] is not None, path
        if cfg.element_type(field) is int:  # what they are in the program
            assert m["high"] < 2**31, path
        else:
            assert max(abs(m[end] or 0) for end in ("low", "above", "high", "below")) < 1e38, path


def test_numbers_that_are_not_finite_are_refused_without_ends():
    @dataclasses.dataclass
    class Own(cfg.Config):
        mine: float = cfg.spec(0.0, "anything")

    for value in (math.inf, -math.inf, math.nan):
        with pytest.raises(cfg.ConfigError, match=f"mine={value}: must be a number"):
            cfg.validate(Own(mine=value))


def test_every_fault_is_named_with_its_field_and_value():
    """Generated from the fields' limits, for the fields of all experiments; -s prints how many."""
    tried = set()
    for config, path, field in every_field():
        for value in faults(field):
            with pytest.raises(cfg.ConfigError) as error:
                cfg.validate(cfg.override(config, {path: value}))
            message = str(error.value)
            assert message.splitlines() == [message]
            assert message.startswith(f"{path}={value!r}: must be {cfg.describe(field)}")
            tried.add((path, repr(value)))
    print(f"{len(tried):,} faults in {len({path for path, _ in tried})} fields")
    assert len(tried) > 1400


@pytest.mark.parametrize(
    ("path", "value", "says"),
    [
        ("pruning.rate", 0.5, "pruning.rate: there is no such field (did you mean pruning.ratio?)"),
        ("uplnk.snr_db", 5, "uplnk.snr_db: there is no such field (did you mean uplink.snr_db?)"),
        ("lr", 1.0, "lr: there is no such field (did you mean local.lr?)"),
        ("xyzzy", 1, "xyzzy: there is no such field"),
        (
            "pruning.scope",
            "sever",
            "pruning.scope='sever': must be one of server, client, own (did you mean server?)",
        ),
        (
            "participation",
            ("full", "hlaf"),
            "participation=('full', 'hlaf'): must be a list, each one of full, half"
            " (did you mean half?)",
        ),
        ("mesh.reduction", "xyzzy", "mesh.reduction='xyzzy': must be one of fast, strict"),
    ],
)
def test_what_was_probably_meant(path, value, says):
    with pytest.raises(cfg.ConfigError) as error:
        cfg.validate(cfg.override(ota_pruning.get_config("fast"), {path: value}))
    assert str(error.value) == says


def test_all_fields_in_words():
    """Each field with its value, unit, meaning and limits, found in the text by hand-made marks."""
    config = ota_pruning.get_config("snr")
    words = " ".join(cfg.explain(config).split())
    for path, field, value in cfg.fields(config):
        meaning = " ".join(field.metadata["meaning"].split())
        assert f" {path} = {value!r} " in words
        assert f" {meaning}. Must be {cfg.describe(field)}." in words
    assert "uplink.snr_db = 10.0 dB signal-to-noise ratio: a client's power budget over" in words
    assert "snrs_db = (-10.0, -5.0, 0.0, 5.0, 10.0, 15.0, 20.0) dB SNRs compared" in words
    assert "uplink.link = 'over_the_air' kind of uplink" in words
    assert "Must be one of ideal, over_the_air, orthogonal, analog, ofdma." in words
    assert "How updates reach the server." in words


@pytest.mark.parametrize(
    ("values", "names"),
    [
        ({"cohort.size": 21}, "cohort.size=21: must be at most data.clients=20"),
        ({"local.epochs": 1}, "local.steps=5: exactly one of local.steps and local.epochs=1"),
        ({"local.steps": 0}, "local.steps=0: exactly one"),
        ({"run.rounds": 16}, "the last pruning step falls in round 16"),
        ({"model.cnn.filters": (4,) * 5}, "model.cnn.filters=(4, 4, 4, 4, 4): at most 4 blocks"),
        ({"mesh.devices": 4, "mesh.arms": 3}, "mesh.arms=3: must divide mesh.devices=4"),
        (
            {"mesh.devices": 6, "mesh.arms": 2, "mesh.reduction": "strict"},
            "mesh.lanes=8: must be a multiple of the 3 devices",
        ),
        ({"uplink.min_holders": 21.0}, "uplink.min_holders=21.0: must be at most 20, the clients"),
        ({"uplink.taps": 2}, "uplink.taps=2: must be at most uplink.blocks=1"),
        ({"uplink.blocks": 2}, "uplink.blocks=2: must be 1, and uplink.correlation=0.0 must be 0"),
        (
            {"edges.servers": 2, "uplink.fading": "rayleigh", "uplink.correlation": 0.5},
            "uplink.correlation=0.5: must be 0 for edges.servers=2",
        ),
        ({"pruning.schedule": "allocated"}, "pruning.schedule='allocated': must come with"),
        ({"uplink.link": "ofdma"}, "uplink.fading='none': must be rayleigh"),
        (
            {**OFDMA, "uplink.ofdma.scheme": "printed", "uplink.ofdma.cycles": 0.0},
            "uplink.ofdma.cycles=0.0: must be above 0 for uplink.ofdma.scheme='printed'",
        ),
        ({**OFDMA, "local.steps": 0, "local.epochs": 1}, "local.steps=0: must be above 0 for"),
        (
            {"uplink.link": "orthogonal", "uplink.orthogonal.value_bits": 64},
            "uplink.orthogonal.value_bits=64: must be an integer and at least 2 and at most 32",
        ),
        ({"edges.servers": 21}, "edges.servers=21: must be at most data.clients=20"),
        (
            {"edges.servers": 2, "edges.sizes": (10, 11)},
            "edges.sizes=(10, 11): must be 2 numbers (edges.servers) that add up to",
        ),
        ({"edges.cloud": "orthogonal"}, "edges.cloud='orthogonal': must be ideal for"),
        (
            {"edges.servers": 2, "edges.cloud": "orthogonal", "edges.orthogonal.rate": 7.0},
            "edges.orthogonal.rate=7.0: must be below 6.658, the capacity at"
            " edges.orthogonal.snr_db=20.0",
        ),
        ({"personal.method": "alternating"}, "personal.layers=(): must be given for"),
        ({"personal.layers": ("Conv",)}, "personal.layers=('Conv',): must be given for"),
        ({"personal.method": "ditto"}, "personal.method='ditto': must come with run.test="),
        (
            {"personal.method": "ditto", "run.test": "clients", "edges.servers": 2},
            "and edges.servers=0 (is 2)",
        ),
        (
            {"local.prox": 0.1, "personal.method": "simultaneous", "run.test": "clients"}
            | {"personal.layers": ("Conv",)},
            "local.prox=0.1: must be 0 for personal.method='simultaneous'",
        ),
    ],
)
def test_fields_that_do_not_fit_together(values, names):
    with pytest.raises(cfg.ConfigError) as error:
        cfg.validate(cfg.override(ota_pruning.get_config("fast"), values))
    assert names in str(error.value)


def test_unknown_paths_are_refused_and_the_original_is_untouched():
    config = ota_pruning.get_config("fast")
    with pytest.raises(cfg.ConfigError, match=r"pruning\.rate: there is no such field"):
        cfg.override(config, {"pruning.rate": 0.5})
    assert cfg.override(config, {"pruning.ratio": 0.5}).pruning.ratio == 0.5
    assert config == ota_pruning.get_config("fast")


def test_only_numbers_are_traced():
    for path in cfg.traced_paths(cfg.Config()):
        assert FIELDS[path].type in (float, int), path


VARIANTS = [
    (ota_pruning, ["fast", "fashion", "noniid", "snr", "paper"]),
    (ota_masks, ["fast", "noniid"]),
    (ota_uplinks, ["fast"]),
    (bearing, ["fast"]),
    (hfl_pruning, ["fast", "full", "mnist", "cifar10", "paper"]),
    (hfl_adaptive, ["fast", "full", "paper"]),
    (hfl_theorem, ["fast"]),
    (latency_tables, ["all"]),
    (personalization, ["fast", "dirichlet", "full", "paper"]),
    (bearing_personal, ["fast"]),
    (single, ["fast", "tiny"]),
]


@pytest.mark.parametrize(
    ("module", "variant"), [(module, v) for module, variants in VARIANTS for v in variants]
)
def test_every_variant_is_valid(module, variant):
    """With all of its arms; a variant that does not exist is refused with those that do."""
    config = module.get_config(variant)
    assert config.variant == variant
    assert f"experiments.{config.experiment}" == module.__name__
    for arm in module.arms(config):
        cfg.validate(cfg.override(config, arm.overrides))
    with pytest.raises(cfg.ConfigError, match=f"variant 'huge' .* must be .*{variant}"):
        module.get_config("huge")


def test_arms_of_the_experiment():
    """2 participations x (unpruned + 2 methods x 4 ratios), with distinct names; two programs."""
    config = ota_pruning.get_config("fast")
    arms = ota_pruning.arms(config)
    assert len(arms) == len({arm.name for arm in arms}) == 18
    traced = cfg.traced_paths(config)
    shapes = {tuple((k, v) for k, v in a.overrides.items() if k not in traced) for a in arms}
    assert len(shapes) == 2
    oneshot = next(a for a in arms if a.name == "half/one-shot-90")
    assert oneshot.overrides == {
        "cohort.size": 10,
        "pruning.ratio": 0.9,
        "pruning.start": 16,
        "pruning.steps": 1,
    }
    for arm in arms:
        cfg.validate(cfg.override(config, arm.overrides))


# Kinds -----


def sections(config, prefix=""):
    """Every section and part: (path, the dataclass instance)."""
    yield prefix, config
    for f in dataclasses.fields(config):
        if dataclasses.is_dataclass(getattr(config, f.name)):
            yield from sections(getattr(config, f.name), f"{prefix}{f.name}.")


def test_every_part_belongs_to_a_kind_and_every_kind_has_its_part():
    parts = set()
    for prefix, section in sections(cfg.Config()):
        known = {f.name: f for f in dataclasses.fields(section)}
        for f in known.values():
            for kind in f.metadata.get("kinds", {}).values():
                name = getattr(kind, "part", "")
                assert not name or known[name].metadata["of"] == (f.name,)
                parts.add(prefix + name)
            of = f.metadata.get("of") or ()
            if of and not dataclasses.is_dataclass(getattr(section, f.name)):
                assert set(of[1:]) <= set(known[of[0]].metadata["choices"])
    found = {
        prefix.rstrip(".")
        for prefix, section in sections(cfg.Config())
        if prefix.count(".") == 2  # of a section
    }
    assert found <= parts


@pytest.mark.parametrize(
    ("values", "overrides", "says"),
    [
        (
            {"uplink.ofdma.cycles": 2.0},
            [{}],
            "uplink.ofdma.cycles=2.0: is only for uplink.link='ofdma', not 'over_the_air'",
        ),
        (
            {},
            [{"uplink.link": "orthogonal", "uplink.over_the_air.packing": "real"}, {}],
            "uplink.over_the_air.packing='real': is only for uplink.link='over_the_air', not"
            " 'orthogonal' (arm 0)",
        ),
        (
            {"model.cnn.kernel": 5},
            [{"model.name": "mlp"}, {"model.name": "resnet34"}],
            None,  # the configuration itself has a CNN
        ),
        (
            {"model.name": "mlp", "model.resnet.widths": (64,)},
            [{}],
            "model.resnet.widths=(64,): is only for model.name='resnet18' or 'resnet34', not 'mlp'",
        ),
        (
            {"model.name": "mlp", "model.resnet.widths": (64,)},
            [{}, {"model.name": "resnet18"}],
            None,
        ),
        (
            {"server.adam.b1": 0.5},
            [{}],
            "server.adam.b1=0.5: is only for server.optimizer='adam', not 'average'",
        ),
        (
            {"personal.pull": 0.5},
            [{}],
            "personal.pull=0.5: is only for personal.method='ditto', not 'none'",
        ),
        ({"model.resnet.statistics": "batch"}, [{"model.name": "resnet18"}], "model.resnet.stati"),
        ({}, [{"personal.method": "none", "personal.layers": ()}], None),  # back to the default
    ],
)
def test_a_field_of_one_kind_cannot_be_given_to_another(values, overrides, says):
    config = cfg.override(cfg.Config(), values)
    arms = [cfg.Arm(str(i), changes) for i, changes in enumerate(overrides)]
    if says is None:
        cfg.validate_arms(config, arms, values)
        return
    cfg.validate_arms(config, [cfg.Arm("", {})])  # what an experiment sets may stay
    with pytest.raises(cfg.ConfigError) as error:
        cfg.validate_arms(config, arms, values)
    assert str(error.value).startswith(says)


def test_fields_say_for_which_kinds_they_are():
    words = " ".join(cfg.explain(cfg.Config()).split())
    assert "Only for uplink.link=ofdma." in words
    assert "Only for model.name=resnet18 or resnet34." in words
    assert "Only for local.schedule=cosine or exponential." in words


def test_a_selection_by_name_needs_channels():
    config = cfg.override(cfg.Config(), {"cohort.selection": "channel_age_loss"})
    cfg.validate_arms(config, [])
    for values in ({"uplink.link": "ideal"}, {"edges.servers": 2}):
        with pytest.raises(cfg.ConfigError, match=r"^cohort.selection='channel_age_loss': must be"):
            cfg.validate_arms(cfg.override(config, values), [])
