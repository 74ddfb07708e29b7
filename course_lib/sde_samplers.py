"""Steps of the reverse-time SDE: Euler-Maruyama, ancestral (DDPM), and a predictor followed by Langevin corrections."""

import torch
from torch import Tensor

from .arguments import need_positive, need_whole, widened
from .denoiser import Denoiser, levels, per_row, score
from .sampling import Step, draws, need_noise
from .schedules import as_time


@draws(1)
def euler_maruyama(D: Denoiser, x: Tensor, t, s, z: Tensor | None = None, cond: Tensor | None = None) -> Tensor:
    """One Euler-Maruyama step from t to s < t of dx = (f x - g^2 score) dt + g dw (Song et al. 2021, eq. 6).

    x, z (B, ...) -> (B, ...). Order 1 for distributions, and for paths too, since g does not depend on x.
    """
    z = need_noise(z, x, "euler_maruyama")
    t, s = as_time(t), as_time(s)
    f, g2, h = (per_row(c, widened(x)) for c in (D.schedule.drift(t), D.schedule.diffusion2(t), t - s))        # h > 0
    return (x - h * (f * x - g2 * widened(score(D, x, t, cond))) + (g2 * h).sqrt() * z).to(x)


@draws(1)
def ancestral(D: Denoiser, x: Tensor, t, s, z: Tensor | None = None, cond: Tensor | None = None) -> Tensor:
    """One draw from q(x_s | x_t, x_0 = D(x_t)): DDPM's step with beta-tilde (Ho et al. 2020, eq. 6-7), for any s < t.

    x, z (B, ...) -> (B, ...). `fresh` = 1 - snr(t)/snr(s) is the share of the variance at t that is newer than s; it is 1
    for s = 0, where the step returns x0_hat with no noise at all.
    """
    z = need_noise(z, x, "ancestral")
    alpha_t, sigma_t = levels(D, x, t)
    alpha_s, sigma_s = levels(D, x, s)
    fresh = per_row(-torch.expm1(D.schedule.log_snr(t) - D.schedule.log_snr(s)), x)
    mean = alpha_s * fresh * D(x, t, cond) + (alpha_t / alpha_s) * (sigma_s / sigma_t) ** 2 * x
    return mean + sigma_s * fresh.sqrt() * z


def langevin_correction(D: Denoiser, x: Tensor, t, z: Tensor, snr: float = 0.16, cond: Tensor | None = None) -> Tensor:
    """One Langevin step at time t, which leaves the marginal p_t alone as its size goes to 0.

    The size is 2 (snr sigma)^2: Song et al. 2021, algorithm 4, with the norms of noise and score replaced by sqrt(d) and
    sqrt(d)/sigma, what they are for one data point, so that no row of a batch depends on another. x stays where sigma = 0.
    """
    if not bool((D.schedule.sigma(t) > 0).any()):
        return x
    sigma = levels(D, x, t)[1]
    size = 2 * (snr * sigma) ** 2
    return torch.where(sigma > 0, x + size * score(D, x, t, cond) + (2 * size).sqrt() * z, x)


def predictor_corrector(predictor: Step = ancestral, corrections: int = 1, snr: float = 0.16) -> Step:
    """A step: the predictor from t to s, then Langevin corrections at s (Song et al. 2021, algorithm 1).

    Consumes 1 + corrections noise tensors and as many evaluations; at s = 0, where nothing is left to correct, only the
    predictor's. The predictor draws at most one noise.
    """
    need_whole(corrections, "corrections")
    need_positive(snr, "snr")

    @draws(1 + corrections)
    def step(D: Denoiser, x: Tensor, t, s, z: Tensor | None = None, cond: Tensor | None = None) -> Tensor:
        z = need_noise(z, x, "predictor_corrector", 1 + corrections)
        x = predictor(D, x, t, s, z[0], cond)
        for zi in z[1:]:
            x = langevin_correction(D, x, s, zi, snr, cond)
        return x

    step.__name__ = "predictor_corrector"
    return step
