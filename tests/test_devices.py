"""Programs over eight devices are the programs on one: the checks of `tests/helpers/devices.py`, in a process."""

import json
import os
import subprocess
import sys

import pytest

from tests.helpers.devices import CHECKS


@pytest.mark.newest
def test_programs_over_eight_devices_equal_one_device():
    """One test, so that the process is started once, whatever tests run side by side."""
    command = [sys.executable, "-W", "error", "-m", "tests.helpers.devices"]
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    out = subprocess.run(command, cwd=root, env=os.environ, capture_output=True, text=True, check=False)
    assert out.returncode == 0, out.stderr
    told = json.loads(out.stdout.splitlines()[-1])
    assert told.keys() == CHECKS.keys()
    assert not any(told.values()), "\n".join(f"{name}: {why}" for name, why in told.items() if why)
