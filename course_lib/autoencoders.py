"""Autoencoders: pictures to small latents and back, so that diffusion can run where there is less to compute.

One convention for every loss: errors are *summed* over a picture's pixels, the KL over its latents, both in nats, and all is
divided by the number of pixels, which moves no optimum. So `beta` means one thing: a direction of latent space is kept where
the data's variance along it exceeds beta * sigma2, which is exact in the linear case, `ppca`.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from .arguments import mean_of, need_positive, need_whole, need_within, widened
from .networks import zeroed


class Autoencoder(nn.Module):
    """What diffusion needs: latents of mean 0 and variance 1 in every channel (Rombach et al. 2022, appendix G).

    A subclass has latent(x) -> raw latents (B, C, *sides) and reconstruct(raw latents) -> x_hat with variance sigma2 a pixel.
    The buffers shift and scale lie between the two; they are 0 and 1 until `fit_scale` measures them.
    """

    def __init__(self, channels: int, sides: int, sigma2: float):
        super().__init__()
        self.sigma2 = sigma2
        self.register_buffer("shift", torch.zeros(1, channels, *[1] * sides))
        self.register_buffer("scale", torch.ones(1, channels, *[1] * sides))

    def encode(self, x: Tensor) -> Tensor:
        """The latents that diffusion sees."""
        return (self.latent(x) - self.shift) / self.scale

    def decode(self, z: Tensor) -> Tensor:
        """Back from them. ValueError for latents of another form."""
        if z.ndim != self.scale.ndim or z.shape[1] != self.scale.shape[1]:
            raise ValueError(f"z: expected {self.scale.ndim} axes with {self.scale.shape[1]} channels, got {tuple(z.shape)}")
        return self.reconstruct(z * self.scale + self.shift)

    def surprise(self, x0: Tensor, z: Tensor) -> Tensor:
        """-log N(x0; reconstruct(z), sigma2) of raw latents z, summed over each picture's pixels: (B,) nats."""
        squared = widened(x0 - self.reconstruct(z)).square() / self.sigma2
        return (squared + math.log(2 * math.pi * self.sigma2)).flatten(1).sum(1) / 2


@torch.no_grad()
def encode_all(model: Autoencoder, images: Tensor, batch: int = 64) -> Tensor:
    """The scaled latents of a whole data set, made batch by batch on the model's device, left on the images' own."""
    return torch.cat([model.encode(x.to(model.scale.device)).to(images.device) for x in images.split(batch)])


def fit_scale(model: Autoencoder, images: Tensor) -> None:
    """Give these images latents of mean 0 and variance 1 in every channel. ValueError if a channel is silent, of variance 0."""
    z = encode_all(model, images).to(model.scale.device)
    std, mean = torch.std_mean(z, [0, *range(2, z.ndim)], keepdim=True)
    if not bool((std > 0).all()):
        raise ValueError(f"images: every latent channel must vary, got standard deviations {std.flatten().tolist()}")
    model.shift.add_(mean * model.scale)  # on top of the scale that the latents have already
    model.scale.mul_(std)


# ---------------------------------------------------------------------------------------------- a Gaussian over latents
class LinearAutoencoder(Autoencoder):
    """The case with a closed form, `ppca`: centred rows x (B, dim), z | x = N(V x, diagonal), x | z = N(W z, sigma2)."""

    def __init__(self, dim: int, latent: int, sigma2: float):
        super().__init__(latent, 0, sigma2)
        self.latent = nn.Linear(dim, latent, bias=False)       # its weight is V (latent, dim)
        self.reconstruct = nn.Linear(latent, dim, bias=False)  # its weight is W (dim, latent)
        self.log_var = nn.Parameter(torch.zeros(latent))

    def posterior(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean (B, latent) of z given x, and log-variance, the same for every row."""
        return self.latent(x), self.log_var.expand(len(x), -1)


def ppca(covariance: Tensor, latent: int, sigma2: float, beta: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    """Where kl_loss(beta) leads a LinearAutoencoder: W (dim, latent), posterior variance (latent,), ELBO in nats a row.

    An eigenvalue l of the data's covariance (dim, dim) above s = beta sigma2 is kept: a column of W of length sqrt(l - s),
    variance s/l; the others are shut off. V = variance[:, None] * W.T / s. At beta = 1 the ELBO is the log-likelihood of
    probabilistic PCA (Tipping & Bishop 1999; Lucas et al. 2019). The loss leaves the columns' order and signs open.
    """
    square = covariance.ndim == 2 and covariance.shape[0] == covariance.shape[1]
    if not square or not bool((covariance - covariance.T).abs().max() <= 1e-5 * covariance.abs().max()):
        raise ValueError(f"covariance: expected a symmetric matrix of finite numbers, got {tuple(covariance.shape)}")
    need_positive(beta * sigma2, "beta * sigma2")
    need_within(need_whole(latent, "latent"), "latent", 1, len(covariance))
    values, vectors = torch.linalg.eigh(covariance)
    values, vectors, s = values.flip(0), vectors.flip(1)[:, :latent], beta * sigma2
    kept = values[:latent].clamp(min=s)                                 # one that is shut off counts as noise
    error = values[latent:].sum() + values[:latent].clamp(max=s).sum()  # E ||x - x_hat||^2
    elbo = -(len(values) * math.log(2 * math.pi * sigma2) + error / sigma2 + beta * (kept / s).log().sum()) / 2
    return vectors * (kept - s).sqrt(), s / kept, elbo


class Residual(nn.Sequential):
    """Two 3x3 convolutions added to what they see; the second starts at zero."""

    def __init__(self, width: int):
        super().__init__(nn.ReLU(), nn.Conv2d(width, width, 3, padding=1),
                         nn.ReLU(), zeroed(nn.Conv2d(width, width, 3, padding=1)))

    def forward(self, x: Tensor) -> Tensor:
        return x + super().forward(x)


class Convolutional(Autoencoder):
    """Pictures (B, channels, H, W) to (B, latent, H/fold, W/fold) and back; sigma2 = 0.01 is the error of one at 26 dB."""

    def __init__(self, channels: int = 3, latent: int = 4, width: int = 96, depth: int = 3, fold: int = 4, sigma2: float = .01):
        super().__init__(latent, 2, sigma2)
        self.channels, self.fold = channels, fold

        def half(inp, out):
            return [nn.Conv2d(inp, width, 3, padding=1), *(Residual(width) for _ in range(depth)),
                    nn.ReLU(), nn.Conv2d(width, out, 3, padding=1)]
        self.encoder = nn.Sequential(nn.PixelUnshuffle(fold), *half(channels * fold**2, self.outputs * latent))
        self.decoder = nn.Sequential(*half(latent, channels * fold**2), nn.PixelShuffle(fold))

    def outputs_for(self, x: Tensor) -> Tensor:
        """What the encoder says (B, outputs * latent, H/fold, W/fold). ValueError for pictures of another form."""
        if x.ndim != 4 or x.shape[1] != self.channels or x.shape[2] % self.fold or x.shape[3] % self.fold or not len(x):
            raise ValueError(f"x: expected (B, {self.channels}, H, W), sides divisible by {self.fold}, got {tuple(x.shape)}")
        return self.encoder(x)

    def latent(self, x: Tensor) -> Tensor:
        return self.outputs_for(x)[:, :self.scale.shape[1]]

    def reconstruct(self, z: Tensor) -> Tensor:
        return self.decoder(z)


class KLAutoencoder(Convolutional):
    """Pictures to a Gaussian over latents and back; diffusion sees its mean. Arguments: those of Convolutional."""

    outputs = 2  # of the encoder for each latent: mean and log-variance

    def posterior(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance of the raw z given x, each (B, latent, H/fold, W/fold)."""
        mean, log_var = self.outputs_for(x).chunk(2, 1)
        return mean, log_var.clamp(-20, 10)


def kl_loss(beta: float) -> Callable[..., Tensor]:
    """loss(model, x0, ..., generator) = -(log p(x0 | z) - beta KL), z drawn from the posterior (Higgins et al. 2017)."""
    def loss(model: LinearAutoencoder | KLAutoencoder, x0: Tensor, *rest) -> Tensor:
        mean, log_var = model.posterior(x0)
        z = mean + (log_var / 2).exp() * torch.randn(mean.shape, generator=rest[-1], device=x0.device)
        kl = (mean.square() + log_var.exp() - 1 - log_var).flatten(1).sum(1) / 2
        return mean_of(model.surprise(x0, z) + beta * kl) / x0.shape[1:].numel()

    return loss


# ---------------------------------------------------------------------------------------------- a codebook of latents
class VQAutoencoder(Convolutional):
    """Pictures to latents, each rounded to the nearest of so many `codes` before it is decoded; `form` as in Convolutional.

    Rounding is part of `reconstruct`: diffusion sees what comes before it, and its small errors are rounded away (Rombach et
    al. 2022, section 3.1). sigma2 = 0.5 makes the error a plain sum of squares; with much less, latents outgrow their codes.
    """

    outputs = 1

    def __init__(self, codes: int = 512, sigma2: float = 0.5, **form):
        super().__init__(sigma2=sigma2, **form)
        self.codebook = nn.Embedding(codes, self.scale.shape[1])

    def reconstruct(self, z: Tensor) -> Tensor:
        return self.decoder(straight_through(z, self.vectors(self.nearest(z))))

    def nearest(self, z: Tensor) -> Tensor:
        """Numbers (B, h, w) of the codes nearest to raw latents z (B, latent, h, w)."""
        apart = torch.cdist(z.detach().movedim(1, -1).flatten(0, -2), self.codebook.weight.detach())
        return apart.argmin(1).view(len(z), *z.shape[2:])

    def vectors(self, numbers: Tensor) -> Tensor:
        """The codes (B, latent, h, w) of these numbers (B, h, w)."""
        return self.codebook(numbers).movedim(-1, 1)

    @torch.no_grad()
    def usage(self, images: Tensor) -> tuple[float, float]:
        """Share of the codes that these images use, and the perplexity exp(entropy): how many they use in effect."""
        numbers = torch.cat([self.nearest(self.latent(x.to(self.scale.device))).flatten() for x in images.split(64)])
        p = torch.bincount(numbers, minlength=self.codebook.num_embeddings) / len(numbers)
        return (p > 0).float().mean().item(), torch.special.entr(p).sum().exp().item()


def straight_through(z: Tensor, rounded: Tensor) -> Tensor:
    """The value of `rounded`, the gradient of z: the Jacobian of rounding is taken for the identity (Bengio et al. 2013)."""
    return z + (rounded - z).detach()


def vq_loss(beta: float = 0.25) -> Callable[..., Tensor]:
    """loss(model, x0, ..., generator) = -log p(x0 | e) + ||sg(z) - e||^2 + beta ||z - sg(e)||^2, e the codes of the latents z:
    codes follow latents at full weight, latents their codes at beta (van den Oord et al. 2017, eq. 3)."""
    def loss(model: VQAutoencoder, x0: Tensor, *_) -> Tensor:
        z = model.latent(x0)
        e = model.vectors(model.nearest(z))
        apart = (z.detach() - e).square() + beta * (z - e.detach()).square()
        return mean_of(model.surprise(x0, z) + apart.flatten(1).sum(1)) / x0.shape[1:].numel()

    return loss
