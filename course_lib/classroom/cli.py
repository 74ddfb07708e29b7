"""The `course` command. Whatever is heavy is imported by the subcommand that needs it."""

import argparse
import importlib
import io
import os
import sys
from collections.abc import Callable
from pathlib import Path


def main(arguments: list[str] | None = None, root: Path | None = None) -> int:
    """Run one subcommand on the course at `root` (found by course_lib.data by default); returns the exit status.

    0: done. 1: it found something (an unsolved exercise, a notebook out of date). 2: it could not be done.
    130: stopped by Ctrl-C. 141: whoever read its output (`| head`) has gone.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):        # in a notebook it is something else
            stream.reconfigure(encoding="utf-8")        # ✓ and α on a Windows console
    options = _parser().parse_args(arguments)
    try:
        status = options.run(options, root)
        sys.stdout.flush()                              # a full disk or a closed pipe shows here, not after the last line
        return status
    except KeyboardInterrupt:
        return _ended("stopped", 130)
    except BrokenPipeError:
        return _ended(None, 141)
    except ModuleNotFoundError as error:
        if (error.name or "course_lib").startswith("course_lib"):
            raise
        return _ended(f"this command needs {error.name}, which is not installed: pip install -e '.[lab]' "
                      "(for authors '.[lab,teach,dev]')", 2)
    except MemoryError:
        return _ended("there is not enough memory", 2)
    except (ValueError, OSError, FloatingPointError) as error:
        return _ended(str(error), 2)


def _ended(why: str | None, status: int) -> int:
    """Say in one line why the command ended early; what its output can still not take is dropped, lest Python say so too."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if why is not None:
        print(f"course: {why}", file=sys.stderr)
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="course", description="A course on sampling diffusion models fast.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(run: Callable, help: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(run.__name__.strip("_"), help=help, description=help)
        sub.set_defaults(run=run)
        return sub

    lab = command(_lab, "open JupyterLab on your own copies of the chapters, in my/")
    lab.add_argument("--port", type=int)
    lab.add_argument("--no-browser", dest="browser", action="store_false", help="print the address only")
    command(_list, "the chapters: minutes, prerequisites, exercises")
    command(_progress, "which exercises are solved, as saved in my/")
    check = command(_check, "run your answers of a chapter inside its pristine notebook")
    check.description = _check.__doc__
    check.add_argument("chapter", type=int, nargs="?", help="its number; that of the notebook by default")
    check.add_argument("--notebook", type=Path, metavar="FILE", help="a notebook outside my/, from Colab for example")
    reset = command(_reset, "a fresh copy of a chapter; yours is kept beside it")
    reset.add_argument("chapter", type=int)
    update = command(_update, "bring your copies to the course's present version, with your answers")
    update.add_argument("chapters", type=int, nargs="*", metavar="chapter")
    command(_doctor, "is this machine ready: python, torch, device, data, weights")
    train = command(_train, "train a model that the course ships; without a name, list them")
    train.add_argument("name", nargs="?")
    train.add_argument("--device")
    train.add_argument("--steps", type=_count)
    train.add_argument("--minutes", type=_positive, help="end in this time, after the learning rate has fallen to 0")
    train.add_argument("--larger", type=_count, metavar="TIMES", help="of the recipe's batch; on a GPU 8 cost little more")
    train.add_argument("--out", type=Path, help="the folder of the new weights (default: my/weights)")
    train.add_argument("--further", action="store_true", default=None, help="begin with the best weights that are there")
    measure = command(_measure, "measure rows of the ledger; without a name, list what can be measured")
    measure.add_argument("name", nargs="?")
    measure.add_argument("--device")
    measure.add_argument("--samples", type=_count)
    measure.add_argument("--seeds", type=_count)
    build = command(_build, "for authors: build the notebooks from notebooks/source")
    build.add_argument("chapters", type=int, nargs="*", metavar="chapter")
    build.add_argument("--force", action="store_true", help="run solutions again even if their code is unchanged")
    build.add_argument("--check", action="store_true", help="only say what is not as the sources build it; run nothing")
    gpu = command(_gpu, "for authors: all that needs a GPU, within a budget of minutes")
    gpu.add_argument("--minutes", type=_positive, default=10.0)
    gpu.add_argument("--device")
    gpu.add_argument("--out", type=Path, default=Path("gpu"), help="a new folder for what is made (default: gpu)")
    gpu.add_argument("--bring", type=Path, metavar="FOLDER", help="take what was made elsewhere into this checkout")
    return parser


def _count(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, got {text!r}")
    return int(text)


def _positive(text: str) -> float:
    number = float(text) if text.replace(".", "", 1).isdecimal() else 0.0
    if not number:
        raise argparse.ArgumentTypeError(f"expected a positive number, got {text!r}")
    return number


def _root(root: Path | None) -> Path:
    return root or importlib.import_module("course_lib.files").find_root()


def _lab(options, root) -> int:
    from .learner import lab

    return lab.lab(_root(root), options.port, options.browser)


def _list(options, root) -> int:
    from . import notebooks

    chapters = [notebooks.contents(path) for path in notebooks.chapters(_root(root) / "notebooks")]
    for chapter in chapters:
        if chapter.trouble:
            print(f"{chapter.number:02d}  {chapter.trouble}")
            continue
        print(f"{chapter.number:02d}  {chapter.title}: {chapter.shows}")
        print(f"    {chapter.minutes} minutes, after {', '.join(map(str, chapter.needs)) or 'nothing'}")
        for id, title in chapter.exercises.items():
            print(f"    {id:<5} {title}")
    return int(any(chapter.trouble for chapter in chapters))


def _progress(options, root) -> int:
    from .learner import answers, updates

    table = updates.progress(_root(root))
    for chapter in table:
        states = "  ".join(f"{id} {state}" for id, state in chapter.states.items())
        print(f"{chapter.name:<34} {states}{chapter.saved and f'   ({chapter.saved})'}".rstrip())
        if chapter.trouble:
            print(f"    {chapter.trouble}")
    states = [state for chapter in table for state in chapter.states.values()]
    print(f"{states.count(answers.SOLVED)} of {len(states)} solved, as last saved   "
          "(✓ solved   ✗ not yet right   · not yet tried)")
    return int(any(chapter.trouble for chapter in table))


def _check(options, root) -> int:
    """Run your answers of a chapter, as last saved in my/, in a fresh kernel inside the chapter as the course ships it.

    Only what its own checks then say counts, no saved output and no changed check. This protects against mistakes and stale
    results. It is no sandbox: answers run with your rights, and code that sets out to deceive can. That the library and the
    chapter stay the same during the run is verified.
    """
    from . import notebooks
    from .learner import answers, copies, rerun, updates

    root = _root(root)
    if options.notebook is not None:
        own, notebook = options.notebook, notebooks.load(options.notebook)
        shipped = updates.shipped_for(root, own, options.chapter)
    elif options.chapter is not None:
        [shipped] = copies.given(root, options.chapter)
        own = updates.own_file(root, shipped)
        notebook = updates.load(own)
    else:
        raise ValueError("which chapter? `course check 4`, or `course check --notebook FILE`")
    print(f"{own.relative_to(root) if own.is_relative_to(root) else own}, {updates.saved(own)}", flush=True)
    results = rerun.check(root, shipped, notebook)
    for result in results:
        print(f"{result.name:<5} {result.state} {result.message}")
    if any(result.state == answers.UNTRIED for result in results):
        print("Only what is saved counts: if you have tried them, save the notebook (Ctrl+S) and check again.")
    return int(any(result.state != answers.SOLVED for result in results))


def _reset(options, root) -> int:
    from .learner import copies

    kept = copies.reset(_root(root), options.chapter)
    print("a fresh copy is in my/" + (f"; your old one is {kept.name}, beside it" if kept else ""))
    return 0


def _update(options, root) -> int:
    from . import notebooks
    from .learner import updates

    root, failed = _root(root), False
    for path in notebooks.chapters(root / "notebooks", options.chapters):
        try:
            print("\n".join(updates.update(root, notebooks.number(path))))
        except (ValueError, OSError) as error:          # the other chapters can be updated all the same
            print(f"course: {error}", file=sys.stderr)
            failed = True
    return 2 if failed else 0


def _doctor(options, root) -> int:
    from .learner import doctor

    findings = doctor.examine()
    for name, well, message in findings:
        print(f"{'✓' if well else '✗'} {name:<12} {message}")
    return int(not all(well for _, well, _ in findings))


def _train(options, root) -> int:
    recipes = importlib.import_module("course_lib.recipes")
    if options.name is None:
        return _listed(recipes.RECIPES)
    given = _given(options, "device", "steps", "out", "further", "larger")
    if options.minutes:
        given["seconds"] = 60 * options.minutes
    path = recipes.train(options.name, **given)
    if path:                                            # of several processes only the first has one
        print(recipes.standing(path))
    return 0


def _measure(options, root) -> int:
    measurements = importlib.import_module("course_lib.measure").MEASUREMENTS
    if options.name is None:
        return _listed(measurements)
    if options.name not in measurements:
        raise ValueError(f"there is no measurement {options.name!r}; there are {', '.join(measurements)}")
    given = _given(options, "device", "samples", "seeds")
    if options.device:
        given["device"] = importlib.import_module("course_lib.training").chosen_device(options.device)
    measurements[options.name](**given)
    return 0


def _given(options, *names: str) -> dict:
    """The options that were given; for the others the function's own defaults hold."""
    return {name: getattr(options, name) for name in names if getattr(options, name) is not None}


def _listed(functions: dict[str, Callable]) -> int:
    for name, function in functions.items():
        print(f"{name:<28} {(function.__doc__ or '').strip().splitlines()[0]}")
    return 0


def _build(options, root) -> int:
    from .author import build

    if not options.check:
        build.build(_root(root), options.chapters, options.force)
        return 0
    found = build.outdated(_root(root), options.chapters)
    print("\n".join(found) or "the notebooks are what the sources build")
    return int(bool(found))


def _gpu(options, root) -> int:
    from .author import gpu

    if options.bring is None:
        return int(not gpu.borrow(_root(root), options.out, options.minutes, options.device))
    print("\n".join(gpu.bring(_root(root), options.bring)))
    return 0
