"""Figures: what is drawn is what was given, the right way up, and nothing is dropped without a word."""

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib import pyplot as plt

from course_lib import plotting
from course_lib.ledger import Row
from course_lib.targets import GaussianMixture

matplotlib.use("Agg")


@pytest.fixture(autouse=True)
def fresh_figures():
    with plt.rc_context():
        yield
    plt.close("all")


def drawn(ax):
    """The axes' figure must also render."""
    ax.figure.canvas.draw()
    return ax


def offsets(collection):
    return np.asarray(collection.get_offsets())


def test_a_mesh_covers_its_square():
    points = plotting.mesh(2.0, 5)
    assert points.shape == (25, 2) and points.dtype == torch.float64
    assert points.min() == -2 and points.max() == 2 and len(points.unique(dim=0)) == 25


def test_panels_come_in_rows_and_spare_ones_are_off():
    axes = plotting.panels(5, columns=3)
    assert len(axes) == 5
    everyone = axes[0].figure.axes
    assert len(everyone) == 6 and [ax.axison for ax in everyone] == [True] * 5 + [False]
    assert len(plotting.panels(4)) == 4


def test_a_density_is_drawn_the_right_way_up():
    """A blob in the upper left corner of the plane is in the upper left of the picture."""
    ax = drawn(plotting.density(GaussianMixture([[-1.5, 2.0]], 0.1).log_prob, extent=2.5, n=50))
    (image,) = ax.images
    row, column = np.unravel_index(image.get_array().argmax(), image.get_array().shape)
    assert image.origin == "lower" and image.get_extent() == [-2.5, 2.5, -2.5, 2.5]
    assert np.linspace(-2.5, 2.5, 50)[column] == pytest.approx(-1.5, abs=0.06)
    assert np.linspace(-2.5, 2.5, 50)[row] == pytest.approx(2.0, abs=0.06)


def test_a_scatter_shows_its_points_and_counts_those_outside():
    ax = plotting.panels(1)[0]
    assert plotting.scatter(torch.tensor([[0.0, 1.0], [3.0, 0.0], [0.0, -9.0]]), ax, extent=2.5, title="here") is drawn(ax)
    np.testing.assert_array_equal(offsets(ax.collections[0]), [[0, 1], [3, 0], [0, -9]])
    assert [text.get_text() for text in ax.texts] == ["2 outside"] and ax.get_title() == "here"
    assert plotting.scatter(torch.tensor([[0.0, 0.0], [9.0, 0.0]]), color=["red", "blue"]).texts, "a colour for each point"
    assert not plotting.scatter(torch.zeros(3, 2)).texts, "no note where nothing is outside"


def test_a_scatter_takes_samples_that_carry_gradients():
    drawn(plotting.scatter(torch.zeros(3, 2, requires_grad=True)))


def test_a_field_has_its_arrows_where_they_belong():
    ax = drawn(plotting.field(lambda x: torch.stack([x[:, 1], -x[:, 0]], 1), extent=1.0, n=3))
    (arrows,) = ax.collections
    place = offsets(arrows)
    assert place.shape == (9, 2)
    np.testing.assert_allclose(arrows.U, place[:, 1])
    np.testing.assert_allclose(arrows.V, -place[:, 0])


def test_paths_join_the_states_in_order():
    states = torch.tensor([[[0.0, 0.0], [1.0, 1.0]], [[0.5, 0.0], [1.0, 0.5]], [[0.9, 0.0], [1.0, 0.1]]])
    ax = drawn(plotting.paths(states))
    assert len(ax.lines) == 2
    for i, line in enumerate(ax.lines):
        np.testing.assert_array_equal(line.get_xydata(), states[:, i])
    first, last = ax.collections
    np.testing.assert_array_equal(offsets(first), states[0])
    np.testing.assert_array_equal(offsets(last), states[-1])


def test_tiles_keep_order_value_and_gap():
    images = torch.stack([torch.full((1, 2, 3), v) for v in (-1.0, 0.0, 0.5)])
    sheet = plotting.tile(images, columns=2)
    assert sheet.shape == (5, 7)
    assert (sheet[0:2, 0:3] == 0).all() and (sheet[0:2, 4:7] == 0.5).all() and (sheet[3:5, 0:3] == 0.75).all()
    assert not (sheet[2].any() or sheet[:, 3].any() or sheet[3:5, 4:7].any()), "gaps and spare places are as light as paper"


def test_tiles_in_colour_lie_on_white_paper():
    images = torch.stack([torch.full((3, 2, 2), v) for v in (-1.0, 0.5)])
    images[1, 2] = -1.0
    sheet = plotting.tile(images, columns=2)
    assert sheet.shape == (2, 5, 3)
    assert (sheet[:, :2] == 0).all() and (sheet[:, 2] == 1).all() and (sheet[:, 3:] == [0.75, 0.75, 0]).all()


def test_tiles_clip_what_no_screen_can_show():
    sheet = plotting.tile(torch.tensor([[[[-3.0, 3.0]]]]), columns=1)
    assert sheet.tolist() == [[0.0, 1.0]]


def test_a_grid_of_images_is_its_tiles():
    images = torch.rand(5, 1, 4, 4) * 2 - 1
    ax = drawn(plotting.image_grid(images, columns=3, title="five"))
    np.testing.assert_array_equal(ax.images[0].get_array(), plotting.tile(images, 3))
    assert ax.get_title() == "five"


def test_rows_of_images_carry_their_labels():
    rows = [torch.zeros(4, 1, 3, 3), torch.ones(4, 1, 3, 3)]
    figure = plotting.image_rows(rows, ["zeros", "ones"], title="two")
    figure.canvas.draw()
    assert [ax.get_ylabel() for ax in figure.axes] == ["zeros", "ones"]
    with pytest.raises(ValueError):
        plotting.image_rows(rows, ["one label too few"])


def row(method, nfe, value):
    return Row(method=method, dataset="ring", nfe=nfe, depth=nfe, batch=1, seconds=1.0, device="cpu", metric="SW",
               value=value, floor=0.1, samples=10, seeds=1)


def test_quality_is_drawn_against_cost_a_line_a_method():
    ax = drawn(plotting.quality_against_cost([row("b", 20, 0.2), row("a", 10, 0.5), row("b", 5, 0.9), row("a", 100, 0.1)]))
    lines = {line.get_label(): line.get_xydata() for line in ax.lines}
    np.testing.assert_allclose(lines["b"], [[5, 0.8], [20, 0.1]])
    np.testing.assert_allclose(lines["a"], [[10, 0.4], [100, 1e-3]])  # at the floor, kept on the logarithmic axis
    assert ax.get_xscale() == ax.get_yscale() == "log" and ax.get_ylabel() == "SW above the floor"


def test_no_rows_make_an_empty_figure():
    assert not drawn(plotting.quality_against_cost([])).lines


def test_the_style_is_known_to_matplotlib_and_applies():
    plotting.style()
    assert plt.rcParams["axes.spines.top"] is False
    assert set(plotting.STYLE) <= set(plt.rcParams)
