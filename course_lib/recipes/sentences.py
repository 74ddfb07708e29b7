"""Recipes of sentences: the autoencoder, and the diffusion model in its latent space."""

import torch
from torch import Tensor

from .. import data, text, training
from ..autoencoders import encode_all, fit_scale
from ..denoiser import Preconditioned, V
from ..fast_samplers import dpm_solver_pp
from ..networks import DiT
from ..sampling import last, prior
from ..schedules import CosineVP, log_snr_uniform
from ..training import Trained
from . import weights
from .losses import diffusion_loss, test_loss
from .registry import recipe

SENTENCES = ("sentences.txt.xz", "words.npz")


@recipe(build=lambda: text.SentenceAutoencoder(text.vocabulary().vectors), steps=4000, reads=SENTENCES,
        merit="noisy_sentences", sign=1, fixed=True)
def sentence_autoencoder(model: text.SentenceAutoencoder, device, **run) -> tuple[Trained, dict[str, float]]:
    """Sentences of up to sixteen words to 4x4 latents and back."""
    numbers = text.tokens(data.sentences("train"))
    trained = training.train(text.sentence_loss(), model, [numbers], batch=64, lr=2e-3, ema=0.998, device=device, **run)
    fit_scale(trained.model, numbers)
    return trained, words_right(trained.model, text.tokens(data.sentences("test")))


@torch.no_grad()
def words_right(model: text.SentenceAutoencoder, numbers: Tensor, noise: float = 0.5) -> dict[str, float]:
    """Shares of words and of whole sentences (N, 16) that come back, from latents as they are and from noisy ones."""
    z = encode_all(model, numbers)
    disturbed = z + noise * torch.randn(z.shape, generator=torch.Generator().manual_seed(0))
    figures = {}
    for name, latents in (("test", z), ("noisy", disturbed)):
        guesses = model.words(latents.to(model.scale.device)).cpu()
        figures[f"{name}_words"], figures[f"{name}_sentences"] = text.accuracy(guesses, numbers)
    return figures


@recipe(build=lambda: Preconditioned(DiT(channels=32, size=4, patch=1, width=192, depth=4), CosineVP(), V()), steps=30_000,
        reads=(*SENTENCES, "sentence_autoencoder"), int8=True)
def sentence_latent_teacher(model: Preconditioned, device, **run) -> tuple[Trained, dict[str, float]]:
    """The diffusion model of sentences: sixteen latent vectors, without a condition."""
    autoencoder = weights.load("sentence_autoencoder", device)
    latents, held_out = (encode_all(autoencoder, text.tokens(data.sentences(part))) for part in ("train", "test"))
    trained = training.train(diffusion_loss, model, [latents], batch=64, lr=1e-3, ema=0.999, device=device, **run)
    sampled, real = sample_sentences(trained.model, autoencoder, 500), data.sentences("train")
    judge = text.NGrams(data.sentences("test"), len(text.vocabulary().words))
    figures = test_loss(diffusion_loss, trained.model, [held_out]) | {"share_found": text.share_found(sampled, real)}
    for name, some in (("sampled", sampled), ("real", real[:500])):     # a low perplexity of short sentences says nothing
        figures |= {f"perplexity_{name}": judge.perplexity(some), f"length_{name}": text.mean_length(some)}
    return trained, figures


@torch.no_grad()
def sample_sentences(D: Preconditioned, autoencoder: text.SentenceAutoencoder, n: int) -> list[str]:
    """n sentences by 30 second-order steps, from a fixed seed."""
    shape, device = (n, autoencoder.scale.shape[1], text.SIDE, text.SIDE), autoencoder.scale.device
    x = prior(D, shape, torch.Generator().manual_seed(0)).to(device)
    latents = last(dpm_solver_pp, D, x, log_snr_uniform(30, D.schedule)).x
    return [text.sentence(row) for row in autoencoder.words(latents).cpu()]
