"""Where the trials of a sweep run: each of these runs them, and says whether they have ended."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, wait

from fedprune import config as cfg
from fedprune.cli import cloud, once, program, slurm, trials
from fedprune.cli.experiments import Experiment
from fedprune.cli.grid import Trial
from fedprune.cli.progress import Table
from fedprune.cli.trials import Sweep
from fedprune.runs.writers import Open

THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def in_one_program(
    sweep: Sweep,
    experiment: Experiment,
    config: cfg.Config,
    todo: Sequence[Trial],
    opens: Sequence[Open],
) -> bool:
    """Arms of one program, where that is possible, in this process."""
    from fedprune import backend

    once.quiet()
    backend.configure(config.mesh.devices)
    backend.pin()
    program.run(sweep, experiment, config, todo, opens)
    return True


def locally(sweep: Sweep, todo: Sequence[Trial], jobs: int) -> bool:
    """Processes, each on cores of its own; with fewer cores than jobs, they take turns. Where the
    system cannot bind a process to cores, each has its number of threads alone."""
    from fedprune import backend

    free, stopping = shares(backend.cores(), jobs), threading.Event()
    pins = hasattr(os, "sched_setaffinity")  # macOS has none
    running: set[subprocess.Popen] = set()

    def pin() -> None:
        if pins:
            os.sched_setaffinity(0, free.pop())  # of this thread, and so of the processes it starts

    def started(process: subprocess.Popen) -> None:
        running.add(process)
        if stopping.is_set():
            process.terminate()

    def one(trial: Trial) -> None:
        share = len(backend.cores()) if pins else max(1, len(backend.cores()) // jobs)
        limits = dict.fromkeys(THREADS, str(share))
        trials.run(sweep, trial, {**limits, **os.environ}, started)

    for trial in todo:
        trials.forget(sweep, trial)
    table = Table(sweep)
    pool = ThreadPoolExecutor(jobs, initializer=pin)
    try:
        left = {pool.submit(one, trial) for trial in todo}
        while left:
            done, left = wait(left, timeout=0.5)
            for future in done:
                future.result()
            table.show()
    finally:
        stopping.set()
        pool.shutdown(wait=False, cancel_futures=True)
        for process in list(running):
            process.terminate()  # nothing, to one that has ended
        pool.shutdown()
        table.show()
    return True


def shares(cores: Sequence[int], jobs: int) -> list[list[int]]:
    """The cores of each of so many jobs: all different while there are enough."""
    parts = [cores[i * len(cores) // jobs : (i + 1) * len(cores) // jobs] for i in range(jobs)]
    return [list(part) or [cores[i % len(cores)]] for i, part in enumerate(parts)]


def on_slurm(sweep: Sweep, todo: Sequence[Trial], options: slurm.Options, *, waits: bool) -> bool:
    """Submits what is not in the queue already, and waits if it should."""
    ids, queued = slurm.submitted(sweep), slurm.queued()
    if queued is None:
        raise RuntimeError("squeue: Slurm does not answer")
    new = [trial for trial in todo if ids.get(trial.name) not in queued]
    for trial in new:
        trials.forget(sweep, trial)
    if new:
        ids = slurm.submit(sweep, new, options)
    print(f"Slurm: {len(new)} jobs submitted, {len(todo) - len(new)} in the queue before")
    if not waits:
        return False
    table, absent = Table(sweep), Counter[str]()
    try:
        while True:
            queued = slurm.queued()
            waiting = [t for t in todo if trials.state(sweep, t).word in ("waiting", "running")]
            table.show()
            if queued is not None:
                for name in (trial.name for trial in waiting):
                    absent[name] = 0 if ids[name] in queued else absent[name] + 1
            # Gone three times in a row: the notes of a job that has just ended may be late.
            if all(absent[trial.name] >= 3 for trial in waiting):
                return True
            time.sleep(1)
    except KeyboardInterrupt:
        print("the jobs go on; scancel ends them", file=sys.stderr)
        raise


def in_cloud(sweep: Sweep, todo: Sequence[Trial], place: str, options: cloud.Options) -> bool:
    """Starts all trials, and does not wait: False.

    Raises:
      RuntimeError: some could not be started; there has been a line for each.
    """
    refused = False
    for trial in todo:
        before, commands = cloud_commands(sweep, trial, place, options)
        for command in before:
            subprocess.run(command, capture_output=True)
        for command in commands:
            print(f"$ {shlex.join(command)}", flush=True)
            result = subprocess.run(command, capture_output=True, text=True)
            if result.returncode:
                refused = True
                said = (result.stderr or result.stdout).strip().splitlines() or ["nothing"]
                print(f"error: {trial.name}: {command[0]} said: {said[-1]}", file=sys.stderr)
                break
        else:
            trials.forget(sweep, trial)
    if refused:
        raise RuntimeError("some trials were not started; the same command tries them again")
    print("All are started; --collect makes a table of those that are finished")
    return False


def cloud_commands(
    sweep: Sweep, trial: Trial, place: str, options: cloud.Options
) -> tuple[list[list[str]], list[list[str]]]:
    """What makes room for a trial, and may fail; what starts it."""
    failed = trials.state(sweep, trial).word == "failed"
    about = place, sweep, trial, options
    return cloud.leftovers(*about, failed), cloud.commands(*about)
