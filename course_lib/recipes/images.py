"""Images from the shipped teacher, drawn on one device or on many:

    torchrun --nproc-per-node 2 -m course_lib.recipes.images        or        python -m course_lib.recipes.images

All processes get the same images; the first of them writes them and tells what they cost. Ten images by all of a thousand steps
at once hold some 4 GiB of tensors, shared out over the processes; `--window 250` holds about a quarter of that.
"""

import argparse
import time
from datetime import timedelta

import matplotlib.pyplot as plt
import torch
import torch.distributed as dist

from ..arguments import need_whole
from ..parallel import Sweep, converged, picard
from ..plotting import image_grid
from ..sampling import prior
from ..schedules import uniform
from ..sde_samplers import ancestral
from ..training import default_device, join_process_group
from . import weights


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser("python -m course_lib.recipes.images",
                                     description="Fashion-MNIST images by parallel sampling.")
    parser.add_argument("--images", type=int, default=10, help="how many, one class after the other (default: 10)")
    parser.add_argument("--steps", type=int, default=1000, help="ancestral steps, all of the same trajectory (default: 1000)")
    parser.add_argument("--window", type=int,
                        help="steps in one sweep (default: all on a GPU, 32 on a CPU); memory grows with it")
    parser.add_argument("--tolerance", type=float, default=0.1, help="in units of a step's noise (default: 0.1)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--timeout", type=float, default=60, help="seconds to wait for another process (default: 60)")
    parser.add_argument("--out", default="images.png", help="the picture to write (default: images.png)")
    return parser.parse_args(argv)


def draw(options: argparse.Namespace) -> tuple[Sweep, float]:
    """The last sweep of this process, and the seconds it all took."""
    _, world = join_process_group()
    group = dist.new_group(timeout=timedelta(seconds=options.timeout)) if world > 1 else None
    device = default_device()
    D = weights.load("fashion_teacher", device)
    generator = torch.Generator(device).manual_seed(options.seed)
    x = prior(D, (need_whole(options.images, "--images"), 1, 28, 28), generator, device=device)
    window = options.window
    if window is None and device.type == "cpu":                    # on which more rows cost more than fewer rounds save
        window = 32
    start = time.perf_counter()
    sweep = converged(picard(D, x, uniform(options.steps, D.schedule), ancestral, generator=generator, window=window,
                             tolerance=options.tolerance, std=0.5, secant=True, group=group,
                             cond=torch.arange(options.images, device=device) % 10))
    return sweep, time.perf_counter() - start


def main(argv: list[str] | None = None) -> None:
    options = arguments(argv)
    try:
        sweep, seconds = draw(options)
    except (ValueError, RuntimeError) as error:
        raise SystemExit(f"error: {error}") from error
    rank, world = join_process_group()
    if rank == 0:
        axes = image_grid(sweep.trajectory[-1].cpu())
        axes.figure.savefig(options.out, dpi=150, bbox_inches="tight")
        plt.close(axes.figure)
        print(f"{options.images} images of {options.steps} steps in {sweep.rounds} rounds, {sweep.evaluations} evaluations "
              f"each, {seconds:.1f} s on {world} process{'es' * (world > 1)}: {options.out}")
    if world > 1:
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
