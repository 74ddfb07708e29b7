"""The table of recipes: what a recipe is, and how one is entered."""

from collections.abc import Callable

from torch import nn

RECIPES: dict[str, Callable] = {}


def recipe(build: Callable[[], nn.Module], steps: int, reads: tuple[str, ...] = (), start: str | None = None,
           int8: bool = False, merit: str = "test_loss", sign: int = -1, fixed: bool = False, bf16: bool = True) -> Callable:
    """Register a recipe under its function's name, with the model it trains, its full number of steps and its start.

    reads: the files of data/ and the other recipes that its weights depend on. int8: for large or many models, whose files then
    are half as long (see `packed`). merit: the metric that says which weights are better; sign: 1 if more of it is, -1 if less.
    fixed: does more hang on just these weights, as latent models on their autoencoder and all figures on their judge? Then what
    ships stays in use. bf16: does that precision make its training faster, as of large networks, and do its loss no harm, as
    to differences of near equals?
    """
    def register(function: Callable) -> Callable:
        function.build, function.steps, function.start, function.int8 = build, steps, start, int8
        function.reads, function.merit, function.sign, function.fixed, function.bf16 = reads, merit, sign, fixed, bf16
        RECIPES[function.__name__] = function
        return function

    return register


def known(name: str) -> Callable:
    """The recipe of that name, or a ValueError that lists the names there are."""
    if name not in RECIPES:
        raise ValueError(f"name: expected one of {', '.join(RECIPES)}, got {name!r}")
    return RECIPES[name]
