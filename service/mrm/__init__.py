"""The mathematics of serving: NumPy float64, no torch, no I/O."""

from service.mrm.solve import solve
from service.mrm.state import GaussianStart, SoftmaxStart, Start, Support, UserState

__all__ = ["GaussianStart", "SoftmaxStart", "Start", "Support", "UserState", "solve"]
