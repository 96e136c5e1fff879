"""Inclusion of supports: can a value of one distribution lie where another's density is zero?

A support is described when its site is made, where concrete bounds are still numbers. `included(a, b)` is True
or False where that is known when the program is staged, None where it is not. An unknown case is never an error.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import numpy as np
from numpyro.distributions import constraints as c

from vipl._compat import Tracer

_INF = math.inf


class Interval(NamedTuple):
    """The numbers between two bounds; a bound is None where it is not known when the program is staged."""

    kind: str  # "real" or "integer"
    low: float | None
    high: float | None

    def __str__(self) -> str:
        if (self.low, self.high) == (-_INF, _INF):
            return f"all {self.kind}s"
        low, high = ("?" if b is None else f"{b:g}" for b in (self.low, self.high))
        return f"{self.kind}s from {low} to {high}"


EVERYWHERE = Interval("real", -_INF, _INF)


class Named(NamedTuple):
    """A support that is known by its class alone, such as the simplex."""

    name: str

    def __str__(self) -> str:
        return self.name


_INTERVALS = ("interval", "greater", "less", "positive", "nonnegative")

# Supports without parameters: two of one class are equal.
_WHOLE = {
    "Simplex", "CorrCholesky", "CorrMatrix", "PositiveDefinite", "LowerCholesky", "OrderedVector", "Sphere",
}  # fmt: skip


def describe(s: Any) -> Interval | Named | None:
    """The hashable description of a NumPyro support; None where it has none that can be compared."""
    if isinstance(s, c.independent):
        return describe(s.base_constraint)
    name = type(s).__name__.lstrip("_")
    if name in _WHOLE:
        return Named(name)
    lowered = name.lower()
    if lowered == "boolean":
        return Interval("integer", 0.0, 1.0)
    if lowered in ("real", "realvector"):
        return EVERYWHERE
    if any(word in lowered for word in _INTERVALS):
        low = _number(s.lower_bound) if hasattr(s, "lower_bound") else -_INF
        high = _number(s.upper_bound) if hasattr(s, "upper_bound") else _INF
        return Interval("integer" if "integer" in lowered else "real", low, high)
    return None


def _number(x: Any) -> float | None:
    """A concrete bound; None where it is traced, or an array of unequal entries."""
    if isinstance(x, (bool, int, float, np.number)):
        return float(x)
    if isinstance(x, (np.ndarray, jax.Array)) and not isinstance(x, Tracer):
        array = np.asarray(x)
        return float(array.flat[0]) if array.size and (array == array.flat[0]).all() else None
    return None


def included(a: Interval | Named | None, b: Interval | Named | None) -> bool | None:
    """Says whether support `a` lies in support `b`: True, False, or None for unknown.

    Open and closed ends of real intervals count as equal: they differ by a set of probability zero.
    """
    if not isinstance(a, Interval) or not isinstance(b, Interval):
        return True if a is not None and a == b else None
    if a.kind != b.kind:
        return False
    if (b.low, b.high) == (-_INF, _INF):
        return True
    if (a.low == -_INF and b.low not in (None, -_INF)) or (a.high == _INF and b.high not in (None, _INF)):
        return False
    if a.low is None or a.high is None or b.low is None or b.high is None:
        return None
    return b.low <= a.low and a.high <= b.high
