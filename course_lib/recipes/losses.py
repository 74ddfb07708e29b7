"""What the recipes of several data sets share: the denoising loss with its times and dropped labels, and how it is compared."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..denoiser import Preconditioned
from ..score_matching import denoising_loss
from ..training import LossFunction


def diffusion_loss(model: Preconditioned, x0: Tensor, *rest) -> Tensor:
    """Denoising loss with t = sigmoid(1.2 n + 0.2), n normal, kept within the schedule's range.

    rest: labels (B,) or captions (B, L) if there are any, which are dropped one time in ten, and the generator.
    """
    *cond, generator = rest
    B = len(x0)
    n, drop = torch.randn(B, generator=generator, device=x0.device), torch.rand(B, generator=generator, device=x0.device)
    t = (1.2 * n + 0.2).sigmoid().clamp(model.schedule.t_min, model.schedule.t_max)
    noise = torch.randn(x0.shape, generator=generator, device=x0.device)
    kept = [torch.where((drop < 0.1).view(B, *[1] * (y.ndim - 1)), -1, y) for y in cond]
    return denoising_loss(model, x0, t, noise, *kept)


@torch.no_grad()
def test_loss(loss_function: LossFunction, model: nn.Module, held_out: Sequence[Tensor], n: int = 500) -> dict[str, float]:
    """A training loss on n rows of held-out data instead, with draws fixed by a seed: comparable between runs."""
    device = next(model.parameters()).device
    rows = (d[:n].to(device) for d in held_out)
    return {"test_loss": loss_function(model, *rows, torch.Generator(device).manual_seed(0)).item()}
