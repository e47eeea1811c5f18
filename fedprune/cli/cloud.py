"""Command lines that start a trial on Cloud TPUs: a workload of GKE, a managed instance group of
Compute Engine (TPU7x and newer), or a queued resource (v6e and older).

The machines need fedprune, installed or as a checkout, in which the trials start; and at the same
paths as here, for example on Filestore, the sweep's folder and the experiment's file, where that is
the user's own. Every trial gets a machine, or slice, of one host. Names are made from the trials,
so that a cloud refuses to start one twice. What a trial that has failed left behind under its name
is deleted first.
"""

from __future__ import annotations

import hashlib
import re
import shlex
import shutil
from typing import NamedTuple

from fedprune.cli.grid import Trial
from fedprune.cli.monitor import RETRY
from fedprune.cli.trials import Sweep

TOOLS = {"gke": "xpk", "gce": "gcloud", "queued_resources": "gcloud"}
"""place -> the program that starts machines there"""
TEMPLATES = ("gcloud", "compute", "instance-templates")
NEEDED = {
    "gke": ("project", "zone", "cluster", "tpu_type", "docker_image"),
    "gce": ("project", "zone", "machine_type", "image_family", "image_project"),
    "queued_resources": ("project", "zone", "tpu_type", "runtime_version"),
}


class Options(NamedTuple):
    """Where and on what; which of them a place needs is in ``NEEDED``."""

    project: str | None = None
    zone: str | None = None
    cluster: str | None = None
    tpu_type: str | None = None
    """as v5litepod-8"""
    docker_image: str | None = None
    machine_type: str | None = None
    """as tpu7x-standard-4t"""
    image_family: str | None = None
    image_project: str | None = None
    runtime_version: str | None = None
    """as v2-alpha-tpuv6e"""
    checkout: str = "/fedprune"
    """on the machines: the folder in which the trials start"""
    python: str = "python"
    """on the machines"""
    spot: bool = False
    restarts: int = 100
    """after exit status 42"""


def missing(place: str, options: Options) -> list[str]:
    """The options that a place needs and that are not given."""
    return [name for name in NEEDED[place] if not getattr(options, name)]


def tool_missing(place: str) -> bool:
    return shutil.which(TOOLS[place]) is None


def leftovers(
    place: str, sweep: Sweep, trial: Trial, options: Options, failed: bool
) -> list[list[str]]:
    """What deletes, before a trial is started, what an earlier start left; it may be nothing.

    Compute Engine does not delete a template that is in use, so a trial that runs stays safe, but
    xpk deletes workloads that run: that is for those only of which a failure is noted.
    """
    name, project = _name(sweep, trial), f"--project={options.project}"
    if place == "gce":
        return [[*TEMPLATES, "delete", name, project, "--quiet"]]
    if place == "gke" and failed:
        command = ["xpk", "workload", "delete", f"--workload={name}", project]
        return [[*command, f"--zone={options.zone}", f"--cluster={options.cluster}", "--force"]]
    return []


def commands(place: str, sweep: Sweep, trial: Trial, options: Options) -> list[list[str]]:
    """What starts a trial, one command after another."""
    name = _name(sweep, trial)
    project, zone = f"--project={options.project}", f"--zone={options.zone}"
    sweep_command = [options.python, "-m", "fedprune", "sweep"]
    own = shlex.join([*sweep_command, f"--workdir={sweep.folder}", f"--trial={trial.name}"])
    enter = f"cd {shlex.quote(options.checkout)}"
    if place == "gke":
        command = ["xpk", "workload", "create", f"--workload={name}", project, zone]
        command += [f"--cluster={options.cluster}", f"--tpu-type={options.tpu_type}"]
        command += ["--num-slices=1", f"--docker-image={options.docker_image}"]
        command += [f"--restart-on-exit-codes={RETRY}", f"--max-restarts={options.restarts}"]
        return [[*command, *["--spot"] * options.spot, f"--command={enter} && exec {own}"]]
    if place == "gce":
        group = ["gcloud", "compute", "instance-groups", "managed"]
        template = [*TEMPLATES, "create", name, project]
        template += [f"--machine-type={options.machine_type}", "--maintenance-policy=TERMINATE"]
        template += [f"--image-family={options.image_family}"]
        template += [f"--image-project={options.image_project}", "--scopes=cloud-platform"]
        if options.spot:
            template += ["--provisioning-model=SPOT", "--instance-termination-action=DELETE"]
        end = shlex.join([*group, "delete", name, project, zone, "--quiet"])
        create = [*group, "create", name, project, zone, f"--template={name}", "--size=1"]
        return [
            [*template, _startup(enter, own, end, options)],
            [*create, "--default-action-on-vm-failure=repair"],
        ]
    queue = ["gcloud", "compute", "tpus", "queued-resources"]
    end = shlex.join([*queue, "delete", name, project, zone, "--force", "--quiet", "--async"])
    create = [*queue, "create", name, f"--node-id={name}", project, zone]
    create += [f"--accelerator-type={options.tpu_type}"]
    create += [f"--runtime-version={options.runtime_version}", "--scopes=cloud-platform"]
    return [[*create, *["--spot"] * options.spot, _startup(enter, own, end, options)]]


def _startup(enter: str, own: str, end: str, options: Options) -> str:
    """Runs the trial when the machine starts, again while it asks for it, and then ``end``."""
    starts = f"$(seq {options.restarts + 1})"
    again = f"for i in {starts}; do {own}; [ $? -eq {RETRY} ] || break; done"
    # gcloud splits at commas, which names of trials have, unless another delimiter is given.
    return f"--metadata=^@@^startup-script={enter} && {{ {again}; }}; {end}"


def _name(sweep: Sweep, trial: Trial) -> str:
    """Letters, digits and hyphens, beginning with a letter; at most 33."""
    readable = re.sub(r"[^a-z0-9]+", "-", sweep.folder.name.lower()).strip("-")[:20].strip("-")
    digest = hashlib.sha256(f"{sweep.folder}/{trial.name}".encode()).hexdigest()[:8]
    return f"sw-{readable}-{digest}" if readable else f"sw-{digest}"
