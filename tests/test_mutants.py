"""The table of edits of `tests/mutants.py`: each applies, changes the program, and names tests that exist."""

import ast
import os
import shlex
import sys

import pytest

from tests import mutants
from tests.helpers.edits import EDITS, Edit
from tests.mutants import ROOT, apply


@pytest.mark.parametrize("edit", EDITS, ids=lambda e: f"{e.file}: {e.name}")
def test_an_edit_applies(edit):
    """Code that is edited takes its edits along: fix the text in `tests/helpers/edits.py`."""
    before, after = (ROOT / edit.file).read_text(), apply(edit, ROOT)
    assert ast.dump(ast.parse(before)) != ast.dump(ast.parse(after))
    for test in shlex.split(edit.tests):
        if ".py" in test:
            file, _, function = test.partition("::")
            assert f"\ndef {function.partition('[')[0]}(" in (ROOT / "tests" / file).read_text() or not function


def test_there_are_enough_edits_with_names_of_their_own():
    assert len(EDITS) >= 80
    assert len({(e.file, e.name) for e in EDITS}) == len({(e.file, e.old, e.new) for e in EDITS}) == len(EDITS)


@pytest.fixture
def judged(tmp_path, monkeypatch):
    """What becomes of an edit of a tree of two files, by a test without pytest, which takes its time to start."""
    code = "import sys; sys.dont_write_bytecode = True; import test_double"

    def begin(tree, tests):
        command = [sys.executable, "-c", f"import os; os.chdir({str(tree)!r}); import sys; sys.path[0] = ''; {code}"]
        return os.posix_spawn(sys.executable, command, os.environ)

    def judge(edit, test):
        (tmp_path / "double.py").write_text("def double(x):\n    return 2 * x\n")
        (tmp_path / "test_double.py").write_text(f"from double import double\n{test}\n")
        (done,) = mutants.run_tasks([mutants.Task("", edit)], [tmp_path])
        assert "2 * x" in (tmp_path / "double.py").read_text()  # the tree is as it was
        return done.result

    monkeypatch.setattr(mutants, "start", begin)
    return judge


def test_an_edit_is_caught_or_slips(judged):
    edit = Edit("three times", "double.py", "2 * x", "3 * x", "test_double.py")
    assert judged(edit, "assert double(1) == 2") == "caught"
    assert judged(edit, "assert double(0) == 0") == "slipped"
    assert judged(None, "assert double(1) == 2") == "slipped"
    assert judged(edit, "import sys; sys.exit(4)") == "error"
    assert judged(edit._replace(old="4 * x"), "assert double(1) == 2") == "does not apply"


def test_a_rate_below_the_limit_fails(monkeypatch, capsys):
    edits = [Edit(str(i), "a.py", "a", "b", "t") for i in range(40)]
    rows = [("caught", 37), ("slipped", 3), ("caught", 38), ("slipped", 2), ("caught", 39), ("does not apply", 1)]
    results = iter([result for result, times in rows for _ in range(times)])
    monkeypatch.setattr(mutants, "EDITS", edits)
    monkeypatch.setattr(mutants, "copy_tree", lambda tree: None)
    monkeypatch.setattr(mutants, "run_tasks", lambda tasks, _: [mutants.Done(t, next(results), "", 0.0) for t in tasks])
    assert [mutants.main(["--trust"]) for _ in range(3)] == [1, 0, 1]
    assert "38 of 40 edits are caught (95.0%)" in capsys.readouterr().out
