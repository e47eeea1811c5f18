"""Runs an experiment, from a checkout: ``fedprune run`` with the experiment as a flag.

    python -m launch.main --config=experiments/ota_pruning.py:fast --workdir=DIR

``fedprune/cli/run.py`` says what the flags mean.
"""

import sys

from fedprune.cli import run, shell

if __name__ == "__main__":
    sys.argv[0] = "python -m launch.main"
    shell.run(run.main)
