"""Programs over eight devices are the programs on one: the checks of `tests/helpers/devices.py`, in a process."""

import json
import os
import subprocess
import sys

import pytest

from tests.helpers.devices import CHECKS


@pytest.fixture(scope="module")
def told():
    command = [sys.executable, "-W", "error", "-m", "tests.helpers.devices"]
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    out = subprocess.run(command, cwd=root, env=os.environ, capture_output=True, text=True, check=False)
    assert out.returncode == 0, out.stderr
    return json.loads(out.stdout.splitlines()[-1])


@pytest.mark.parametrize("name", CHECKS)
def test_equals_one_device(name, told):
    assert told[name] is None, told[name]
