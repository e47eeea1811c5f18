"""What each part of AirNet contributes (P3, Figs. 8a and 8b).

    python -m launch.main --config=experiments/airnet_ablation.py:fast --workdir=runs/ablation

Settings: ``fedprune/airnet/settings.py``; all noise in training is that of 5 dB.

Training, nets pruned to ``plain_uses`` (8a):

  joint     noise and distillation while pruning and fine-tuning
  no KD     without a teacher; the loss is smaller by the teacher's share, so the learning rate of
            ``fast`` and ``full`` is larger by it
  separate  pruning without noise, which sets in for the last third of the steps, and in ``paper``
            after the last pruning step
  no noise

Expansion, nets with one more stage of training (8b):

  AirNet                   pruned to ``plain_uses``
  SK                       pruned to b / 2, 1:2 spirals for all layers, retrained
  SK + UEP                 Hessian-based unequal protection, trained on as if not expanded
  SK + UEP + retraining    the same, retrained under the noise that is left

b is 1.3e6 in ``paper``, and that of nets which are not expanded 1.4e6 (P3 section VII-E).

Fixed before any result was seen: accuracies in points, paired by seed, 95 % Student intervals,
AWGN; means over the SNRs of ``snrs_db`` that are named.

  joint       joint above separate, below 20 dB
  kd          joint above no KD, below 15 dB
  noise       joint more than 10 points above no noise, at the lowest SNR
  uep         SK + UEP + retraining above SK, below 20 dB
  retraining  SK + UEP + retraining above SK + UEP, below 20 dB
  expansion   SK + UEP + retraining above AirNet, at the lowest SNR
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fedprune import airnet
from fedprune.airnet import Case, Net
from fedprune.airnet import arms as arms
from fedprune.config import spec
from fedprune.report import Rule
from fedprune.runs import Row

VARIANTS = ("fast", "full", "paper")

DB = 5.0


@dataclass
class AirNetAblation(airnet.AirNet):
    """The common fields, and b of what is not expanded."""

    plain_uses: int = spec(
        2000, "b of nets without expansion", low=1, high=1_000_000_000, unit="complex channel uses"
    )


def get_config(variant: str = "fast") -> AirNetAblation:
    """The configuration of a variant."""
    many = (-5, 0, 5, 10, 15, 20, 30)
    snrs = {"fast": (0, 5, 10, 20), "full": many, "paper": many}
    config = airnet.setting(AirNetAblation, "airnet_ablation", variant, snrs)
    if variant == airnet.VGG:
        config.uses, config.plain_uses = 1_300_000, 1_400_000
    return config


def quiet(config: AirNetAblation) -> float:
    """Share of the steps before noise sets in, where pruning is separate from it."""
    return 1 - 1 / config.pruning.steps if config.restart else 2 / 3


def report(config: AirNetAblation, rows: Sequence[Row], folder: Path) -> str:
    """Trains, delivers, and writes summary, table and figure; returns the text to print."""
    lab = airnet.Lab(config, folder)
    joint = Net("joint", DB, share=lab.share_of(config.plain_uses))
    half = joint._replace(name="half", share=lab.share_of(config.uses / 2))
    ways = [
        joint,
        joint._replace(name="no KD", distil=0.0),
        joint._replace(name="separate", quiet=quiet(config)),
        joint._replace(name="no noise", low_db=airnet.SILENT),
    ]
    airnet.pruned(lab, "pruned", [*ways, half])
    airnet.protect(lab, "even", "half", "even", DB, config.uses)
    airnet.protect(lab, "uep", "half", "hessian", DB, config.uses)
    more = {
        "AirNet": ("joint", ""),
        "SK": ("half", "even"),
        "SK + UEP": ("half", ""),
        "SK + UEP + retraining": ("half", "uep"),
    }
    nets = [
        (joint if start == "joint" else half)._replace(name=n) for n, (start, _) in more.items()
    ]
    airnet.train(
        lab,
        "expanded",
        nets,
        {name: lab.nets[start] for name, (start, _) in more.items()},
        {name: lab.expansions[used] for name, (_, used) in more.items() if used},
    )
    sent = {"SK": "even", "SK + UEP": "uep", "SK + UEP + retraining": "uep"}
    shown = {name: Case(name) for name in [*(net.name for net in ways), "AirNet"]}
    for name, used in sent.items():
        shown[name] = Case(name, family="spiral", repeats=used)
    lines = airnet.lines(lab, shown, config.snrs_db)

    def gain(a: str, b: str, below: float) -> np.ndarray:
        return np.mean([lines[a][s] - lines[b][s] for s in config.snrs_db if s < below], 0)

    low = min(config.snrs_db)
    best = "SK + UEP + retraining"
    rules = [
        Rule("joint", "VII-D", "joint above separate, below 20 dB", 0.0,
             gain("joint", "separate", 20)),
        Rule("kd", "VII-D", "distillation helps, below 15 dB", 0.0, gain("joint", "no KD", 15)),
        Rule("noise", "VII-D", f"{low:g} dB: more than 10 points above no noise", 10.0,
             lines["joint"][low] - lines["no noise"][low]),
        Rule("uep", "VII-E", "unequal above equal protection, below 20 dB", 0.0,
             gain(best, "SK", 20)),
        Rule("retraining", "VII-E", "retraining helps, below 20 dB", 0.0,
             gain(best, "SK + UEP", 20)),
        Rule("expansion", "VII-E", f"{low:g} dB: expanded above AirNet", 0.0,
             lines[best][low] - lines["AirNet"][low]),
    ]  # fmt: skip
    return airnet.present(config, folder, lines, rules)
