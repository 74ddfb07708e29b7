"""Recipes of Fashion-MNIST: the judge, the teacher, and its students of fewer and fewer steps."""

from collections.abc import Callable

import torch
import torch.nn.functional as nf
from torch import Tensor, nn

from .. import data, training
from ..consistency import path_loss
from ..denoiser import Preconditioned, Student, V
from ..fast_samplers import midpoint
from ..networks import Classifier, UNet
from ..progressive import guidance_loss, halving_loss, midpoint_target, two_step_target
from ..schedules import CosineVP
from ..training import Trained
from . import weights
from .losses import diffusion_loss, test_loss
from .registry import recipe

CLOTHES = ("fashion_mnist.npz",)
LARGEST_WEIGHT = 2.0  # of the guidance that students are told
CONSISTENCY_WEIGHT = 0.25  # where the teacher's pictures are nearest to real ones


@recipe(build=Classifier, steps=2000, reads=CLOTHES, merit="test_accuracy", sign=1, fixed=True)
def fashion_classifier(model: nn.Module, device, **run) -> tuple[Trained, dict[str, float]]:
    """Classifier of Fashion-MNIST: judges samples, and its features carry the Frechet distance."""
    trained = training.train(shifted_cross_entropy, model, data.fashion_mnist("train"), batch=128, lr=2e-3,
                           weight_decay=0.05, ema=0.995, device=device, **run)
    images, labels = data.fashion_mnist("test")
    return trained, {"test_accuracy": accuracy(trained.model, images, labels)}


def shifted_cross_entropy(model: nn.Module, x: Tensor, y: Tensor, generator: torch.Generator) -> Tensor:
    """Cross-entropy on images moved by up to two pixels: 30,000 images are few, and clothes do not mind."""
    dx, dy = torch.randint(-2, 3, (2,), generator=generator, device=x.device).tolist()
    moved = nf.pad(x, (2, 2, 2, 2), value=-1.0)[:, :, 2 + dy:30 + dy, 2 + dx:30 + dx]
    return nf.cross_entropy(model(moved), y, label_smoothing=0.05)


@torch.no_grad()
def accuracy(classifier: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Share of images (N, 1, 28, 28) that the classifier puts into the given class."""
    device = next(classifier.parameters()).device
    guesses = torch.cat([classifier(x.to(device)).argmax(1).cpu() for x in images.split(500)])
    return (guesses == labels.cpu()).float().mean().item()


def fashion_unet(numbers: int = 0) -> UNet:
    """The network of all diffusion models of Fashion-MNIST here: a million parameters, told so many further numbers."""
    return UNet(widths=(40, 80), depth=1, classes=10, numbers=numbers)


@recipe(build=lambda: Preconditioned(fashion_unet(), CosineVP(), V()), steps=60_000, reads=CLOTHES)
def fashion_teacher(model: Preconditioned, device, **run) -> tuple[Trained, dict[str, float]]:
    """The diffusion model of the course: class-conditional Fashion-MNIST, label dropped one time in ten."""
    trained = training.train(diffusion_loss, model, data.fashion_mnist("train"), batch=64, lr=1e-3,
                           ema=0.999, device=device, **run)
    return trained, test_loss(diffusion_loss, trained.model, data.fashion_mnist("test"), n=2000)


@recipe(build=lambda: Preconditioned(fashion_unet(numbers=1), CosineVP(), V()), steps=20_000,
        reads=CLOTHES, start="fashion_teacher", int8=True)
def fashion_guided_student(model: Preconditioned, device, **run) -> tuple[Trained, dict[str, float]]:
    """The teacher with guidance built in: told the weight, one evaluation does the work of two."""
    loss = guidance_loss(weights.load("fashion_teacher", device), LARGEST_WEIGHT)
    trained = training.train(loss, model, data.fashion_mnist("train"), batch=64, lr=3e-4, ema=0.998, device=device, **run)
    return trained, test_loss(loss, trained.model, data.fashion_mnist("test"))


def progressive(n: int, start: str, target: Callable[..., Tensor] = two_step_target) -> Callable:
    """The recipe of the student with n DDIM steps, times equally spaced from t_max to 0, from the model of that name."""
    def stage(model: Student, device, **run) -> tuple[Trained, dict[str, float]]:
        teacher = weights.load(start, device)
        ts = torch.linspace(teacher.schedule.t_max, 0, 2 * n + 1, dtype=torch.float64)
        loss = halving_loss(teacher, ts, LARGEST_WEIGHT, target)
        trained = training.train(loss, model, data.fashion_mnist("train"), batch=64, lr=5e-4, ema=0.998, device=device, **run)
        return trained, test_loss(loss, trained.model, data.fashion_mnist("test"))

    stage.__name__ = f"fashion_progressive_{n}"
    stage.__doc__ = f"One DDIM step for two, {n} in all: learns from {start}; told the guidance weight."
    return recipe(build=lambda: Student(fashion_unet(numbers=1), CosineVP(), V()), steps=10_000, reads=CLOTHES, start=start,
                  int8=True)(stage)


# the first teacher is a flow to be solved, best by a second-order step; the others are what they are, two steps
fashion_progressive_8 = progressive(8, "fashion_guided_student", midpoint_target)
fashion_progressive_4 = progressive(4, "fashion_progressive_8")
fashion_progressive_2 = progressive(2, "fashion_progressive_4")
fashion_progressive_1 = progressive(1, "fashion_progressive_2")


@recipe(build=lambda: Student(fashion_unet(numbers=1), CosineVP(), V()), steps=20_000,
        reads=(*CLOTHES, "fashion_guided_student"), start="fashion_progressive_1", int8=True, bf16=False)
def fashion_consistency(model: Student, device, **run) -> tuple[Trained, dict[str, float]]:
    """Consistency function of the guided flow, told weights up to 0.5, from whole paths of fashion_guided_student."""
    teacher = weights.load("fashion_guided_student", device)
    ts = torch.linspace(teacher.schedule.t_max, 0, 9, dtype=torch.float64)
    loss = path_loss(teacher, ts, largest=0.5, step=midpoint)
    trained = training.train(loss, model, data.fashion_mnist("train"), batch=12, lr=3e-4, ema=0.998, device=device, **run)
    return trained, test_loss(loss, trained.model, data.fashion_mnist("test"), n=50)
