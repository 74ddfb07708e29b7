"""Figures: what is drawn is what was given, the right way up, and nothing is dropped without a word."""

import itertools
import re
from types import SimpleNamespace

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib import pyplot as plt
from matplotlib_inline.config import InlineBackend

from course_lib import plotting
from course_lib.data import ROOT
from course_lib.ledger import Row
from course_lib.targets import GaussianMixture

matplotlib.use("Agg")
SOURCES = sorted((ROOT / "notebooks" / "source").glob("*.py"))
chapters = pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.stem)


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


def test_no_text_is_small():
    plotting.style()
    figure, ax = plt.subplots()
    ax.set(title="title", xlabel="x", ylabel="y")
    ax.plot([1, 2], label="line")
    ax.legend()
    figure.suptitle("above")
    plotting.scatter(torch.full((1, 2), 9.0), ax)
    figure.canvas.draw()
    assert min(text.get_fontsize() for text in figure.findobj(matplotlib.text.Text) if text.get_text()) >= 9
    assert figure.dpi >= 96, "a point is at least as large as the browser's"


@chapters
def test_no_chapter_makes_text_small_or_chooses_colours_itself(source):
    text = source.read_text(encoding="utf-8")
    assert [size for size in re.findall(r"(?:fontsize=|labelsize=|set_fontsize\()([\d.]+)", text) if float(size) < 9] == []
    named = r"""\b(?:color|c|mfc|mec)=["'](?!none)\w+|["'](?:\#[0-9a-fA-F]{6}|C\d|tab:\w+|tab10|black|k[-:.o]+)["']"""
    assert re.findall(named, text) == []


# --- colours -------------------------------------------------------------------------------------------------------------

SERIES = {name: getattr(plotting, name) for name in ("TRUTH", "ESTIMATE", "SECOND", "THIRD", "FOURTH", "INK")}

# Machado, Oliveira & Fernandes, A physiologically-based model for simulation of color vision deficiency, 2009: what someone
# without the long, the middle or the short cones sees, in linear RGB.
VISIONS = {"all cones": np.eye(3),
           "protan": np.array([[0.152286, 1.052583, -0.204868],
                               [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]),
           "deutan": np.array([[0.367322, 0.860646, -0.227968],
                               [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]),
           "tritan": np.array([[1.255528, -0.076749, -0.178779],
                               [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]])}
XYZ = np.array([[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]])


def linear(color):
    c = np.array(matplotlib.colors.to_rgb(color))
    return np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)


def lab(color, vision="all cones"):
    """CIELAB under D65."""
    f = XYZ @ (VISIONS[vision] @ linear(color)).clip(0, 1) / [0.95047, 1, 1.08883]
    f = np.where(f > 0.008856, np.cbrt(f), 7.787 * f + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def difference(one, two):
    """CIEDE2000 between two colours in CIELAB; 1 is just noticed side by side."""
    (L1, a1, b1), (L2, a2, b2) = one, two
    mean = (np.hypot(a1, b1) + np.hypot(a2, b2)) / 2
    a1, a2 = np.array([a1, a2]) * (1.5 - 0.5 * np.sqrt(mean**7 / (mean**7 + 25**7)))
    C1, C2, h1, h2 = np.hypot(a1, b1), np.hypot(a2, b2), np.arctan2(b1, a1), np.arctan2(b2, a2)
    turn = (h2 - h1 + np.pi) % (2 * np.pi) - np.pi if C1 * C2 else 0.0
    L, C, h = (L1 + L2) / 2, (C1 + C2) / 2, np.degrees(h1 + turn / 2 if C1 * C2 else h1 + h2) % 360
    T = sum(k * np.cos(np.radians(n * h + phase)) for k, n, phase in
            ((1, 0, 0), (-0.17, 1, -30), (0.24, 2, 0), (0.32, 3, 6), (-0.20, 4, -63)))
    light = (L2 - L1) / (1 + 0.015 * (L - 50) ** 2 / np.sqrt(20 + (L - 50) ** 2))
    chroma = (C2 - C1) / (1 + 0.045 * C)
    hue = 2 * np.sqrt(C1 * C2) * np.sin(turn / 2) / (1 + 0.015 * C * T)
    twist = -2 * np.sqrt(C**7 / (C**7 + 25**7)) * np.sin(np.radians(60 * np.exp(-(((h - 275) / 25) ** 2))))
    return np.sqrt(light**2 + chroma**2 + hue**2 + twist * chroma * hue)


@pytest.mark.parametrize(("one", "two", "right"), [
    ((50, 2.6772, -79.7751), (50, 0, -82.7485), 2.0425), ((50, 0, 0), (50, -1, 2), 2.3669),
    ((50, 2.49, -0.001), (50, -2.49, 0.0011), 7.2195),
    ((50, 2.5, 0), (73, 25, -18), 27.1492),
    ((2.0776, 0.0795, -1.1350), (0.9033, -0.0636, -0.5514), 0.9082)])
def test_differences_of_colours_are_those_of_the_published_table(one, two, right):
    """Sharma, Wu & Dalal, The CIEDE2000 color-difference formula, 2005, table 1."""
    assert difference(np.array(one), np.array(two)) == pytest.approx(right, abs=1e-4)


@pytest.mark.parametrize("vision", VISIONS)
@pytest.mark.parametrize(("one", "two"), list(itertools.combinations(SERIES, 2)), ids="-".join)
def test_series_are_told_apart_by_every_kind_of_colour_vision(one, two, vision):
    assert difference(lab(SERIES[one], vision), lab(SERIES[two], vision)) > 17


def contrast(color):
    """With white, by WCAG 2."""
    return 1.05 / (XYZ[1] @ linear(color) + 0.05)


def test_colours_are_dark_enough_on_white():
    assert contrast("#777777") == pytest.approx(4.48, abs=0.01)
    assert all(contrast(color) >= (3 if name == "TRUTH" else 4.5) for name, color in SERIES.items())


def test_series_in_one_frame_differ_in_marker_and_line_too():
    looks = plotting.looks("abcde")
    assert list(looks) == list("abcde")
    for key in ("color", "marker", "ls"):
        assert len({look[key] for look in looks.values()}) == 5
    for name, look in looks.items():
        plt.plot([1, 2], **look, label=name)
    plt.gcf().canvas.draw()
    with pytest.raises(ValueError, match="names: expected at most 5 series in one frame, got 6"):
        plotting.looks("abcdef")


def test_a_notebook_draws_for_dense_screens(monkeypatch):
    """In a notebook's kernel, where matplotlib draws inline; a plain script is not touched."""
    drawn = []
    monkeypatch.setattr(InlineBackend, "instance", classmethod(lambda cls: drawn.append(SimpleNamespace()) or drawn[-1]))
    plotting.style()
    assert not drawn
    monkeypatch.setattr(plt, "get_backend", lambda: "module://matplotlib_inline.backend_inline")
    plotting.style()
    assert drawn[0].figure_formats == {"retina"}
