"""The two halves of the cases of a test: each case is in one of them, whatever its parameters are."""

import subprocess
import sys

import pytest

from tests.helpers import halves

CASES = [f"tests/test_x.py::test_y[{a}-{b}]" for a in ("score", "reparam", "enumerate") for b in range(400)]


def test_each_case_is_in_one_half():
    assert all(halves.is_in("oldest", case) != halves.is_in("newest", case) for case in CASES)


def test_no_parameter_goes_with_one_half_alone():
    for word in ("score", "reparam", "enumerate"):
        mine = [halves.is_in("oldest", case) for case in CASES if word in case]
        assert 0.4 < sum(mine) / len(mine) < 0.6


@pytest.mark.oldest
def test_the_halves_of_a_file_are_the_file():
    """Collected by pytest: cases are dealt out, and what is one case, or is marked, is in both."""

    def collected(*args):
        command = [sys.executable, "-m", "pytest", "--collect-only", "tests/test_causality.py", *args]
        out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        return [line for line in out.splitlines() if "::" in line]

    whole, oldest, newest = collected(), collected("--half", "oldest"), collected("--half", "newest")
    assert set(oldest) | set(newest) == set(whole)
    assert len(oldest) < len(whole) > len(newest)
    assert all("[" not in case for case in set(oldest) & set(newest))
