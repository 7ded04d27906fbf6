"""Plots of an evaluation, as PNG files. Needs matplotlib, which a server does without."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from service.errors import ConfigurationError
from service.training.evaluation import Evaluation, Measured

if TYPE_CHECKING:
    from matplotlib.axes import Axes

if find_spec("matplotlib") is None:
    raise ConfigurationError("plots need matplotlib: pip install 'metareward[plots]', or leave --plots out")


def write_plots(result: Evaluation, directory: Path) -> list[Path]:
    """Write accuracy over shots, the calibration diagram and the histogram of users' gains.

    Returns:
        The files written.
    """
    directory.mkdir(parents=True, exist_ok=True)
    drawings = {"accuracy.png": _accuracy, "calibration.png": _calibration, "gains.png": _gains}
    return [_save(directory / name, draw, result) for name, draw in drawings.items()]


def _save(path: Path, draw: Any, result: Evaluation) -> Path:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    # a figure of its own, not pyplot's: no global state, no display
    figure = Figure(figsize=(6.0, 4.5), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    draw(figure.add_subplot(), result)
    figure.savefig(path)
    return path


def _accuracy(axes: Axes, result: Evaluation) -> None:
    shots = [measured.shots for measured in result.by_shots]
    mean = np.array([100 * measured.accuracy_U.mean() for measured in result.by_shots])
    error = np.array([100 * _standard_error(measured) for measured in result.by_shots])
    axes.plot(shots, mean, marker="o", label="adapted")
    axes.fill_between(shots, mean - error, mean + error, alpha=0.2, label="± standard error over users")
    if result.baseline is not None:
        axes.axhline(
            100 * result.baseline.accuracy_U.mean(), color="black", linestyle="--", label="tuned Bradley-Terry"
        )
    axes.set(xlabel="pairs of the user", ylabel="accuracy on query pairs, %", title="Accuracy over unseen users")
    axes.legend()


def _calibration(axes: Axes, result: Evaluation) -> None:
    last = result.by_shots[-1].calibration
    axes.plot([0.5, 1], [0.5, 1], color="black", linestyle="--", label="perfect")
    filled = last.count_C > 0
    share_C = last.count_C[filled] / last.count_C.sum()
    axes.plot(last.confidence_C[filled], last.accuracy_C[filled], color="tab:blue")
    axes.scatter(
        last.confidence_C[filled], last.accuracy_C[filled], s=20 + 600 * share_C, label="bin, area by pairs", alpha=0.7
    )
    axes.set(
        xlabel="confidence in the predicted side",
        ylabel="share predicted right",
        title=f"Calibration after {result.by_shots[-1].shots} pairs, error {last.error:.4f} "
        f"(perfect {result.by_shots[-1].perfect_error:.4f})",
    )
    axes.legend()


def _gains(axes: Axes, result: Evaluation) -> None:
    gain_U = 100 * (result.by_shots[-1].accuracy_U - result.population.accuracy_U)
    axes.hist(gain_U, bins=31)
    axes.axvline(0, color="black", linewidth=1)
    axes.axvline(gain_U.mean(), color="tab:red", label=f"mean {gain_U.mean():+.2f}")
    axes.set(
        xlabel=f"accuracy gained by {result.by_shots[-1].shots} pairs, points",
        ylabel="unseen users",
        title="Gain of each user over the population model",
    )
    axes.legend()


def _standard_error(measured: Measured) -> float:
    return float(measured.accuracy_U.std() / np.sqrt(len(measured.accuracy_U)))
