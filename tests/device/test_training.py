"""Training on a GPU: every loss is trained, killed and resumed; every recipe is carried out, stored and loaded."""

import math

import matplotlib.pyplot as plt
import pytest
import torch
from device_cases import LOSSES
from pretended_cuda import CUDA, on_cuda, pretended_cuda

from course_lib import data, recipes, text
from course_lib.recipes import images
from course_lib.training import chosen_device, default_device, device_name, train


class Killed(Exception):
    """What a kill looks like from inside."""


def killed_at(step, loss):
    """The loss, which kills its training when it is asked for the so-manieth time."""
    calls = iter(range(1, step))

    def fatal(*arguments):
        if next(calls, None) is None:
            raise Killed
        return loss(*arguments)

    return fatal


def trained(parts, device, path, kill=False):
    """The weights after four steps on that device, whether or not the run was killed in between."""
    loss, build, rows = parts
    settings = {"steps": 4, "batch": 8, "warmup": 2, "save_every": 2, "checkpoint": path, "device": device, "progress": False}
    if kill:
        with pytest.raises(Killed):
            train(killed_at(4, loss(device)), build("cpu"), rows, **settings)
    run = train(loss(device), build("cpu"), rows, **settings)
    assert all(map(math.isfinite, run.losses))
    return run.model.state_dict()


@pytest.mark.parametrize("parts", LOSSES.values(), ids=LOSSES)
def test_a_training_that_was_killed_there_ends_as_on_the_cpu(parts, tmp_path):
    expected = trained(parts, torch.device("cpu"), tmp_path / "cpu.pt")
    with pretended_cuda(alike=True):
        found = trained(parts, CUDA, tmp_path / "cuda.pt", kill=True)
        assert all(map(on_cuda, found.values()))
        found = {name: value.cpu() for name, value in found.items()}
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("parts", LOSSES.values(), ids=LOSSES)
def test_a_loss_is_trained_in_what_precision_there_is(parts, tmp_path):
    with pretended_cuda():
        trained(parts, CUDA, tmp_path / "state.pt")


def test_the_device_is_found_and_named():
    with pretended_cuda():
        assert default_device() == torch.device("cuda")
        assert device_name(chosen_device("cuda:0")) == "pretended GPU"


@pytest.fixture
def few_sentences(monkeypatch):
    """A hundred sentences of each part, and five that are sampled."""
    text.vocabulary()                                                       # of all of them
    sentences, sampled = data.sentences, recipes.sentences.sample_sentences
    monkeypatch.setattr(data, "sentences", lambda part: sentences(part)[:100])
    monkeypatch.setattr(recipes.sentences, "sample_sentences", lambda D, autoencoder, n: sampled(D, autoencoder, 5))


SAME = {"fashion_progressive_8", "fashion_progressive_4", "fashion_progressive_2"}     # one function made them, with the last


def test_every_recipe_is_tried_or_another_is_the_same():
    kinds = {name: recipes.RECIPES[name].__code__ for name in recipes.RECIPES}
    assert SAME < kinds.keys() and {kinds[name] for name in SAME} == {kinds["fashion_progressive_1"]}


@pytest.mark.parametrize("name", [name for name in recipes.RECIPES if name not in SAME])
def test_a_recipe_is_carried_out_there_and_its_weights_are_loaded_anywhere(name, few_images, few_sentences, tmp_path):
    with pretended_cuda():
        recipes.train(name, device="cuda", steps=2, out=tmp_path)
        entry = recipes.manifest(tmp_path)[name]
        assert entry["device"] == "pretended GPU" and all(map(math.isfinite, entry["metrics"].values()))
        assert all(map(on_cuda, recipes.load(name, "cuda", tmp_path).parameters()))
    assert not any(map(on_cuda, recipes.load(name, folder=tmp_path).parameters()))


@pytest.mark.parametrize("int8", [False, True])
def test_weights_there_are_packed_as_those_on_the_cpu(int8, generator):
    weights = {"kernel": torch.randn(4, 3, 3, 3, generator=generator), "bias": torch.randn(4, generator=generator)}
    expected = recipes.weights.packed(weights, int8)
    with pretended_cuda():
        stored = recipes.weights.packed({name: value.to("cuda") for name, value in weights.items()}, int8)
        assert not any(map(on_cuda, stored.values()))
    assert stored.keys() == expected.keys() and all(torch.equal(stored[name], value) for name, value in expected.items())


def test_images_are_drawn_there(tmp_path, capsys):
    with pretended_cuda():
        images.main(["--images", "2", "--steps", "8", "--out", str(tmp_path / "two.png")])
    plt.close("all")
    assert "2 images of 8 steps" in capsys.readouterr().out and (tmp_path / "two.png").stat().st_size > 0
