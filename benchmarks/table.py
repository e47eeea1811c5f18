"""Writes the tables of docs/performance.md from the results, and draws its figure.

    python -m benchmarks.table

The page has a pair of comments for every table, ``<!-- table: NAME -->`` and ``<!-- end -->``; what
stands between them is replaced. A table without results says so.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

from benchmarks import environments, figure
from benchmarks.workloads import NAMES
from fedprune import report

RESULTS = Path(__file__).parent / "results"
PAGE = environments.ROOT / "docs" / "performance.md"
FIGURE = environments.ROOT / "docs" / "figures" / "performance.png"
LIMITS = ("matmul_jax", "matmul_torch", "copy")


def read(name: str) -> list[dict]:
    """Rows of a file of results; none if it is not there."""
    path = RESULTS / f"{name}_cpu.jsonl"
    return (
        [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        if path.exists()
        else []
    )


def rounds(name: str) -> str:
    """Frameworks on one workload."""
    rows = [row for row in read(name) if row["framework"] not in LIMITS]
    header = [
        *("framework", "round, s (quartiles)", "over fedprune's", "Gflop/s", "% of peak"),
        *("compile, s", "ready, s", "peak MB", "setting"),
    ]
    body = [
        [
            row["framework"],
            "{:.4g} ({:.4g} to {:.4g})".format(row["round_s"], *row["round_s_quartiles"]),
            f"{row['time_over_fedprune']:.2f}" if "time_over_fedprune" in row else "–",
            f"{row['gflops']:.1f}",
            f"{row['percent_of_peak']:.0f}",
            f"{row['compile_s']:.1f}",
            f"{row['ready_s']:.1f}",
            f"{row['peak_memory_mb']:.0f}" if row["peak_memory_mb"] else "–",
            row["setting"] + ("*" if row["clients_timed"] < row["clients"] else ""),
        ]
        for row in rows
    ]
    table = report.table(header, body)
    if any(row["clients_timed"] < row["clients"] for row in rows):
        first = rows[0]
        table += f"\n\n\\* {first['clients_timed']} of {first['clients']} clients timed, scaled up."
    return table


def scale(_: str) -> str:
    """W7: time per client and memory against the number of clients."""
    rows = [row for row in read("W7") if row["framework"] not in LIMITS]
    body = [
        [
            f"{row['clients']:,}",
            f"{row['round_s']:.4g}",
            f"{1e3 * row['round_s'] / row['clients']:.3f}",
            f"{row['peak_memory_mb']:.0f}",
        ]
        for row in rows
    ]
    return report.table(["clients", "round, s", "ms a client", "peak MB"], body)


def machine_limits(_: str) -> str:
    """Rates of matrix products and copies, by the run that measured them."""
    body = [
        [name, *(f"{row.get('gflops', row.get('gbytes_s')):.1f}" for row in rows[:3])]
        for name in NAMES
        if len(rows := [row for row in read(name) if row["framework"] in LIMITS]) == 3
    ]
    header = ["in the run of", "JAX product, Gflop/s", "PyTorch product, Gflop/s", "copy, GB/s"]
    return report.table(header, body)


def plain(*columns: str) -> Callable[[str], str]:
    """A table of some fields of every row that has them."""

    def table(name: str) -> str:
        rows = [row for row in read(name) if columns[0] in row]
        return report.table(list(columns), [[str(row[c]) for c in columns] for row in rows])

    return table


TABLES: dict[str, tuple[str, Callable[[str], str]]] = {
    **{name: (name, rounds) for name in NAMES if name != "W7"},
    "W7": ("W7", scale),
    "limits": ("W1", machine_limits),
    "topk": ("topk", plain("way", "seconds", "sort_over_this", "clients", "weights")),
    "shrink": ("shrink", plain("way", "weights", "seconds", "whole_over_this")),
    "arms": (
        "arms",
        plain("arms", "one_program_s", "processes_s", "processes_over_program", "alone_over_arm"),
    ),
    "startup": ("startup", plain("start", "compile_s", "process_s")),
    "overhead": ("overhead", plain("variant", "round_s", "percent_over_bare")),
    "stages": ("overhead", plain("stage", "seconds", "percent")),
    "hierarchy": ("hierarchy", plain("variant", "cloud_round_s", "time_over_flat", "turns")),
    "allocation": (
        "allocation",
        plain("type", "devices", "problems", "seconds", "problems_per_s"),
    ),
    "options": ("options", plain("workload", "setting", "time_over_default")),
}
"""name in the page -> (file of results, how it becomes a table)"""


def environment(rows: list[dict]) -> str:
    """One line: hardware and versions of a file of results."""
    versions: dict[str, str] = {}
    for row in rows:
        versions |= row.get("versions", {})
    first = rows[0]
    used = ", ".join(f"{k} {v}" for k, v in sorted(versions.items()))
    return f"{first['processor']}, {first['cores']} cores; {used}"


def filled(page: str) -> str:
    """The page with its tables made anew.

    Raises:
      KeyError: the page asks for a table that does not exist.
    """

    def replace(match: re.Match) -> str:
        file, make = TABLES[match[1]]
        rows = read(file)
        text = f"{make(file)}\n\n*{environment(rows)}*" if rows else "*Not measured yet.*"
        return f"<!-- table: {match[1]} -->\n{text}\n<!-- end -->"

    return re.sub(r"<!-- table: (\w+) -->\n.*?<!-- end -->", replace, page, flags=re.DOTALL)


def main() -> None:
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    compared = [row for name in NAMES if name != "W7" for row in read(name)]
    if compared:
        figure.draw(compared, FIGURE)


if __name__ == "__main__":
    main()
