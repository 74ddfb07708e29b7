"""Sliders around pure functions. A widget draws nothing that a function of its values could not draw without it.

Uses only what ipywidgets 7.7 and 8 share.
"""

import functools
import io
from collections.abc import Callable, Sequence

import ipywidgets
import matplotlib.pyplot as plt
import PIL.Image
from IPython.display import Image
from matplotlib.figure import Figure


def png(figure: Figure) -> bytes:
    """The figure as a picture; closes it, so that it does not appear a second time below the cell."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    plt.close(figure)
    return buffer.getvalue()


def control(name: str, values: Sequence) -> ipywidgets.Widget:
    """A slider over numbers, in their order, or a menu of words; starts at the first value. One string: a field to type in."""
    if isinstance(values, str):
        return ipywidgets.Text(value=values, description=name, continuous_update=False)   # heard at Enter, not at every letter
    if not values:
        raise ValueError(f"{name}: expected at least one value to choose from, got none")
    words = isinstance(values[0], str)
    kind = ipywidgets.Dropdown if words else ipywidgets.SelectionSlider
    options = [(v if words else f"{v:g}", v) for v in (values if words else sorted(values))]
    return kind(options=options, description=name, value=values[0], style={"description_width": "initial"})


def flipbook(draw: Callable[..., Figure], *, play: bool = False, **choices: Sequence) -> ipywidgets.VBox:
    """A picture draw(**values) with one control for each named choice; pages are drawn when first seen, the last 200 kept.

    flipbook(lambda caption, steps: ..., caption="red apple", steps=[1, 2, 4]). play=True: a button runs through the last.
    """
    if not choices:
        raise ValueError("choices: expected at least one named sequence of values, got none")
    page = functools.lru_cache(200)(lambda *values: png(draw(**dict(zip(choices, values, strict=True)))))
    controls = [control(name, values) for name, values in choices.items()]
    picture = ipywidgets.Image(format="png")

    def turn(_change=None):
        picture.value = page(*(c.value for c in controls))

    for c in controls:
        c.observe(turn, names="value")
    turn()
    row = list(controls)
    if play:
        last = len(next(reversed(choices.values()))) - 1
        button = ipywidgets.Play(min=0, max=last, interval=200)
        button.observe(lambda change: setattr(controls[-1], "index", change["new"]), names="value")
        row.append(button)
    return ipywidgets.VBox([ipywidgets.HBox(row), picture])


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
    return Image(data=buffer.getvalue(), format="gif", alt=alt)
