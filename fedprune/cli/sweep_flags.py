"""The flags of ``fedprune sweep``."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from absl import flags

from fedprune.cli import cloud, log, run, slurm
from fedprune.cli.parse import UsageError

PLACES = ("program", "local", "slurm", *cloud.TOOLS)


def define(values: flags.FlagValues) -> None:
    """Declares them."""

    def string(name: str, about: str, default: str | None = None) -> None:
        flags.DEFINE_string(name, default, about, flag_values=values)

    def integer(name: str, about: str, low: int, default: int | None = None) -> None:
        flags.DEFINE_integer(name, default, about, lower_bound=low, flag_values=values)

    def boolean(name: str, about: str, default: bool = False) -> None:
        flags.DEFINE_bool(name, default, about, flag_values=values)

    string("workdir", "folder of the sweep: trials, table, figures")
    string("grid", "fields and values: 'FIELD=VALUE,VALUE FIELD=FIRST:END'")
    flags.DEFINE_enum("on", "program", PLACES, "where trials run", flag_values=values)
    log.define(values)
    boolean("dry_run", "print what would be run, and start nothing")
    boolean("collect", "only collect what is finished in --workdir")
    string("trial", "run this one trial of the sweep in --workdir")
    integer("jobs", "trials at a time; local: 1 unless given; slurm: as many as start", 1)
    again = (
        "most restarts of a trial that asks for it or whose time is over; preemptions do not count"
    )
    integer("max_restarts", again, 0, 100)
    _define_slurm(values, string, integer, boolean)
    _define_clouds(string, boolean)


def _define_slurm(values: flags.FlagValues, string: Any, integer: Any, boolean: Any) -> None:
    boolean("wait", "slurm: wait for the jobs, and collect", True)
    string("partition", "slurm: partition")
    integer("time", "slurm: minutes until a job is requeued", 5, 60)
    integer("cpus", "slurm: cores of a job", 1)
    flags.DEFINE_float("memory", None, "slurm: GB of a job", lower_bound=0.01, flag_values=values)
    flags.register_validator(
        "memory",
        lambda value: value is None or math.isfinite(value),
        message="must be a number of GB, which nan and inf are not",
        flag_values=values,
    )
    integer("gpus", "slurm: GPUs of a job", 0)
    string("account", "slurm: account")
    string("qos", "slurm: quality of service")
    more = "slurm: another option, as constraint=a100"
    flags.DEFINE_multi_string("sbatch", [], more, flag_values=values)


def _define_clouds(string: Any, boolean: Any) -> None:
    string("project", "clouds: project")
    string("zone", "clouds: zone")
    string("cluster", "gke: cluster")
    string("tpu_type", "gke, queued_resources: as v5litepod-8")
    string("docker_image", "gke: image with fedprune")
    string("machine_type", "gce: as tpu7x-standard-4t")
    string("image_family", "gce: family of the boot image")
    string("image_project", "gce: project of the boot image")
    string("runtime_version", "queued_resources: TPU software")
    string("checkout", "clouds: the folder on the machines in which trials start", "/fedprune")
    string("python", "clouds: the interpreter on the machines", "python")
    boolean("spot", "clouds: machines that may be taken away")


def of_slurm(values: flags.FlagValues) -> slurm.Options:
    """What a job of Slurm asks for."""
    return slurm.Options(
        partition=values.partition,
        minutes=values.time,
        cpus=values.cpus,
        memory=values.memory,
        gpus=values.gpus,
        account=values.account,
        qos=values.qos,
        sbatch=tuple(values.sbatch),
        jobs=values.jobs,
        restarts=values.max_restarts,
    )


def of_clouds(values: flags.FlagValues) -> cloud.Options:
    """Where in a cloud, and on what."""
    names = [name for name in cloud.Options._fields if name in values]
    found: dict[str, Any] = {name: values[name].value for name in names}
    return cloud.Options(**found, restarts=values.max_restarts)


def refuse_those_of_runs(argv: Sequence[str]) -> None:
    """Refuses flags of single runs by name.

    Raises:
      UsageError: one is given.
    """
    single, own = flags.FlagValues(), flags.FlagValues()
    run.define(single)
    define(own)
    for word in argv[1:]:
        name = word.lstrip("-").partition("=")[0]
        if word.startswith("-") and name in single and name not in own:
            raise UsageError(f"--{name}: is for single runs, not for sweeps")
