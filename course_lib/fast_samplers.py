"""Samplers that take few steps."""

from torch import Tensor

from .denoiser import Denoiser, levels


def ddim(D: Denoiser, x: Tensor, t, s, z: Tensor | None = None, cond: Tensor | None = None) -> Tensor:
    """One DDIM step from t to s < t, deterministic (Song, Meng & Ermon 2021, eq. 12 with sigma = 0); z is not used.

    Keep the x0_hat and the noise that D sees in x (B, ...), and mix them afresh at the lower noise level.
    """
    alpha_t, sigma_t = levels(D, x, t)
    alpha_s, sigma_s = levels(D, x, s)
    x0 = D(x, t, cond)
    eps = (x - alpha_t * x0) / sigma_t
    return alpha_s * x0 + sigma_s * eps
