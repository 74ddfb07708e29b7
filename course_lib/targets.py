"""Distributions whose denoiser is known exactly: Gaussian mixtures, and 2-D shapes made of them.

Noise added to a mixture gives a mixture, so density, score and posterior mean exist in closed form at every t. That is what
lets a chapter put the truth beside every estimate. Sums over components go through logsumexp: in linear space they
underflow to NaN far from the data.
"""

import math

import torch
from torch import Tensor

from .arguments import need_labels, need_shape, need_state, need_whole, widened
from .denoiser import levels
from .schedules import Schedule, as_time


class GaussianMixture:
    """sum_k weights[k] N(means[k], stds[k]^2 I) with means (K, d), stds (K,), weights (K,) that sum to 1."""

    def __init__(self, means, stds, weights=None):
        means = torch.as_tensor(means, dtype=torch.float64)
        if means.ndim != 2 or 0 in means.shape or not bool(means.isfinite().all()):
            raise ValueError(f"means: expected shape (K, d), got {tuple(means.shape)}, or what is not finite")
        K = len(means)
        stds = torch.as_tensor(stds, dtype=torch.float64)
        weights = torch.full((K,), 1 / K, dtype=torch.float64) if weights is None else torch.as_tensor(
            weights, dtype=torch.float64)
        if stds.shape not in ((), (K,)) or not bool(((stds > 0) & stds.isfinite()).all()):
            raise ValueError(f"stds: expected one or {K} positive standard deviations, got {stds.tolist()}")
        if weights.shape != (K,) or not bool((weights >= 0).all()) or not abs(weights.sum().item() - 1) <= 1e-6:
            raise ValueError(f"weights: expected {K} non-negative numbers that sum to 1, got {weights.tolist()}")
        self.means, self.stds, self.weights = means, stds.expand(K), weights

    @property
    def dim(self) -> int:
        return self.means.shape[1]

    def sample(self, n: int, generator: torch.Generator | None = None, labels: Tensor | None = None) -> Tensor:
        """n exact samples (n, d), float64; from given components if labels (n,) in 0..K-1 are passed."""
        if labels is None:
            k = torch.multinomial(self.weights, max(need_whole(n, "n", 0), 1), replacement=True, generator=generator)[:n]
        else:
            k = need_labels(labels, (n,), len(self.weights), "labels", least=0)
        z = torch.randn(n, self.dim, generator=generator, dtype=torch.float64)
        return self.means[k] + self.stds[k, None] * z

    def log_prob(self, x: Tensor) -> Tensor:
        """log density (B,) at x (B, d)."""
        self._check(x)
        wide = widened(x)
        means, stds, weights = (p.to(wide) for p in (self.means, self.stds, self.weights))
        return torch.logsumexp(_log_joint(wide, 1.0, means, stds**2, weights), dim=1).to(x)

    def marginal(self, schedule: Schedule, t: float) -> "GaussianMixture":
        """The distribution of x_t: again a mixture, with means alpha m and variances alpha^2 s^2 + sigma^2."""
        t = need_shape(as_time(t), (), "t", "one time, ")
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        return GaussianMixture(alpha * self.means, (alpha**2 * self.stds**2 + sigma**2).sqrt(), self.weights)

    def denoiser(self, schedule: Schedule) -> "MixtureDenoiser":
        """The exact E[x_0 | x_t], as a denoiser under the given schedule."""
        return MixtureDenoiser(self, schedule)

    def _check(self, x: Tensor) -> None:
        need_shape(need_state(x), (len(x), self.dim), "x")


def _log_joint(x: Tensor, alpha: Tensor | float, means: Tensor, variances: Tensor, weights: Tensor) -> Tensor:
    """log(weights N(x; alpha means, variances I)) for every row and component: (B, K). alpha one or (B, 1)."""
    dim = x.shape[1]
    if dim < 8:                                              # dimension by dimension is as fast, in x's own precision
        squared = sum((xi[:, None] - alpha * mi) ** 2 for xi, mi in zip(x.unbind(1), means.unbind(1), strict=True))
    else:                                                    # |y|^2 - 2 alpha y.m + alpha^2 |m|^2 cancels: in double,
        centre = means.mean(0)                               # and seen from the middle of the means
        y, m = (x - alpha * centre).double(), (means - centre).double()
        squared = (y.square().sum(1, keepdim=True) - 2 * alpha * (y @ m.T) + alpha**2 * m.square().sum(1)).to(x)
    return weights.log() - squared / (2 * variances) - dim / 2 * (2 * math.pi * variances).log()


class MixtureDenoiser:
    """Exact posterior mean of a Gaussian mixture; cond (B,) picks one component a row, -1 the whole mixture."""

    is_posterior_mean = True

    def __init__(self, mixture: GaussianMixture, schedule: Schedule):
        self.mixture, self.schedule = mixture, schedule

    def __call__(self, x: Tensor, t, cond: Tensor | None = None) -> Tensor:
        """x (B, d), t () or (B,) -> x0_hat (B, d) = sum_k r_k [m_k + gain_k (x - alpha m_k)]."""
        self.mixture._check(x)
        wide = widened(x)
        m, s2, w = (p.to(wide) for p in (self.mixture.means, self.mixture.stds**2, self.mixture.weights))
        alpha, sigma = levels(self, wide, t)                                                  # () or (B, 1)
        v = alpha**2 * s2 + sigma**2                                                          # (K,) or (B, K)
        r = _log_joint(wide, alpha, m, v, w).softmax(dim=1)                       # (B, K)
        if cond is not None:
            cond = need_labels(cond, (len(x),), len(m))[:, None]
            r = torch.where(cond < 0, r, (torch.arange(len(m), device=x.device) == cond).to(r))
        gain = alpha * s2 / v
        return ((r * (1 - alpha * gain)) @ m + (r * gain).sum(1, keepdim=True) * wide).to(x)


# ---------------------------------------------------------------------------------------------- 2-D shapes
def ring(k: int = 8, radius: float = 1.5, std: float = 0.15) -> GaussianMixture:
    """k equal Gaussians on a circle."""
    angle = 2 * math.pi * torch.arange(need_whole(k, "k"), dtype=torch.float64) / k
    return GaussianMixture(radius * torch.stack([angle.cos(), angle.sin()], 1), std)


def two_islands(separation: float = 4.0, std: float = 0.5, weight: float = 0.8) -> GaussianMixture:
    """Two Gaussians of unequal weight, far apart: what Langevin dynamics cannot mix."""
    half = separation / 2
    return GaussianMixture([[-half, 0.0], [half, 0.0]], std, [weight, 1 - weight])
