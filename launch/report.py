"""Makes the page of runs again, from a checkout: ``fedprune report``.

    python -m launch.report DIR

``fedprune/cli/report.py`` says what the flags mean.
"""

import sys

from fedprune.cli import report, shell

if __name__ == "__main__":
    sys.argv[0] = "python -m launch.report"
    shell.run(report.main)
