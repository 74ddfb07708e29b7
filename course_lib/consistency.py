"""Consistency models and flow maps: learn where the flow goes instead of following it.

A consistency function f(x_t, t) is the end x_0 of the probability flow through x_t (Song et al. 2023). Three facts make it
learnable: it is constant along every path, f(x_t, t) = f(x_r, r); it is the identity at t = 0; and of x_t and x_r on one
path, the one nearer the data has the easier task and can teach the other.

Here f is a `Student` in training inside a `Trainee`, which holds the copy that teaches. Noise levels are compared by the ratio
sigma/alpha, the sigma of Karras et al. 2022, whatever the schedule.
"""

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.func import jvp
from torch.nn.attention import SDPBackend, sdpa_kernel

from .arguments import mean_of, need_positive, need_whole, need_within, widened
from .denoiser import Denoiser, Student, eps, for_rows, levels, noised, per_row, told
from .fast_samplers import ddim
from .sampling import Step, check_grid, draws, need_noise, sample
from .schedules import Schedule, as_time
from .training import LossFunction

Pairs = Callable[..., tuple[Tensor, Tensor]]  # pairs(B, schedule, generator, age) -> times t (B,) and r (B,) with r < t


class Trainee(nn.Module):
    """A consistency function in training: f, the slow copy of it that teaches, and its age in steps.

    decay is that of the copy: near 1 an average over the past (Song et al. 2023), 0 for f itself as it stands, without gradient
    (Song & Dhariwal 2024).
    """

    def __init__(self, f: Student, decay: float = 0.0):
        super().__init__()
        self.decay = need_within(decay, "decay", 0, 1)
        self.f, self.slow = f, copy.deepcopy(f).requires_grad_(False)
        self.register_buffer("age", torch.zeros((), dtype=torch.long))

    @torch.no_grad()
    def grow(self) -> None:
        """A step older: the copy follows f."""
        torch._foreach_lerp_(list(self.slow.parameters()), list(self.f.parameters()), 1 - self.decay)
        self.age += 1


# ---------------------------------------------------------------------------------------------- which times
def ratio(schedule: Schedule, t: Tensor) -> Tensor:
    """sigma/alpha at t."""
    return schedule.sigma(t) / schedule.alpha(t)


def lognormal(B: int, schedule: Schedule, generator: torch.Generator, mean: float, std: float) -> Tensor:
    """Ratios (B,) with a normal logarithm, none beyond that of t_max."""
    normal = torch.randn(B, generator=generator, device=generator.device if generator else None)
    return (mean + std * normal).exp().clamp(max=ratio(schedule, as_time(schedule.t_max)).item())


def neighbours(ts: Tensor) -> Pairs:
    """Pairs of adjacent times of a grid ts (n+1,), all equally often (Song et al. 2023, algorithm 2)."""
    check_grid(ts)

    def pairs(B: int, schedule: Schedule, generator: torch.Generator, age: int | Tensor) -> tuple[Tensor, Tensor]:
        grid = ts.to(generator.device) if generator else ts
        i = torch.randint(len(ts) - 1, (B,), generator=generator, device=grid.device)
        return grid[i], grid[i + 1]

    return pairs


def closing(q: float = 2.0, every: int = 1000, mean: float = -1.1, std: float = 2.0, stages: int = 8) -> Pairs:
    """Pairs whose gap closes as training goes on: lognormal ratios, r/t = 1 - (1 + 8 sigmoid(-t))/q^(1 + stage).

    The stage rises by one `every` so many steps, up to `stages`; r = 0, plain denoising, where the formula is negative
    (Geng et al. 2024, "easy consistency tuning"; the lognormal of Song & Dhariwal 2024).
    """
    need_positive(q - 1, "q - 1")
    need_whole(every, "every")

    def pairs(B: int, schedule: Schedule, generator: torch.Generator, age: int | Tensor) -> tuple[Tensor, Tensor]:
        stage = torch.as_tensor(age // every).clamp(max=stages)             # on its device: no one waits for it
        high = lognormal(B, schedule, generator, mean, std)
        low = high * (1 - (1 + 8 * (-high).sigmoid()) / q ** (1 + stage)).clamp(min=0)
        return schedule.time_of_log_snr(-2 * high.log()), schedule.time_of_log_snr(-2 * low.log())

    return pairs


# ---------------------------------------------------------------------------------------------- losses
# Each is loss(what is trained, x0 (B, ...)[, labels (B,)], generator): without labels cond is None.
def in_float32(loss: LossFunction) -> LossFunction:
    """The loss in float32 where a training is in bfloat16: as a difference of near equals it needs its digits."""
    return torch.autocast("cpu", enabled=False)(torch.autocast("cuda", enabled=False)(loss))


def pseudo_huber(d: Tensor, c: float = 1e-3) -> Tensor:
    """sqrt(mean d^2 + c^2) - c for every row (B,): a square near 0, a modulus far off, so that no outlier rules."""
    need_positive(c, "c")
    return (widened(d).flatten(1).square().mean(1) + c**2).sqrt() - c


def training_loss(pairs: Pairs, c: float = 1e-3) -> LossFunction:
    """Consistency training (Song et al. 2023, algorithm 3): x_t and x_r are one image with one noise; no teacher.

    loss(trainee, x0 (B, ...)[, labels (B,)], generator): pseudo-Huber distance of f(x_t, t) and the teaching copy at x_r,
    over the gap of their ratios as a share of the larger (after Song & Dhariwal 2024). A trainee that starts as a diffusion
    model is *tuned* (Geng et al. 2024). In few dimensions c must exceed the differences: the smaller, the nearer the loss is to
    a modulus, which seeks a median of the targets, and only in many dimensions is that near their mean.
    """
    def earlier(f, x0, noise, x, t, r, cond):
        alpha, sigma = levels(f, x, r)
        return alpha * x0 + sigma * noise

    return _consistency_loss(pairs, earlier, c)


def distillation_loss(teacher: Denoiser, pairs: Pairs, step: Step = ddim, c: float = 1e-3) -> LossFunction:
    """Consistency distillation (Song et al. 2023, algorithm 2): x_r is where one step of the teacher takes x_t.

    The same loss otherwise. With the exact flow for `step` a perfect f has no gradient.
    """
    return _consistency_loss(pairs, lambda f, x0, noise, x, t, r, cond: step(teacher, x, t, r, cond=cond), c)


def _consistency_loss(pairs, earlier, c):
    @in_float32
    def loss(trainee: Trainee, x0: Tensor, *rest) -> Tensor:
        cond, generator = (None, *rest)[-2:]
        trainee.grow()
        f, schedule = trainee.f, trainee.f.schedule
        t, r = (times.to(x0.device) for times in pairs(len(x0), schedule, generator, trainee.age))
        x, noise = noised(schedule, x0, t, generator)
        with torch.no_grad(), torch.random.fork_rng([x0.device] if x0.is_cuda else []):        # dropout, if any, alike
            target = trainee.slow(earlier(f, x0, noise, x, t, r, cond), r, cond)
        high, low = ratio(schedule, t), ratio(schedule, r)
        return mean_of(pseudo_huber(f(x, t, cond) - target, c) * high / (high - low))

    return loss


def path_loss(teacher: Denoiser, ts: Tensor, largest: float | None = None, step: Step = ddim, c: float = 1e-3) -> LossFunction:
    """f told where the teacher's paths end, from every state of theirs on the grid ts (n+1,) down to 0.

    Knowledge need not travel from time to time, and no copy teaches: the definition itself as a loss, for a teacher that has
    few steps (a halved student), so that whole paths are cheap (after Luhman & Luhman 2021, who learn from the starts alone).
    loss(f, x0 (B, ...)[, labels (B,)], generator) starts B paths, x0 noised up to ts[0]; largest as in `halving_loss`.
    """
    check_grid(ts)

    @in_float32
    def loss(f: Student, x0: Tensor, *rest) -> Tensor:
        cond, generator = (None, *rest)[-2:]
        B, n, grid = len(x0), len(ts) - 1, ts.to(x0)
        w = None if largest is None else largest * torch.rand(B, generator=generator, device=x0.device)
        with torch.no_grad():
            start, _ = noised(f.schedule, x0, grid[0], generator)
            *states, end = start, *sample(told(teacher, w), start, grid, step, cond=cond)
        each = torch.arange(B, device=x0.device).repeat(n)                                    # rows of all states but the ends
        learnt = for_rows(told(f, w), each, x0)
        answers = learnt(torch.cat(states), grid[:-1].repeat_interleave(B), None if cond is None else cond[each])
        return mean_of(pseudo_huber(answers - end[each], c))

    return loss


def along_the_flow(f: Callable, x: Tensor, t: Tensor, slope: Tensor) -> tuple[Tensor, Tensor]:
    """f(x, t) and its total derivative df/dt where x moves at dx/dt = slope: both tangents in one forward-mode pass."""
    with sdpa_kernel(SDPBackend.MATH):                                 # the other kernels of attention have no such pass
        return jvp(f, (x, t), (slope, torch.ones_like(t)))


def continuous_loss(teacher: Denoiser | None = None, mean: float = -1.1, std: float = 2.0, c: float = 0.1) -> LossFunction:
    """Continuous-time consistency (Lu & Song 2024, algorithm 1): no gap, df/dt = 0 itself, by a Jacobian-vector product.

    Its gradient is that of <f, df/dt> with df/dt held still and normalised, df/dt / (|df/dt| + c); the value itself means
    nothing. The path's slope comes from the teacher, or without one from each image and its noise.
    """
    @in_float32
    def loss(trainee: Trainee, x0: Tensor, *rest) -> Tensor:
        cond, generator = (None, *rest)[-2:]
        f, schedule = trainee.f, trainee.f.schedule
        high = lognormal(len(x0), schedule, generator, mean, std).to(x0.device)
        t = schedule.time_of_log_snr(-2 * high.log()).clamp(min=schedule.t_min)
        x, noise = noised(schedule, x0, t, generator)
        alpha, sigma = levels(f, x0, t)
        if teacher is not None:
            with torch.no_grad():
                noise = eps(teacher, x, t, cond)
        slope = per_row(schedule.drift(t), x) * x + per_row(schedule.diffusion2(t), x) / (2 * sigma) * noise
        value, rate = along_the_flow(lambda x, t: f(x, t, cond), x, t, slope)
        rate = alpha * rate.detach()
        size = per_row(rate.flatten(1).square().mean(1).sqrt(), x)
        return mean_of(value / f.coefficients(x, t)[1].abs() * rate / (size + c))

    return loss


# ---------------------------------------------------------------------------------------------- sampling
@draws(1)
def consistency_step(D: Denoiser, x: Tensor, t, s, z: Tensor | None = None, cond: Tensor | None = None) -> Tensor:
    """To the data in one evaluation, then noise up to s afresh (Song et al. 2023, algorithm 1).

    A grid that ends at 0, such as [t_max, 0], ends clean; any other leaves the noise of its last time.
    """
    alpha_s, sigma_s = levels(D, x, s)
    return alpha_s * D(x, t, cond) + sigma_s * need_noise(z, x, "consistency_step")


# ---------------------------------------------------------------------------------------------- flow maps
class FlowMap(Student):
    """The map from t to any r <= t along the flow, x_r = x_t - (t - r) u(x_t, t, r), from a network that is told r.

    With the schedule Flow and the parameterisation FlowVelocity, u is the network's output: an average velocity, at r = t the
    velocity itself and at r = 0 a consistency function (Boffi et al. 2024; Geng et al. 2025). It is told the time itself.
    """

    def clock(self, t) -> Tensor:
        return as_time(t)


def flow_map_step(D: FlowMap, x: Tensor, t, s, z: Tensor | None = None, cond: Tensor | None = None) -> Tensor:
    """x_s = x_t - (t - s) u(x_t, t, s): on straight paths that is a DDIM step with what D says of s."""
    return ddim(told(D, s), x, t, s, cond=cond)


def mean_flow_loss(moving: float = 0.5, power: float = 1.0, c: float = 1e-3) -> LossFunction:
    """MeanFlow (Geng et al. 2025, algorithm 1): u = v - (t - r) du/dt, with du/dt the total derivative along v = eps - x0.

    loss(map, x0 (B, ...)[, labels (B,)], generator). r < t in a share `moving` of the rows, r = t elsewhere: there it is flow
    matching. Rows are weighted by (|error|^2 + c)^-power, held still.
    """
    need_within(moving, "moving", 0, 1)

    @in_float32
    def loss(model: FlowMap, x0: Tensor, *rest) -> Tensor:
        cond, generator = (None, *rest)[-2:]
        u = torch.rand(3, len(x0), generator=generator, device=x0.device)
        t = torch.maximum(u[0], u[1])
        r = torch.where(u[2] < moving, torch.minimum(u[0], u[1]), t)
        x, noise = noised(model.schedule, x0, t, generator)
        v = noise - x0
        value, rate = along_the_flow(lambda x, t: model.predict(x, t, cond, r[:, None]), x, t, v)
        target = v - per_row(t - r, x0) * rate
        error = (value - target.detach()).flatten(1).square().mean(1)
        return mean_of(error / (error.detach() + c) ** power)

    return loss
