"""Rebuild data/emoji/, byte for byte, from seven npm packages: four sets of drawings, two of names and one of groups.

    python data/prepare/emoji.py --source node_modules

The source folder holds, unpacked and under their own names,

    @iconify-json/noto 1.2.9                    cldr-annotations-full 48.2.0
    @iconify-json/twemoji 1.2.5                 cldr-annotations-derived-full 48.2.0
    @iconify-json/fluent-emoji-flat 1.2.6       emojibase-data 17.0.0
    @lobehub/fluent-emoji-3d 1.1.0

The drawings are rendered by resvg_py 0.5.0, which the course itself does not need, and packed by Pillow 13.0.0.
"""

import argparse
import csv
import io
import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from course_lib.data import ROOT, STYLES
from course_lib.files import atomic_write, sha256

SIZE = 64
COLUMNS = 32                                                             # of a sprite sheet
STEP = {"noto": 4, "twemoji": 4, "flat": 4, "3d": 8}                     # bytes are rounded to its multiples
EFFORT = {"noto": 100, "twemoji": 100, "flat": 100, "3d": 75}            # of the packer: 100 takes minutes, in 3D for 1 %
PACKAGES = {"noto": "noto", "twemoji": "twemoji", "flat": "fluent-emoji-flat"}
PEOPLE, COMPONENTS, FLAGS = 1, 2, 9                                      # groups of emojibase
SIMILAR = 0.06                                                           # root mean square distance of bytes / 255


def code(hexcode: str) -> str:
    """The name of an emoji in all the packages: its code points without the mark for "as a picture"."""
    return hexcode.lower().replace("-fe0f", "")


def is_wanted(entry: dict) -> bool:
    """Whether an entry of emojibase is of a kind that the course keeps; the data card gives the reasons."""
    if entry.get("group") in (None, COMPONENTS, FLAGS):
        return False
    gendered = re.search("^1f46[89]-200d|-200d-264[02]", code(entry["hexcode"]))
    unwanted = re.search("o’clock|-thirty|Japanese “|^keycap|^input |^person: |small square|medium square|^middle finger$",
                         entry["label"])
    return not unwanted and not (entry["group"] == PEOPLE and gendered)


# --- drawings ---------------------------------------------------------------------------------------------------------

def icons(folder: Path) -> tuple[set[str], Callable[[str], Image.Image]]:
    """What an icon set draws, and the function from a code to its picture, 256x256 on white."""
    import resvg_py

    pictures = json.loads((folder / "icons.json").read_text(encoding="utf-8"))
    names = {code(k): name for k, name in json.loads((folder / "chars.json").read_text(encoding="utf-8")).items()}

    def draw(key: str) -> Image.Image:
        icon = {"width": pictures["width"], "height": pictures["height"], **pictures["icons"][names[key]]}
        svg = (f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" width="256" height="256"'
               f' viewBox="0 0 {icon["width"]} {icon["height"]}">{icon["body"]}</svg>')
        return Image.open(io.BytesIO(bytes(resvg_py.svg_to_bytes(svg_string=svg, background="white")))).convert("RGB")

    return {key for key, name in names.items() if name in pictures["icons"]}, draw


def bitmaps(folder: Path) -> tuple[set[str], Callable[[str], Image.Image]]:
    """The same for a folder of .webp files: the middle 256x256, on white."""
    names = {code(file.stem): file for file in folder.glob("*.webp")}

    def draw(key: str) -> Image.Image:
        picture, ground = Image.open(names[key]).convert("RGBA"), Image.new("RGBA", (256, 256), "white")
        ground.alpha_composite(picture, source=((picture.width - 256) // 2, (picture.height - 256) // 2))
        return ground.convert("RGB")

    return set(names), draw


def render(draw: Callable[[str], Image.Image], keys: list[str], step: int) -> np.ndarray:
    """Pictures (N, 64, 64, 3) of bytes, each the mean of 4x4 pixels, rounded to a multiple of `step`; white stays 255."""
    images = np.stack([np.asarray(draw(key).reduce(4)) for key in keys]).astype(int)
    return np.minimum((images + step // 2) // step * step, 255).astype(np.uint8)


def write_sheet(file, images: np.ndarray, effort: int) -> None:
    """Write images (N, 64, 64, 3) as one lossless WebP, row by row."""
    rows = -(-len(images) // COLUMNS)
    cells = np.full((rows * COLUMNS, *images.shape[1:]), 255, np.uint8)
    cells[: len(images)] = images
    sheet = cells.reshape(rows, COLUMNS, SIZE, SIZE, 3).swapaxes(1, 2).reshape(rows * SIZE, COLUMNS * SIZE, 3)
    Image.fromarray(sheet).save(file, "WEBP", lossless=True, quality=effort, method=6)


# --- captions and splits ----------------------------------------------------------------------------------------------

def annotations(source: Path) -> dict[str, dict]:
    """CLDR's English annotations: emoji -> {"tts": [name], "default": keywords}, those of sequences included."""
    derived = source / "cldr-annotations-derived-full" / "annotationsDerived" / "en" / "annotations.json"
    plain = source / "cldr-annotations-full" / "annotations" / "en" / "annotations.json"
    found = json.loads(derived.read_text(encoding="utf-8"))["annotationsDerived"]["annotations"]
    return found | json.loads(plain.read_text(encoding="utf-8"))["annotations"]["annotations"]


def alike(sheets: dict[str, np.ndarray]) -> np.ndarray:
    """For each emoji the number of its cluster (N,): two that some style draws nearly alike, mirrored or not, share it."""
    cluster = np.arange(len(next(iter(sheets.values()))))
    for images in sheets.values():
        x = images.reshape(len(images), -1).astype(np.float32) / 255
        mirrored = images[:, :, ::-1].reshape(x.shape).astype(np.float32) / 255
        for y in (x, mirrored):
            squared = (x**2).mean(1)[:, None] + (y**2).mean(1) - 2 / x.shape[1] * (x @ y.T)
            for i, j in np.argwhere(squared < SIMILAR**2):
                cluster[cluster == cluster[j]] = cluster[i]
    return cluster


def hold_out(cluster: np.ndarray, seed: int = 0) -> list[str]:
    """What each emoji holds out: "all" of its pictures for about 8 % of the emoji, in whole clusters; else a style or "".

    A style is left out of four times 8 % of the other emoji: 8 % of their pictures, at most one each.
    """
    rng = np.random.default_rng(seed)
    held = rng.choice(["", *STYLES], len(cluster), p=[1 - 0.08 * len(STYLES)] + [0.08] * len(STYLES))
    clusters = rng.permutation(np.unique(cluster))
    size = np.cumsum([(cluster == c).sum() for c in clusters])
    held[np.isin(cluster, clusters[size <= 0.08 * len(cluster)])] = "all"
    return held.tolist()


def write_captions(file, rows: list[dict]) -> None:
    """Write rows as CSV with \\n at the end of each line."""
    text = io.StringIO()
    writer = csv.DictWriter(text, rows[0], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    file.write(text.getvalue().encode())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--source", type=Path, required=True, help="folder of the seven packages, such as node_modules")
    parser.add_argument("--out", type=Path, default=ROOT / "data" / "emoji")
    options = parser.parse_args()

    sets = {style: icons(options.source / "@iconify-json" / package) for style, package in PACKAGES.items()}
    sets["3d"] = bitmaps(options.source / "@lobehub" / "fluent-emoji-3d" / "assets")
    emojibase = options.source / "emojibase-data"
    groups = json.loads((emojibase / "meta" / "groups.json").read_text(encoding="utf-8"))["groups"]
    entries = json.loads((emojibase / "en" / "data.json").read_text(encoding="utf-8"))
    kept = [entry for entry in sorted(entries, key=lambda entry: entry.get("order", 0))
            if is_wanted(entry) and all(code(entry["hexcode"]) in drawn for drawn, _ in sets.values())]

    sheets = {style: render(sets[style][1], [code(entry["hexcode"]) for entry in kept], STEP[style]) for style in STYLES}
    names = annotations(options.source)
    rows = []
    for entry, held_out in zip(kept, hold_out(alike(sheets))):
        note = names[entry["emoji"].replace("\ufe0f", "")]
        rows.append({"emoji": entry["emoji"], "name": note["tts"][0], "group": groups[str(entry["group"])],
                     "keywords": "|".join(note["default"]), "held_out": held_out})

    files = {"captions.csv": lambda file: write_captions(file, rows)}
    files |= {f"{style}.webp": lambda file, style=style: write_sheet(file, sheets[style], EFFORT[style]) for style in STYLES}
    for name, write in files.items():
        atomic_write(options.out / name, write)
        print(f"{options.out / name}: {(options.out / name).stat().st_size:,} bytes, sha256 {sha256(options.out / name)}")


if __name__ == "__main__":
    main()
