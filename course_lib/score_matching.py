"""Three losses with one minimiser, the score; and Langevin dynamics, which samples with it.

A score function here is any callable x (B, d) -> (B, d). Losses carry the factor 1/2 of the papers, so that the denoising
loss minus the implicit loss, both on the noisy data, is d/(2 sigma^2) (Vincent 2011).
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from .arguments import mean_of, need_positive, need_shape, need_state, need_whole
from .denoiser import Denoiser, Preconditioned, per_row, score
from .sampling import need_finite

ScoreFunction = Callable[[Tensor], Tensor]


def need_points(x: Tensor, name: str = "x") -> Tensor:
    """x, if it is a batch of points (B, d)."""
    return need_shape(need_state(x, name), (len(x), x.shape[1]), name, "points (B, d), ")


def divergence(f: ScoreFunction, x: Tensor) -> tuple[Tensor, Tensor]:
    """f(x) (B, d) and its exact divergence tr(df/dx) (B,): one backward pass a dimension, differentiable."""
    x = need_points(x).detach().requires_grad_()
    y = f(x)
    rows = [torch.autograd.grad(y[:, i].sum(), x, create_graph=True)[0][:, i] for i in range(x.shape[1])]
    return y, torch.stack(rows).sum(0)


def implicit_loss(score_function: ScoreFunction, x: Tensor) -> Tensor:
    """E[ |s|^2/2 + tr(ds/dx) ]: no density needed, but d backward passes (Hyvarinen 2005, theorem 1)."""
    s, trace = divergence(score_function, x)
    return mean_of(s.square().sum(1) / 2 + trace, "x")


def sliced_loss(s: ScoreFunction, x: Tensor, v: Tensor) -> Tensor:
    """E[ |s|^2/2 + v' (ds/dx) v ]: one backward pass, for v (B, d) with E[v v'] = I (Song et al. 2019, SSM-VR)."""
    x = need_points(x).detach().requires_grad_()
    need_shape(v, x.shape, "v", "one direction per row, ")
    s_x = s(x)
    slope = torch.autograd.grad((s_x * v).sum(), x, create_graph=True)[0]                     # v' ds/dx
    return mean_of(s_x.square().sum(1) / 2 + (slope * v).sum(1), "x")


def denoising_score_loss(s: ScoreFunction, x0: Tensor, sigma: float, eps: Tensor) -> Tensor:
    """E[ |s(x0 + sigma eps) + eps/sigma|^2 ]/2: no derivative at all (Vincent 2011, section 4.2)."""
    need_positive(sigma, "sigma")
    need_shape(eps, need_points(x0, "x0").shape, "eps")
    residual = s(x0 + sigma * eps) + eps / sigma
    return mean_of(residual.square().sum(1)) / 2


def denoising_loss(model: Preconditioned, x0: Tensor, t: Tensor, noise: Tensor, cond: Tensor | None = None) -> Tensor:
    """Mean squared error of the network on its own target, at times t (B,): how every diffusion model here is trained.

    The parameterisation fixes target and weighting; for Eps it is |eps_hat - eps|^2 (Ho et al. 2020, eq. 14).
    """
    need_shape(noise, x0.shape, "noise")
    x = per_row(model.schedule.alpha(t), x0) * x0 + per_row(model.schedule.sigma(t), x0) * noise
    return mean_of((model.predict(x, t, cond) - model.target(x0, x, t)).square())


def langevin(score_function: ScoreFunction, x: Tensor, size: float, steps: int,
             generator: torch.Generator | None = None) -> Iterator[Tensor]:
    """Unadjusted Langevin dynamics x <- x + size s(x) + sqrt(2 size) z: yields every state; biased by O(size)."""
    need_state(x)
    need_positive(size, "size", "a positive step size")
    need_whole(steps, "steps")
    for _ in range(steps):
        z = torch.randn(x.shape, generator=generator, dtype=x.dtype, device=x.device)
        x = x + size * score_function(x) + (2 * size) ** 0.5 * z
        yield x


def annealed_langevin(D: Denoiser, x: Tensor, ts: Tensor, steps: int, snr: float = 0.3,
                      generator: torch.Generator | None = None) -> Iterator[Tensor]:
    """Langevin dynamics at each noise level of ts (n,) in turn, size 2 (snr sigma)^2 (Song & Ermon 2019, algorithm 1).

    Yields one state a level. Meant for schedules with alpha = 1 (VE); others would have to rescale x between levels.
    """
    if ts.ndim != 1 or not len(ts) or not bool((ts[1:] < ts[:-1]).all()):
        raise ValueError(f"ts: expected times (n,) that fall from noise to data, got {ts.tolist()[:8]}")
    for t in ts:
        size = 2 * (snr * D.schedule.sigma(t).item()) ** 2
        *_, x = langevin(lambda y, t=t: score(D, y, t), x, size, steps, generator)
        yield need_finite(x, t, t)
