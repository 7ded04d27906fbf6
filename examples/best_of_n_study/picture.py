"""The picture: how gains spread over people, and what more pairs bring."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from best_of_n_study.study import TOLD


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
        colour = f"C{number}"
        for title, style in (("by chance", "-"), ("suggested", "--")):
            curve = {int(pairs): np.array(gains) for pairs, gains in study["gain"][title].items()}
            ten = np.sort(curve[TOLD])
            share = 100 * (ten > 0).mean()
            place = 100 * (np.arange(len(ten)) + 0.5) / len(ten)
            spread.plot(place, ten, style, color=colour, label=f"{name}, {title}: {share:.0f} % above 0")
            mean = np.array([each.mean() for each in curve.values()])
            error = np.array([each.std(ddof=1) / np.sqrt(len(each)) for each in curve.values()])
            growth.plot(list(curve), mean, style, marker="o", markersize=4, color=colour, label=f"{name}, {title}")
            growth.fill_between(list(curve), mean - error, mean + error, alpha=0.15, color=colour, linewidth=0)
            growth.set_xticks(list(curve))
    for axes in (spread, growth):
        axes.axhline(0, color="black", linewidth=1)
    spread.set(
        xlabel="people, in the order of their gain, %",
        ylabel="gain over the population's reward, log-odds of true taste",
        title=f"Each person's gain after {TOLD} pairs",
    )
    growth.set(
        xlabel="pairs that a person has answered",
        ylabel="mean gain over the population's reward, log-odds",
        title="Mean gain by pairs (± standard error over people)",
    )
    # one legend for both, below them
    handles, labels = spread.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, fontsize="small")
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file)
