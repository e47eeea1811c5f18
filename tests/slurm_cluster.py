"""A real Slurm cluster of one node, on this machine, for as long as a test needs it.

Debian's packages are enough: no systemd, no accounting, and nothing outside one folder.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scontrol", "srun")
PACKAGES = "slurm-wlm munge slurmctld slurmd"
LOW, HIGH = "low", "high"
"""partitions; a job of HIGH preempts those of LOW, which are requeued"""
CPUS = 8
"""that the node says it has; jobs of one CPU each, more of them than there are cores"""


def missing() -> str:
    """Why no cluster can be started here; "" if one can."""
    if os.geteuid() != 0:
        return "a Slurm cluster needs root"
    path = f"{os.environ['PATH']}:/usr/sbin:/sbin"
    without = [name for name in PROGRAMS if shutil.which(name, path=path) is None]
    return f"no {', '.join(without)}: apt-get install {PACKAGES}" if without else ""


@contextlib.contextmanager
def running(folder: Path, seconds: float = 120) -> Iterator[dict[str, str]]:
    """Starts a cluster in a folder; yields the environment in which Slurm's commands find it.

    All daemons, and the jobs that are left, are stopped at the end, whatever happens.
    """
    folder.chmod(0o755)  # munge wants its socket to be reachable
    (folder / "state").mkdir()
    (folder / "spool").mkdir()
    key, sock, conf = folder / "munge.key", folder / "munge.socket", folder / "slurm.conf"
    key.write_bytes(os.urandom(128))
    key.chmod(0o400)
    conf.write_text(_configuration(folder, sock))
    environment = {
        **os.environ,
        "PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin",
        "SLURM_CONF": str(conf),
    }
    munged = ["munged", "--foreground", "--force", f"--socket={sock}", f"--key-file={key}"]
    munged += [f"--{name}-file={folder / f'munge.{name}'}" for name in ("pid", "log", "seed")]
    daemons: list[subprocess.Popen] = []
    try:
        for command in (munged, ["slurmctld", "-D", "-i"], ["slurmd", "-D"]):
            log = (folder / f"{command[0]}.out").open("wb")
            daemons.append(
                subprocess.Popen(
                    command, env=environment, stdout=log, stderr=log, start_new_session=True
                )
            )
            log.close()
            if command is munged:
                _wait(sock.exists, daemons, seconds, folder)
        idle = ["sinfo", "--noheader", "--format=%t"]
        _wait(lambda: set(_said(idle, environment).split()) == {"idle"}, daemons, seconds, folder)
        yield environment
    finally:
        if len(daemons) == 3:
            user = f"--user={os.geteuid()}"
            subprocess.run(["scancel", "--signal=KILL", user], env=environment, timeout=60)
            subprocess.run(["scancel", user], env=environment, timeout=60)
            with contextlib.suppress(TimeoutError):
                listed = ["squeue", "--noheader"]
                _wait(lambda: not _said(listed, environment), daemons, 10, folder)
        for daemon in reversed(daemons):
            daemon.terminate()
        for daemon in daemons:
            try:
                daemon.wait(15)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()
        _end_steps(folder)


def _configuration(folder: Path, sock: Path) -> str:
    host = socket.gethostname().partition(".")[0]
    ctld, slurmd = _free_ports(2)
    lines = {
        "ClusterName": "test",
        "SlurmctldHost": f"{host}(127.0.0.1)",
        "SlurmctldPort": ctld,
        "SlurmdPort": slurmd,
        "AuthType": "auth/munge",
        "AuthInfo": f"socket={sock}",
        "CredType": "cred/munge",
        "SlurmUser": "root",
        "SlurmdUser": "root",
        "StateSaveLocation": folder / "state",
        "SlurmdSpoolDir": folder / "spool",
        "SlurmctldPidFile": folder / "slurmctld.pid",
        "SlurmdPidFile": folder / "slurmd.pid",
        "SlurmctldLogFile": folder / "slurmctld.log",
        "SlurmdLogFile": folder / "slurmd.log",
        "ProctrackType": "proctrack/linuxproc",
        "TaskPlugin": "task/none",
        "JobAcctGatherType": "jobacct_gather/linux",
        "MpiDefault": "none",
        "SwitchType": "switch/none",
        "ReturnToService": 2,
        "SelectType": "select/cons_tres",
        "SelectTypeParameters": "CR_CPU",
        "SlurmdParameters": "config_overrides",
        "CommunicationParameters": "NoCtldInAddrAny,NoInAddrAny",
        "KillWait": 5,
        "MinJobAge": 10,
        "SchedulerParameters": "sched_interval=1,bf_interval=2",
        "PreemptType": "preempt/partition_prio",
        "PreemptMode": "REQUEUE",
    }
    text = [f"{name}={value}" for name, value in lines.items()]
    text.append(f"NodeName={host} NodeAddr=127.0.0.1 CPUs={CPUS} RealMemory=16000 State=UNKNOWN")
    for name, more in {LOW: "PriorityTier=1 Default=YES", HIGH: "PriorityTier=2"}.items():
        text.append(f"PartitionName={name} Nodes={host} {more} MaxTime=60 State=UP")
    return "\n".join(text) + "\n"


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def _said(command: Sequence[str], environment: dict[str, str]) -> str:
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=60
    ).stdout.strip()


def _wait(ready, daemons: Sequence[subprocess.Popen], seconds: float, folder: Path) -> None:
    end = time.monotonic() + seconds
    while not ready():
        for daemon in daemons:
            if daemon.poll() is not None:
                text = "".join(p.read_text() for p in folder.glob("*.out"))
                raise RuntimeError(f"{daemon.args[0]} ended: {text[-2000:]}")
        if time.monotonic() > end:
            raise TimeoutError(f"the cluster in {folder} was not ready after {seconds} s")
        time.sleep(0.2)


def _end_steps(folder: Path) -> None:
    """Kills what still runs with this cluster's configuration: slurmstepd and their children."""
    mark = f"SLURM_CONF={folder / 'slurm.conf'}".encode()
    for place in Path("/proc").iterdir():
        if place.name.isdecimal() and int(place.name) != os.getpid():
            with contextlib.suppress(OSError):
                if mark in (place / "environ").read_bytes().split(b"\0"):
                    os.kill(int(place.name), signal.SIGKILL)
