"""The widgets draw what their pure function draws, once per page, and follow their controls."""

import io

import ipywidgets
import matplotlib.pyplot as plt
import numpy as np
import PIL.Image
import pytest
import torch
from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.capture import capture_output

from course_lib.fast_samplers import ddim
from course_lib.sampling import final, last, sample
from course_lib.schedules import LinearVP, uniform
from course_lib.targets import GaussianMixture
from course_lib.widgets import animation, control, flipbook, png, size, watched


def book_of(calls, **choices):
    def draw(**values):
        calls.append(values)
        figure, ax = plt.subplots(figsize=(1, 1))
        ax.set_title(" ".join(map(str, values.values())))
        return figure

    return flipbook(draw, **choices)


def parts(book):
    row, picture = book.box.children
    assert row.children == (*book.controls, *row.children[len(book.controls):-1], book.busy)
    return row.children[:-1], picture


def test_a_page_is_a_png_and_its_figure_is_closed():
    figure = plt.figure(figsize=(1, 0.5), dpi=100)
    picture = png(figure)
    assert picture.startswith(b"\x89PNG") and PIL.Image.open(io.BytesIO(picture)).size == (200, 100)
    assert size(picture) == (100, 50), "two dots for each pixel of the screen"
    assert not plt.fignum_exists(figure.number)


def test_moving_the_slider_changes_the_picture_and_coming_back_redraws_nothing():
    calls = []
    controls, picture = parts(book_of(calls, steps=[1, 2, 4]))
    first = picture.value
    controls[0].value = 4
    assert picture.value != first
    controls[0].value = 1
    assert picture.value == first
    assert calls == [{"steps": 1}, {"steps": 4}]


def test_words_make_a_menu_numbers_a_slider_and_each_has_its_name():
    (menu, slider), _ = parts(book_of([], schedule=["cosine", "linear"], t=[0.0, 0.5]))
    assert isinstance(menu, ipywidgets.Dropdown) and isinstance(slider, ipywidgets.SelectionSlider)
    assert (menu.description, slider.description) == ("schedule", "t")


def test_play_runs_through_the_last_choice():
    calls = []
    (slider, button), picture = parts(book_of(calls, play=True, t=[0.0, 0.5, 1.0]))
    first = picture.value
    assert (button.min, button.max) == (0, 2)
    button.value = 2
    assert slider.value == 1.0 and picture.value != first


def test_a_string_makes_a_field_that_waits_for_enter_and_the_picture_follows_what_is_typed():
    calls = []
    (field, slider), picture = parts(book_of(calls, caption="red apple", steps=[4, 8]))
    assert isinstance(field, ipywidgets.Text) and not field.continuous_update and field.description == "caption"
    first = picture.value
    field.value = "green apple"
    assert picture.value != first
    slider.value = 8
    field.value, slider.value = "red apple", 4
    assert picture.value == first
    assert calls == [{"caption": "red apple", "steps": 4}, {"caption": "green apple", "steps": 4},
                     {"caption": "green apple", "steps": 8}, {"caption": "red apple", "steps": 8}]


@pytest.mark.parametrize("make", [lambda: control("steps", []), lambda: flipbook(lambda: None)])
def test_nothing_to_choose_from_is_refused(make):
    with pytest.raises(ValueError, match="at least one"):
        make()


def test_a_page_is_shown_at_its_natural_size_below_its_controls():
    book = book_of([], steps=[1, 2])
    assert book.box.children[-1] is book.picture and book.picture.layout.width == "100px"      # an inch at 100 dots an inch
    assert book.picture.layout.height is None, "a narrow window shrinks both sides alike"


def test_a_flipbook_says_that_it_is_busy_while_a_page_is_drawn():
    said = []

    def draw(steps):
        if steps == 3:
            raise RuntimeError("no such page")
        return plt.figure(figsize=(1, 1))

    book = flipbook(draw, steps=[1, 2, 3])
    book.busy.observe(lambda change: said.append(change["new"]), names="value")
    book.controls[0].value = 2
    assert said == ["drawing …", ""]
    with pytest.raises(RuntimeError):
        book.controls[0].value = 3
    assert book.busy.value == "", "nor when drawing fails"


def test_a_flipbook_leaves_a_still_for_where_there_are_no_widgets():
    """First the controls, which a saved notebook loses; then the first page and a word on how to get the others."""
    book = book_of([], steps=[2, 1])
    book.controls[0].value = 1                                                       # the still stays the first page
    InteractiveShell.instance()
    with capture_output() as shown:
        book._ipython_display_()
    InteractiveShell.clear_instance()
    controls, still, note = shown.outputs
    assert controls.data["application/vnd.jupyter.widget-view+json"]["model_id"] == book.box.model_id
    assert controls.data["text/plain"] == "Controls: steps = 1"
    assert still.data["image/png"] and still.metadata["image/png"] == {"width": 100, "height": 100, "alt": "steps = 2"}
    assert "run this cell" in note.data["text/html"]


@pytest.mark.parametrize("values", [np.array([0.5, 0.1]), torch.tensor([0.5, 0.1], dtype=torch.float64), (0.5, 0.1),
                                    [np.float64(0.5), np.float64(0.1)]], ids=lambda values: type(values).__name__)
def test_values_come_as_any_kind_of_sequence(values):
    slider = control("t", values)
    assert slider.value == 0.5 and [value for _, value in slider.options] == [0.1, 0.5]


@pytest.mark.parametrize("values", [np.zeros((2, 2)), [1, "two"], ["one", 2], [None, 1]], ids=str)
def test_values_that_are_no_choice_are_named(values):
    with pytest.raises(ValueError, match="t: expected numbers, or words, to choose from, got"):
        control("t", values)


def test_no_button_runs_through_what_is_typed():
    with pytest.raises(ValueError, match="play: expected several values of the last choice to run through"):
        flipbook(lambda caption: None, play=True, caption="red apple")


def test_an_animation_has_a_frame_for_every_page_and_describes_itself():
    pages, times = [0.1, 0.5, 0.9], [100, 200, 300]

    def draw(width):
        figure, ax = plt.subplots(figsize=(1, 1))
        ax.plot([0, width], [0, 1])
        return figure

    shown = animation(draw, pages, times, alt="a line that leans over")
    picture, frames, durations = PIL.Image.open(io.BytesIO(shown.data)), [], []
    for k in range(picture.n_frames):
        picture.seek(k)
        frames.append(picture.convert("RGB").tobytes())
        durations.append(picture.info["duration"])
    assert len(set(frames)) == 3 and durations == times
    assert "a line that leans over" in str(shown._repr_mimebundle_()) and not plt.get_fignums()


@pytest.mark.parametrize(("pages", "times"), [([], []), ([1, 2], [100])])
def test_an_animation_needs_a_time_for_every_page(pages, times):
    with pytest.raises(ValueError, match=f"milliseconds: expected one for each of {len(pages)} pages"):
        animation(lambda page: None, pages, times, alt="")


def test_a_watched_sampler_gives_the_same_states_and_leaves_no_bar(capfd):
    target = GaussianMixture([[0.0, 1.0]], 0.1)
    D, x, ts = target.denoiser(LinearVP()), torch.ones(3, 2, dtype=torch.float64), uniform(4, LinearVP())
    seen = last(watched(sample), D, x, ts, step=ddim)
    assert (seen.x == final(D, x, ts, ddim).x).all() and seen.nfe == 4
    said = capfd.readouterr()
    assert "/4 [" in said.out and said.out.rsplit("\r", 2)[1].strip() == "" and not said.err
