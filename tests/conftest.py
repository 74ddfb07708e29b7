"""What every test shares: fixed seeds, one thread, and no skips where COURSE_REQUIRE_ALL=1 forbids them."""

import os
import random
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

os.environ["COURSE_WEIGHTS"] = str(Path(__file__).with_name("none"))     # what somebody trained here is not under test


@pytest.fixture(scope="session")
def root() -> Path:
    """The folder that holds course_lib/, data/ and notebooks/."""
    return Path(__file__).resolve().parent.parent


@pytest.fixture
def generator() -> torch.Generator:
    """A generator on the CPU, seeded alike in every test."""
    return torch.Generator().manual_seed(0)


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """Sums of floats depend on how many threads share them."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def same_start():
    """Each test starts from the same seeds, and none may change the default dtype for those that follow."""
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002 - libraries under test may use the global one
    torch.manual_seed(0)
    yield
    assert torch.get_default_dtype() == torch.float32, "this test left another default dtype behind"


@pytest.fixture(autouse=True)
def on_the_cpu(monkeypatch):
    """A test that names no device trains on the CPU, where it compares, on a machine with a GPU too."""
    from course_lib import training

    monkeypatch.setattr(training, "default_device", lambda: torch.device("cpu"))


@pytest.fixture
def few_images(monkeypatch):
    """Twenty images of noise in place of Fashion-MNIST, four in place of the emoji, and few starts on the ring."""
    from course_lib import data, recipes

    def fashion_mnist(split="train", full=False):
        generator = torch.Generator().manual_seed(len(split))
        return torch.rand(20, 1, 28, 28, generator=generator) * 2 - 1, torch.arange(20) % 10

    def emoji(split="train"):
        images = torch.rand(4, 3, 64, 64, generator=torch.Generator().manual_seed(len(split))) * 2 - 1
        return data.Emoji(images, torch.arange(4), torch.arange(4))

    def emoji_latents(split):
        return torch.randn(4, 4, 16, 16, generator=torch.Generator().manual_seed(len(split)))

    monkeypatch.setattr(recipes.emoji, "emoji_latents", emoji_latents)
    monkeypatch.setattr(data, "fashion_mnist", fashion_mnist)
    monkeypatch.setattr(data, "emoji", emoji)
    monkeypatch.setattr(recipes.ring, "path_error", partial(recipes.path_error, n=10))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item):
    report = yield
    return report if item.get_closest_marker("gpu") else fail_if_skipped(report)


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report():
    return fail_if_skipped((yield))


def fail_if_skipped(report):
    """Under COURSE_REQUIRE_ALL=1 a skip is a failure; an expected failure stays what it is."""
    if os.environ.get("COURSE_REQUIRE_ALL") == "1" and report.skipped and not hasattr(report, "wasxfail"):
        *_, reason = report.longrepr
        report.outcome = "failed"
        report.longrepr = f"must not be skipped under COURSE_REQUIRE_ALL=1. {reason}"
    return report
