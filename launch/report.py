"""Writes ``report.html`` of a run, of a sweep, or of several runs beside one another.

    python -m launch.report DIR               # of a run, or of a folder whose subfolders are runs
    python -m launch.report DIR DIR ... --out=FILE

Without ``--out`` the page lies in DIR. It needs nothing but a browser. Folders that are missing, no
runs or damaged are named in one line, with exit status 2, and nothing is written.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from absl import flags

from fedprune import page, paths
from launch import shell


def main(argv: Sequence[str]) -> int:
    """Returns the exit status: 0, or 2 with one line on the standard error stream."""
    known = flags.FlagValues()
    flags.DEFINE_string("out", None, "file to write; without it, report.html in DIR", known)
    try:
        folders = [paths.local("DIR", folder) for folder in known(list(argv))[1:]]
        if not folders:
            raise page.RunError("give at least one run directory, or a folder of run directories")
        if len(folders) > 1 and known.out is None:
            raise page.RunError(f"--out is missing: give --out=FILE for {len(folders)} folders")
        out = folders[0] / page.NAME if known.out is None else paths.local("--out", known.out)
        if out.exists() and not page.is_ours(out):
            raise page.RunError(f"{out}: is there already, and no report of fedprune")
        page.write(folders, out)
    except (flags.Error, page.RunError, paths.PathError, OSError) as e:
        print(f"error: {' '.join(str(e).split())}", file=sys.stderr)
        return 2
    print(out)
    return 0


if __name__ == "__main__":
    shell.run(main)
