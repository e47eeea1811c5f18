"""Makes the whole set of committed results, ``benchmarks/results/``; then ``benchmarks.table``.

    python -m benchmarks.all --create

Takes about 35 minutes on 2 cores, which should have nothing else to do, once the environments
exist. Steps that have failed are named at the end; the others' results stand.
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

from absl import app, flags

from benchmarks import environments
from benchmarks.workloads import NAMES

RESULTS = Path(__file__).parent / "results"
STEPS = {
    **{f"{name}_cpu": ["benchmarks.run", f"--workload={name}"] for name in NAMES},
    "topk_cpu": ["benchmarks.topk"],
    "shrink_cpu": ["benchmarks.shrink"],
    "arms_cpu": ["benchmarks.arms"],
    "startup_cpu": ["benchmarks.startup"],
    "overhead_cpu": ["benchmarks.overhead"],
    "options_cpu": ["benchmarks.options"],
    "hierarchy_cpu": ["benchmarks.hierarchy"],
    "allocation_cpu": ["benchmarks.allocation"],
}
"""file -> module and its flags"""

CREATE = flags.DEFINE_bool("create", False, "make missing environments")
SMOKE = flags.DEFINE_bool("smoke", False, "the smallest settings, into no file")
ONLY = flags.DEFINE_list("only", list(STEPS), "some of the steps")


def main(_) -> int:
    RESULTS.mkdir(exist_ok=True)
    failed = []
    for name in ONLY.value:
        module, *arguments = STEPS[name]
        if module == "benchmarks.run" and CREATE.value:
            arguments.append("--create")
        arguments.append("--smoke" if SMOKE.value else f"--out={RESULTS / name}.jsonl")
        began = time.monotonic()
        done = subprocess.run([sys.executable, "-m", module, *arguments], cwd=environments.ROOT)
        print(f"{name}: {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
        if done.returncode:
            failed.append(name)
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    app.run(main)
