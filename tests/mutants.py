"""`python -m tests.mutants`: small edits of the code, each of which some test has to catch.

The edits stand in `tests/helpers/edits.py`. Each is made in a copy of the tree, and the tests that should catch it run
there; it is caught if one of them fails. First these tests run on the code as it is, where all have to pass.

    python -m tests.mutants                  all edits, about 20 minutes
    python -m tests.mutants smc kalman       those whose file or name holds one of these words
    python -m tests.mutants --jobs 4         four at a time

The command fails where fewer than 95 % of the edits are caught, where one no longer applies, or where a test that
is to catch one fails on the code as it is.
"""

from __future__ import annotations

import argparse
import collections
import os
import resource
import shlex
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from tests.helpers.edits import EDITS, Edit

ROOT = Path(__file__).parent.parent
COPIED = (
    "vipl",
    "tests",
    "benchmarks",
    "docs",
    "README.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "CITATION.cff",
    "pyproject.toml",
)
WANTED = 0.95
LIMIT = 600  # seconds of a processor's time for the tests of one edit: a program that never ends is noticed
RESULTS = {0: "slipped", 1: "caught", -signal.SIGXCPU: "caught"}  # by what pytest exits with; all else is an error


class Task(NamedTuple):
    """Tests to be run, on the code as it is or with an edit."""

    tests: str
    edit: Edit | None


class Done(NamedTuple):
    """What became of a task; `printed` is what pytest said, or why the edit does not apply."""

    task: Task
    result: str
    printed: str
    seconds: float


def apply(edit: Edit, root: Path) -> str:
    """The file of an edit with the edit made.

    Raises:
      ValueError: the text to be replaced does not stand there exactly once.
    """
    text = (root / edit.file).read_text()
    if text.count(edit.old) != 1:
        raise ValueError(f"{edit.file}: the text stands there {text.count(edit.old)} times: {edit.old!r}")
    return text.replace(edit.old, edit.new)


def copy_tree(root: Path) -> None:
    """Copies the files that the tests need."""
    root.mkdir()
    for name in COPIED:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, root / name)


def start(tree: Path, tests: str) -> int:
    """Runs tests of a tree in a process of its own; its number.

    The process is a fork of this one, which has imported all that takes long: no package of the tree, and nothing that
    makes threads.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # JAX warns of forks, for it may have threads; here it has none yet
        number = os.fork()
    if number:
        return number
    code = 2
    try:
        resource.setrlimit(resource.RLIMIT_CPU, (LIMIT, LIMIT + 60))
        printed = os.open(tree.parent / f"{tree.name}.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(printed, 1)
        os.dup2(printed, 2)
        code = run_tests(tree, tests)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def run_tests(tree: Path, tests: str) -> int:
    """Runs tests of a tree in this process; what pytest exits with."""
    import pytest

    for name in [n for n in sys.modules if n.split(".")[0] in ("tests", "vipl", "benchmarks")]:
        del sys.modules[name]
    os.chdir(tree)
    sys.path.insert(0, str(tree))
    sys.dont_write_bytecode = True  # two edits of one second would have the same
    os.environ |= {"PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1"}
    chosen = [f"tests/{part}" if ".py" in part else part for part in shlex.split(tests)]
    return int(pytest.main(["-x", "-q", "--tb=line", "-p", "no:cacheprovider", *chosen]))


def run_tasks(tasks: Sequence[Task], trees: Sequence[Path]) -> Iterator[Done]:
    """Runs tasks, as many at a time as there are trees, each of which is as it was after each task."""
    todo, free, running = collections.deque(tasks), list(trees), {}
    while todo or running:
        while todo and free:
            task, tree, began = todo.popleft(), free.pop(), time.monotonic()
            original = ""
            if task.edit is not None:
                file = tree / task.edit.file
                try:
                    changed, original = apply(task.edit, tree), file.read_text()
                except ValueError as error:
                    free.append(tree)
                    yield Done(task, "does not apply", str(error), 0.0)
                    continue
                file.write_text(changed)
            running[start(tree, task.tests)] = task, tree, original, began
        if not running:
            return
        number, status = os.wait()
        task, tree, original, began = running.pop(number)
        if task.edit is not None:
            (tree / task.edit.file).write_text(original)
        free.append(tree)
        result = RESULTS.get(os.waitstatus_to_exitcode(status), "error")
        log = tree.parent / f"{tree.name}.txt"
        yield Done(task, result, log.read_text()[-3000:] if log.exists() else "", time.monotonic() - began)


def chosen_edits(words: Sequence[str]) -> list[Edit]:
    """The edits whose file or name holds one of the words; all without words."""
    return [e for e in EDITS if not words or any(word in f"{e.file} {e.name}" for word in words)]


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description="Edits that tests have to catch.")
    parser.add_argument("words", nargs="*", help="only edits whose file or name holds one of these")
    parser.add_argument("--jobs", type=int, default=1, help="how many run at once")
    parser.add_argument("--trust", action="store_true", help="do not run the tests on the unedited code first")
    options = parser.parse_args(arguments)
    edits = chosen_edits(options.words)
    unedited = [Task(tests, None) for tests in dict.fromkeys(e.tests for e in edits)]
    counts: collections.Counter[str] = collections.Counter()
    failing = 0
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        trees = [Path(folder) / str(i) for i in range(options.jobs)]
        for tree in trees:
            copy_tree(tree)
        for done in run_tasks([] if options.trust else unedited, trees):
            if done.result != "slipped":
                failing += 1
                print(f"fails on the code as it is: {done.task.tests}\n{done.printed}", flush=True)
        for done in run_tasks([Task(e.tests, e) for e in edits], trees):
            edit = done.task.edit
            assert edit is not None
            counts[done.result] += 1
            print(f"{done.result:<15} {done.seconds:4.0f} s  {edit.file}: {edit.name}", flush=True)
            if done.result in ("error", "does not apply"):
                print(done.printed, flush=True)
    rate = counts["caught"] / max(len(edits), 1)
    print(f"{counts['caught']} of {len(edits)} edits are caught ({rate:.1%}); {dict(counts)}")
    return int(rate < WANTED or failing > 0 or counts["does not apply"] > 0)


def import_what_takes_long() -> None:
    """What the tests import and no edit touches; no plugin of pytest, which wants to import these itself."""
    import flax.nnx
    import jax
    import numpyro.distributions
    import optax
    import pytest
    import scipy.stats

    del flax, jax, numpyro, optax, pytest, scipy


if __name__ == "__main__":
    import_what_takes_long()
    sys.exit(main())
