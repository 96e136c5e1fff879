"""The shares of the tests in the whole check: each test is in one of them, whatever its parameters are."""

import subprocess
import sys

import pytest

from tests.helpers import shares

CASES = [f"tests/test_x.py::test_y[{a}-{b}]" for a in ("score", "reparam", "enumerate") for b in range(400)]


def test_each_case_is_in_one_share():
    assert all(shares.is_in("oldest", case) != shares.is_in("newest", case) for case in CASES)


def test_no_parameter_goes_with_one_share_alone():
    for word in ("score", "reparam", "enumerate"):
        mine = [shares.is_in("newest", case) for case in CASES if word in case]
        assert 0.05 < sum(mine) / len(mine) < 0.15


@pytest.mark.oldest
def test_the_shares_of_a_file_are_the_file():
    """Collected by pytest, as the whole check does: what is marked goes where the mark says, all else is dealt out."""

    def collected(*args):
        files = ["tests/analysis/test_causality.py", "tests/test_shares.py"]
        command = [sys.executable, "-m", "pytest", "--collect-only", *files, *args]
        out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        return [line for line in out.splitlines() if "::" in line]

    whole, oldest, newest = collected(), collected("--share", "oldest"), collected("--share", "newest")
    assert sorted(oldest + newest) == sorted(whole)
    assert len(oldest) > len(newest) > 0
    assert any("test_the_shares_of_a_file" in test for test in oldest)
