"""Where and with what figures are made."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import jax

FOLDER = Path(__file__).parent


def machine() -> dict[str, Any]:
    """The date, the device, the versions and the commit."""

    def commit() -> str:
        def git(*args):
            return subprocess.run(["git", *args], cwd=FOLDER, capture_output=True, text=True).stdout.strip()

        head = git("rev-parse", "--short", "HEAD")
        return head + (" with changes" if git("status", "--porcelain", "--untracked-files=no") else "")

    packages = ("jax", "jaxlib", "numpyro", "flax", "optax", "numpy")
    return {
        "date": datetime.date.today().isoformat(),
        "device": f"{jax.devices()[0].device_kind} ({jax.default_backend()})",
        "cores": os.cpu_count(),
        "machine": platform.machine(),
        "python": platform.python_version(),
        "versions": {p: importlib.metadata.version(p) for p in packages},
        "commit": commit(),
    }
