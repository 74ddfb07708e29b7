"""Rows of data/ledger.csv on Fashion-MNIST: how good the pictures of a model and a sampler are, and what they cost."""

import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm.auto import tqdm

from .. import data, recipes
from ..consistency import consistency_step
from ..denoiser import Denoiser, guided, told
from ..fast_samplers import ddim
from ..ledger import Row
from ..metrics import features, frechet
from ..parallel import converged, picard
from ..sampling import Result, prior
from ..schedules import log_snr_to_zero, uniform
from ..sde_samplers import ancestral
from ..training import device_name
from .rows import Drawing, by_sde_solver, by_solver, by_step, recorded, spread, status


@dataclass(frozen=True)
class Run:
    """One row of the ledger to be measured on Fashion-MNIST: a model, a sampler and its grid."""

    name: str
    D: Denoiser
    drawing: Drawing
    ts: Tensor
    guidance: float = 0.0
    weights: str = "fashion_teacher"


def in_batches(D: Denoiser, labels: Tensor, ts: Tensor, drawing: Drawing, seed: int, batch: int) -> tuple[Result, float]:
    """Images (N, 1, 28, 28) for the labels (N,), with their counts, and the seconds a batch took (median)."""
    generator = torch.Generator(labels.device).manual_seed(seed)
    images, seconds = [], []
    for cond in tqdm(labels.split(batch), desc=f"{len(ts) - 1} steps, seed {seed}", leave=False):
        x = prior(D, (len(cond), 1, 28, 28), generator, device=labels.device)
        start = time.perf_counter()
        result = drawing(generator)(D, x, ts, cond=cond)
        images.append(result.x.cpu())
        seconds.append(time.perf_counter() - start)
    return Result(torch.cat(images), result.nfe, result.depth), statistics.median(seconds)


def balanced(labels: Tensor, samples: int) -> list[Tensor]:
    """Disjoint sets of `samples` row numbers with as many of each class, as the samplers are asked for.

    A thousand held-out images in their own order have 87 of one class and 115 of another; that alone doubles the floor.
    """
    each, rows = samples // 10, [(labels == c).nonzero()[:, 0] for c in range(10)]
    sets = min(map(len, rows)) // max(each, 1)
    if samples % 10 or not each or not sets:
        raise ValueError(f"samples: expected a multiple of 10, at most {10 * min(map(len, rows))}, got {samples}")
    return [torch.cat([r[k * each:(k + 1) * each] for r in rows]) for k in range(sets)]


def _fashion_rows(device, samples, seeds, runs: Iterable[Run], batch: int | None = None) -> Iterable[Row]:
    """Two rows for every run: Frechet distance and class agreement, beside those of real images."""
    batch = min(samples, batch or (500 if device.type == "cuda" else 50))
    classifier = recipes.load("fashion_classifier", device)

    def seen(images: Tensor) -> Tensor:
        return features(classifier.features, images.to(device)).cpu()

    reference = seen(data.fashion_mnist("train")[0])
    images, classes = data.fashion_mnist("test")
    held_out = seen(images)
    floor = statistics.mean(frechet(held_out[rows], reference) for rows in balanced(classes, samples))
    agreement_of_real = recipes.accuracy(classifier, images, classes)
    labels = (torch.arange(samples) % 10).to(device)
    for run in runs:
        drawn = [in_batches(run.D, labels, run.ts, run.drawing, seed, batch) for seed in range(seeds)]
        result, seconds = drawn[0]
        common = {"method": run.name, "dataset": "fashion_mnist", "nfe": result.nfe, "depth": result.depth,
                  "batch": batch, "seconds": seconds, "device": device_name(device), "guidance": run.guidance,
                  "samples": samples, "seeds": seeds, "weights": run.weights, "status": status(samples, seeds)}
        distances = [frechet(seen(r.x), reference) for r, _ in drawn]
        agreements = [recipes.accuracy(classifier, r.x, labels) for r, _ in drawn]
        yield Row(metric="frechet", value=statistics.mean(distances), spread=spread(distances), floor=floor, **common)
        yield Row(metric="class_agreement", value=statistics.mean(agreements), spread=spread(agreements),
                  floor=agreement_of_real, **common)


@recorded
def baseline(device: torch.device, samples: int, seeds: int) -> Iterable[Row]:
    """Where the course starts: the Fashion-MNIST teacher by DDIM and by ancestral sampling, at 30, 100 and 1000 steps."""
    D = recipes.load("fashion_teacher", device)
    pairs = ((30, ddim), (30, ancestral), (1000, ancestral), (100, ancestral), (100, ddim), (1000, ddim))
    return _fashion_rows(device, samples, seeds, (Run(step.__name__, D, by_step(step), uniform(n, D.schedule))
                                                  for n, step in pairs))


@recorded
def few_steps(device: torch.device, samples: int, seeds: int) -> Iterable[Row]:
    """The same teacher at 30 and 10 steps by DPM-Solver++, as ODE and as SDE, in log-SNR down to 5 and then to t = 0."""
    D = recipes.load("fashion_teacher", device)
    solvers = {"dpm_solver_pp_sde": by_sde_solver, "dpm_solver_pp_2": by_solver, "ancestral_to_zero": by_step(ancestral)}
    return _fashion_rows(device, samples, seeds, (Run(name, D, drawing, log_snr_to_zero(n, D.schedule))
                                                  for n in (30, 10) for name, drawing in solvers.items()))


@recorded
def same_images(device: torch.device, samples: int, seeds: int) -> Iterable[Row]:
    """The teacher's 1000 ancestral steps in sequence and by `picard`, from the same starts and noise, few images at a time."""
    def picard_run(generator: torch.Generator) -> Callable[..., Result]:
        def run(D: Denoiser, x: Tensor, ts: Tensor, cond: Tensor) -> Result:
            sweep = converged(picard(D, x, ts, ancestral, generator=generator, window=100, std=0.5, secant=True, cond=cond))
            return Result(sweep.trajectory[-1], sweep.evaluations, sweep.rounds)
        return run

    D = recipes.load("fashion_teacher", device)
    ts = uniform(1000, D.schedule)
    runs = Run("picard", D, picard_run, ts), Run("ancestral", D, by_step(ancestral), ts)
    return _fashion_rows(device, samples, seeds, runs, batch=50 if device.type == "cuda" else 5)


@recorded
def guidance(device: torch.device, samples: int, seeds: int) -> Iterable[Row]:
    """What the guidance weight does: the teacher with two evaluations a step and its student with one, 16 steps of 2M."""
    teacher, student = (recipes.load(name, device) for name in ("fashion_teacher", "fashion_guided_student"))
    ts = log_snr_to_zero(16, teacher.schedule)
    weights = (0.0, 0.25, 0.5, 1.0, 2.0)
    runs = [Run("guided_teacher", guided(teacher, w), by_solver, ts, w) for w in weights[1:]]
    runs += [Run("guided_student", told(student, w), by_solver, ts, w, "fashion_guided_student") for w in weights]
    return _fashion_rows(device, samples, seeds, runs)


@recorded
def distillation(device: torch.device, samples: int, seeds: int) -> Iterable[Row]:
    """From thirty steps to one: progressive students and the consistency function, beside DDIM at the same counts.

    All at the guidance weight at which the teacher's pictures are nearest to real ones, and beside the teacher there.
    """
    w, student = recipes.CONSISTENCY_WEIGHT, recipes.load("fashion_guided_student", device)
    schedule = student.schedule

    def grid(n: int) -> Tensor:
        return torch.linspace(schedule.t_max, 0, n + 1, dtype=torch.float64)

    runs = []
    for n in (8, 4, 2, 1):
        weights = f"fashion_progressive_{n}"
        runs.append(Run("progressive", told(recipes.load(weights, device), w), by_step(ddim), grid(n), w, weights))
        runs.append(Run("guided_student_ddim", told(student, w), by_step(ddim), grid(n), w, "fashion_guided_student"))
    f, between = told(recipes.load("fashion_consistency", device), w), 0.75 * schedule.t_max
    for ts in (grid(1), torch.tensor([schedule.t_max, between, 0.0], dtype=torch.float64), grid(4)):
        runs.append(Run("consistency", f, by_step(consistency_step), ts, w, "fashion_consistency"))
    runs.append(Run("guided_student", told(student, w), by_solver, log_snr_to_zero(30, schedule), w, "fashion_guided_student"))
    return _fashion_rows(device, samples, seeds, runs)
