"""Draw notebooks/cover.png, the README's picture: one trained model at 1000, 30, 4 and 1 steps from the same noise.

    python data/prepare/cover.py            about a minute on two processor cores
"""

import io

import torch

from course_lib import data, files, plotting, recipes
from course_lib.fast_samplers import ddim
from course_lib.sampling import final, prior
from course_lib.schedules import uniform
from course_lib.training import default_device


def main() -> None:
    plotting.style()
    device = default_device()
    D = recipes.load("fashion_teacher", device)
    noise = prior(D, (10, 1, 28, 28), torch.Generator().manual_seed(11)).to(device)
    label = torch.arange(10, device=device)
    counts = (1000, 30, 4, 1)
    rows = [final(D, noise, uniform(n, D.schedule), ddim, cond=label).x.cpu() for n in counts]
    figure = plotting.image_rows(rows, [f"{n} step{'s' * (n > 1)}" for n in counts])
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=110, bbox_inches="tight")
    files.atomic_write(data.ROOT / "notebooks" / "cover.png", lambda file: file.write(picture.getvalue()))


if __name__ == "__main__":
    main()
