"""The picture: how gains spread over people, and what more pairs bring."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from best_of_n_study.study import TOLD, Study


def draw(file: Path, studies: Sequence[Study]) -> None:
    """Write the picture as PNG: one colour for each study."""
    # a figure of its own, not pyplot's: no global state, no display
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11.0, 4.8), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    spread, growth = figure.subplots(1, 2)
    for number, study in enumerate(studies):
        colour, ten = f"C{number}", study.after_ten
        ordered = np.sort(ten.gain_U)
        label = f"{study.name}: {100 * ten.share:.0f} %, mean {ten.mean:+.2f} ± {ten.error:.2f}"
        spread.plot(100 * (np.arange(len(ordered)) + 0.5) / len(ordered), ordered, color=colour, label=label)
        for title, style in (("by chance", "-"), ("suggested", "--")):
            curve = study.curves[title]
            pairs = list(curve)
            mean = np.array([each.mean for each in curve.values()])
            error = np.array([each.error for each in curve.values()])
            growth.plot(pairs, mean, style, marker="o", markersize=4, color=colour, label=f"{study.name}, {title}")
            growth.fill_between(pairs, mean - error, mean + error, alpha=0.15, color=colour, linewidth=0)
    spread.axhline(0, color="black", linewidth=1)
    spread.set(
        xlabel="people, in the order of their gain, %",
        ylabel="gain over the population's reward, log-odds of true taste",
        title=f"Each person's gain after {TOLD} pairs (share above 0)",
    )
    spread.legend(fontsize="small", loc="upper left")
    growth.axhline(0, color="black", linewidth=1)
    growth.set(
        xlabel="pairs that a person has answered",
        ylabel="mean gain, log-odds",
        title="Mean gain by pairs (± standard error over people)",
        xticks=list(studies[0].curves["by chance"]),
    )
    growth.legend(fontsize="small")
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file)
