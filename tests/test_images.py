"""The entry that torchrun starts: a picture, one line about its cost, one line about what is wrong."""

import pytest
import torch

from course_lib.denoiser import X0, Preconditioned
from course_lib.recipes import images
from course_lib.schedules import CosineVP


class Shrunk(torch.nn.Module):
    """A network that knows nothing but a shade."""

    def forward(self, x, c_noise, cond=None):
        return 0.5 * torch.tanh(x)


@pytest.fixture
def model(monkeypatch):
    monkeypatch.setattr(images.weights, "load", lambda name, device: Preconditioned(Shrunk(), CosineVP(), X0()).to(device))


def test_images_are_drawn_and_their_cost_is_told(model, tmp_path, capsys):
    images.main(["--images", "3", "--steps", "20", "--out", str(tmp_path / "three.png")])
    said = capsys.readouterr().out
    assert said.startswith("3 images of 20 steps in ") and " on 1 process: " in said and said.count("\n") == 1
    assert (tmp_path / "three.png").read_bytes().startswith(b"\x89PNG")


def test_a_seed_gives_the_same_images_again_whatever_the_window(model):
    drawn = [images.draw(images.arguments(["--images", "2", "--steps", "20", "--tolerance", "0", "--seed", seed, *window]))[0]
             for seed, window in (("0", []), ("0", ["--window", "7"]), ("1", []))]
    torch.testing.assert_close(drawn[0].trajectory, drawn[1].trajectory, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(drawn[0].trajectory[-1], drawn[2].trajectory[-1], atol=0.1)


@pytest.mark.parametrize(("option", "value", "message"), [
    ("--images", "0", "error: --images: expected a whole number, at least 1, got 0"),
    ("--images", "-3", "error: --images: expected a whole number, at least 1, got -3"),
    ("--steps", "0", "error: n: expected a whole number of steps, at least 1, got 0"),
    ("--window", "-3", "error: window: expected None for all or a whole number of steps, at least 1, got -3"),
])
def test_what_is_wrong_is_one_line(model, option, value, message):
    with pytest.raises(SystemExit, match=message):
        images.main([option, value])
