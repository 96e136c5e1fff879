"""The parts of the demo, in order."""

from __future__ import annotations

import importlib.util
import time
from pathlib import Path

_EXTRAS = {"matplotlib": "matplotlib", "sklearn": "scikit-learn", "flax": "flax"}


def missing_packages() -> list[str]:
    """The packages of the extra `demo` that are not installed, as pip names them."""
    return [name for module, name in _EXTRAS.items() if importlib.util.find_spec(module) is None]


def run(*, short: bool, out: Path) -> None:
    """Runs all parts.

    Args:
      short: whether to take fewer steps.
      out: a folder for pictures; made if it does not exist.
    """
    from vipl.demo import cone, digits

    start = time.perf_counter()
    out.mkdir(parents=True, exist_ok=True)
    cone.run(short=short, out=out)
    digits.run(short=short, out=out)
    print(f"\nAll in {time.perf_counter() - start:.0f} s.")
