"""``python -m fedprune``: the command ``fedprune``, with the interpreter that is named."""

import sys
from pathlib import Path

if __name__ == "__main__":
    # Python puts the current folder first, where a user's own random.py would hide the library's.
    if (
        not sys.flags.safe_path
        and Path(sys.path[0]).resolve() != Path(__file__).resolve().parents[1]
    ):
        del sys.path[0]
    from fedprune.cli import main

    main.entry()
