"""Progressive distillation: one step of the student does what two of its teacher's do; and again, until one step is left.

Two stages (Meng et al. 2023). First guidance, which costs two evaluations, is taught to a network that is told the weight
and costs one. Then the number of DDIM steps is halved, and halved again (Salimans & Ho 2022). Labels and guidance are
optional throughout: an unlabelled 2-D density is distilled by the same functions.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from .arguments import mean_of, need_shape, need_within
from .denoiser import Denoiser, Preconditioned, guided, noised, per_row, told
from .fast_samplers import ddim
from .sampling import check_grid, draws, need_noise
from .schedules import Schedule, as_time
from .training import LossFunction


def x0_between(schedule: Schedule, x: Tensor, t, z: Tensor, s) -> Tensor:
    """The x0_hat with which one DDIM step from x (B, ...) at t lands on z at s (Salimans & Ho 2022, appendix G).

    DDIM is linear in x0_hat, so this is its inverse. At s = 0 it is z itself.
    """
    need_shape(z, x.shape, "z")
    alpha_t, sigma_t, alpha_s, sigma_s = (per_row(c, x) for c in (schedule.alpha(t), schedule.sigma(t),
                                                                  schedule.alpha(s), schedule.sigma(s)))
    return (z - sigma_s / sigma_t * x) / (alpha_s - sigma_s / sigma_t * alpha_t)


@torch.no_grad()
def two_step_target(D: Denoiser, x: Tensor, t, m, s, cond: Tensor | None = None) -> Tensor:
    """The x0_hat that takes a student from t to s in one DDIM step to where two of its teacher D, by way of m, end."""
    z = ddim(D, ddim(D, x, t, m, cond=cond), m, s, cond=cond)
    return x0_between(D.schedule, x, t, z, s)


@torch.no_grad()
def midpoint_target(D: Denoiser, x: Tensor, t, m, s, cond: Tensor | None = None) -> Tensor:
    """The same for a teacher D that takes one step of `midpoint`: what it sees at m is then the x0_hat of the whole step.

    For the first stage, whose teacher still has a flow to solve.
    """
    return D(ddim(D, x, t, m, cond=cond), m, cond)


def guidance_loss(teacher: Preconditioned, largest: float) -> LossFunction:
    """Stage one: the student told(w) should say what guided(teacher, w) says, for w uniform in [0, largest].

    loss(student, x0 (B, ...), labels (B,), generator). Times and weighting are those of denoising with t uniform.
    """
    need_within(largest, "largest", 0, math.inf)

    def loss(student: Preconditioned, x0: Tensor, cond: Tensor, generator: torch.Generator) -> Tensor:
        schedule, u = teacher.schedule, torch.rand(2, len(x0), generator=generator, device=x0.device)
        t, w = schedule.t_min + u[0] * (schedule.t_max - schedule.t_min), largest * u[1]
        x, _ = noised(schedule, x0, t, generator)
        with torch.no_grad():
            composite = guided(teacher, w)(x, t, cond)
        return mean_of((student.predict(x, t, cond, w[:, None]) - student.target(composite, x, t)).square())

    return loss


def halving_loss(teacher: Denoiser, ts: Tensor, largest: float | None = None,
                 target: Callable[..., Tensor] = two_step_target) -> LossFunction:
    """Stage two: one step of the student over two of the teacher's grid ts (2n+1,), at a random one of its n places.

    loss(student, x0 (B, ...)[, labels (B,)], generator). largest: for a teacher that is told its guidance weight, the largest
    to be drawn. The error of x0_hat has the weight max(snr, 1) of the paper's section 4, in any parameterisation.
    ValueError if ts has an odd number of steps, which cannot be halved.
    """
    if len(check_grid(ts)) % 2 == 0:
        raise ValueError(f"ts: expected an even number of steps, at least 2, got {len(ts) - 1}")

    def loss(student: Denoiser, x0: Tensor, *rest) -> Tensor:
        cond, generator = (None, *rest)[-2:]                                       # without labels cond is None
        grid = ts.to(x0)
        i = 2 * torch.randint(len(ts) // 2, (len(x0),), generator=generator, device=x0.device)
        x, _ = noised(teacher.schedule, x0, grid[i], generator)
        w = None if largest is None else largest * torch.rand(len(x0), generator=generator, device=x0.device)
        goal = target(told(teacher, w), x, grid[i], grid[i + 1], grid[i + 2], cond)
        weight = teacher.schedule.log_snr(grid[i]).exp().clamp(min=1)
        return mean_of(per_row(weight, x) * (told(student, w)(x, grid[i], cond) - goal).square())

    return loss


@draws(1)
def overshoot(D: Denoiser, x: Tensor, t, s, z: Tensor | None = None, cond: Tensor | None = None) -> Tensor:
    """The stochastic step of a guided student on a uniform grid: DDIM over two steps, then noise back over one.

    Lands at u = 2 s - t, with a student of half as many steps, and adds what the forward process adds between u and s
    (Meng et al. 2023, section 3.3). No noise is added where s = 0.
    """
    z, schedule = need_noise(z, x, "overshoot"), D.schedule
    u = (2 * as_time(s) - t).clamp(min=0)
    x = ddim(D, x, t, u, cond=cond)
    ratio = schedule.alpha(s) / schedule.alpha(u)
    fresh = (schedule.sigma(s) ** 2 - (ratio * schedule.sigma(u)) ** 2).clamp(min=0).sqrt()   # in the precision of times
    return per_row(ratio, x) * x + per_row(fresh, x) * z
