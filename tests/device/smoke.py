"""A chapter at scale `full` on a GPU, with its numbers cut: `python smoke.py notebooks/source/NN_name.py`.

Where a chapter says `3000 if full else 700`, numbers are those of `quick` and all else is that of `full`, its device above
all. No training takes more than STEPS, and what is asserted of its result is only worked out. Where there is no GPU, one is
pretended, and the waits for it are told at the end.
"""

import ast
import os
import sys
from contextlib import nullcontext
from pathlib import Path
from unittest import mock

import torch
from pretended_cuda import pretended_cuda

STEPS = 20


class Cut(ast.NodeTransformer):
    """The source with `quick`'s number wherever `full` decides between two, alone or in a tuple."""

    functions = 0                                                            # that we are in

    def visit_IfExp(self, node):
        decided = isinstance(node.test, ast.Name) and node.test.id.lower() == "full"
        return self.cut(node.body, node.orelse) if decided else self.generic_visit(node)

    def visit_FunctionDef(self, node):
        self.functions += 1
        self.generic_visit(node)
        self.functions -= 1
        return node

    def visit_Assert(self, node):
        return node if self.functions else ast.Expr(node.test)               # what a function asserts is part of it

    def cut(self, many, few):
        if isinstance(many, ast.Tuple):
            return ast.Tuple([self.cut(*pair) for pair in zip(many.elts, few.elts, strict=True)], many.ctx)
        return few if isinstance(few, ast.Constant) and isinstance(few.value, (int, float)) else many


def cut(source: str) -> ast.Module:
    """The parsed source, its numbers cut."""
    return ast.fix_missing_locations(Cut().visit(ast.parse(source)))


def run(path: Path) -> None:
    """Carry the chapter out as a plain script."""
    from course_lib import training

    train, code = training.train, compile(cut(path.read_text(encoding="utf-8")), str(path), "exec")

    def short(*arguments, steps, **settings):
        return train(*arguments, steps=min(steps, STEPS), **settings)

    with mock.patch.object(training, "train", short), mock.patch.dict(os.environ, COURSE_SCALE="full", MPLBACKEND="agg"):
        exec(code, {"__name__": "__main__", "__file__": str(path)})


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
    with nullcontext() if torch.cuda.is_available() else pretended_cuda() as log:
        try:
            run(Path(sys.argv[1]))
        finally:
            print(log or "", file=sys.stderr)
