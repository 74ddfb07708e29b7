"""Rows of data/ledger.csv: how good samples are and what they cost, on Fashion-MNIST and on the ring.

A row is `full` with at least 10,000 samples and three seeds, otherwise `provisional`.
"""

import statistics
import time
from collections.abc import Callable, Iterable
from functools import partial

import torch
from torch import Tensor
from tqdm.auto import tqdm

from ... import data, recipes
from ...denoiser import Denoiser
from ...fast_samplers import ddim, dpm_solver_pp, dpm_solver_pp_sde
from ...ledger import Row, record
from ...metrics import features, fold, frechet, sliced_wasserstein
from ...ode_samplers import euler, heun, rk45
from ...parallel import converged, picard
from ...sampling import Result, Step, final, last, prior
from ...schedules import LinearVP, log_snr_to_zero, uniform
from ...sde_samplers import ancestral, euler_maruyama, predictor_corrector
from ...targets import ring
from ...training import default_device, device_name

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


# ---------------------------------------------------------------------------------------------- Fashion-MNIST
Drawing = Callable[[torch.Generator], Callable[..., Result]]  # run(D, x, ts, cond=None) with noise from that generator


def by_step(step: Step) -> Drawing:
    """A one-step method as what `in_batches` draws with."""
    return lambda generator: partial(final, step=step, generator=generator)


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


def _fashion_rows(device, samples, seeds, runs: Iterable[tuple[str, Drawing, Callable[..., Tensor], int]],
                  batch: int | None = None) -> Iterable[Row]:
    """Two rows for every (name, drawing, grid, steps): Frechet distance and class agreement, beside those of real images."""
    batch = min(samples, batch or (500 if device.type == "cuda" else 50))
    D = recipes.load("fashion_teacher", device)
    classifier = recipes.load("fashion_classifier")
    reference = features(classifier.features, data.fashion_mnist("train")[0])
    images, classes = data.fashion_mnist("test")
    held_out = features(classifier.features, images)
    floor = statistics.mean(frechet(held_out[rows], reference) for rows in balanced(classes, samples))
    agreement_of_real = recipes.accuracy(classifier, images, classes)
    labels = (torch.arange(samples) % 10).to(device)
    for name, drawing, grid, n in runs:
        drawn = [in_batches(D, labels, grid(n, D.schedule), drawing, seed, batch) for seed in range(seeds)]
        result, seconds = drawn[0]
        common = {"method": name, "dataset": "fashion_mnist", "nfe": result.nfe, "depth": result.depth,
                  "batch": batch, "seconds": seconds, "device": device_name(device),
                  "samples": samples, "seeds": seeds, "weights": "fashion_teacher", "status": status(samples, seeds)}
        distances = [frechet(features(classifier.features, r.x), reference) for r, _ in drawn]
        agreements = [recipes.accuracy(classifier, r.x, labels) for r, _ in drawn]
        yield Row(metric="frechet", value=statistics.mean(distances), spread=spread(distances), floor=floor, **common)
        yield Row(metric="class_agreement", value=statistics.mean(agreements), spread=spread(agreements),
                  floor=agreement_of_real, **common)


@recorded
def baseline(device: torch.device, samples: int, seeds: int) -> Iterable[Row]:
    """Where the course starts: the Fashion-MNIST teacher by DDIM and by ancestral sampling, at 30, 100 and 1000 steps."""
    pairs = ((30, ddim), (30, ancestral), (1000, ancestral), (100, ancestral), (100, ddim), (1000, ddim))
    return _fashion_rows(device, samples, seeds, ((step.__name__, by_step(step), uniform, n) for n, step in pairs))


@recorded
def few_steps(device: torch.device, samples: int, seeds: int) -> Iterable[Row]:
    """The same teacher at 30 and 10 steps by DPM-Solver++, as ODE and as SDE, in log-SNR down to 5 and then to t = 0."""
    solvers = {"dpm_solver_pp_sde": lambda generator: partial(last, dpm_solver_pp_sde, generator=generator),
               "dpm_solver_pp_2": lambda _: partial(last, dpm_solver_pp), "ancestral_to_zero": by_step(ancestral)}
    return _fashion_rows(device, samples, seeds,
                         ((name, drawing, log_snr_to_zero, n) for n in (30, 10) for name, drawing in solvers.items()))


@recorded
def same_images(device: torch.device, samples: int, seeds: int) -> Iterable[Row]:
    """The teacher's 1000 ancestral steps in sequence and by `picard`, from the same starts and noise, few images at a time."""
    def picard_run(generator: torch.Generator) -> Callable[..., Result]:
        def run(D: Denoiser, x: Tensor, ts: Tensor, cond: Tensor) -> Result:
            sweep = converged(picard(D, x, ts, ancestral, generator=generator, window=100, std=0.5, secant=True, cond=cond))
            return Result(sweep.trajectory[-1], sweep.evaluations, sweep.rounds)
        return run

    runs = (("picard", picard_run, uniform, 1000), ("ancestral", by_step(ancestral), uniform, 1000))
    return _fashion_rows(device, samples, seeds, runs, batch=50 if device.type == "cuda" else 5)


# ---------------------------------------------------------------------------------------------- the ring
@recorded
def ring_sde(device: torch.device, samples: int, seeds: int) -> Iterable[Row]:
    """Reverse-time SDE samplers on the ring of eight Gaussians with the exact score, from 1000 steps down to 10."""
    steps = {"euler_maruyama": euler_maruyama, "ancestral": ancestral, "predictor_corrector": predictor_corrector()}
    return _ring_rows(device, samples, seeds, ((name, by_step(step), n) for n in (10, 30, 100, 1000)
                                               for name, step in steps.items()))


@recorded
def ring_ode(device: torch.device, samples: int, seeds: int) -> Iterable[Row]:
    """Solvers of the probability flow on the same ring: fixed steps from 1000 down to 10, and RK45 at its tolerances."""
    solvers = {"euler": by_step(euler), "heun": by_step(heun), "ddim": by_step(ddim),
               "dpm_solver_pp_2": lambda _: partial(last, dpm_solver_pp)}
    runs = [(name, drawing, n) for n in (10, 30, 100, 1000) for name, drawing in solvers.items()]
    for tolerance in (1e-2, 1e-3, 1e-4):
        adaptive = partial(last, rk45, rtol=tolerance, atol=tolerance)
        runs.append((f"rk45 ({tolerance:g})", lambda _, adaptive=adaptive: adaptive, 1))
    return _ring_rows(device, samples, seeds, runs)


def _ring_rows(device, samples, seeds, runs: Iterable[tuple[str, Drawing, int]]) -> Iterable[Row]:
    """Two rows for every (name, drawing, uniform steps): sliced Wasserstein distance, of the ring as it is and folded."""
    samples, seeds = max(samples, FULL["samples"]), max(seeds, FULL["seeds"])  # two dimensions are cheap on any device
    target, schedule = ring(), LinearVP()
    D = target.denoiser(schedule)

    def exact(seed: int) -> Tensor:
        return target.sample(samples, torch.Generator().manual_seed(seed))

    views = {"sliced_w2": lambda x: x, "sliced_w2_folded": fold}
    floors = {metric: statistics.mean(sliced_wasserstein(view(exact(1000 + s)), view(exact(2000 + s))) for s in range(seeds))
              for metric, view in views.items()}
    for name, drawing, n in runs:
        ends, start = [], time.perf_counter()
        for seed in range(seeds):
            generator = torch.Generator(device).manual_seed(seed)
            x = prior(D, (samples, 2), generator, device=device)
            result = drawing(generator)(D, x, uniform(n, schedule))
            ends.append(result.x.cpu())
        seconds = (time.perf_counter() - start) / seeds
        for metric, view in views.items():
            distances = [sliced_wasserstein(view(x), view(exact(1000 + seed))) for seed, x in enumerate(ends)]
            yield Row(method=name, dataset="ring", nfe=result.nfe, depth=result.depth, batch=samples, seconds=seconds,
                      device=device_name(device), metric=metric, value=statistics.mean(distances),
                      spread=spread(distances), floor=floors[metric], samples=samples, seeds=seeds, weights="exact",
                      status=status(samples, seeds))
