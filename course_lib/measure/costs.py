"""What parallel sampling will cost on a device whose times were measured."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..arguments import need_whole


@dataclass(frozen=True)
class CostModel:
    """Seconds of one network evaluation of a batch, latency + per_row * rows, and of what the devices then tell each other.

    Straight lines are a coarse picture of a device: a GPU takes no longer for 100 rows than for one. Fit it where it is used.
    """

    latency: float
    per_row: float
    exchange: float = 0.0  # a round's messages: a latency,
    exchange_per_row: float = 0.0  # and a time for each row, which every device receives

    @classmethod
    def fit(cls, rows: Tensor, seconds: Tensor, **exchange: float) -> "CostModel":
        """From measured seconds of batches of so many rows: least squares of *relative* errors, nothing negative."""
        rows, seconds = rows.double(), seconds.double()
        if rows.ndim != 1 or rows.shape != seconds.shape or len(rows) < 2 or not bool(((rows > 0) & (seconds > 0)).all()):
            raise ValueError(f"rows, seconds: expected two or more positive numbers of each, got {rows} and {seconds}")
        A = torch.stack([1 / seconds, rows / seconds], 1)
        both = torch.linalg.lstsq(A, torch.ones_like(seconds)[:, None]).solution[:, 0]
        alone = A.sum(0) / A.square().sum(0)                                      # the best line with only one of the parts
        latency, per_row = both.tolist() if bool((both >= 0).all()) else (
            (alone[0].item(), 0.0) if both[1] < 0 else (0.0, alone[1].item()))
        return cls(latency, per_row, **exchange)

    @property
    def free_rows(self) -> float:
        """How many rows cost as much as the latency does: so many come nearly free with the first, all where times are flat."""
        return self.latency / self.per_row if self.per_row else math.inf

    def sequential(self, steps: int, batch: int = 1) -> float:
        """Seconds of so many evaluations, one after the other."""
        return steps * (self.latency + self.per_row * batch)

    def parallel(self, rounds: int, evaluations: int, batch: int = 1, devices: int = 1) -> float:
        """Seconds of a parallel run, whose rows are shared evenly and exchanged once a round."""
        rows, devices = evaluations * batch, need_whole(devices, "devices")
        alone = rounds * self.latency + rows / devices * self.per_row
        return alone + (rounds * self.exchange + rows * self.exchange_per_row if devices > 1 else 0.0)

    def speed_up(self, steps: int, rounds: int, evaluations: int, batch: int = 1, devices: int = 1) -> float:
        """How many times sooner than in sequence; below 1 the device was busy enough before."""
        return self.sequential(steps, batch) / self.parallel(rounds, evaluations, batch, devices)
