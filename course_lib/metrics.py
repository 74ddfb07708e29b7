"""Two-sample distances. A distance means little without its floor: the same distance between two sets of real samples."""

from collections.abc import Callable

import torch
from torch import Tensor

from .arguments import described, need_shape, need_whole


def _flat_pair(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    if min(x.ndim, y.ndim) < 2 or not all(bool(v.isfinite().all()) for v in (x, y)):
        raise ValueError(f"x, y: expected finite samples (N, ...), got {described(x)} and {described(y)} or NaN, infinity")
    x, y = x.flatten(1).double(), y.flatten(1).double()
    if x.shape[1] != y.shape[1]:
        raise ValueError(f"x, y: expected samples of one dimension, got {x.shape[1]} and {y.shape[1]}")
    if min(len(x), len(y)) < 2:
        raise ValueError(f"x, y: expected at least two samples each, got {len(x)} and {len(y)}")
    return x, y


def sliced_wasserstein(x: Tensor, y: Tensor, directions: int = 64, seed: int = 0) -> float:
    """Sliced 2-Wasserstein distance of samples x (N, d) and y (N, d): root mean square over random directions.

    Along a line the optimal transport is to sort both (Bonneel et al. 2015). Raises ValueError for unequal N or d.
    """
    x, y = _flat_pair(x, y)
    if len(x) != len(y):
        raise ValueError(f"x, y: sorting pairs needs equally many samples, got {len(x)} and {len(y)}")
    generator = torch.Generator().manual_seed(seed)
    v = torch.randn(x.shape[1], need_whole(directions, "directions"), generator=generator, dtype=x.dtype)
    v = (v / v.norm(dim=0)).to(x.device)
    return ((x @ v).sort(0).values - (y @ v).sort(0).values).square().mean().sqrt().item()


def kernel_distance(x: Tensor, y: Tensor) -> float:
    """Squared maximum mean discrepancy of features x (N, d), y (M, d) with the kernel (x.y / d + 1)^3 (Gretton et al. 2012,
    eq. 3; Binkowski et al. 2018); may be negative.

    It is unbiased: unlike the Frechet distance it may be compared between any N, and few samples cost spread alone.
    """
    x, y = (z / z.shape[1] ** 0.5 for z in _flat_pair(x, y))

    def total(a: Tensor, b: Tensor) -> Tensor:                               # over all pairs; so few rows stay in the cache
        return sum(((rows @ b.T + 1) ** 3).sum() for rows in a.split(128))

    def among(z: Tensor) -> Tensor:                                          # the mean over pairs of two different samples
        return (total(z, z) - ((z.square().sum(1) + 1) ** 3).sum()) / (len(z) * (len(z) - 1))

    return (among(x) + among(y) - 2 * total(x, y) / (len(x) * len(y))).item()


def fold(x: Tensor, k: int = 8) -> Tensor:
    """Points (N, 2) of a ring of k equal spots, each turned by a multiple of 2 pi/k into the sector around the first.

    How many samples fall on each spot is a lottery for exact samples too, and most of the floor; folded, it is gone.
    """
    need_shape(x, (len(x), 2), "x")
    need_whole(k, "k")
    turn = -2 * torch.pi / k * (torch.atan2(x[:, 1], x[:, 0]) * k / (2 * torch.pi)).round()
    return torch.stack([turn.cos() * x[:, 0] - turn.sin() * x[:, 1], turn.sin() * x[:, 0] + turn.cos() * x[:, 1]], 1)


def frechet(x: Tensor, y: Tensor) -> float:
    """Frechet distance of Gaussians fitted to features x (N, d), y (M, d): |m - m'|^2 + tr(C + C' - 2 (C C')^(1/2)).

    The form of Heusel et al. 2017 on whatever features are passed. It is biased upwards, more so for few samples: compare
    only at equal N, beside the floor.
    """
    x, y = _flat_pair(x, y)
    if min(len(x), len(y)) <= x.shape[1]:
        raise ValueError(f"x, y: {x.shape[1]} features need more samples than that, got {len(x)} and {len(y)}")
    cx, cy = (torch.atleast_2d(z.T.cov()) for z in (x, y))
    # tr (C C')^(1/2) by the symmetric form, whose eigenvalues are real and not negative
    values, vectors = torch.linalg.eigh(cx)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    cross = torch.linalg.eigvalsh(root @ cy @ root).clamp(min=0).sqrt().sum()
    return ((x.mean(0) - y.mean(0)).square().sum() + cx.trace() + cy.trace() - 2 * cross).item()


@torch.no_grad()
def features(network: Callable[[Tensor], Tensor], images: Tensor, batch: int = 500) -> Tensor:
    """network's features (N, d) of images (N, C, H, W), batch by batch on the images' device."""
    return torch.cat([network(part) for part in images.split(batch)])


def relative_l2(estimate: Tensor, truth: Tensor) -> float:
    """|estimate - truth| / |truth|, both norms over all entries: 0 is perfect, 1 is as bad as answering zero."""
    need_shape(estimate, truth.shape, "estimate", "the truth's ")
    if not bool((truth != 0).any()):
        raise ValueError(f"truth: expected something to compare with, got zeros only, shape {tuple(truth.shape)}")
    return ((estimate.double() - truth).norm() / truth.double().norm()).item()
