"""Draw the time of a step over the number of steps, as PNG and SVG. `tables.py` runs it."""

from __future__ import annotations

import json
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")
mpl.rcParams["svg.hashsalt"] = "iso-orchestrator"  # one input, one file

from matplotlib import pyplot as plt  # noqa: E402
from results import RESULTS, cell_in, labels  # noqa: E402
from suite import OURS, PEERS  # noqa: E402

HERE = Path(__file__).parent


def main() -> None:
    results = json.loads(RESULTS.read_text())
    figure, axes = plt.subplots(figsize=(9, 6))
    for peer in PEERS:
        cells = [cell_in(results, "chain", steps, peer.name) for steps in labels(results, "chain")]
        points = [(cell["done"], cell["values"]["step"][0] * 1e6) for cell in cells if "values" in cell]
        if points:
            is_baseline = peer.name.startswith("baseline")
            axes.plot(
                *zip(*points, strict=True),
                label=peer.name,
                marker="." if is_baseline else "o",
                linestyle=":" if is_baseline else "-",
                linewidth=3 if peer.name == OURS else 1.5,
                color="black" if peer.name == OURS else None,
            )
    axes.set(xscale="log", yscale="log", xlabel="steps in the chain", ylabel="microseconds for a step")
    axes.set_title("A chain of steps with results of 200 bytes")
    axes.grid(which="major", alpha=0.3)
    axes.legend(fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))
    figure.savefig(HERE / "cost-per-step.png", dpi=130, bbox_inches="tight")
    figure.savefig(HERE / "cost-per-step.svg", bbox_inches="tight", metadata={"Date": None})


if __name__ == "__main__":
    main()
