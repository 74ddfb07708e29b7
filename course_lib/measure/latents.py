"""Rows of data/ledger.csv on emoji for which models are trained: latents against pixels, and how large and how free a latent
should be. Trainings are short, so these rows compare with one another and with nothing else."""

import copy
import statistics
from collections.abc import Iterable

import torch
from torch import Tensor

from .. import data, recipes, text
from ..autoencoders import KLAutoencoder, encode_all, fit_scale, kl_loss
from ..denoiser import Preconditioned, V
from ..ledger import Row
from ..metrics import features, kernel_distance
from ..networks import Captions, ColourFeatures, DiT
from ..schedules import CosineVP
from ..training import device_name, train
from .emoji import STEPS, draw, training_step_cost
from .rows import recorded, spread

BUDGETS = {"latent_diffusion": (60, 150, 300), "pixel_diffusion": (300, 900)}  # seconds of training
SWEEP = [(1, 0.1), (4, 0.1), (16, 0.1), (4, 1e-3), (4, 10.0), (4, 100.0)]  # channels, beta
TRAINING = {"steps": 500, "batch": 16, "lr": 2e-3, "ema": 0.99, "progress": False}


class Judge:
    """The kernel distance of pictures (N, 3, 64, 64) to real ones, in the features of the colour network."""

    def __init__(self):
        network = ColourFeatures().eval()
        network.load_state_dict(data.colour_features())
        self.features = lambda images: features(network.features, images)
        self.real = self.features(data.emoji("train").images)
        self.floor = kernel_distance(self.features(data.emoji("test").images), self.real)

    def __call__(self, pictures: Tensor) -> float:
        return kernel_distance(self.features(pictures.clamp(-1, 1).cpu()), self.real)


def _row(method: str, metric: str, value: float, device, samples: int, **more) -> Row:
    common = {"dataset": "emoji", "nfe": 0, "depth": 0, "batch": samples, "seconds": 0.0, "floor": 0.0, "seeds": 1,
              "weights": "trained for this row"}
    return Row(method=method, metric=metric, value=value, device=device_name(device), samples=samples, **(common | more))


# ---------------------------------------------------------------------------------------------- latents against pixels
@recorded
def latent_race(device: torch.device, samples: int, seeds: int) -> Iterable[Row]:
    """Emoji: kernel distance against seconds of training, one transformer on latents and on pixels (an hour on a CPU)."""
    judge, pictures = Judge(), data.emoji("train")
    captions, autoencoder = recipes.emoji_captions(pictures), recipes.load("emoji_autoencoder", device)
    spaces = {"latent_diffusion": (recipes.emoji_latents("train"), autoencoder.decode),
              "pixel_diffusion": (pictures.images, lambda x: x)}
    for method, budgets in BUDGETS.items():
        x0, decode = spaces[method]
        for budget in budgets:
            D, seconds = trained_for(budget, x0, captions, device)
            asked = captions[torch.randperm(len(captions), generator=torch.Generator().manual_seed(0))[:samples], 0]
            made = [judge(draw(D, decode, (len(asked), *x0.shape[1:]), asked, seed, device)) for seed in range(seeds)]
            yield _row(f"{method}, {budget} s", "kernel_distance", statistics.mean(made), device, len(asked),
                       nfe=STEPS, depth=STEPS, seeds=seeds, spread=spread(made), floor=judge.floor, train_seconds=seconds)


def trained_for(budget: float, x0: Tensor, captions: Tensor, device, batch: int = 16) -> tuple[Preconditioned, float]:
    """A text-to-image model after about so many seconds of training, a whole schedule of learning rates, and the seconds."""
    _, channels, size, _ = x0.shape
    torch.manual_seed(0)
    network = DiT(channels=channels, size=size, patch=2, width=160, depth=6, heads=5,
                  captions=Captions(data.words().vectors, text.LENGTH, width=160))
    model = Preconditioned(network, CosineVP(), V()).to(device)
    a_step, _ = training_step_cost(copy.deepcopy(model), (batch, *x0.shape[1:]))
    settings = TRAINING | {"steps": max(1, round(budget / a_step)), "batch": batch, "lr": 1e-3, "device": device}
    trained = train(recipes.captioned_loss, model, [x0, captions], bf16=next(model.parameters()).is_cuda, **settings)
    return trained.model, trained.seconds


# ---------------------------------------------------------------------------------------------- how large, how free
@recorded
def latent_sweep(device: torch.device, samples: int, seeds: int) -> Iterable[Row]:
    """Emoji: autoencoders of several channels and KL weights: round trip, samples of both priors (half an hour on a CPU)."""
    judge, images = Judge(), data.emoji("train").images[::2]                      # enough for so few steps
    for channels, beta in SWEEP:
        torch.manual_seed(0)
        model = KLAutoencoder(latent=channels, width=48, depth=2)
        model = train(recipes.turned(kl_loss(beta)), model, [images], clip=100.0, device=device, **TRAINING).model
        generator, name = torch.Generator().manual_seed(0), f"autoencoder, {channels} channels, beta {beta:g}"
        with torch.no_grad():
            simple = torch.cat([model.reconstruct(torch.randn(25, channels, 16, 16, generator=generator).to(device)).cpu()
                                for _ in range(-(-samples // 25))])[:samples]
        fit_scale(model, images)
        psnr = recipes.reconstruction(model, data.emoji("test").images)["psnr"]
        D = Preconditioned(DiT(channels=channels, size=16, patch=2, width=96), CosineVP(), V())
        D = train(recipes.diffusion_loss, D, [encode_all(model, images)], device=device, **TRAINING).model
        shape = (samples, channels, 16, 16)
        learnt = [judge(draw(D, model.decode, shape, None, seed, device)) for seed in range(seeds)]
        yield _row(name, "psnr", psnr, device, len(data.emoji("test").images), nfe=1, depth=1)
        yield _row(f"{name}, prior N(0, I)", "kernel_distance", judge(simple), device, samples, floor=judge.floor)
        yield _row(f"{name}, diffusion prior", "kernel_distance", statistics.mean(learnt), device, samples, nfe=STEPS,
                   depth=STEPS, seeds=seeds, spread=spread(learnt), floor=judge.floor)
