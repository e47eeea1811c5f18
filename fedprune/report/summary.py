"""What a run leaves of its results: ``summary.json`` and ``report.md``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedprune.report.claims import Verdict, verdict_table
from fedprune.report.statistics import arm_summary
from fedprune.runs import Row, write_json, write_text


def write_run(
    folder: Path,
    experiment: str,
    config: Mapping[str, Any],
    rows: Sequence[Row],
    arms: Sequence[str],
    tables: Mapping[str, str],
    verdicts: Sequence[Verdict],
    claims: str,
) -> str:
    """Writes ``summary.json`` and ``report.md``.

    Args:
      folder: the run directory.
      experiment: its name.
      config: the configuration as plain nested values.
      rows: of the run.
      arms: names of all arms.
      tables: heading -> table; the report shows them in this order.
      verdicts: of the claims; may be empty.
      claims: heading of the claims.

    Returns:
      The text of the report.
    """
    write_summary(folder, experiment, config, rows, arms, tables, verdicts)
    judged = verdict_table(verdicts) if verdicts else ""
    sections = [*tables.items(), (claims, judged)]
    text = "\n\n".join(f"{heading}\n\n{body}" for heading, body in sections if body) + "\n"
    write_text(folder / "report.md", text)
    return text


def write_summary(
    folder: Path,
    experiment: str,
    config: Mapping[str, Any],
    rows: Sequence[Row],
    arms: Sequence[str],
    tables: Mapping[str, str],
    verdicts: Sequence[Verdict],
) -> None:
    """Writes ``summary.json``; the arguments are those of ``write_run``."""
    write_json(
        folder / "summary.json",
        {
            "experiment": experiment,
            "variant": config["variant"],
            "config": config,
            "arms": [arm_summary(rows, arm) for arm in arms],
            "tables": dict(tables),
            "claims": [v._asdict() for v in verdicts],
        },
    )
