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
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from .arguments import need_state, need_whole, need_within, widened
from .denoiser import Denoiser, for_rows, levels, per_row
from .sampling import Counted, Step, check_grid, need_finite, noises
from .schedules import Schedule, as_time


@dataclass(frozen=True)
class Sweep:
    """Where a parallel sampler stands after a sweep."""

    trajectory: Tensor  # (n + 1, B, ...): the start, and the n states as they are now
    rounds: int  # network evaluations so far that had to wait for another: the sequential depth
    evaluations: int  # network evaluations so far of one sample
    residual: float  # the largest change of a state in this sweep (rms over a sample), in units of its step's noise
    settled: int  # how many of the n states, from the top, will not change any more


def converged(sweeps: Iterable[Sweep]) -> Sweep:
    """The last sweep, computed without gradients."""
    with torch.no_grad():
        return deque(sweeps, maxlen=1).pop()


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
        W, B = x.shape[:2]
        mine = self._share(W * B).to(x.device)                                   # row w B + b is step w of sample b
        axis = int(z is not None and z.ndim > x.ndim)                            # a step wants k draws in front of its rows
        z = None if z is None else z.movedim(0, axis).flatten(axis, axis + 1).index_select(axis, mine)
        cond = None if self.cond is None else torch.cat([self.cond] * W)[mine]
        before = self.D.nfe
        D = for_rows(self.D, mine % B, x[0])
        y = step(D, x.flatten(0, 1)[mine], *(v.to(x.device).repeat_interleave(B)[mine] for v in (t, s)), z, cond)
        self.evaluations += W * (self.D.nfe - before)
        return self._gathered(y, W * B).reshape(x.shape)

    def _share(self, rows: int) -> Tensor:
        """The rows of this rank. Where others have one more, it repeats its last rather than wait, so that all are alike."""
        rank, world = (dist.get_rank(self.group), dist.get_world_size(self.group)) if self.group else (0, 1)
        mine, size = torch.arange(rows).tensor_split(world)[rank], -(-rows // world)
        return torch.cat([mine, mine.new_full((size - len(mine),), int(mine[-1]) if len(mine) else 0)])

    def _gathered(self, y: Tensor, rows: int) -> Tensor:
        if not self.group:
            return y
        world = dist.get_world_size(self.group)
        shares = [torch.empty_like(y) for _ in range(world)]
        together(dist.all_gather, shares, y.contiguous(), group=self.group)
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


def _need_batch(x: Tensor, ts: Tensor, cond: Tensor | None) -> None:
    """ValueError for a bad grid, for no samples, or if the conditions are not one for each of them."""
    check_grid(ts)
    if len(need_state(x)) == 0:
        raise ValueError(f"x: expected at least one sample, shape (B, ...), got {tuple(x.shape)}")
    if cond is not None and cond.shape[:1] != x.shape[:1]:
        raise ValueError(f"cond: expected a condition for each of {len(x)} samples, got shape {tuple(cond.shape)}")


def _start(D, x, ts, step, noise, generator, tolerance, group, cond) -> tuple[Tensor, Tensor | None]:
    """The arguments checked; the start and all noise (n, ...) for it, the same on every rank."""
    _need_batch(x, ts, cond)
    need_within(tolerance, "tolerance", 0, math.inf, "a number in units of a step's noise, at least 0")
    if group is not None and dist.get_rank(group) < 0:
        raise ValueError("group: this process is not a member of the process group it was given")
    k, z = getattr(step, "draws", 0), None
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

    x (B, ...) at ts[0], ts (n + 1,); noise (n, ...) and generator as for `sample`. States settle from the top of the window
    once a sweep changes none of them by more than `tolerance` times its `step_noise`, in any sample; at least one settles
    a sweep. Tolerance 0 goes on until nothing moves: the sequential solution to rounding, in at most n sweeps.
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
    path = torch.cat([x[None], _downwards(x, slopes)])
    while settled < n:
        lo, hi = settled, min(settled + window, n)
        old, new = path[lo:hi], workers(step, path[lo:hi], ts[lo:hi], ts[lo + 1:hi + 1], None if z is None else z[lo:hi])
        if secant and last is not None:
            (lo_last, old_last, new_last), both = last, max(last[0] + len(last[1]) - lo, 0)       # steps in both windows
            measured = _secants(slopes[lo:lo + both], old[:both] - old_last[lo - lo_last:],
                                new[:both] - new_last[lo - lo_last:])
            slopes[lo:lo + both] = torch.minimum(measured.clamp(min=0), most[lo:lo + both])   # no product of them runs away
        last = lo, old, new
        change = carry(slopes[lo:hi], new - path[lo + 1:hi + 1])
        inside = need_finite(path[lo + 1:hi + 1] + change, ts[lo], ts[hi])
        path = torch.cat([path[:lo + 1], inside, _downwards(inside[-1], slopes[hi:])])
        sizes = _sizes(change, unit[lo:hi])
        settled += max(1, _leading(sizes <= tolerance))
        yield Sweep(path, workers.rounds, workers.evaluations, sizes.max().item(), settled)


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

    By doubling: log2(W) operations on whole tensors, each joining stretches of k steps into stretches of 2k.
    """
    a, u, k = slopes.reshape(*slopes.shape, *[1] * (residuals.ndim - 2)), residuals, 1
    while k < len(u):
        u = torch.cat([u[:k], u[k:] + a[k:] * u[:-k]])
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
        yield Sweep(path, workers.rounds, workers.evaluations, found.max().item(), int(edges[settled]))


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


# ---------------------------------------------------------------------------------------------- another way: speculation
def reflection_coupling(draft: Tensor, mean_draft: Tensor, mean: Tensor, std: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    """A draft ~ N(mean_draft, std^2 I) turned into x ~ N(mean, std^2 I), and left as it is as often as can be.

    draft, means (R, ...), std (R,), u (R,) uniform in [0, 1) -> x (R, ...) and which drafts were accepted (R,). That happens
    with probability 2 Phi(-|Delta| / (2 std)), Delta = mean_draft - mean; else the draft's noise is mirrored along Delta
    (Bou-Rabee, Eberle & Zimmer 2020, section 2.3).
    """
    std = per_row(std, widened(draft))
    unit = std.clamp(min=1e-12)                                                   # without noise, equal means are accepted
    z, delta = (draft - mean_draft) / unit, (mean_draft - mean) / unit
    inner, square = ((delta * v).flatten(1).sum(1) for v in (z, delta))
    accepted = torch.log1p(-u) <= -inner - square / 2                             # 1 - u <= N(z + delta) / N(z)
    mirrored = z - per_row(2 * inner / square.clamp(min=1e-12), z) * delta
    return torch.where(accepted.reshape(std.shape), draft, (mean + std * mirrored).to(draft)), accepted


def noise_scales(step: Step, schedule: Schedule, ts: Tensor, shape: tuple[int, ...]) -> Tensor:
    """c (n,) for the steps of a grid, if each is a mean + c z for states of this shape, where all that is random is z (one
    noise) and the mean follows from x and from one x0_hat, asked of D at x and t. ValueError for any other step.

    The step is asked itself, on random numbers in place of x, z and a network's x0_hat.
    """
    t, s = ts[:-1], ts[1:]
    random = torch.randn(5, len(t), *shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(ts.device)

    def moved(x: Tensor, x0_hat: Tensor, z: Tensor) -> Tensor:
        asked = []
        y = step(Known(schedule, lambda *at: asked.append(at) or x0_hat), x, t, s, z)
        if len(asked) != 1 or not (torch.equal(asked[0][0], x) and torch.equal(as_time(asked[0][1]).to(t), t)):
            raise ValueError("step: expected one evaluation, at the step's own x and t, "
                             f"got {len(asked)}{', elsewhere' if len(asked) == 1 else ''}")
        return y

    none = torch.zeros_like(random[0])
    scales = (moved(*random[:2], none + 1) - moved(*random[:2], none)).flatten(1)[:, 0]
    x, x0_hat, z = random[2:]
    mean, noisy = moved(x, x0_hat, none), moved(x, x0_hat, z)
    apart = (noisy - mean - per_row(scales, z) * z).abs().flatten(1).amax(1)
    if not bool((apart <= 1e-8 * noisy.abs().flatten(1).amax(1)).all()):
        raise ValueError(f"step: expected a mean and a multiple of the noise, got one that is {apart.max():.2g} from that")
    return scales


@dataclass(frozen=True)
class Speculation:
    """What `speculative` found and what it cost."""

    x: Tensor  # (B, ...) at the end of the grid
    rounds: int  # network evaluations that had to wait for another
    evaluations: float  # network evaluations of one sample, the mean
    acceptance: float  # the share of the judged drafts that was accepted,
    expected: float  # and what the formula of `reflection_coupling` says of the very same drafts


@torch.no_grad()
def speculative(D: Denoiser, x: Tensor, ts: Tensor, step: Step, ahead: int = 8,
                generator: torch.Generator | None = None, cond: Tensor | None = None) -> Speculation:
    """Samples with the law of sample(D, x, ts, step), though not its paths, in fewer rounds (De Bortoli et al. 2025).

    A round drafts `ahead` steps with the last x0_hat held still, evaluates the network on all of them as one batch, and keeps
    the drafts up to the first that `reflection_coupling` refuses and replaces. Samples go down the grid each at its own pace.
    x (B, ...) at ts[0], ts (n + 1,), step: one noise, one evaluation, as `noise_scales` asks. ValueError for others.
    """
    _need_batch(x, ts, cond)
    if getattr(step, "draws", 0) != 1:
        raise ValueError(f"step: expected one that draws a single noise, got one that draws {getattr(step, 'draws', 0)}")
    need_whole(ahead, "ahead", what="a whole number of steps")
    scales = noise_scales(step, D.schedule, ts, x.shape[1:]).to(x)
    D, n, ts, x = Counted(D), len(ts) - 1, ts.to(x.device), x.clone()
    at, known = torch.zeros(len(x), dtype=torch.long, device=x.device), D(x, ts[0], cond).clone()      # how far each has come
    evaluations, verdicts, odds = len(x) * D.nfe, [], []

    def moved(x0_hat: Tensor, y: Tensor, t: Tensor, s: Tensor, z: Tensor) -> Tensor:
        return step(Known(D.schedule, lambda x, t: x0_hat), y, t, s, z)

    while bool((at < n).any()):
        on = (at < n).nonzero()[:, 0]                                             # R samples are under way
        rows, still = torch.arange(len(on), device=x.device), known[on]
        ks = torch.arange(ahead, device=x.device)[:, None] + at[on]               # (ahead, R): steps of the grid
        t, s = ts[ks.clamp(max=n - 1)], ts[ks.clamp(max=n - 1) + 1]               # beyond its end: the last once more
        y = [x[on]]
        for k in range(ahead):
            z = torch.randn(still.shape, generator=generator, dtype=x.dtype, device=x.device)
            y.append(moved(still, y[k], t[k], s[k], z))
        tops, drafts, t, s, before = torch.cat(y[:-1]), torch.cat(y[1:]), t.flatten(), s.flatten(), D.nfe
        x0_hat = for_rows(D, on.repeat(ahead), x)(tops, t, None if cond is None else torch.cat([cond[on]] * ahead))
        evaluations += len(tops) * (D.nfe - before)

        zero = torch.zeros_like(tops)
        mean_draft, mean = moved(torch.cat([still] * ahead), tops, t, s, zero), moved(x0_hat, tops, t, s, zero)
        std = scales[ks.clamp(max=n - 1)].flatten()
        u = torch.rand(len(tops), generator=generator, dtype=x.dtype, device=x.device)
        new, accepted = reflection_coupling(drafts, mean_draft, mean, std, u)
        refused = accepted.reshape(ahead, -1).long().cumprod(0).sum(0)            # the first of each that is
        end = torch.minimum(refused.clamp(max=ahead - 1), n - 1 - at[on])         # the last step that counts
        judged = (ks <= at[on] + end).flatten()
        verdicts.append(accepted[judged])
        gap = widened(mean_draft - mean).flatten(1).norm(dim=1)[judged] / widened(std[judged]).clamp(min=1e-12)
        odds.append(torch.special.erfc(gap / 8**0.5))                             # 2 Phi(-gap/2)

        x[on] = need_finite(new[end * len(on) + rows], t.max(), s.min())
        known[on] = x0_hat[end * len(on) + rows]
        at[on] += end + 1
    return Speculation(x, D.depth, evaluations / len(x), *(torch.cat(v).double().mean().item() for v in (verdicts, odds)))


# ---------------------------------------------------------------------------------------------- what it will cost
@dataclass(frozen=True)
class CostModel:
    """Seconds of one network evaluation of a batch, latency + per_row * rows, and of what the devices then tell each other.

    Straight lines are a coarse picture of a device: a GPU takes no longer for 100 rows than for one. Fit it where it is used.
    """

    latency: float
    per_row: float
    exchange: float = 0.0  # a round's messages: a latency,
    exchange_per_row: float = 0.0  # and a time for each row, which every device receives

    @classmethod
    def fit(cls, rows: Tensor, seconds: Tensor, **exchange: float) -> "CostModel":
        """From measured seconds of batches of so many rows: least squares of *relative* errors, nothing negative."""
        rows, seconds = rows.double(), seconds.double()
        if rows.ndim != 1 or rows.shape != seconds.shape or len(rows) < 2 or not bool(((rows > 0) & (seconds > 0)).all()):
            raise ValueError(f"rows, seconds: expected two or more positive numbers of each, got {rows} and {seconds}")
        A = torch.stack([1 / seconds, rows / seconds], 1)
        both = torch.linalg.lstsq(A, torch.ones_like(seconds)[:, None]).solution[:, 0]
        alone = A.sum(0) / A.square().sum(0)                                      # the best line with only one of the parts
        latency, per_row = both.tolist() if bool((both >= 0).all()) else (
            (alone[0].item(), 0.0) if both[1] < 0 else (0.0, alone[1].item()))
        return cls(latency, per_row, **exchange)

    def sequential(self, steps: int, batch: int = 1) -> float:
        """Seconds of so many evaluations, one after the other."""
        return steps * (self.latency + self.per_row * batch)

    def parallel(self, rounds: int, evaluations: int, batch: int = 1, devices: int = 1) -> float:
        """Seconds of a parallel run, whose rows are shared evenly and exchanged once a round."""
        rows, devices = evaluations * batch, need_whole(devices, "devices")
        alone = rounds * self.latency + rows / devices * self.per_row
        return alone + (rounds * self.exchange + rows * self.exchange_per_row if devices > 1 else 0.0)

    def speed_up(self, steps: int, rounds: int, evaluations: int, batch: int = 1, devices: int = 1) -> float:
        """How many times sooner than in sequence; below 1 the device was busy enough before."""
        return self.sequential(steps, batch) / self.parallel(rounds, evaluations, batch, devices)
