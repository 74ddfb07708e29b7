"""Samplers in parallel: many steps of one trajectory at once, and the same answer as one after the other.

A sequential sampler solves x_{j+1} = step_j(x_j) from the top down. It can also start from a guess of the whole trajectory
and mend it. A sweep evaluates *all* steps as one batch, which tells every residual r_{j+1} = step_j(x_j) - x_{j+1}, and
carries the corrections u down the grid:

    u_{j+1} = a_j u_j + r_{j+1},      x_{j+1} <- x_{j+1} + u_{j+1}

where a_j says how much of a change in x_j we expect step j to pass on. Where the sweeps rest, every r is 0: *whatever the
a_j*, that is the sequential solution. They only decide how soon.

- a_j = 1 is Picard's x_{j+1} = x_0 + the sum of the steps' increments (ParaDiGMS, Shih et al. 2023).
- a_j = the slope of the very same step on Gaussian data, which is known: one sweep would do if data were Gaussian.
- a_j = a secant through the last two sweeps, one number for each step and sample: a quasi-Newton method on the whole
  trajectory (compare quasi-DEER, Gonzalez et al. 2024, and the triangular acceleration of ParaTAA, Tang et al. 2024).

Residuals are summed, not increments: they vanish as the sweeps converge, and rounding errors with them, whereas increments
of x stay as large as the noise is, 50 at the start of a VE schedule, and leave their rounding in all that follows.
The first k states are exact after k sweeps, for nothing wrong is left above them. Until then an error may well grow.

Noise is drawn beforehand, in the order of `sample`, so that all sweeps and all samplers see the same.
"""

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import torch
import torch.distributed as dist
from torch import Tensor

from .arguments import need_state, need_whole, need_within, widened
from .denoiser import Denoiser, for_rows, levels
from .sampling import Counted, Step, check_grid, need_finite, need_step, noises
from .schedules import Schedule


@dataclass(frozen=True)
class Sweep:
    """Where a parallel sampler stands after a sweep."""

    states: tuple[Tensor, ...]  # in pieces (m, B, ...): the start, and the states as far as the window reached
    slopes: Tensor  # (m, B), of the steps below, whose states are guessed by them
    rounds: int  # network evaluations so far that had to wait for another: the sequential depth
    evaluations: int  # network evaluations so far of one sample
    residual: float  # the largest change of a state in this sweep (rms over a sample), in units of its step's noise
    settled: int  # how many of the n states, from the top, will not change any more

    @cached_property
    def trajectory(self) -> Tensor:
        """(n + 1, B, ...): the start, and the n states as they are now. Put together where it is asked for: n may be long."""
        return torch.cat([*self.states, _downwards(self.states[-1][-1], self.slopes)])


def converged(sweeps: Iterable[Sweep]) -> Sweep:
    """The last sweep, computed without gradients."""
    with torch.no_grad():
        sweep = deque(sweeps, maxlen=1).pop()
        return replace(sweep, states=(sweep.trajectory,), slopes=sweep.slopes[:0])


def step_noise(schedule: Schedule, ts: Tensor) -> Tensor:
    """The noise (n,) that the forward process adds from ts[j+1] up to ts[j], the yardstick of tolerances.

    sigma_t sqrt(1 - snr(t)/snr(s)); a change much smaller drowns in what a stochastic step adds. Positive also for s = 0.
    """
    fresh = -torch.expm1(schedule.log_snr(ts[:-1]) - schedule.log_snr(ts[1:]))
    return schedule.sigma(ts[:-1]) * fresh.sqrt()


# ---------------------------------------------------------------------------------------------- who evaluates which rows
class Workers:
    """Evaluates many steps as one batch, by this process alone or shared out over a process group, and counts the cost."""

    def __init__(self, D: Denoiser, cond: Tensor | None, group: dist.ProcessGroup | None):
        self.D, self.cond, self.group = Counted(D), cond, group
        self.evaluations = 0

    @property
    def rounds(self) -> int:
        return self.D.depth

    def __call__(self, step: Step, x: Tensor, t: Tensor, s: Tensor, z: Tensor | None) -> Tensor:
        """W steps of B samples: x (W, B, ...), t, s (W,), z (W, B, ...), or (W, k, B, ...) for k draws -> (W, B, ...)."""
        (W, B), axis = x.shape[:2], int(z is not None and z.ndim > x.ndim)       # a step wants k draws in front of its rows
        mine = torch.arange(W * B, device=x.device) if self.group is None else self._share(W * B).to(x.device)

        def share(v: Tensor, axis: int = 0) -> Tensor:                           # of rows: row w B + b is step w of sample b
            return v if self.group is None else v.index_select(axis, mine)

        z = None if z is None else share(z.movedim(0, axis).flatten(axis, axis + 1), axis)
        cond = None if self.cond is None else share(torch.cat([self.cond] * W))
        before = self.D.nfe
        D = for_rows(self.D, mine % B, x[0])
        y = step(D, share(x.flatten(0, 1)), *(share(v.to(x.device).repeat_interleave(B)) for v in (t, s)), z, cond)
        self.evaluations += W * (self.D.nfe - before)
        return self._gathered(y, W * B).reshape(x.shape)

    def _share(self, rows: int) -> Tensor:
        """The rows of this rank. Where others have one more, it repeats its last rather than wait, so that all are alike."""
        rank, world = dist.get_rank(self.group), dist.get_world_size(self.group)
        mine, size = torch.arange(rows).tensor_split(world)[rank], -(-rows // world)
        return torch.cat([mine, mine.new_full((size - len(mine),), int(mine[-1]) if len(mine) else 0)])

    def _gathered(self, y: Tensor, rows: int) -> Tensor:
        if not self.group:
            return y
        world = dist.get_world_size(self.group)
        y = y.contiguous()                                          # else NCCL gathers the numbers of channels_last as they lie
        shares = [torch.empty_like(y) for _ in range(world)]
        together(dist.all_gather, shares, y, group=self.group)
        sizes = [len(r) for r in torch.arange(rows).tensor_split(world)]
        return torch.cat([share[:size] for share, size in zip(shares, sizes, strict=True)])


def together(collective, *args, group: dist.ProcessGroup, **kwargs) -> None:
    """A collective operation, or a RuntimeError that says that another rank is missing.

    gloo reports a dead rank at once and a silent one after the group's timeout. NCCL's watchdog ends the process itself.
    """
    try:
        collective(*args, group=group, **kwargs)
    except RuntimeError as error:
        raise RuntimeError(f"group: rank {dist.get_rank(group)} of {dist.get_world_size(group)} waited in vain for the others: "
                           "one died, or was silent for longer than the group's timeout. Start all of them again") from error


def need_batch(x: Tensor, ts: Tensor, cond: Tensor | None) -> None:
    """ValueError for a bad grid, for no samples, or if the conditions are not one for each of them."""
    check_grid(ts)
    if len(need_state(x)) == 0:
        raise ValueError(f"x: expected at least one sample, shape (B, ...), got {tuple(x.shape)}")
    if cond is not None and cond.shape[:1] != x.shape[:1]:
        raise ValueError(f"cond: expected a condition for each of {len(x)} samples, got shape {tuple(cond.shape)}")


def _start(D, x, ts, step, noise, generator, tolerance, group, cond) -> tuple[Tensor, Tensor | None]:
    """The arguments checked; the start and all noise (n, ...) for it, the same on every rank."""
    need_batch(x, ts, cond)
    need_within(tolerance, "tolerance", 0, math.inf, "a number in units of a step's noise, at least 0")
    if group is not None and dist.get_rank(group) < 0:
        raise ValueError("group: this process is not a member of the process group it was given")
    k, z = getattr(need_step(step), "draws", 0), None
    if k:
        z = torch.stack(list(noises(len(ts) - 1, (k, *x.shape) if k > 1 else tuple(x.shape), x, generator, noise)))
    if group is not None:
        x = x.clone(memory_format=torch.contiguous_format)
        for shared in (x, z):
            if shared is not None:
                together(dist.broadcast, shared, dist.get_global_rank(group, 0), group=group)
    return x, z


# ---------------------------------------------------------------------------------------------- Picard
def picard(D: Denoiser, x: Tensor, ts: Tensor, step: Step, noise: Tensor | None = None,
           generator: torch.Generator | None = None, window: int | None = None, tolerance: float = 0.1,
           std: float | None = None, secant: bool = False, group: dist.ProcessGroup | None = None,
           cond: Tensor | None = None) -> Iterator[Sweep]:
    """The trajectory of sample(D, x, ts, step, ...) by sweeps over a sliding window of `window` steps (None: all n).

    x (B, ...) at ts[0], ts (n + 1,); noise (n, ...) and generator as for `sample`. A window of 32 ends sooner on a CPU. States
    settle from its top once a sweep changes none of them by more than `tolerance` times its `step_noise`, in any sample; at
    least one a sweep. Tolerance 0 goes on until nothing moves: the sequential solution to rounding (TF32: to 1e-3).
    std and secant choose the slopes a_j (top of this module): 1 for None, else those on data N(0, std^2 I); then, with
    secant, as measured. `group` shares the rows of every sweep out over its ranks, which all get the same result.
    Raises ValueError for a bad argument, FloatingPointError for NaN, RuntimeError where a rank is missing.
    """
    x, z = _start(D, x, ts, step, noise, generator, tolerance, group, cond)
    n = len(ts) - 1
    window = n if window is None else min(need_whole(window, "window", what="None for all or a whole number of steps"), n)
    slopes = torch.ones(n) if std is None else gaussian_slopes(step, D.schedule, ts, std)
    slopes = slopes.to(x)[:, None].repeat(1, len(x))                                                     # (n, B)
    return _picard(Workers(D, cond, group), x, ts, step, z, window, tolerance, slopes, secant,
                   step_noise(D.schedule, ts).to(x))


def _picard(workers, x, ts, step, z, window, tolerance, slopes, secant, unit) -> Iterator[Sweep]:
    n, settled, last, most = len(ts) - 1, 0, None, slopes.clamp(min=1)
    above, states = [x[None]], torch.cat([x[None], _downwards(x, slopes[:window])])     # what has settled; from its last on
    while settled < n:
        lo, hi = settled, settled + len(states) - 1
        old, new = states[:-1], workers(step, states[:-1], ts[lo:hi], ts[lo + 1:hi + 1], None if z is None else z[lo:hi])
        if secant and last is not None:
            (lo_last, old_last, new_last), both = last, max(last[0] + len(last[1]) - lo, 0)       # steps in both windows
            measured = _secants(slopes[lo:lo + both], old[:both] - old_last[lo - lo_last:],
                                new[:both] - new_last[lo - lo_last:])
            slopes[lo:lo + both] = torch.minimum(measured.clamp(min=0), most[lo:lo + both])   # no product of them runs away
        last = lo, old, new
        change = carry(slopes[lo:hi], new - states[1:])
        inside = need_finite(states[1:] + change, ts[lo], ts[hi])
        sizes = _sizes(change, unit[lo:hi])
        done = max(1, _leading(sizes <= tolerance))
        settled += done
        yield Sweep((*above, inside), slopes[hi:].clone(), workers.rounds, workers.evaluations, sizes.max().item(), settled)
        above.append(inside[:done])
        states = torch.cat([inside[done - 1:], _downwards(inside[-1], slopes[hi:settled + window])])


class Known:
    """A denoiser whose x0_hat(x, t) is known without a network; the same for all labels."""

    def __init__(self, schedule: Schedule, x0_hat: Callable[[Tensor, Tensor], Tensor]):
        self.schedule, self.x0_hat = schedule, x0_hat

    def __call__(self, x: Tensor, t, cond: Tensor | None = None) -> Tensor:
        return self.x0_hat(x, t)


def gaussian_slopes(step: Step, schedule: Schedule, ts: Tensor, std: float) -> Tensor:
    """The factor (n,) by which each step of the grid multiplies a change of x on data N(0, std^2 I); the step is asked."""
    need_within(std, "std", 0, math.inf, "the data's standard deviation, at least 0, or None")

    def x0_hat(x: Tensor, t) -> Tensor:
        alpha, sigma = levels(D, x, t)
        return alpha * std**2 * x / (alpha**2 * std**2 + sigma**2)

    D = Known(schedule, x0_hat)
    x, k = torch.ones(len(ts) - 1, 1, dtype=torch.float64, device=ts.device), getattr(step, "draws", 0)
    z = x.new_zeros((k, *x.shape) if k > 1 else x.shape)
    return step(D, x, ts[:-1], ts[1:], z)[:, 0]                                   # the step is linear there, with no constant


def carry(slopes: Tensor, residuals: Tensor) -> Tensor:
    """u with u_j = slopes_j u_{j-1} + residuals_j from u_{-1} = 0: slopes (W, B), residuals (W, B, ...) -> (W, B, ...).

    By doubling: log2(W) operations on whole tensors, each joining stretches of k steps into stretches of 2k. Where all slopes
    are 1 it is a plain sum.
    """
    if bool((slopes == 1).all()):
        return residuals.cumsum(0)
    a, u, k = slopes.reshape(*slopes.shape, *[1] * (residuals.ndim - 2)), residuals, 1
    while k < len(u):
        u = torch.cat([u[:k], torch.addcmul(u[k:], a[k:], u[:-k])])
        a = torch.cat([a[:k], a[k:] * a[:-k]])
        k *= 2
    return u


def _downwards(x: Tensor, slopes: Tensor) -> Tensor:
    """The first guess of the states below x (B, ...): what the slopes (m, B) make of it. (m, B, ...)"""
    factors = slopes.cumprod(0)
    return factors.reshape(*factors.shape, *[1] * (x.ndim - 1)) * x


def _secants(slopes: Tensor, dx: Tensor, dy: Tensor) -> Tensor:
    """Slopes (m, B) by least squares from how inputs and outputs (m, B, ...) of the steps changed; kept where nothing did."""
    dx, dy = widened(dx.flatten(2)), widened(dy.flatten(2))
    moved = (dx * dx).sum(2)
    return torch.where(moved > 0, (dx * dy).sum(2) / moved, slopes)


def _sizes(change: Tensor, unit: Tensor) -> Tensor:
    """Root mean square of change (m, B, ...) in units (m,), of the worst sample: (m,)."""
    return widened(change).flatten(2).square().mean(2).sqrt().amax(1) / unit


def _leading(good: Tensor) -> int:
    """How many of good (m,) are true before the first that is not."""
    return int(good.long().cumprod(0).sum())


# ---------------------------------------------------------------------------------------------- parareal
def parareal(D: Denoiser, x: Tensor, ts: Tensor, step: Step, coarse: Step | None = None, blocks: int | None = None,
             noise: Tensor | None = None, generator: torch.Generator | None = None, tolerance: float = 0.1,
             group: dist.ProcessGroup | None = None, cond: Tensor | None = None) -> Iterator[Sweep]:
    """The trajectory of sample(D, x, ts, step, ...) by parareal (Lions et al. 2001; SRDS, Selvam et al. 2024).

    The grid is cut into `blocks` (None: about sqrt(n)). One coarse step a block gives the nodes between them. A sweep
    solves all blocks at once, finely, each from its node, then goes down the nodes once more:

        node_{m+1} <- fine(node_m, as it was) + coarse(node_m, as it is now) - coarse(node_m, as it was)

    so that node k is exact after k sweeps. `coarse` (None: the step itself) takes the block's noise summed up as `over_blocks`
    does. Nodes settle as states do in `picard`, whose other arguments and errors these are.
    """
    x, z = _start(D, x, ts, step, noise, generator, tolerance, group, cond)
    n, coarse = len(ts) - 1, coarse or step
    blocks = round(n**0.5) if blocks is None else blocks
    if not isinstance(blocks, int) or not 1 <= blocks <= n:
        raise ValueError(f"blocks: expected a whole number from 1 to the {n} steps of the grid, got {blocks!r}")
    k = getattr(coarse, "draws", 0)
    if k not in (0, getattr(step, "draws", 0)):
        raise ValueError(f"coarse: expected a step that draws no noise or as much as the fine one, got one that draws {k}")
    sizes = torch.tensor([len(b) for b in torch.arange(n).tensor_split(blocks)])
    edges = torch.cat([sizes.new_zeros(1), sizes.cumsum(0)])                                              # (blocks + 1,)
    z_coarse = over_blocks(z, D.schedule, ts, edges) if k else None
    return _parareal(Workers(D, cond, group), x, ts, step, coarse, edges, z, z_coarse, tolerance,
                     step_noise(D.schedule, ts).to(x)[edges[1:] - 1])


def _parareal(workers, x, ts, step, coarse, edges, z, z_coarse, tolerance, unit) -> Iterator[Sweep]:
    M, settled = len(edges) - 1, 0                                                # of the M nodes below the start
    tops = ts[edges.to(ts.device)]

    def jump(m: int, node: Tensor) -> Tensor:
        noise = None if z_coarse is None else z_coarse[m:m + 1]
        return workers(coarse, node[None], tops[m:m + 1], tops[m + 1:m + 2], noise)[0]

    nodes, jumps = [x], []
    for m in range(M):
        jumps.append(jump(m, nodes[m]))
        nodes.append(jumps[m])
    path = x.expand(len(ts), *x.shape).clone()
    while settled < M:
        path = path.clone()
        path[edges] = torch.stack(nodes)
        ends = _fine(workers, path, ts, step, edges[settled:], z)
        changes = []
        for m, end in zip(range(settled, M), ends):
            if m > settled:                                                       # its node has moved
                before, jumps[m] = jumps[m], jump(m, nodes[m])
                end = end + (jumps[m] - before)
            changes.append(need_finite(end, tops[m], tops[m + 1]) - nodes[m + 1])
            nodes[m + 1] = end
        path[edges] = torch.stack(nodes)
        found = _sizes(torch.stack(changes), unit[settled:])
        settled += max(1, _leading(found <= tolerance))
        yield Sweep((path,), unit.new_ones(0, len(x)), workers.rounds, workers.evaluations, found.max().item(),
                    int(edges[settled]))


def _fine(workers, path, ts, step, edges, z) -> Tensor:
    """All blocks between the edges, solved step by step side by side into path; their ends (blocks, B, ...)."""
    at, lengths = edges[:-1], edges.diff()                                        # no block is shorter than those after it
    ends = path[at]
    for i in range(int(lengths[0])):
        j = at[lengths > i] + i
        there = j.to(ts.device)
        y = workers(step, ends[:len(j)], ts[there], ts[there + 1], None if z is None else z[j])
        ends = torch.cat([y, ends[len(j):]])
        path[j + 1] = y
    return ends


def over_blocks(z: Tensor, schedule: Schedule, ts: Tensor, edges: Tensor) -> Tensor:
    """The noise z (n, ...) of the steps summed up for one step over each block: (blocks, ...), again standard normal.

    Each counts by the square root of its share of the signal-to-noise gained, as in q(x_s|x_t, x_0): were x0_hat constant,
    one ancestral step over the block would land where the fine ones do.
    """
    gained = schedule.log_snr(ts).clamp(-60, 60).double().exp().diff()
    sums = []
    for lo, hi in zip(edges[:-1].tolist(), edges[1:].tolist()):
        weights = (gained[lo:hi] / gained[lo:hi].sum()).sqrt().to(z)
        sums.append((weights.reshape(-1, *[1] * (z.ndim - 1)) * z[lo:hi]).sum(0))
    return torch.stack(sums)
