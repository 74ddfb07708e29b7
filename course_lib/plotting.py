"""The figures. Truth is drawn in grey, estimates in colour; every function draws on the axes it is given, or makes its own.

An inch of a figure is 100 pixels on the screen, and a dense screen gets two dots for each; no text is under 9 points.
"""

from collections.abc import Callable, Sequence

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

# Told apart by every kind of colour vision (tests/test_plotting.py has the numbers); on white all but TRUTH are dark enough
# for text. Grey, orange, blue, green, purple, black:
TRUTH, ESTIMATE, SECOND, THIRD, FOURTH, INK = "#868b91", "#c15802", "#206dc8", "#094726", "#801a62", "#000000"
CLASSES = ("#cc6677", "#332288", "#ddcc77", "#117733", "#88ccee", "#882255", "#44aa99", "#999933", "#aa4499",
           "#666666")              # ten kinds of dots (after P. Tol's "muted"): so many colours also need place or a letter
STYLE = {"figure.dpi": 100, "savefig.dpi": "figure", "figure.constrained_layout.use": True, "axes.spines.top": False,
         "axes.spines.right": False, "font.size": 10, "axes.titlesize": 10, "figure.titlesize": 10, "axes.labelsize": 10,
         "xtick.labelsize": 9, "ytick.labelsize": 9, "legend.fontsize": 9, "legend.frameon": False, "lines.markersize": 5,
         "axes.prop_cycle": plt.cycler(color=(ESTIMATE, SECOND, THIRD, FOURTH, INK))}
DENSITY = 2                        # dots of a picture for each pixel of the screen


def style() -> None:
    """The course's look, for every figure after this call; in a notebook also the dots of dense screens."""
    plt.rcParams.update(STYLE)
    if "inline" in plt.get_backend():
        from matplotlib_inline.config import InlineBackend

        InlineBackend.instance().figure_formats = {"retina"}                          # DENSITY dots, at the same size


def looks(names: Sequence[str]) -> dict[str, dict]:
    """name -> color, marker and line style for plot(): a different one of each for up to five series in one frame.

    ax.plot(x, y, **looks(names)[name], label=name). Raises ValueError for more than five names.
    """
    kinds = ((ESTIMATE, "o", "-"), (SECOND, "s", "--"), (THIRD, "^", "-."), (FOURTH, "D", ":"), (INK, "v", (0, (5, 1))))
    if len(names) > len(kinds):
        raise ValueError(f"names: expected at most {len(kinds)} series in one frame, got {len(names)}")
    return {name: {"color": color, "marker": marker, "ls": ls} for name, (color, marker, ls) in zip(names, kinds)}


def panels(n: int, size: float = 2.6, columns: int | None = None) -> list[Axes]:
    """n square panels in a row, or in rows of `columns`."""
    columns = columns or n
    rows = -(-n // columns)
    _, axes = plt.subplots(rows, columns, figsize=(size * columns, size * rows), squeeze=False)
    for spare in axes.flat[n:]:
        spare.set_axis_off()
    return list(axes.flat[:n])


def _bare(ax: Axes, extent: float | None = None, title: str = "") -> Axes:
    ax.set(xticks=[], yticks=[], aspect="equal", **({"title": title} if title else {}))   # a second layer keeps the first's
    ax.spines[:].set_visible(False)
    if extent:
        ax.set(xlim=(-extent, extent), ylim=(-extent, extent))
    return ax


def _axes(ax: Axes | None) -> Axes:
    return ax or panels(1, size=3.2)[0]


def mesh(extent: float, n: int, dtype=torch.float64) -> Tensor:
    """n x n points over [-extent, extent]^2 as rows (n^2, 2)."""
    u = torch.linspace(-extent, extent, n, dtype=dtype)
    return torch.cartesian_prod(u, u)


def density(log_prob: Callable[[Tensor], Tensor], extent: float = 2.5, ax: Axes | None = None, title: str = "",
            n: int = 120) -> Axes:
    """A density in grey from log_prob: (B, 2) -> (B,)."""
    ax = _axes(ax)
    p = log_prob(mesh(extent, n)).exp().reshape(n, n).T.numpy()
    ax.imshow(p, origin="lower", extent=(-extent, extent) * 2, cmap="Greys", vmax=1.7 * p.max(), interpolation="bilinear")
    return _bare(ax, extent, title)


def scatter(x: Tensor, ax: Axes | None = None, extent: float = 2.5, title: str = "", color: str | Sequence = ESTIMATE,
            size: float = 2.0, label: str | None = None) -> Axes:
    """Samples (N, 2) as dots of one colour, or each its own; how many are outside the frame is written down, not dropped."""
    ax = _axes(ax)
    ax.scatter(*x.detach().cpu().numpy()[:, :2].T, s=size, c=color, alpha=0.7, linewidths=0, label=label, rasterized=True)
    outside = int((x.abs() > extent).any(1).sum())
    if outside:
        ax.text(0.02, 0.02, f"{outside} outside", transform=ax.transAxes, fontsize=9)
    return _bare(ax, extent, title)


def field(vector: Callable[[Tensor], Tensor], extent: float = 2.5, ax: Axes | None = None, title: str = "",
          color: str = ESTIMATE, n: int = 16, scale: float | None = None, width: float = 0.005) -> Axes:
    """Arrows of a vector field (B, 2) -> (B, 2); give two fields the same scale to compare them by eye."""
    ax = _axes(ax)
    x = mesh(extent, n, torch.float32)
    v = vector(x).detach()
    ax.quiver(*x.T.numpy(), *v.T.numpy(), color=color, scale=scale, width=width, angles="xy")
    return _bare(ax, extent, title)


def paths(states: Tensor, ax: Axes | None = None, extent: float = 2.5, title: str = "", color: str = ESTIMATE) -> Axes:
    """Trajectories (n+1, B, 2) as lines, from a small dot at the start to a larger one at the end."""
    ax = _axes(ax)
    xs = states.detach().cpu().numpy()
    ax.plot(xs[..., 0], xs[..., 1], color=color, lw=0.7, alpha=0.6)
    ax.scatter(*xs[0].T, s=4, color=TRUTH, zorder=3)
    ax.scatter(*xs[-1].T, s=10, color=color, zorder=3)
    return _bare(ax, extent, title)


def tile(images: Tensor, columns: int) -> np.ndarray:
    """Images (N, C, H, W) in [-1, 1], grey or in colour, as one array of rows of `columns`, with a one-pixel gap."""
    N, C, H, W = images.shape
    rows, paper = -(-N // columns), float(C > 1)                                  # grey ones are drawn dark on light
    sheet = np.full((rows * (H + 1) - 1, columns * (W + 1) - 1, C), paper, dtype=np.float32)
    for i, image in enumerate(images.detach().cpu().float().clamp(-1, 1).movedim(1, -1).numpy()):
        r, c = divmod(i, columns)
        sheet[r * (H + 1):r * (H + 1) + H, c * (W + 1):c * (W + 1) + W] = (image + 1) / 2
    return sheet.squeeze(-1) if C == 1 else sheet


def image_grid(images: Tensor, columns: int = 8, ax: Axes | None = None, title: str = "") -> Axes:
    """Images (N, C, H, W) in [-1, 1] side by side: in colour, or, with one channel, dark on light."""
    rows = -(-len(images) // columns)
    side = min(1.5, max(0.75, 6 / columns))                                       # inches an image: few are drawn larger
    ax = ax or plt.subplots(figsize=(side * columns, side * rows + 0.3))[1]
    ax.imshow(tile(images, columns), cmap="Greys", vmin=0, vmax=1, interpolation="nearest")
    return _bare(ax, title=title)


def image_rows(rows: Sequence[Tensor], labels: Sequence[str], title: str = "") -> Figure:
    """One labelled row of images per entry: the same starts under different samplers, say."""
    side = min(1.1, max(0.66, 6 / len(rows[0])), max(0.66, 6 / len(rows)))        # inches an image
    fig, axes = plt.subplots(len(rows), 1, figsize=(side * len(rows[0]) + 1.2, (side + 0.02) * len(rows) + 0.3), squeeze=False)
    for ax, images, label in zip(axes[:, 0], rows, labels, strict=True):
        image_grid(images, len(images), ax)
        ax.set_ylabel(label, rotation=0, ha="right", va="center", labelpad=8)
    fig.suptitle(title)
    return fig


def quality_against_cost(rows: Sequence, ax: Axes | None = None) -> Axes:
    """Ledger rows of one metric: value above the floor against evaluations, both logarithmic, one line a method."""
    ax = ax or plt.subplots(figsize=(6.4, 3.6))[1]
    for method, look in looks(sorted({r.method for r in rows})).items():
        mine = sorted((r.nfe, max(r.value - r.floor, 1e-3)) for r in rows if r.method == method)
        ax.plot(*zip(*mine), **look, label=method)
    metric = rows[0].metric if rows else "value"
    ax.set(xscale="log", yscale="log", xlabel="network evaluations per sample", ylabel=f"{metric} above the floor")
    if rows:
        ax.legend()
    return ax


def shaded(log_prob: Callable[[Tensor], Tensor], extent: float = 2.5, ax: Axes | None = None, title: str = "",
           n: int = 80, shades: int = 8) -> Axes:
    """density() in a few flat greys: under many dots it looks alike, and its picture file is several times smaller."""
    ax = density(log_prob, extent, ax, title, n)
    ax.images[-1].set(cmap=plt.get_cmap("Greys", shades), interpolation="nearest")
    return ax
