"""What functions accept: every check lets the good through and names what came of the bad."""

import math

import pytest
import torch

from course_lib.arguments import (
    mean_of,
    need_labels,
    need_positive,
    need_shape,
    need_state,
    need_whole,
    need_within,
    widened,
)


def test_the_good_comes_back():
    x = torch.zeros(0, 2, dtype=torch.bfloat16)
    assert need_state(x) is x and need_shape(x, (0, 2), "x") is x
    assert need_whole(3, "n") == 3 and need_whole(0, "n", least=0) == 0
    assert need_positive(1e-9, "c") == 1e-9 and need_within(1, "eta", 0, 1) == 1 and need_within(7.0, "c", 0, math.inf) == 7
    labels = need_labels(torch.tensor([-1, 2], dtype=torch.int8), (2,), 3)
    assert labels.tolist() == [-1, 2] and labels.dtype == torch.int64


@pytest.mark.parametrize(("check", "message"), [
    (lambda: need_state([[1.0]]), r"x: expected floating-point states \(B, ...\), got \[\[1.0\]\]"),
    (lambda: need_state(torch.zeros(2), "x0"), r"x0: expected .*, got \(2,\) torch.float32"),
    (lambda: need_state(torch.zeros(2, 2, dtype=torch.complex64)), "torch.complex64"),
    (lambda: need_shape(torch.zeros(1, 2), (3, 2), "z", "noise, "), r"z: expected noise, shape \(3, 2\), got \(1, 2\)"),
    (lambda: need_labels(torch.tensor([0, 3]), (2,), 3), "cond: expected numbers in -1..2, got 0..3"),
    (lambda: need_labels(torch.tensor([-1, 0]), (2,), 3, "labels", 0), "labels: expected numbers in 0..2, got -1..0"),
    (lambda: need_labels(torch.ones(2, dtype=torch.uint8), (2,), 3), r"cond: expected signed whole numbers .* torch.uint8"),
    (lambda: need_labels(torch.ones(2, dtype=torch.bool), (2,), 3), "torch.bool"),
    (lambda: need_labels([0, 1], (2,), 3), r"cond: expected .* of shape \(2,\), got \[0, 1\]"),
    (lambda: need_whole(2.0, "n"), "n: expected a whole number, at least 1, got 2.0"),
    (lambda: need_whole(True, "n"), "n: .* got True"),
    (lambda: need_positive(math.nan, "c"), "c: expected a positive number, got nan"),
    (lambda: need_positive(math.inf, "c"), "c: .* got inf"),
    (lambda: need_within(1.5, "eta", 0, 1), "eta: expected a finite number from 0 to 1, got 1.5"),
    (lambda: need_within(math.inf, "c", 0, math.inf), "c: expected a finite number from 0 to inf, got inf"),
    (lambda: mean_of(torch.zeros(0, 2)), "x0: expected at least one row, got none"),
])
def test_the_bad_is_named(check, message):
    with pytest.raises(ValueError, match=message):
        check()


def test_widening_leaves_single_and_double_precision_alone():
    assert {dtype: widened(torch.zeros(1, dtype=dtype)).dtype for dtype in (torch.half, torch.float, torch.double)} == {
        torch.half: torch.float, torch.float: torch.float, torch.double: torch.double}
