"""Recipes of emoji: the autoencoder, text to image in its latent space, and the cascade in pixels that it is held against."""

import hashlib
import random
from collections.abc import Callable

import torch
import torch.nn.functional as nf
from safetensors.torch import load as from_bytes
from safetensors.torch import save
from torch import Tensor, nn

from .. import data, files, text, training
from ..autoencoders import Autoencoder, KLAutoencoder, encode_all, fit_scale, kl_loss
from ..denoiser import X0, Preconditioned, V
from ..networks import Captions, DiT, Upscaler
from ..schedules import CosineVP
from ..training import LossFunction, Trained
from . import weights
from .losses import diffusion_loss, test_loss
from .registry import recipe

EMOJI = ("emoji/captions.csv", *(f"emoji/{style}.webp" for style in data.STYLES))     # the captions' file says what is held out
CAPTIONED = (*EMOJI, "words.npz")


@recipe(build=KLAutoencoder, steps=12_000, reads=EMOJI, merit="psnr", sign=1, fixed=True)
def emoji_autoencoder(model: KLAutoencoder, device, **run) -> tuple[Trained, dict[str, float]]:
    """Emoji to 16 x 16 latents of 4 channels and back; the KL is very weak, as reconstruction is what matters."""
    images = data.emoji("train").images
    trained = training.train(turned(kl_loss(beta=0.1)), model.to(memory_format=torch.channels_last), [images], batch=16,
                           lr=2e-3, ema=0.999, clip=100.0, device=device, **run)
    fit_scale(trained.model, images)
    return trained, reconstruction(trained.model, data.emoji("test").images)


def turned(loss_function: LossFunction) -> LossFunction:
    """The loss on images (B, 3, H, W) turned by quarters, mirrored, their colours exchanged: strokes and edges all the same."""
    def loss(model: nn.Module, x0: Tensor, generator: torch.Generator) -> Tensor:
        quarters, mirrored = torch.randint(4, (2,), generator=generator, device=x0.device).tolist()
        colours = torch.randperm(3, generator=generator, device=x0.device)
        x0 = x0[:, colours].rot90(quarters, (2, 3))
        return loss_function(model, x0.mT if mirrored % 2 else x0, generator)

    return loss


@torch.no_grad()
def reconstruction(model: Autoencoder, images: Tensor) -> dict[str, float]:
    """PSNR in dB of the round trip, over all pixels of images (N, 3, H, W) and over those that are not white; and the mean
    of every image's own PSNR, which is how papers average, and larger: a few hard images weigh less."""
    z = encode_all(model, images)
    made = torch.cat([model.decode(part.to(model.scale.device)).cpu() for part in z.split(64)]).clamp(-1, 1)
    error, drawn = (made - images).square().mean(1), (images < 1).any(1)
    figures = {name: -10 * (e.mean() / 4).log10().item() for name, e in (("psnr", error), ("psnr_drawn", error[drawn]))}
    return figures | {"psnr_mean": -10 * (error.mean((1, 2)) / 4).log10().mean().item()}


def emoji_latents(split: str) -> Tensor:
    """The pictures of a split as emoji_autoencoder encodes them, (N, 4, 16, 16); kept in data/cache after the first time.

    The name of the kept file is made of the sums of weights and pictures: with others, another file. A damaged one is replaced.
    """
    key = hashlib.sha256("".join(weights.sums((*EMOJI, "emoji_autoencoder")).values()).encode()).hexdigest()[:16]
    path = data.ROOT / "data" / "cache" / f"emoji_latents_{split}_{key}.sealed"
    try:
        kept = files.read_sealed(path)
    except (FileNotFoundError, ValueError):
        z = encode_all(weights.load("emoji_autoencoder"), data.emoji(split).images).contiguous()
        kept = save({"z": z})
        files.write_sealed(path, kept)
    return from_bytes(kept)["z"]


def emoji_captions(pictures: data.Emoji, variants: int = 16) -> Tensor:
    """Captions (N, variants, 12) for each picture: its name and style; then draws of name, a few keywords and style.

    Name and keywords are left out one time in two, the style one time in five, so that a model knows them apart.
    """
    known, rng = data.emoji_captions(), random.Random(0)

    def draw(name: str, keywords: tuple[str, ...], style: str) -> str:
        chosen = rng.sample(keywords, min(len(keywords), rng.randint(1, 3)))
        said = rng.choice(([name], chosen, [name, *chosen], chosen))
        return " ".join([*said, *[style] * (rng.random() < 0.8)])

    rows = []
    for style, number in zip(pictures.style.tolist(), pictures.name.tolist()):
        caption, word = known[number], data.STYLES[style]
        drawn = [f"{caption.name} {word}", *(draw(caption.name, caption.keywords, word) for _ in range(variants - 1))]
        rows.append(torch.stack([text.caption(each)[0] for each in drawn]))
    return torch.stack(rows)


def captioned_loss(model: Preconditioned, x0: Tensor, captions: Tensor, generator: torch.Generator) -> Tensor:
    """Denoising loss with one of the captions (B, variants, 12) of each picture, drawn afresh every time."""
    return diffusion_loss(model, x0, one_of(captions, generator), generator)


def one_of(captions: Tensor, generator: torch.Generator) -> Tensor:
    """One caption (B, 12) of each row of captions (B, variants, 12)."""
    B, variants, _ = captions.shape
    chosen = torch.randint(variants, (B,), generator=generator, device=captions.device)
    return captions[torch.arange(B, device=captions.device), chosen]


def sketched_loss(model: Preconditioned, x0: Tensor, captions: Tensor, generator: torch.Generator) -> Tensor:
    """captioned_loss of a quarter of the rows, and of all of them the error of the sketch, which is cheap enough for that."""
    few, hidden = -(-len(x0) // 4), torch.rand(len(x0), generator=generator, device=x0.device) < 0.1
    sketch = model.network.captions(torch.where(hidden[:, None], -1, one_of(captions, generator)), len(x0))[2]
    return captioned_loss(model, x0[:few], captions[:few], generator) + (sketch - x0).square().mean()


def emoji_dit(channels: int) -> DiT:
    """The network of the text-to-image models: 64 tokens, of 2x2 latents or pixels, beside the words of a caption."""
    words, vectors = data.words()
    heard = torch.tensor([[word not in data.STYLES] for word in words])               # a sketch is the mean over the styles
    captions = Captions(vectors, text.LENGTH, 160, (channels, 16, 16), heard)
    return DiT(channels=channels, size=16, patch=2, width=160, depth=6, heads=5, captions=captions)


def text_to_image(model: Preconditioned, pictures: Callable[[str], Tensor], device, **run) -> tuple[Trained, dict[str, float]]:
    """Captions to the pictures of a split; captions are dropped one time in ten, for guidance."""
    train, pairs = ([pictures(split), emoji_captions(data.emoji(split))] for split in ("train", "pairs"))
    trained = training.train(sketched_loss, model, train, batch=64, lr=1e-3, ema=0.9995, device=device, **run)
    return trained, test_loss(captioned_loss, trained.model, pairs)


@recipe(build=lambda: Preconditioned(emoji_dit(channels=4), CosineVP(), V()), steps=200_000,
        reads=(*CAPTIONED, "emoji_autoencoder"), int8=True)
def emoji_latent_teacher(model: Preconditioned, **run) -> tuple[Trained, dict[str, float]]:
    """Text to image: a caption to the latents of an emoji."""
    return text_to_image(model, emoji_latents, **run)


def small(images: Tensor) -> Tensor:
    """Images (B, C, 64, 64) at 16 x 16 pixels."""
    return nf.avg_pool2d(images, 4)


@recipe(build=lambda: Preconditioned(emoji_dit(channels=3), CosineVP(), V()), steps=200_000, reads=CAPTIONED, int8=True)
def emoji_small_teacher(model: Preconditioned, **run) -> tuple[Trained, dict[str, float]]:
    """The first model of a cascade: a caption to a small picture of an emoji."""
    return text_to_image(model, lambda split: small(data.emoji(split).images), **run)


@recipe(build=lambda: Preconditioned(Upscaler(widths=(64, 96), depth=1, patch=4), CosineVP(), X0()), steps=40_000,
        reads=EMOJI, int8=True)
def emoji_upscaler(model: Preconditioned, device, **run) -> tuple[Trained, dict[str, float]]:
    """The second: a small picture to a large one. It says x0, as noise of large patches fits no few channels (Li & He 2025)."""
    trained = training.train(turned(upscaling_loss), model, [data.emoji("train").images], batch=32, lr=1e-3, ema=0.999,
                           device=device, **run)
    return trained, test_loss(upscaling_loss, trained.model, [data.emoji("test").images])


def upscaling_loss(model: Preconditioned, x0: Tensor, generator: torch.Generator) -> Tensor:
    """Denoising loss beside the small picture, with a little noise: the first model's pictures are not exact, either
    (Ho et al. 2022, section 4)."""
    cond = small(x0)
    cond = cond + 0.1 * torch.randn(cond.shape, generator=generator, device=x0.device)
    return diffusion_loss(model, x0, cond, generator)
