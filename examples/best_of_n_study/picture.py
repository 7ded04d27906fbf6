"""The picture: how gains spread over people, and what more pairs bring."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from best_of_n_study.study import BEST, RANDOM, TOLD


def draw(file: Path, studies: Mapping[str, Mapping[str, Any]]) -> None:
    """Write the picture as PNG: one colour for each study.

    Args:
        file: Where to.
        studies: By name, as `study.as_json` has them.
    """
    # a figure of its own, not pyplot's: no global state, no display
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12.0, 5.4), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    spread, growth = figure.subplots(1, 2)
    for number, (name, study) in enumerate(studies.items()):
        colour, got = f"C{number}", study["got"]
        # tastes are stronger in some studies than in others: what the best answers are worth makes them comparable
        worth = np.mean(got[BEST]) - np.mean(got[RANDOM])
        shares = []
        for title, style in (("by chance", "-"), ("suggested", "--")):
            curve = {int(pairs): 100 * np.array(gains) / worth for pairs, gains in study["gain"][title].items()}
            ten = np.sort(curve[TOLD])
            shares.append(f"{100 * (ten > 0).mean():.0f} % {title}")
            if title == "by chance":
                spread.plot(100 * (np.arange(len(ten)) + 0.5) / len(ten), ten, color=colour)
            mean = np.array([each.mean() for each in curve.values()])
            error = np.array([each.std(ddof=1) / np.sqrt(len(each)) for each in curve.values()])
            growth.plot(list(curve), mean, style, marker="o", markersize=4, color=colour)
            growth.fill_between(list(curve), mean - error, mean + error, alpha=0.12, color=colour, linewidth=0)
            growth.set_xticks(list(curve))
        spread.plot([], [], color=colour, label=f"{name}; get more: {', '.join(shares)}")
    for axes in (spread, growth):
        axes.axhline(0, color="black", linewidth=1)
        axes.set_ylabel("gain over the population's reward,\n% of what the best of 16 are worth over random ones")
    spread.set(
        xlabel="people, in the order of their gain, %",
        title=f"Each person's gain after {TOLD} pairs by chance",
        ylim=(-40, 60),
    )
    growth.set(
        xlabel="pairs that a person has answered",
        title="Mean gain (± standard error over people)\nquestions by chance —, suggested - -",
    )
    # one legend for both, below them
    handles, labels = spread.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", fontsize="small")
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file)
