"""Recipes of the ring of eight spots, whose exact answers are known: minutes each."""

from dataclasses import replace

import torch
from torch import Tensor

from .. import training
from ..consistency import Trainee, closing, continuous_loss, training_loss
from ..denoiser import Preconditioned, Student, V
from ..fast_samplers import dpm_solver_pp
from ..networks import MLP
from ..sampling import last, prior
from ..schedules import CosineVP, log_snr_uniform
from ..targets import ring
from ..training import Trained
from .losses import diffusion_loss, test_loss
from .registry import recipe


def ring_data(seed: int = 0) -> list[Tensor]:
    """Twenty thousand points of the ring."""
    return [ring().sample(20_000, torch.Generator().manual_seed(seed)).float()]


@torch.no_grad()
def path_error(f: Student, n: int = 2000) -> dict[str, float]:
    """Mean distance of one step of f, from n starts, to the exact ends of their paths."""
    D = ring().denoiser(f.schedule)
    x = prior(D, (n, 2), torch.Generator().manual_seed(0), dtype=torch.float64)
    ends = last(dpm_solver_pp, D, x, log_snr_uniform(200, f.schedule), order=3).x
    device = next(f.parameters()).device
    return {"path_error": (f(x.float().to(device), f.schedule.t_max).cpu() - ends).norm(dim=1).mean().item()}


@recipe(build=lambda: Preconditioned(MLP(fastest=8.0), CosineVP(), V()), steps=4000, bf16=False)
def ring_teacher(model: Preconditioned, device, **run) -> tuple[Trained, dict[str, float]]:
    """Diffusion model of the ring of eight spots, with which the next two begin."""
    trained = training.train(diffusion_loss, model, ring_data(), batch=512, lr=2e-3, ema=0.999, device=device, **run)
    return trained, test_loss(diffusion_loss, trained.model, ring_data(seed=1), n=20_000)


@recipe(build=lambda: Student(MLP(fastest=8.0), CosineVP(), V()), steps=8000, start="ring_teacher", merit="path_error",
        bf16=False)
def ring_tuned(model: Student, device, **run) -> tuple[Trained, dict[str, float]]:
    """Consistency function of the ring by easy consistency tuning: no teacher, and a gap that closes."""
    loss = training_loss(closing(4.0, every=1500, mean=0.0, std=2.0, stages=4), c=0.1)
    trained = training.train(loss, Trainee(model, decay=0.9), ring_data(), batch=512, lr=1e-3, ema=0.999, device=device, **run)
    return replace(trained, model=trained.model.f), path_error(trained.model.f)


@recipe(build=lambda: Student(MLP(fastest=8.0), CosineVP(), V()), steps=8000, start="ring_teacher", merit="path_error",
        bf16=False)
def ring_continuous(model: Student, device, **run) -> tuple[Trained, dict[str, float]]:
    """Consistency function of the ring in continuous time: no gap, with the slope of the exact denoiser."""
    loss = continuous_loss(ring().denoiser(model.schedule))
    trained = training.train(loss, Trainee(model), ring_data(), batch=512, lr=1e-3, ema=0.999, device=device, **run)
    return replace(trained, model=trained.model.f), path_error(trained.model.f)
