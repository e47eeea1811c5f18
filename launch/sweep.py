"""Runs an experiment for every combination of some values, from a checkout: ``fedprune sweep``.

    python -m launch.sweep --config=experiments/single.py:fast --workdir=DIR --grid='seed=0:3'

``fedprune/cli/sweep.py`` says what the flags mean.
"""

import sys

from fedprune.cli import shell, sweep

if __name__ == "__main__":
    sys.argv[0] = "python -m launch.sweep"
    shell.run(sweep.main)
