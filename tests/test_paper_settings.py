"""Every ``paper`` variant beside what its paper states, field by field.

``TABLE`` has what the papers say in words. Where a configuration differs, the row has what it has
instead, and why; such a row fails as soon as the configuration does what the paper says. What the
papers leave open is no row here: it is listed where the configurations are made.
"""

import importlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import pytest

from experiments import airnet_ablation, airnet_ensemble, airnet_mismatch, ota_pruning
from fedprune import airnet, prune
from fedprune import config as cfg

EXPERIMENTS = sorted((Path(__file__).parents[1] / "experiments").glob("*.py"))


class Row(NamedTuple):
    """What a paper states of a field."""

    study: str
    variant: str
    where: str
    field: str
    stated: Any
    ours: Any = None
    """what the configuration has instead"""
    reason: str = ""
    """why; "" where the configuration does what the paper states"""
    of: Callable[[Any], Any] | None = None
    """of the field's value, such as the largest SNR"""


def rows(study: str, variant: str, where: str, **stated: Any) -> list[Row]:
    """Rows of fields without exception; "__" stands for the dot of a path."""
    return [Row(study, variant, where, k.replace("__", "."), v) for k, v in stated.items()]


AIRNET = ("ablation", "bandwidth", "ensemble", "expansion", "mismatch", "sensitivity", "snr")
OF_RESNET = ("bandwidth", "mismatch", "snr")
P0 = ("ota_pruning", "paper")
WATT_28_DBM, WATT_MINUS_110_DBM = round(10 ** (28 / 10 - 3), 3), 10 ** (-110 / 10 - 3)

P0_ROWS = [
    *rows(
        *P0, "P0 IV", data__name="cifar10", data__partition="iid", data__clients=100,
        model__name="resnet18", local__batch=64, local__lr=0.001, run__rounds=1000,
        uplink__link="over_the_air", uplink__snr_db=10.0, participation=("full", "half"),
    ),
    *rows(*P0, "P0 IV-A, IV-B", ratios=(0.3, 0.5, 0.7, 0.9), client_ratios=(0.3, 0.5, 0.7, 0.9)),
    Row(*P0, "P0 IV: IMP and OSP at each PIU", "methods", {"one-shot-own", "iterative-own"},
        of=lambda methods: {m for m in methods if m.endswith("-own")}),
    Row(*P0, "P0 IV: ResNet18, which has batch norm", "model.resnet.norm", "batch", "group",
        "P0 does not say what becomes of running statistics in a federation"),
]  # fmt: skip
P2_ROWS = [
    row
    for study in ("hfl_pruning", "hfl_adaptive")
    for row in rows(
        study, "paper", "P2 VI, Table II", data__name="fashion_mnist", data__partition="iid",
        data__examples=50_000, data__clients=25, edges__servers=5, edges__rounds=5,
        model__name="cnn", model__cnn__filters=(32, 64), model__cnn__hidden=(8,),
        local__optimizer="sgd",
        local__lr=0.001, local__batch=128, local__steps=10, local__clip=0.0, run__rounds=10,
        pruning__scope="own", pruning__importance="change", pruning__layers="dense",
        pruning__rewind=True, uplink__division="holders", cohort__weighting="plain",
    )
] + rows(
    "hfl_adaptive", "paper", "P2 Table II, (9), (25)-(27)", uplink__power=WATT_28_DBM,
    uplink__bandwidth=20e6, uplink__ofdma__frequency=3e9,
        uplink__ofdma__noise=WATT_MINUS_110_DBM,
    uplink__ofdma__value_bits=64, uplink__ofdma__time_limit=0.03, uplink__ofdma__bill_warm_up=False,
    uplink__ofdma__noise_of="band", uplink__ofdma__payload="values",
)  # fmt: skip
P4_ROWS = [
    *rows(
        "personalization", "paper", "P4 V", data__name="fashion_mnist", data__clients=10,
        data__partition="label_k", model__name="cnn", model__cnn__filters=(32, 64),
        model__cnn__hidden=(128,), local__lr=0.001, personal__lr=0.001, local__batch=128,
        local__optimizer="sgd", local__clip=0.0, personal__method="alternating",
        personal__layers=("Conv",), pruning__layers="dense", pruning__importance="change",
        pruning__rewind=True, uplink__division="holders", cohort__weighting="plain",
        uplink__power=WATT_28_DBM,
        uplink__ofdma__frequency=3e9, uplink__ofdma__noise=WATT_MINUS_110_DBM,
        uplink__ofdma__value_bits=32, uplink__ofdma__time_limit=0.025,
        uplink__ofdma__bill_warm_up=True,
    ),
    Row("personalization", "paper", "P4 V", "uplink.bandwidth", 20e6, 320e6,
        "with FC layers of width 128 the weights alone take 140 ms of 20 MHz, without path loss"),
]  # fmt: skip


def airnet_rows(study: str, variant: str) -> list[Row]:
    """P3's recipe, section VII-A, which holds for all figures."""
    found = rows(
        study, variant, "P3 IV, VII-A", local__optimizer="momentum", local__momentum=0.9,
        local__clip=0.0, local__weight_decay=0.0, teacher_rate="same", restart=True,
        pruning__granularity="unit", test_images=10_000,
    )  # fmt: skip
    found.append(
        Row(study, variant, "P3 IV-A: each parameter is a symbol", "downlink.analog.packing",
        "real",
        "complex", "P3 sends vectors of C^b; with one real a symbol the SNR is 3 dB higher")
    )  # fmt: skip
    if variant == "paper":
        return found + rows(
            study, variant, "P3 VII-A", data__name="cifar10", model__name="vgg16",
            model__vgg16__hidden=(512, 512), local__lr=0.01, resize=0,
        )  # fmt: skip
    return found + rows(
        study, variant, "P3 VII-A, ResNet-34", data__name="tiny_imagenet", model__name="resnet34",
        model__resnet__norm="batch", model__resnet__stem="large", local__lr=0.001,
        resize=256, crop=224,
    )  # fmt: skip


P3_ROWS = [
    *(row for name in AIRNET for row in airnet_rows(f"airnet_{name}", "paper")),
    *(row for name in OF_RESNET for row in airnet_rows(f"airnet_{name}", "paper_resnet")),
    *rows("airnet_snr", "paper", "P3 Figs. 4a, 4c", uses=1_200_000, fading_nets="own"),
    Row("airnet_snr", "paper", "P3 VII-B: even at the SNR of 35 dB", "snrs_db", 35.0, of=max),
    *rows("airnet_snr", "paper_resnet", "P3 Figs. 5a, 5c", uses=4_500_000, fading_nets="own"),
    Row("airnet_snr", "paper_resnet", "P3 VII-B: recovers at 30 dB", "snrs_db", 30.0, of=max),
    *rows("airnet_bandwidth", "paper", "P3 Figs. 4b, 4d", snrs_db=(5.0,), fading_nets="own"),
    Row("airnet_bandwidth", "paper", "P3 VII-B: b = 8e6", "bandwidths", 8_000_000, of=max),
    *rows("airnet_bandwidth", "paper_resnet", "P3 Figs. 5b, 5d", snrs_db=(5.0,),
          fading_nets="own"),
    *(
        Row("airnet_mismatch", variant, "P3 Fig. 6: 0 to 35 dB", "snrs_db", end, of=of)
        for variant in ("paper", "paper_resnet")
        for of, end in ((min, 0.0), (max, 35.0))
    ),
    *rows("airnet_ensemble", "paper", "P3 Fig. 7", uses=650_000),
    Row("airnet_ensemble", "paper", "P3 Fig. 7: SNR_test = -3 dB", "snrs_db", -3.0, of=min),
    *rows("airnet_ablation", "paper", "P3 VII-E, Fig. 8b", uses=1_300_000, plain_uses=1_400_000),
    *rows("airnet_expansion", "paper", "P3 Fig. 9", uses=1_300_000),
    *rows("airnet_sensitivity", "paper", "P3 Fig. 11", uses=1_300_000),
    Row("airnet_sensitivity", "paper", "P3 Fig. 10", "uses", 650_000, of=lambda b: b // 2),
]  # fmt: skip
TABLE: Sequence[Row] = (*P0_ROWS, *P2_ROWS, *P3_ROWS, *P4_ROWS)


def configuration(study: str, variant: str) -> cfg.Config:
    return importlib.import_module(f"experiments.{study}").get_config(variant)


def value_of(config: cfg.Config, path: str) -> Any:
    return {name: value for name, _, value in cfg.fields(config)}[path]


def same(found: Any, wanted: Any) -> bool:
    return bool(found == (pytest.approx(wanted) if isinstance(wanted, float) else wanted))


def compare(config: cfg.Config, row: Row) -> None:
    """Raises AssertionError where a configuration is not what its row says."""
    value = value_of(config, row.field)
    found = value if row.of is None else row.of(value)
    if not row.reason:
        assert same(found, row.stated), f"{row.field} is {found!r}; {row.where}: {row.stated!r}"
        return
    assert not same(found, row.stated), f"{row.field}: no exception any more, {row.where}"
    assert same(found, row.ours), f"{row.field} is {found!r}, the exception says {row.ours!r}"


def name(row: Row) -> str:
    return f"{row.study}:{row.variant}-{row.field}"


@pytest.mark.parametrize("row", TABLE, ids=name)
def test_a_configuration_is_what_the_paper_states(row):
    compare(configuration(row.study, row.variant), row)


def other(value: Any) -> Any:
    """A value of the same kind that is not the given one."""
    if isinstance(value, tuple):
        return tuple(other(v) for v in value) if isinstance(value[0], int | float) else ()
    return f"not {value}" if isinstance(value, str) else 3 * value + 1


@pytest.mark.parametrize("row", TABLE, ids=name)
def test_the_comparison_can_fail(row):
    config = configuration(row.study, row.variant)
    wrong = row.stated if row.reason else other(value_of(config, row.field))
    with pytest.raises(AssertionError):
        compare(cfg.override(config, {row.field: wrong}), row)


def paper_variants() -> list[tuple[str, str]]:
    found = []
    for file in EXPERIMENTS:
        module = importlib.import_module(f"experiments.{file.stem}")
        for variant in ("paper", "paper_resnet") if hasattr(module, "get_config") else ():
            try:
                module.get_config(variant)
            except cfg.ConfigError:
                continue
            found.append((file.stem, variant))
    return found


def test_no_paper_variant_is_missing():
    assert set(paper_variants()) == {(row.study, row.variant) for row in TABLE}


@pytest.mark.parametrize(("study", "variant"), paper_variants())
def test_paper_variants_have_seeds_for_an_interval(study, variant):
    config = configuration(study, variant)
    assert config.run.seeds >= 3
    cfg.validate_arms(config, importlib.import_module(f"experiments.{study}").arms(config))


@pytest.mark.parametrize(
    ("variant", "course"),
    [
        ("paper", 30 * [0.01] + 30 * [0.001]),
        ("paper_resnet", 60 * [0.001] + 30 * [0.0001]),
    ],
)
def test_the_epochs_after_every_pruning_step(variant, course):
    """P3 VII-A: "the same procedure applies to ... fine-tuning after every pruning step"."""
    c = configuration("airnet_snr", variant)
    rounds = np.arange(c.run.rounds)
    factor = airnet.decay(c)
    rates = [
        c.local.lr * float(factor(jnp.int32(t))) for t in rounds for _ in range(c.local.epochs)
    ]
    np.testing.assert_allclose(rates, c.pruning.steps * course, rtol=1e-6)
    p = c.pruning
    schedule = prune.iterative(p.ratio, p.start, p.every, p.steps)
    sparsity = np.array([float(schedule(jnp.int32(t))) for t in rounds])
    pruned_at = np.flatnonzero(np.diff(sparsity, prepend=0.0) > 0)
    np.testing.assert_array_equal(pruned_at * c.local.epochs, len(course) * np.arange(p.steps))
    assert airnet.course(c) * c.local.epochs == len(course)  # the stages without pruning


def test_what_stands_in_the_files_of_airnet():
    assert airnet.TEMPERATURE == 2  # IV-D
    assert airnet_ablation.DB == 5  # Fig. 8
    assert set(airnet_mismatch.TRAINED.values()) == {0, 5, 10, airnet.SILENT}  # Fig. 6
    assert airnet_ensemble.RANGES == {"wide": (-3, 30), "narrow": (-3, 10)}  # Fig. 7
    assert airnet_ensemble.PAIRS["pair"][:2] == (-3, 30)
    assert airnet_ensemble.PAIRS["inside"][:2] == (0, 20)
    separate = airnet_ablation.quiet(configuration("airnet_ablation", "paper"))
    assert separate == pytest.approx(4 / 5)  # VII-D: noise after the last of five pruning steps


def test_arms_of_p0():
    """Half the PIUs are 50, and the PIUs compute masks by themselves."""
    config = configuration("ota_pruning", "paper")
    arms = {arm.name: arm.overrides for arm in ota_pruning.arms(config)}
    assert {o["cohort.size"] for name, o in arms.items() if name.startswith("half")} == {50}
    own = {name: cfg.override(config, o) for name, o in arms.items() if "-own-" in name}
    assert len(own) == 2 * 2 * 4
    for arm in own.values():
        assert (arm.pruning.scope, arm.pruning.importance) == ("own", "magnitude")
        assert arm.local.steps + arm.pruning.warm_up == config.local.steps
