"""What continuous integration says at its end."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TOOLS = ("bash", "sh", "cat", "dirname", "grep", "mktemp", "rm", "sort", "tail", "tee")
SKIPPED = "SKIPPED [5] tests/test_slurm.py: no munged: apt-get install munge"


@pytest.mark.parametrize("status", [0, 2])
def test_what_was_skipped_is_said_last(status, tmp_path):
    """With stand-ins for make, and for packages that cannot be had; its exit status is make's."""
    for tool in TOOLS:
        (tmp_path / tool).symlink_to(shutil.which(tool))
    programs = {
        "id": "echo 0",
        "timeout": 'shift; exec "$@"',
        "apt-get": "echo E: no such host >&2; exit 100",
        "make": f"echo passed; echo '{SKIPPED}'; echo '{SKIPPED}'; echo more; exit {status}",
    }
    for name, text in programs.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)
    environment = {**os.environ, "PATH": str(tmp_path), "TMPDIR": str(tmp_path)}
    result = subprocess.run(
        [ROOT / ".ci" / "run"], env=environment, capture_output=True, text=True, timeout=60
    )
    assert result.returncode == status, result.stderr
    said, _, left = result.stdout.partition("=== LEFT TO make nightly:\n")
    assert said.endswith(
        "more\n=== NOT TESTED HERE:\n"
        "NOT INSTALLED chromium: apt-get said: E: no such host\n"
        f"NOT INSTALLED slurmctld: apt-get said: E: no such host\n{SKIPPED}\n"
    )
    python = ROOT / ".venv" / "bin" / "python"
    assert "tests/test_contracts.py: " in left or not python.exists()
    assert {p.name for p in tmp_path.iterdir()} == {*TOOLS, *programs}
