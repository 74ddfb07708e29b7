"""Three losses with one minimiser, the score; and Langevin dynamics, which samples with it.

A score function here is any callable x (B, d) -> (B, d). Losses carry the factor 1/2 of the papers, so that the denoising
loss minus the implicit loss, both on the noisy data, is d/(2 sigma^2) (Vincent 2011).
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from .denoiser import Denoiser, Preconditioned, per_row, score

ScoreFunction = Callable[[Tensor], Tensor]


def divergence(f: ScoreFunction, x: Tensor) -> tuple[Tensor, Tensor]:
    """f(x) (B, d) and its exact divergence tr(df/dx) (B,): one backward pass a dimension, differentiable."""
    x = x.detach().requires_grad_()
    y = f(x)
    rows = [torch.autograd.grad(y[:, i].sum(), x, create_graph=True)[0][:, i] for i in range(x.shape[1])]
    return y, torch.stack(rows).sum(0)


def implicit_loss(score_function: ScoreFunction, x: Tensor) -> Tensor:
    """E[ |s|^2/2 + tr(ds/dx) ]: no density needed, but d backward passes (Hyvarinen 2005, theorem 1)."""
    s, trace = divergence(score_function, x)
    return (s.square().sum(1) / 2 + trace).mean()


def sliced_loss(s: ScoreFunction, x: Tensor, v: Tensor) -> Tensor:
    """E[ |s|^2/2 + v' (ds/dx) v ]: one backward pass, for v (B, d) with E[v v'] = I (Song et al. 2019, eq. 8)."""
    if v.shape != x.shape:
        raise ValueError(f"v: expected one direction per row, shape {tuple(x.shape)}, got {tuple(v.shape)}")
    x = x.detach().requires_grad_()
    s_x = s(x)
    slope = torch.autograd.grad((s_x * v).sum(), x, create_graph=True)[0]                     # v' ds/dx
    return (s_x.square().sum(1) / 2 + (slope * v).sum(1)).mean()


def denoising_score_loss(s: ScoreFunction, x0: Tensor, sigma: float, eps: Tensor) -> Tensor:
    """E[ |s(x0 + sigma eps) + eps/sigma|^2 ]/2: no derivative at all (Vincent 2011, eq. 11)."""
    residual = s(x0 + sigma * eps) + eps / sigma
    return residual.square().sum(1).mean() / 2


def denoising_loss(model: Preconditioned, x0: Tensor, t: Tensor, noise: Tensor, cond: Tensor | None = None) -> Tensor:
    """Mean squared error of the network on its own target, at times t (B,): how every diffusion model here is trained.

    The parameterisation fixes target and weighting; for Eps it is |eps_hat - eps|^2 (Ho et al. 2020, eq. 14).
    """
    x = per_row(model.schedule.alpha(t), x0) * x0 + per_row(model.schedule.sigma(t), x0) * noise
    return (model.predict(x, t, cond) - model.target(x0, x, t)).square().mean()


def langevin(score_function: ScoreFunction, x: Tensor, size: float, steps: int,
             generator: torch.Generator | None = None) -> Iterator[Tensor]:
    """Unadjusted Langevin dynamics x <- x + size s(x) + sqrt(2 size) z: yields every state; biased by O(size)."""
    if not size > 0:
        raise ValueError(f"size: expected a positive step size, got {size!r}")
    for _ in range(steps):
        z = torch.randn(x.shape, generator=generator, dtype=x.dtype, device=x.device)
        x = x + size * score_function(x) + (2 * size) ** 0.5 * z
        yield x


def annealed_langevin(D: Denoiser, x: Tensor, ts: Tensor, steps: int, snr: float = 0.3,
                      generator: torch.Generator | None = None) -> Iterator[Tensor]:
    """Langevin dynamics at each noise level of ts in turn, size 2 (snr sigma)^2 (Song & Ermon 2019, algorithm 1).

    Yields one state a level. Meant for schedules with alpha = 1 (VE); others would have to rescale x between levels.
    """
    for t in ts:
        size = 2 * (snr * D.schedule.sigma(t).item()) ** 2
        *_, x = langevin(lambda y, t=t: score(D, y, t), x, size, steps, generator)
        yield x
