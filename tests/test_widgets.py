"""The widgets draw what their pure function draws, once per page, and follow their controls."""

import io

import ipywidgets
import matplotlib.pyplot as plt
import PIL.Image
import pytest

from course_lib.widgets import animation, control, flipbook, png


def book_of(calls, **choices):
    def draw(**values):
        calls.append(values)
        figure, ax = plt.subplots(figsize=(1, 1))
        ax.set_title(" ".join(map(str, values.values())))
        return figure

    return flipbook(draw, **choices)


def parts(box):
    row, picture = box.children
    return row.children, picture


def test_a_page_is_a_png_and_its_figure_is_closed():
    figure = plt.figure(figsize=(1, 1))
    assert png(figure).startswith(b"\x89PNG")
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
