"""Accuracies against SNR as a report: the end of most of AirNet's experiments."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from fedprune import report as rp
from fedprune.airnet.settings import AirNet
from fedprune.config import Arm, to_json


def arms(config: AirNet) -> list[Arm]:
    """None: nets depend on one another, and an experiment's ``report`` trains them."""
    return []


def verdicts(rules: Sequence[rp.Rule]) -> list[rp.Verdict]:
    """Rules whose ``paper`` are sections of P3, beside what was found."""
    return [rp.verdict(rule._replace(paper=f"P3 {rule.paper}")) for rule in rules]


def present(
    config: AirNet,
    folder: Path,
    lines: Mapping[str, Mapping[float, np.ndarray]],
    rules: Sequence[rp.Rule],
    more: Mapping[str, str] | None = None,
) -> str:
    """Writes summary, tables and figure of accuracies against SNR; returns the text to print."""
    snrs = list(next(iter(lines.values())))
    body = [
        [f"{snr:g}", *(str(rp.interval(v[snr], rp.PERCENT)) for v in lines.values())]
        for snr in snrs
    ]
    heading = f"Test accuracy in percent, {rp.over_seeds(config.run.seeds)}"
    tables = {heading: rp.table(["SNR (dB)", *lines], body), **(more or {})}
    (folder / "figures").mkdir(exist_ok=True)
    drawn = {name: list(values.values()) for name, values in lines.items()}
    path, ylabel = folder / "figures" / "snr", "test accuracy (%)"
    rp.line_figure(path, snrs, drawn, "SNR (dB)", ylabel, rp.PERCENT)
    name = config.experiment.split(".")[-1]
    return rp.write_run(
        folder, name, to_json(config), [], [], tables, verdicts(rules), "Claims of P3"
    )
