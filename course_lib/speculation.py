"""Speculative sampling: guess several noisy steps ahead, ask about all of them at once, keep the guesses that pass.

Unlike Picard's, its samples are not those of the sequential sampler, but they have the same law, exactly.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from .arguments import need_whole, widened
from .denoiser import Denoiser, for_rows, per_row
from .parallel import Known, need_batch
from .sampling import Counted, Step, need_finite
from .schedules import Schedule, as_time


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
    need_batch(x, ts, cond)
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
