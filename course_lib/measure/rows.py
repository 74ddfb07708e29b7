"""What all measurements of data/ledger.csv share: rows recorded as they come, whether they may be quoted, and how one draws.

A row is `full` with at least 10,000 samples and three seeds, otherwise `provisional`.
"""

import statistics
from collections.abc import Callable, Iterable
from functools import partial

import torch

from .. import data
from ..fast_samplers import dpm_solver_pp, dpm_solver_pp_sde
from ..ledger import Row, record
from ..sampling import Result, Step, final, last
from ..training import default_device

FULL = {"samples": 10_000, "seeds": 3}


def recorded(function: Callable[..., Iterable[Row]]) -> Callable[..., list[Row]]:
    """A generator of rows as a measurement: each is recorded as soon as it is there, so that a kill loses one."""

    def run(device=None, samples: int | None = None, seeds: int | None = None) -> list[Row]:
        device = torch.device(device) if device else default_device()
        samples = samples or (FULL["samples"] if device.type == "cuda" else 1000)
        rows = []
        for row in function(device, samples, seeds or (FULL["seeds"] if device.type == "cuda" else 1)):
            rows.append(row)
            record(data.ROOT / "data" / "ledger.csv", [row])
        return rows

    run.__doc__, run.__name__ = function.__doc__, function.__name__
    return run


def status(samples: int, seeds: int) -> str:
    """full, if the sample is large enough to be quoted."""
    return "full" if samples >= FULL["samples"] and seeds >= FULL["seeds"] else "provisional"


def spread(values: list[float]) -> float | None:
    """Standard deviation over seeds; None for a single one."""
    return statistics.stdev(values) if len(values) > 1 else None


# ---------------------------------------------------------------------------------------------- how one draws
Drawing = Callable[[torch.Generator], Callable[..., Result]]  # run(D, x, ts, cond=None) with noise from that generator


def by_step(step: Step) -> Drawing:
    """A one-step method as what `in_batches` draws with."""
    return lambda generator: partial(final, step=step, generator=generator)


def by_solver(_: torch.Generator) -> Callable[..., Result]:
    """DPM-Solver++(2M), which draws nothing."""
    return partial(last, dpm_solver_pp)


def by_sde_solver(generator: torch.Generator) -> Callable[..., Result]:
    """SDE-DPM-Solver++(2M)."""
    return partial(last, dpm_solver_pp_sde, generator=generator)
