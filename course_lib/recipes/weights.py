"""Files of weights: listed in manifests, verified before they are used, made by carrying out a recipe."""

import itertools
import json
import math
import os
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path

import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn

from .. import data, files
from ..denoiser import per_row
from ..training import Trained, chosen_device, device_name, join_process_group
from .registry import RECIPES, known


def checkpoints() -> Path:
    """The folder of the shipped weights."""
    return data.ROOT / "data" / "checkpoints"


def own() -> Path:
    """The folder of the weights that a learner trained, $COURSE_WEIGHTS or my/weights; no file of it belongs to git.

    Builds, `course check` and tests point the variable at an empty folder, so that they use what ships.
    """
    return Path(os.environ.get("COURSE_WEIGHTS") or data.ROOT / "my" / "weights")


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

    Where more hangs on just those that ship, they, unless a folder is given. Of files that are gone another takes the place.
    Raises ValueError for an unknown name, FileNotFoundError if none are listed.
    """
    return _best(name, folder or (checkpoints() if known(name).fixed else None))


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
    value = entry["metrics"].get(function.merit)
    return function.sign * value if isinstance(value, (int, float)) and not math.isnan(value) else -math.inf


def manifest(folder: Path | None = None) -> dict[str, dict]:
    """What is known of the best weights of each recipe (of a folder): sum, budget, device, seconds, metrics."""
    names = {entry["recipe"] for _, entry in listed(folder)}
    return {name: best(name, folder)[1] for name in RECIPES if name in names}


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
          further: bool = False, seconds: float = math.inf, larger: int = 1) -> Path | None:
    """Carry out a recipe: train, measure, write weights and their entry into `out` (`own()`); returns the new file's path.

    Resumes from NAME.state.pt in the same folder after a kill. steps: instead of the recipe's own, or fewer, if all `seconds`
    are over before. larger: so many times its batch, where that costs little more, as on a GPU; each step then counts as many.
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
        trained, metrics = function(model, steps=steps, seconds=seconds, larger=larger, bf16=function.bf16, device=device,
                                    checkpoint=state, seed=before.get("steps", 0), identity=identity)
        if rank > 0:
            return None
        path = store(name, trained, metrics, folder, before, larger)
        state.unlink()
    return path


def store(name: str, trained: Trained, metrics: dict[str, float], folder: Path, before: dict | None = None,
          larger: int = 1) -> Path:
    """Write weights as a new file, then the manifest that vouches for them, both atomically: what was there before stays, whole
    and listed, whenever this is killed. before: the entry of what the training began with."""
    before = before or {"steps": 0, "train_seconds": 0}
    weights = packed(trained.model.state_dict(), RECIPES[name].int8)
    with files.locked(folder / "manifest.json", wait=True):
        others = entries(folder)
        path = _free(name, others, folder)
        files.atomic_write(path, lambda file: file.write(save(weights)))
        entry = {
            "file": path.name, "sha256": files.sha256(path), "recipe": name, "seed": 0,
            "steps": before["steps"] + larger * len(trained.losses), "full_steps": RECIPES[name].steps,
            "parameters": sum(p.numel() for p in trained.model.parameters()),
            "device": device_name(next(trained.model.parameters()).device), "torch": torch.__version__,
            "train_seconds": before["train_seconds"] + round(trained.seconds),
            "final_loss": sum(trained.losses[-200:]) / len(trained.losses[-200:]), "metrics": metrics,
        }
        _list({**others, path.stem: entry}, folder)
    return path


def improves(entry: dict) -> bool:
    """Are these weights better than all that ship of their recipe, by its figure of merit, and may they take their place? Not
    where more hangs on just those that ship."""
    function = known(entry["recipe"])
    old = [_merit(function, its) for its in entries(checkpoints()).values() if its["recipe"] == entry["recipe"]]
    return not old or (not function.fixed and _merit(function, entry) > max(old))


def ship(path: Path, entry: dict) -> Path | None:
    """Let verified weights and their entry take the place of those that ship of that recipe; returns their path there, or
    None if they are no improvement."""
    folder = checkpoints()
    with files.locked(folder / "manifest.json", wait=True):
        if not improves(entry):
            return None
        others = entries(folder)
        old = {stem: its for stem, its in others.items() if its["recipe"] == entry["recipe"]}
        new = _free(entry["recipe"], others, folder)
        files.atomic_write(new, lambda file: file.write(path.read_bytes()))
        _list({stem: its for stem, its in others.items() if stem not in old} | {new.stem: entry | {"file": new.name}}, folder)
        for its in old.values():
            (folder / its["file"]).unlink(missing_ok=True)
    return new


def _free(name: str, others: dict[str, dict], folder: Path) -> Path:
    """The first file NAME.safetensors, NAME-2.safetensors, ... of the folder that neither is there nor is listed."""
    stems = itertools.chain([name], (f"{name}-{n}" for n in itertools.count(2)))
    return next(path for stem in stems if stem not in others and not (path := folder / f"{stem}.safetensors").exists())


def _list(listed: dict[str, dict], folder: Path) -> None:
    text = json.dumps(listed, indent=2, sort_keys=True) + "\n"
    files.atomic_write(folder / "manifest.json", lambda file: file.write(text.encode()))


def standing(path: Path) -> str:
    """What a newly trained file is worth, and whether `load` takes it or another."""
    entry, = (entry for each, entry in listed(path.parent) if each == path)
    name, (chosen, its) = entry["recipe"], best(entry["recipe"])
    function = known(name)
    merit, its_merit = (f"{function.merit} {each['metrics'][function.merit]:.4g}" for each in (entry, its))
    told = f"{path}: {merit} ({'more' if function.sign > 0 else 'less'} is better). "
    if chosen.exists() and chosen.samefile(path):
        return told + f"The course's notebooks use it from now on, as the best weights that {name} has."
    why = ": more hangs on those" if function.fixed else ""
    return told + (f"The course's notebooks go on with {chosen}, {its_merit}{why}. "
                   f"The new ones stay where they are; recipes.load can be told their folder.")
