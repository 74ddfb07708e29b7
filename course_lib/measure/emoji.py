"""Rows of data/ledger.csv on emoji: what the latent space keeps, what it saves, and whether pictures follow their captions."""

import statistics
import time
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from .. import data, recipes, text
from ..autoencoders import encode_all
from ..denoiser import Denoiser, Preconditioned, V, guided
from ..fast_samplers import dpm_solver_pp
from ..ledger import Row
from ..metrics import features, kernel_distance
from ..networks import Captions, ColourFeatures, DiT
from ..sampling import last, prior
from ..schedules import CosineVP, log_snr_to_zero
from ..training import device_name, has_bf16
from .rows import recorded, spread

WEIGHT, STEPS = 2.0, 20  # of the guidance and of DPM-Solver++(2M), for every picture here
SYNONYMS = {  # words that no name and no keyword has, which a model knows by their vectors alone, and emoji that they mean
    "sofa": "couch and lamp", "aircraft": "airplane", "vessel": "ship", "hare": "rabbit", "toad": "frog", "trout": "fish",
    "salmon": "fish", "cottage": "house", "wasp": "honeybee", "moth": "butterfly", "alligator": "crocodile", "fiddle": "violin",
    "meteor": "comet", "emerald": "gem stone", "ruby": "gem stone", "hog": "pig", "stallion": "horse", "kettle": "teapot",
    "chopper": "helicopter", "primate": "monkey"}


@recorded
def latent(device: torch.device, samples: int, seeds: int) -> Iterable[Row]:
    """Emoji: the autoencoder's round trip, a training step in latents and in pixels, text to image judged by retrieval."""
    yield from _round_trip(device)
    yield from _training_steps(device)
    yield from _captions(device, samples, seeds)


def _row(method: str, metric: str, value: float, device, samples: int, weights: str, **more) -> Row:
    common = {"dataset": "emoji", "nfe": 1, "depth": 1, "batch": samples, "seconds": 0.0, "floor": 0.0, "seeds": 1}
    return Row(method=method, metric=metric, value=value, device=device_name(device), samples=samples, weights=weights,
               **(common | more))


# ---------------------------------------------------------------------------------------------- what it keeps
def _round_trip(device) -> Iterable[Row]:
    name = "emoji_autoencoder"
    model, images = recipes.load(name, device), data.emoji("test").images
    begin = time.perf_counter()
    figures = recipes.reconstruction(model, images)
    seconds = time.perf_counter() - begin
    std = encode_all(model, images).std([0, 2, 3])
    for metric, value in (figures | {"latent_std_off": (std - 1).abs().max().item()}).items():
        yield _row(name, metric, value, device, len(images), name, seconds=seconds)


# ---------------------------------------------------------------------------------------------- what it saves
def _training_steps(device, batch: int = 16) -> Iterable[Row]:
    """Seconds and memory of a training step of one network, by width, depth and patch, on latents and on pixels."""
    for method, channels, size in (("latent_training_step", 4, 16), ("pixel_training_step", 3, 64)):
        captions = Captions(data.words().vectors, text.LENGTH, width=160)
        network = DiT(channels=channels, size=size, patch=2, width=160, depth=6, heads=5, captions=captions)
        seconds, memory = training_step_cost(Preconditioned(network, CosineVP(), V()).to(device), (batch, channels, size, size))
        yield _row(method, "seconds", seconds, device, batch, "untrained", seconds=seconds, memory_mib=memory)


def training_step_cost(model: Preconditioned, shape: tuple[int, ...], steps: int = 4) -> tuple[float, float]:
    """Median seconds of a step forwards, backwards and of Adam, and the MiB that it must hold at once.

    Those are what the pass forwards keeps for the way back, and of every weight itself, its gradient and Adam's two moments.
    On a GPU that has it in bfloat16, as trainings there; a CPU is timed in float32, whatever processor it is.
    """
    device, kept, seconds = next(model.parameters()).device, {}, []
    optimizer, generator = torch.optim.AdamW(model.parameters()), torch.Generator(device).manual_seed(0)
    x0, cond = torch.randn(shape, device=device), torch.zeros(shape[0], text.LENGTH, dtype=torch.long, device=device)

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    for _ in range(steps):
        begin = time.perf_counter()
        kept.clear()
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), torch.autocast(
                device.type, torch.bfloat16, enabled=device.type == "cuda" and has_bf16(device)):
            loss = recipes.diffusion_loss(model, x0, cond, generator)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        loss.item()                                                      # a GPU has finished when its number is here
        seconds.append(time.perf_counter() - begin)
    weights = {p.untyped_storage().data_ptr(): 4 * p.untyped_storage().nbytes() for p in model.parameters()}
    return statistics.median(seconds[1:]), sum((kept | weights).values()) / 2**20


# ---------------------------------------------------------------------------------------------- what it draws
def draw(D: Denoiser, decode: Callable[[Tensor], Tensor], shape: tuple[int, ...], cond: Tensor | None, seed: int, device,
         batch: int = 25) -> Tensor:
    """Pictures (N, 3, 64, 64), decoded from latents of this shape (N, ...) that DPM-Solver++(2M) draws under cond (N, 12)."""
    x, ts = prior(D, shape, torch.Generator().manual_seed(seed)), log_snr_to_zero(STEPS, D.schedule)
    conds = [None] * len(x) if cond is None else cond.to(device).split(batch)
    return torch.cat([decode(last(dpm_solver_pp, D, part.to(device), ts, cond=its).x).detach().clamp(-1, 1).cpu()
                      for part, its in zip(x.split(batch), conds)])


def ranks(drawn: Tensor, wanted: Tensor, real: Tensor, names: Tensor) -> Tensor:
    """How many names (N,) have a real picture nearer than every one of the wanted name; 0 is the best.

    drawn (N, d) and real (M, d) are features, wanted (N,) and names (M,) what they show.
    """
    apart, count = torch.cdist(drawn, real), int(torch.cat([names, wanted]).max()) + 1
    nearest = torch.full((len(drawn), count), torch.inf).scatter_reduce(1, names.expand(len(drawn), -1), apart, "amin")
    return (nearest < nearest.gather(1, wanted[:, None])).sum(1)


def in_style(drawn: Tensor, wanted: Tensor, style: Tensor, real: Tensor, names: Tensor, styles: Tensor) -> Tensor:
    """Whether (N,) the nearest real picture of the wanted name is in the style that was asked for; as in `ranks`."""
    apart = torch.cdist(drawn, real).masked_fill(names != wanted[:, None], torch.inf)
    return styles[apart.argmin(1)] == style


def questions(samples: int) -> dict[str, tuple[list[str], Tensor]]:
    """Captions, and the numbers of the names that are right: `samples` of those seen, the pairs held out, the synonyms."""
    known = data.emoji_captions()
    numbers = {caption.name: number for number, caption in enumerate(known)}

    def ask(pictures: data.Emoji) -> tuple[list[str], Tensor]:
        rows = torch.randperm(len(pictures.name), generator=torch.Generator().manual_seed(0))[:samples]
        name, style = pictures.name[rows], pictures.style[rows]
        return [f"{known[n].name} {data.STYLES[s]}" for n, s in zip(name.tolist(), style.tolist())], name

    meant = torch.tensor([numbers[name] for name in SYNONYMS.values()]).repeat_interleave(len(data.STYLES))
    return {"seen": ask(data.emoji("train")), "pairs": ask(data.emoji("pairs")),
            "synonyms": ([f"{word} {style}" for word in SYNONYMS for style in data.STYLES], meant)}


@torch.no_grad()
def _captions(device, samples: int, seeds: int) -> Iterable[Row]:
    """Is the nearest real picture of the right emoji? For captions seen, for pairs held out, for words never said; of
    drawings, and of the sketches that they began with. And of all pictures of that emoji, is the nearest in the right style?

    A near copy is nearer to a training picture than 19 of 20 training pictures are to their nearest neighbours.
    """
    name = "emoji_latent_teacher"
    D, autoencoder, judge = recipes.load(name, device), recipes.load("emoji_autoencoder", device), ColourFeatures()
    judge.load_state_dict(data.colour_features())
    train, pairs = data.emoji("train"), data.emoji("pairs")
    real, held_out = (features(judge.eval().features, e.images) for e in (train, pairs))
    mean, std, kinds = real.mean(0), real.std(0), train.name.unique().numel()
    standard = (real - mean) / std
    every = (torch.cat([standard, (held_out - mean) / std]),
             torch.cat([train.name, pairs.name]), torch.cat([train.style, pairs.style]))
    copied = torch.cdist(standard, standard).fill_diagonal_(torch.inf).amin(1).quantile(0.05)
    floors = {"rank_1": 1 / kinds, "rank_10": 10 / kinds, "near_copies": 0.05, "style": 1 / len(data.STYLES),
              "kernel_distance": kernel_distance(held_out, real)}
    for asked, (captions, wanted) in questions(samples).items():
        cond, begin = torch.stack([text.caption(caption)[0] for caption in captions]), time.perf_counter()
        shape, style = (len(cond), 4, 16, 16), torch.tensor([data.STYLES.index(caption.split()[-1]) for caption in captions])
        drawn = [features(judge.features, draw(guided(D, WEIGHT), autoencoder.decode, shape, cond, seed, device))
                 for seed in range(seeds)]
        seconds = (time.perf_counter() - begin) / seeds / len(cond) * 25
        sketch = D.network.captions(cond.to(device), len(cond))[2]
        sketched = [features(judge.features, torch.cat([autoencoder.decode(z).clamp(-1, 1).cpu() for z in sketch.split(25)]))]
        drawings = {"text_to_image": (drawn, {"nfe": 2 * STEPS, "depth": STEPS, "guidance": WEIGHT, "seconds": seconds}),
                    "sketch": (sketched, {})}
        for method, (pictures, more) in drawings.items():
            found, figures = [ranks((f - mean) / std, wanted, standard, train.name) for f in pictures], {}
            figures["rank_1"], figures["rank_10"] = ([(r < k).float().mean().item() for r in found] for k in (1, 10))
            figures["style"] = [in_style((f - mean) / std, wanted, style, *every).float().mean().item() for f in pictures]
            if asked == "seen":
                figures["kernel_distance"] = [kernel_distance(f, real) for f in pictures]
                nearest = [torch.cdist((f - mean) / std, standard).amin(1) for f in pictures]
                figures["near_copies"] = [(near < copied).float().mean().item() for near in nearest]
            for metric, values in figures.items():
                yield _row(f"{method}_{asked}", metric, statistics.mean(values), device, len(cond), name, seeds=len(values),
                           batch=25, spread=spread(values), floor=floors[metric], **more)
