"""Runs an experiment.

    python -m launch.main --config=experiments/ota_pruning.py:fast --workdir=DIR

Any field can be set, as ``--config.uplink.snr_db=5``; ``--help_config`` prints them all. A bad
value is refused in one line, with exit status 2, before anything is written.

Running the same command again resumes what was interrupted. ``--fresh`` starts over instead, and
``--resume_from`` starts a run from the checkpoints of another one.

With ``--profile``, one round of the first program is traced into the folder instead, and a table
says which stage took how long.
"""

from __future__ import annotations

import importlib
import logging
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from absl import flags
from ml_collections import config_flags

from fedprune import backend
from fedprune import config as cfg

CONFIG = config_flags.DEFINE_config_file(
    "config", help_string="experiment file and variant: experiments/NAME.py:VARIANT"
)
WORKDIR = flags.DEFINE_string("workdir", None, "run directory: metrics, checkpoints, figures")
PROFILE = flags.DEFINE_bool(
    "profile", False, "trace one round of the first program into --workdir, and run nothing"
)
FRESH = flags.DEFINE_bool(
    "fresh", False, "start over; what --workdir holds is moved to a numbered folder in it, old/"
)
RESUME_FROM = flags.DEFINE_string(
    "resume_from", None, "start a new run from the newest checkpoints of this run directory"
)
HELP = flags.DEFINE_bool(
    "help_config", False, "print every field of --config, or of the common configuration"
)


class UsageError(Exception):
    """A command line that cannot be used; the message is one line."""


def main(argv: Sequence[str]) -> int:
    """Returns the exit status: 0; 2 for bad usage; 1 for unusable data or directories."""
    try:
        given = parse(argv)
        if HELP.value:
            print(cfg.explain(given or cfg.Config()))
            return 0
        config, workdir = _required(given)
        cfg.validate(config)
    except (UsageError, cfg.ConfigError) as e:
        return _refuse(e, 2)
    backend.configure(config.mesh.devices, cache=not PROFILE.value)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    for noisy in ("jax", "matplotlib"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    for raises in ("absl", "orbax"):  # Orbax logs with a traceback what it raises
        logging.getLogger(raises).setLevel(logging.CRITICAL)

    from fedprune import checkpoint, data, experiment, page, writer

    try:
        module = importlib.import_module(config.experiment)
        plan = experiment.plan(config, module.arms(config))
        if PROFILE.value:
            print(_profile(plan, Path(workdir)))
            return 0
        with writer.RunDirectory(
            workdir,
            cfg.to_json(config),
            fresh=FRESH.value,
            resume_from=RESUME_FROM.value,
            free=cfg.FREE,
        ) as directory:
            directory.record(backend.environment())
            rows = experiment.execute(plan, directory)
            print(module.report(config, rows, directory.path))
            directory.ended()
            page.write([directory.path], directory.path / page.NAME)
            files = "report.md, report.html, summary.json, figures/, metrics.jsonl"
            print(f"Results in {directory.path}: {files}")
    except (cfg.ConfigError, ValueError) as e:
        return _refuse(e, 2)
    except (
        data.DataError,
        writer.RunDirectoryError,
        checkpoint.CheckpointError,
        page.RunError,
    ) as e:
        return _refuse(e, 1)
    return 0


def parse(argv: Sequence[str]) -> cfg.Config | None:
    """The configuration that a command line asks for; None if it names none.

    Raises:
      UsageError: anything wrong with the command line.
    """
    try:
        rest = flags.FLAGS(list(argv))
        config = CONFIG.value
    except SystemExit:  # --help
        raise
    except Exception as e:  # absl and ml_collections raise many kinds
        raise UsageError(_explain(e, argv)) from e
    if rest[1:]:
        raise UsageError(f"{rest[1]}: flags only, as --name=value")
    if type(config).__name__ == "_ErrorConfig":  # the file itself could not be loaded
        raise UsageError(_explain(OSError(), argv))
    if not isinstance(config, cfg.Config | None):
        raise UsageError(f"--config: the file's get_config gives no fedprune Config but {config!r}")
    return config


def _required(config: cfg.Config | None) -> tuple[cfg.Config, str]:
    """The configuration and the run directory.

    Raises:
      UsageError: one of them is missing.
    """
    if config is None:
        raise UsageError("--config is missing: give --config=experiments/NAME.py:VARIANT")
    if not WORKDIR.value:
        raise UsageError("--workdir is missing: give --workdir=DIR")
    return config, WORKDIR.value


def _explain(error: Exception, argv: Sequence[str]) -> str:
    """One line for what absl or ml_collections raised."""
    given = next((a for a in argv if a.startswith("--config=")), "--config")
    text = str(error)
    refused = re.search(r"ConfigError: (.*)", text)  # the file's own, inside a printed traceback
    if refused:
        return refused[1]
    file = given.removeprefix("--config=").partition(":")[0]
    if "Error loading config file" in text or isinstance(error, OSError):
        others = map(str, Path(file).parent.glob("*.py"))
        return f"{given}: there is no such experiment file{cfg.suggestion(file, others)}"
    changes = [a for a in argv if a.startswith("--config.")]
    if changes and given == "--config":
        return "--config is missing: give --config=experiments/NAME.py:VARIANT"
    known = {path: field for path, field, _ in cfg.fields(_config(given))} if changes else {}
    for change in changes:
        path, _, value = change.removeprefix("--config.").partition("=")
        if path not in known:
            return f"{change}: there is no such field{cfg.suggestion(path, known)}"
        if f"--config.{path}={value}" in text:
            return f"{path}={value!r}: must be {cfg.describe(known[path])}"
    return " ".join(text.split()) or repr(error)


def _config(given: str) -> cfg.Config:
    """What ``--config=FILE:VARIANT`` names; the common fields if the file is no module of ours."""
    file, _, variant = given.removeprefix("--config=").partition(":")
    try:
        module = importlib.import_module(".".join(Path(file).with_suffix("").parts))
    except ImportError:
        return cfg.Config()
    return module.get_config(*[variant] if variant else [])


def _profile(plan, folder: Path) -> str:
    """Traces one round (and its evaluation) of a plan's first program; a table of time by stage."""
    import jax

    from fedprune import profile, report, run

    program = plan.programs[0]
    segment, arms = program.segment(1), run.pad(program.start(), program.padded)
    jax.block_until_ready(segment(arms))
    profile.measure(lambda: segment(arms), folder)
    text = segment.lower(arms).compile().as_text()
    seconds = profile.by_stage(folder, text)
    total = sum(seconds.values())
    body = [[name, f"{1e3 * s:.2f}", f"{s / total:.1%}"] for name, s in seconds.items()]
    title = f"One round of {len(program.labels)} runs and its evaluation, all devices together:"
    table = report.table(["stage", "ms", "share"], body)
    return f"{title}\n\n{table}\n\nTrace for TensorBoard or Perfetto in {folder}"


def _refuse(error: Exception, status: int) -> int:
    print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv))
