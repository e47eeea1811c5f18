"""Draws the times of a round, every workload and framework, relative to fedprune's."""

from __future__ import annotations

from pathlib import Path


def draw(rows: list[dict], path: Path) -> None:
    """A group of bars for each workload: how many times as long as fedprune; whiskers: quartiles.

    Args:
      rows: of one or more workloads, from ``benchmarks.run``.
      path: of the figure; its suffix decides the format.
    """
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    rows = [row for row in rows if "time_over_fedprune" in row]
    workloads = list(dict.fromkeys(row["workload"] for row in rows))
    frameworks = list(dict.fromkeys(row["framework"] for row in rows))
    if not rows:
        return
    across = max(5.0, 1.5 + 1.6 * len(workloads))  # the legend has to fit
    figure, axes = plt.subplots(figsize=(across, 3.2), layout="constrained")
    width = 0.8 / len(frameworks)
    for i, framework in enumerate(frameworks):
        own = [row for row in rows if row["framework"] == framework]
        height = [row["time_over_fedprune"] for row in own]
        unit = [row["time_over_fedprune"] / row["round_s"] for row in own]
        ends = [[u * q for q in row["round_s_quartiles"]] for u, row in zip(unit, own, strict=True)]
        below = [max(0.0, h - low) for h, (low, _) in zip(height, ends, strict=True)]
        above = [max(0.0, high - h) for h, (_, high) in zip(height, ends, strict=True)]
        at = [workloads.index(row["workload"]) + width * (i + 0.5) - 0.4 for row in own]
        beyond = [h - 1.0 for h in height]  # bars start at the time of fedprune
        axes.bar(at, beyond, width, 1.0, yerr=[below, above], label=framework, error_kw={"lw": 0.8})
    axes.axhline(1.0, color="black", lw=0.8)
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    axes.set_ylim(min(low, 0.5), high)
    axes.yaxis.set_major_formatter("{x:g}")
    if high < 10:  # less than a decade, whose whole powers would be too few labels
        axes.yaxis.set_minor_formatter("{x:g}")
    axes.set_xticks(range(len(workloads)), workloads)
    axes.set_ylabel("round, times as long\nas fedprune's")
    axes.legend(fontsize="small", ncols=2)
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
    plt.close(figure)
