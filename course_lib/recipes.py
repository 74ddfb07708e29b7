"""The trained models that the course ships: one function each, one file each, all rebuilt by `course train NAME`.

A recipe is a function (model, steps, device, checkpoint, seed, identity) -> (Trained, metrics) with a `build` that makes the
untrained model and, where it begins with the weights of another recipe, that one's name as `start`. Weights are files
NAME.safetensors, as fp16 or int8; manifest.json beside them says how each came to be, and its check sum is verified before a
file is used. Those that ship lie in data/checkpoints, those that a learner trains in my/weights: no training ever writes over
weights that are there, and of all that a recipe has the best by its figure of merit are used.
"""

import hashlib
import itertools
import json
import math
import random
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as nf
from safetensors.torch import load as from_bytes
from safetensors.torch import load_file, save
from torch import Tensor, nn

from . import data, files, text
from .autoencoders import Autoencoder, KLAutoencoder, encode_all, fit_scale, kl_loss
from .consistency import Trainee, closing, continuous_loss, path_loss, training_loss
from .denoiser import X0, Preconditioned, Student, V, per_row
from .fast_samplers import dpm_solver_pp, midpoint
from .networks import MLP, Captions, Classifier, DiT, UNet, Upscaler
from .progressive import guidance_loss, halving_loss, midpoint_target, two_step_target
from .sampling import last, prior
from .schedules import CosineVP, log_snr_uniform
from .score_matching import denoising_loss
from .targets import ring
from .training import LossFunction, Trained, chosen_device, device_name, join_process_group
from .training import train as run_training

RECIPES: dict[str, Callable] = {}
CLOTHES = ("fashion_mnist.npz",)
EMOJI = ("emoji/captions.csv", *(f"emoji/{style}.webp" for style in data.STYLES))     # the captions' file says what is held out
CAPTIONED = (*EMOJI, "words.npz")
SENTENCES = ("sentences.txt.xz", "words.npz")


def recipe(build: Callable[[], nn.Module], steps: int, reads: tuple[str, ...] = (), start: str | None = None,
           int8: bool = False, merit: str = "test_loss", sign: int = -1, space: bool = False) -> Callable:
    """Register a recipe under its function's name, with the model it trains, its full number of steps and its start.

    reads: the files of data/ and the other recipes that its weights depend on. int8: for large or many models, whose files then
    are half as long (see `packed`). merit: the metric that says which weights are better; sign: 1 if more of it is, -1 if less.
    space: does it make the latent space of other recipes? They fit no other one, so what ships stays in use.
    """
    def register(function: Callable) -> Callable:
        function.build, function.steps, function.start, function.int8 = build, steps, start, int8
        function.reads, function.merit, function.sign, function.space = reads, merit, sign, space
        RECIPES[function.__name__] = function
        return function

    return register


# ---------------------------------------------------------------------------------------------- Fashion-MNIST
@recipe(build=Classifier, steps=2000, reads=CLOTHES, merit="test_accuracy", sign=1)
def fashion_classifier(model: nn.Module, device, **run) -> tuple[Trained, dict[str, float]]:
    """Classifier of Fashion-MNIST: judges samples, and its features carry the Frechet distance."""
    trained = run_training(shifted_cross_entropy, model, data.fashion_mnist("train"), batch=128, lr=2e-3,
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
    trained = run_training(diffusion_loss, model, data.fashion_mnist("train"), batch=64, lr=1e-3,
                           ema=0.999, device=device, **run)
    return trained, test_loss(diffusion_loss, trained.model, data.fashion_mnist("test"), n=2000)


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


LARGEST_WEIGHT = 2.0  # of the guidance that students are told
CONSISTENCY_WEIGHT = 0.25  # where the teacher's pictures are nearest to real ones


@recipe(build=lambda: Preconditioned(fashion_unet(numbers=1), CosineVP(), V()), steps=20_000,
        reads=CLOTHES, start="fashion_teacher", int8=True)
def fashion_guided_student(model: Preconditioned, device, **run) -> tuple[Trained, dict[str, float]]:
    """The teacher with guidance built in: told the weight, one evaluation does the work of two."""
    loss = guidance_loss(load("fashion_teacher", device), LARGEST_WEIGHT)
    trained = run_training(loss, model, data.fashion_mnist("train"), batch=64, lr=3e-4, ema=0.998, device=device, **run)
    return trained, test_loss(loss, trained.model, data.fashion_mnist("test"))


def progressive(n: int, start: str, target: Callable[..., Tensor] = two_step_target) -> Callable:
    """The recipe of the student with n DDIM steps, times equally spaced from t_max to 0, from the model of that name."""
    def stage(model: Student, device, **run) -> tuple[Trained, dict[str, float]]:
        teacher = load(start, device)
        ts = torch.linspace(teacher.schedule.t_max, 0, 2 * n + 1, dtype=torch.float64)
        loss = halving_loss(teacher, ts, LARGEST_WEIGHT, target)
        trained = run_training(loss, model, data.fashion_mnist("train"), batch=64, lr=5e-4, ema=0.998, device=device, **run)
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
        reads=(*CLOTHES, "fashion_guided_student"), start="fashion_progressive_1", int8=True)
def fashion_consistency(model: Student, device, **run) -> tuple[Trained, dict[str, float]]:
    """Consistency function of the guided flow, told weights up to 0.5, from whole paths of fashion_guided_student."""
    teacher = load("fashion_guided_student", device)
    ts = torch.linspace(teacher.schedule.t_max, 0, 9, dtype=torch.float64)
    loss = path_loss(teacher, ts, largest=0.5, step=midpoint)
    trained = run_training(loss, model, data.fashion_mnist("train"), batch=12, lr=3e-4, ema=0.998, device=device, **run)
    return trained, test_loss(loss, trained.model, data.fashion_mnist("test"), n=50)


# ---------------------------------------------------------------------------------------------- the ring
def ring_data(seed: int = 0) -> list[Tensor]:
    """Twenty thousand points of the ring."""
    return [ring().sample(20_000, torch.Generator().manual_seed(seed)).float()]


@torch.no_grad()
def path_error(f: Student, n: int = 2000) -> dict[str, float]:
    """Mean distance of one step of f, from n starts, to the exact ends of their paths."""
    D = ring().denoiser(f.schedule)
    x = prior(D, (n, 2), torch.Generator().manual_seed(0), dtype=torch.float64)
    ends = last(dpm_solver_pp, D, x, log_snr_uniform(200, f.schedule), order=3).x
    device = next(f.parameters()).device
    return {"path_error": (f(x.float().to(device), f.schedule.t_max).cpu() - ends).norm(dim=1).mean().item()}


@recipe(build=lambda: Preconditioned(MLP(fastest=8.0), CosineVP(), V()), steps=4000)
def ring_teacher(model: Preconditioned, device, **run) -> tuple[Trained, dict[str, float]]:
    """Diffusion model of the ring of eight spots, with which the next two begin."""
    trained = run_training(diffusion_loss, model, ring_data(), batch=512, lr=2e-3, ema=0.999, device=device, **run)
    return trained, test_loss(diffusion_loss, trained.model, ring_data(seed=1), n=20_000)


@recipe(build=lambda: Student(MLP(fastest=8.0), CosineVP(), V()), steps=8000, start="ring_teacher", merit="path_error")
def ring_tuned(model: Student, device, **run) -> tuple[Trained, dict[str, float]]:
    """Consistency function of the ring by easy consistency tuning: no teacher, and a gap that closes."""
    loss = training_loss(closing(4.0, every=1500, mean=0.0, std=2.0, stages=4), c=0.1)
    trained = run_training(loss, Trainee(model, decay=0.9), ring_data(), batch=512, lr=1e-3, ema=0.999, device=device, **run)
    return replace(trained, model=trained.model.f), path_error(trained.model.f)


@recipe(build=lambda: Student(MLP(fastest=8.0), CosineVP(), V()), steps=8000, start="ring_teacher", merit="path_error")
def ring_continuous(model: Student, device, **run) -> tuple[Trained, dict[str, float]]:
    """Consistency function of the ring in continuous time: no gap, with the slope of the exact denoiser."""
    loss = continuous_loss(ring().denoiser(model.schedule))
    trained = run_training(loss, Trainee(model), ring_data(), batch=512, lr=1e-3, ema=0.999, device=device, **run)
    return replace(trained, model=trained.model.f), path_error(trained.model.f)


# ---------------------------------------------------------------------------------------------- emoji
@recipe(build=KLAutoencoder, steps=12_000, reads=EMOJI, merit="psnr", sign=1, space=True)
def emoji_autoencoder(model: KLAutoencoder, device, **run) -> tuple[Trained, dict[str, float]]:
    """Emoji to 16 x 16 latents of 4 channels and back; the KL is very weak, as reconstruction is what matters."""
    images = data.emoji("train").images
    trained = run_training(turned(kl_loss(beta=0.1)), model.to(memory_format=torch.channels_last), [images], batch=16,
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
    key = hashlib.sha256("".join(sums((*EMOJI, "emoji_autoencoder")).values()).encode()).hexdigest()[:16]
    path = data.ROOT / "data" / "cache" / f"emoji_latents_{split}_{key}.sealed"
    try:
        kept = files.read_sealed(path)
    except (FileNotFoundError, ValueError):
        z = encode_all(load("emoji_autoencoder"), data.emoji(split).images).contiguous()
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
    trained = run_training(sketched_loss, model, train, batch=64, lr=1e-3, ema=0.9995, device=device, **run)
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
    trained = run_training(turned(upscaling_loss), model, [data.emoji("train").images], batch=32, lr=1e-3, ema=0.999,
                           device=device, **run)
    return trained, test_loss(upscaling_loss, trained.model, [data.emoji("test").images])


def upscaling_loss(model: Preconditioned, x0: Tensor, generator: torch.Generator) -> Tensor:
    """Denoising loss beside the small picture, with a little noise: the first model's pictures are not exact, either
    (Ho et al. 2022, section 4)."""
    cond = small(x0)
    cond = cond + 0.1 * torch.randn(cond.shape, generator=generator, device=x0.device)
    return diffusion_loss(model, x0, cond, generator)


# ---------------------------------------------------------------------------------------------- sentences
@recipe(build=lambda: text.SentenceAutoencoder(text.vocabulary().vectors), steps=4000, reads=SENTENCES,
        merit="noisy_sentences", sign=1, space=True)
def sentence_autoencoder(model: text.SentenceAutoencoder, device, **run) -> tuple[Trained, dict[str, float]]:
    """Sentences of up to sixteen words to 4x4 latents and back."""
    numbers = text.tokens(data.sentences("train"))
    trained = run_training(text.sentence_loss(), model, [numbers], batch=64, lr=2e-3, ema=0.998, device=device, **run)
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
    autoencoder = load("sentence_autoencoder", device)
    latents, held_out = (encode_all(autoencoder, text.tokens(data.sentences(part))) for part in ("train", "test"))
    trained = run_training(diffusion_loss, model, [latents], batch=64, lr=1e-3, ema=0.999, device=device, **run)
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


# ---------------------------------------------------------------------------------------------- files
def checkpoints() -> Path:
    """The folder of the shipped weights."""
    return data.ROOT / "data" / "checkpoints"


def own() -> Path:
    """The folder of the weights that a learner trained; no file of it belongs to git."""
    return data.ROOT / "my" / "weights"


def entries(folder: Path) -> dict[str, dict]:
    """The manifest of a folder, empty if there is none: a file's stem -> its sum, recipe, budget, device, seconds, metrics.

    ValueError, with the line and the way back, if it is damaged.
    """
    path, shipped = folder / "manifest.json", folder == checkpoints()
    advice = "`git checkout -- data/checkpoints/manifest.json`" if shipped else "mend or delete it; weights beside it stay"
    return files.read_entries(path, {"file", "sha256", "recipe", "metrics"}, advice) if path.exists() else {}


def listed(folder: Path | None = None) -> list[tuple[Path, dict]]:
    """Every file of weights that a folder's manifest lists, with its entry; without a folder the shipped, then a learner's."""
    return [(place / entry["file"], entry) for place in ([folder] if folder else [checkpoints(), own()])
            for entry in entries(place).values()]


def best(name: str, folder: Path | None = None) -> tuple[Path, dict]:
    """Of the weights that a recipe has in a folder, or in both, the best by its figure of merit: the file and its entry.

    Where other recipes learn in the latent space of this one, those that ship, unless a folder is given. Of files that are gone
    another takes the place. Raises ValueError for an unknown name, FileNotFoundError if none are listed.
    """
    return _best(name, folder or (checkpoints() if known(name).space else None))


def _best(name: str, folder: Path | None) -> tuple[Path, dict]:
    function = known(name)
    found = [(path, entry) for path, entry in listed(folder) if entry["recipe"] == name]
    if not found:
        checkout = "" if folder not in (None, checkpoints()) else "`git checkout -- data/checkpoints/manifest.json`, or "
        raise FileNotFoundError(f"{(folder or checkpoints()) / 'manifest.json'} does not list {name}. To get it back: "
                                f"{checkout}train it: `course train {name}`")
    there = [each for each in found if each[0].is_file()] or found
    return max(there, key=lambda each: _merit(function, each[1]))


def _merit(function: Callable, entry: dict) -> float:
    """The more the better; nothing is worse than what is no number."""
    value = function.sign * entry["metrics"].get(function.merit, math.nan)
    return -math.inf if math.isnan(value) else value


def manifest(folder: Path | None = None) -> dict[str, dict]:
    """What is known of the best weights of each recipe (of a folder): sum, budget, device, seconds, metrics."""
    names = {entry["recipe"] for _, entry in listed(folder)}
    return {name: best(name, folder)[1] for name in RECIPES if name in names}


def known(name: str) -> Callable:
    """The recipe of that name, or a ValueError that lists the names there are."""
    if name not in RECIPES:
        raise ValueError(f"name: expected one of {', '.join(RECIPES)}, got {name!r}")
    return RECIPES[name]


def load(name: str, device: torch.device | str | None = "cpu", folder: Path | None = None) -> nn.Module:
    """The best model of a recipe, in float32 and eval mode; device None is the one that training would choose.

    Raises ValueError for an unknown name or device or a file whose sum is wrong, FileNotFoundError if it is not there.
    """
    device = chosen_device(device)
    # convolutions on a CPU run about a quarter faster with the channels last in memory; nothing else changes
    model = _loaded(name, *best(name, folder)).to(device, memory_format=torch.channels_last)
    return model.eval().requires_grad_(False)


def _loaded(name: str, path: Path, entry: dict) -> nn.Module:
    model = known(name).build()
    files.verify(path, entry["sha256"], _advice(name, path))
    try:
        model.load_state_dict(unpacked(load_file(path)))
    except RuntimeError as error:
        raise ValueError(f"{path} is not of the network that the recipe {name} has now; move it elsewhere") from error
    return model


def _advice(name: str, path: Path) -> str:
    """One file alone: no other weights change, and no manifest."""
    if path.parent == checkpoints():
        return f"`git checkout -- data/checkpoints/{path.name}`, or train it anew: `course train {name}`"
    return f"train it anew: `course train {name}`; while {path} is not there, the next best weights take its place"


def packed(weights: dict[str, Tensor], int8: bool) -> dict[str, Tensor]:
    """Weights, on any device, as a file holds them: fp16, or matrices and kernels as int8 with one scale a row (an output of
    the layer)."""
    weights = {k: v.cpu() for k, v in weights.items()}
    stored = {k: v.half().contiguous() for k, v in weights.items()}
    for k, v in weights.items() if int8 else ():
        if v.ndim > 1:
            scale = v.flatten(1).abs().amax(1).clamp(min=1e-12) / 127
            stored |= {k: (v / per_row(scale, v)).round().to(torch.int8).contiguous(), f"{k}:scale": scale}
    return stored


def unpacked(stored: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights of a file, in float32."""
    return {k: v.float() * (per_row(stored[f"{k}:scale"], v.float()) if f"{k}:scale" in stored else 1)
            for k, v in stored.items() if not k.endswith(":scale")}


def verify_all() -> list[tuple[str, bool, str]]:
    """Check every file of weights that a manifest lists, and that each recipe has one that ships: (name, is it sound, what to
    say about it)."""
    shipped = {entry["recipe"] for entry in entries(checkpoints()).values()}
    missing = [(name, False, "data/checkpoints/manifest.json is missing or does not list it. To get it back: "
                "`git checkout -- data/checkpoints/manifest.json`") for name in RECIPES if name not in shipped]
    return missing + [_report(path, entry) for path, entry in listed()]


def _report(path: Path, entry: dict) -> tuple[str, bool, str]:
    name = path.stem if path.parent == checkpoints() else f"my/{path.stem}"
    try:
        files.verify(path, entry["sha256"], _advice(entry["recipe"], path))
    except (OSError, ValueError) as error:
        return name, False, str(error)
    return name, True, f"{entry['parameters']:,} parameters"


def sums(names: Sequence[str]) -> dict[str, str]:
    """Check sums of files of data/ and of the best weights of recipes, by these names."""
    return {name: (best(name)[1] if name in RECIPES else data.entry(name))["sha256"] for name in names}


def train(name: str, device: torch.device | str | None = None, steps: int | None = None, out: str | Path | None = None,
          further: bool = False) -> Path | None:
    """Carry out a recipe: train, measure, write weights and their entry into `out` (`own()`); returns the new file's path.

    Resumes from NAME.state.pt in the same folder after a kill. steps other than the recipe's own are recorded as such.
    further: begin with the best weights there are, of `out` if it is given, and let the learning rate rise and fall once more;
    steps and seconds add up. Under torchrun all processes but the first return None.
    Raises ValueError for an unknown name or device, no steps, or a state of another run; BlockingIOError if another process
    is training the same; what `training.train` raises.
    """
    function, folder = known(name), Path(out) if out else own()
    rank, _ = join_process_group()                                              # before a recipe puts its teacher on a device
    device, steps, state = chosen_device(device), function.steps if steps is None else steps, folder / f"{name}.state.pt"
    with files.locked(state) if rank == 0 else nullcontext():
        entries(folder)  # a manifest that is damaged is found now, not when all is done
        torch.manual_seed(0)  # the initial weights
        model, before = function.build(), {}
        if further:
            path, before = _best(name, out and folder)
            model.load_state_dict(_loaded(name, path, before).state_dict())
        elif function.start:                                   # what its own network is told besides, it has to learn itself
            model.load_state_dict(model.state_dict() | load(function.start).state_dict())
        read = sums((*function.reads, *filter(None, [function.start])))
        identity = {"recipe": name, "further": before.get("sha256", ""), **read}
        trained, metrics = function(model, steps=steps, device=device, checkpoint=state, seed=before.get("steps", 0),
                                    identity=identity)
        if rank > 0:
            return None
        path = store(name, trained, metrics, steps, folder, before)
        state.unlink()
    return path


def store(name: str, trained: Trained, metrics: dict[str, float], steps: int, folder: Path, before: dict | None = None) -> Path:
    """Write weights as a new file, then the manifest that vouches for them, both atomically: what was there before stays, whole
    and listed, whenever this is killed. before: the entry of what the training began with."""
    before = before or {"steps": 0, "train_seconds": 0}
    weights = packed(trained.model.state_dict(), RECIPES[name].int8)
    with files.locked(folder / "manifest.json", wait=True):
        others = entries(folder)
        stems = itertools.chain([name], (f"{name}-{n}" for n in itertools.count(2)))
        path = next(path for stem in stems if stem not in others and not (path := folder / f"{stem}.safetensors").exists())
        files.atomic_write(path, lambda file: file.write(save(weights)))
        entry = {
            "file": path.name, "sha256": files.sha256(path), "recipe": name, "seed": 0, "steps": before["steps"] + steps,
            "full_steps": RECIPES[name].steps, "parameters": sum(p.numel() for p in trained.model.parameters()),
            "device": device_name(next(trained.model.parameters()).device), "torch": torch.__version__,
            "train_seconds": before["train_seconds"] + round(trained.seconds),
            "final_loss": sum(trained.losses[-200:]) / len(trained.losses[-200:]), "metrics": metrics,
        }
        text = json.dumps({**others, path.stem: entry}, indent=2, sort_keys=True) + "\n"
        files.atomic_write(folder / "manifest.json", lambda file: file.write(text.encode()))
    return path


def standing(path: Path) -> str:
    """What a newly trained file is worth, and whether `load` takes it or another."""
    entry, = (entry for each, entry in listed(path.parent) if each == path)
    name, (chosen, its) = entry["recipe"], best(entry["recipe"])
    function = known(name)
    merit, its_merit = (f"{function.merit} {each['metrics'][function.merit]:.4g}" for each in (entry, its))
    told = f"{path}: {merit} ({'more' if function.sign > 0 else 'less'} is better). "
    if chosen.exists() and chosen.samefile(path):
        return told + f"The course's notebooks use it from now on, as the best weights that {name} has."
    why = ": what else ships was trained in its latent space" if function.space else ""
    return told + (f"The course's notebooks go on with {chosen}, {its_merit}{why}. "
                   f"The new ones stay where they are; recipes.load can be told their folder.")
