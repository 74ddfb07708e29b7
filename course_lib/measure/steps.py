"""steps.csv: what a step of training, and an evaluation, take of a device, by the size of the batch and by precision."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch

from .. import data, recipes
from ..ledger import write_table
from ..sampling import prior
from ..training import default_device, device_name, has_bf16, train


@dataclass(frozen=True)
class StepRow:
    """A line of data/steps.csv: a step of "training", an "evaluation", or one that is "replayed" as a CUDA graph."""

    model: str
    what: str
    precision: str  # "float32" or "bfloat16"
    batch: int
    seconds: float
    memory_mib: float | None  # at most, of the GPU's
    device: str


BATCHES = (1, 8, 64, 512, 2048)


def steps(device=None, samples: int | None = None, seeds: int | None = None) -> list[StepRow]:
    """Seconds and memory of steps of the Fashion-MNIST teacher, as they grow with the batch; half a minute on a GPU.

    Writes data/steps.csv. `samples` is the largest batch (2048 on a GPU, 64 elsewhere); `seeds` counts for nothing.
    """
    device = torch.device(device) if device else default_device()
    largest, rows = samples or (2048 if device.type == "cuda" else 64), []
    for batch in (b for b in BATCHES if b <= largest):
        for bf16 in (False, True) if has_bf16(device) else (False,):
            for what, run in (("training", _training), ("evaluation", _evaluation), ("replayed", _replayed)):
                if device.type == "cuda":
                    torch.cuda.reset_peak_memory_stats(device)
                seconds = run(device, batch, bf16)
                memory = torch.cuda.max_memory_allocated(device) / 2**20 if device.type == "cuda" else None
                if seconds is not None:
                    rows.append(StepRow("fashion_teacher", what, "bfloat16" if bf16 else "float32", batch, seconds, memory,
                                        device_name(device)))
        write_table(data.ROOT / "data" / "steps.csv", rows)                     # after each batch: a kill loses one
    return rows


def _training(device: torch.device, batch: int, bf16: bool) -> float:
    """Of the loop itself: draws, loss, gradient, optimiser and average."""
    clothes, n = data.fashion_mnist("train"), 30 if device.type == "cuda" else 2

    def run(n: int) -> float:
        model = recipes.known("fashion_teacher").build()
        return train(recipes.diffusion_loss, model, clothes, steps=n, batch=batch, bf16=bf16, device=device,
                     progress=False).seconds

    few = run(1)                                                                # kernels are loaded and chosen
    return max(run(1 + n) - min(few, run(1)), 0.0) / n


def _evaluation(device: torch.device, batch: int, bf16: bool) -> float:
    return _least(_evaluated(device, batch, bf16), device)


def _replayed(device: torch.device, batch: int, bf16: bool) -> float | None:
    replay = captured(_evaluated(device, batch, bf16)) if device.type == "cuda" else None
    return replay and _least(replay, device)


def _evaluated(device: torch.device, batch: int, bf16: bool) -> Callable[[], object]:
    D = recipes.load("fashion_teacher", device)
    x, t = prior(D, (batch, 1, 28, 28), device=device), torch.full((batch,), 0.5, device=device)
    cond = torch.arange(batch, device=device) % 10

    @torch.no_grad()
    def run() -> torch.Tensor:
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16, cache_enabled=False):
            return D(x, t, cond)

    return run


def captured(run: Callable[[], object]) -> Callable[[], None] | None:
    """All kernels of a run as one CUDA graph, to be launched at once; None, and the reason is printed, if it has none."""
    try:
        with torch.cuda.stream(torch.cuda.Stream()):
            for _ in range(3):                                                  # what is chosen once is chosen before
                run()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            run()
        return graph.replay
    except (RuntimeError, AssertionError) as error:                             # AssertionError: of a torch without CUDA
        print(f"no CUDA graph: {str(error).partition(chr(10))[0]}")
        return None


def _least(run: Callable[[], object], device: torch.device, repeats: int = 8) -> float:
    """The least seconds of a run."""
    wait = partial(torch.cuda.synchronize, device) if device.type == "cuda" else int
    run()
    wait()
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        wait()
        seconds.append(time.perf_counter() - start)
    return min(seconds)
