"""Sliders around pure functions. A widget draws nothing that a function of its values could not draw without it.

Uses only what ipywidgets 7.7 and 8 share.
"""

import functools
import io
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from numbers import Real

import ipywidgets
import matplotlib.pyplot as plt
import PIL.Image
from IPython.display import HTML, Image, display
from matplotlib.figure import Figure
from tqdm import tqdm

from .plotting import DENSITY

# A saved notebook keeps no widgets: there the still and this note stand where the flipbook was, and in JupyterLab, whose
# widgets say that they are lost, they stand alone. As long as the flipbook lives, JupyterLab hides both.
NOTE = """<style>
.jp-OutputArea-child:has(.course-flipbook) + .jp-OutputArea-child,
.jp-OutputArea-child:has(.course-flipbook) + .jp-OutputArea-child + .jp-OutputArea-child:has(.course-flipbook-note),
.jp-OutputArea:has(.course-flipbook-note) .jp-OutputArea-output.jupyter-widgets { display: none; }
</style>
<p class="course-flipbook-note">The first page of a flipbook: run this cell to turn the others.</p>"""


def png(figure: Figure) -> bytes:
    """The figure as a picture for dense screens; closes it, so that it does not appear a second time below the cell."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DENSITY * figure.dpi)
    plt.close(figure)
    return buffer.getvalue()


def size(picture: bytes) -> tuple[int, int]:
    """Width and height in pixels of the screen at which a picture of png() is shown."""
    width, height = PIL.Image.open(io.BytesIO(picture)).size
    return width // DENSITY, height // DENSITY


def control(name: str, values: Sequence) -> ipywidgets.Widget:
    """A slider over numbers, in their order, or a menu of words; starts at the first value. One string: a field to type in.

    `values` may be an array or a tensor with one axis. Raises ValueError unless there are values, all numbers or all words.
    """
    if isinstance(values, str):
        return ipywidgets.Text(value=values, description=name, continuous_update=False)   # heard at Enter, not at every letter
    values = list(values.tolist() if hasattr(values, "tolist") else values)
    if not values:
        raise ValueError(f"{name}: expected at least one value to choose from, got none")
    words = isinstance(values[0], str)
    if not all(isinstance(v, str if words else Real) for v in values):
        raise ValueError(f"{name}: expected numbers, or words, to choose from, got {values}")
    kind = ipywidgets.Dropdown if words else ipywidgets.SelectionSlider
    options = [(v if words else f"{v:g}", v) for v in (values if words else sorted(values))]
    return kind(options=options, description=name, value=values[0], style={"description_width": "initial"})


class Flipbook:
    """One control for each choice above the picture draw(**values), at its natural size; see flipbook()."""

    def __init__(self, draw: Callable[..., Figure], choices: dict[str, Sequence], play: bool, alt: str):
        self.draw = functools.lru_cache(200)(lambda *values: png(draw(**dict(zip(choices, values, strict=True)))))
        self.controls = [control(name, values) for name, values in choices.items()]
        self.picture, self.busy = ipywidgets.Image(format="png"), ipywidgets.Label()
        for c in self.controls:
            c.observe(self.turn, names="value")
        self.turn()
        self.still = Image(data=self.picture.value, format="png", alt=alt or self.names(), **self.shown())
        row = [*self.controls, *([self.player()] if play else []), self.busy]
        self.box = ipywidgets.VBox([ipywidgets.HBox(row, layout={"flex_flow": "row wrap"}), self.picture])
        self.box.add_class("course-flipbook")

    def turn(self, _change=None) -> None:
        """Show the page of the controls' values; `busy` says so while it is drawn."""
        self.busy.value = "drawing …"
        try:
            self.picture.value = self.draw(*(c.value for c in self.controls))
        finally:
            self.busy.value = ""
        self.picture.layout.width, self.picture.layout.max_width = f"{self.shown()['width']}px", "100%"

    def shown(self) -> dict[str, int]:
        """The picture's width and height in pixels of the screen."""
        return dict(zip(("width", "height"), size(self.picture.value)))

    def names(self) -> str:
        """The page in words: its choices and their values."""
        return ", ".join(f"{c.description} = {c.value}" for c in self.controls)

    def player(self) -> ipywidgets.Play:
        """A button that runs through the last choice."""
        button = ipywidgets.Play(min=0, max=len(self.controls[-1].options) - 1, interval=200)
        button.observe(lambda change: setattr(self.controls[-1], "index", change["new"]), names="value")
        return button

    def _ipython_display_(self) -> None:
        view = {"version_major": 2, "version_minor": 0, "model_id": self.box.model_id}
        display({"application/vnd.jupyter.widget-view+json": view, "text/plain": f"Controls: {self.names()}"}, raw=True)
        display(self.still, HTML(NOTE))


def flipbook(draw: Callable[..., Figure], *, play: bool = False, alt: str = "", **choices: Sequence) -> Flipbook:
    """A picture draw(**values) with one control for each named choice; pages are drawn when first seen, the last 200 kept.

    flipbook(lambda caption, steps: ..., caption="red apple", steps=[1, 2, 4]). play=True: a button runs through the last.
    alt: the first page in words, for those who cannot see it. Raises ValueError for choices among nothing; see control().
    """
    if not choices:
        raise ValueError("choices: expected at least one named sequence of values, got none")
    if play and isinstance(last := next(reversed(choices.values())), str):
        raise ValueError(f"play: expected several values of the last choice to run through, got a field to type in, {last!r}")
    return Flipbook(draw, choices, play, alt)


def progress(things: Iterable, total: int | None = None) -> Iterable:
    """The things in turn, under a bar that is gone at the end; text, since a saved notebook loses a bar that is a widget."""
    return tqdm(things, total=total, leave=False, file=sys.stdout)


def watched(sampler: Callable[..., Iterator]) -> Callable[..., Iterator]:
    """The sampler with a progress bar over its time grid: last(watched(sample), D, x, ts, step=ddim)."""
    return lambda D, x, ts, *args, **kwargs: progress(sampler(D, x, ts, *args, **kwargs), total=len(ts) - 1)


def animation(draw: Callable[..., Figure], pages: Sequence, milliseconds: Sequence[int], alt: str) -> Image:
    """The pictures draw(page) as an animated GIF, small enough to be kept in a notebook; `alt` describes it in words.

    Raises ValueError unless there is a duration for every page.
    """
    if not pages or len(pages) != len(milliseconds):
        raise ValueError(f"milliseconds: expected one for each of {len(pages)} pages, at least one, got {len(milliseconds)}")
    pictures = [PIL.Image.open(io.BytesIO(png(draw(page)))).convert("RGB") for page in pages]
    colours = pictures[len(pictures) // 2].quantize(64, PIL.Image.Quantize.MAXCOVERAGE)       # for all alike: no flicker
    frames = [picture.quantize(palette=colours, dither=PIL.Image.Dither.NONE) for picture in pictures]
    buffer = io.BytesIO()
    frames[0].save(buffer, format="GIF", save_all=True, append_images=frames[1:], duration=list(milliseconds), loop=0)
    width, height = (side // DENSITY for side in pictures[0].size)
    return Image(data=buffer.getvalue(), format="gif", alt=alt, width=width, height=height)
