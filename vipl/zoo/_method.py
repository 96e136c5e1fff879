"""What a method of the zoo is, what it returns, and which there are."""

from __future__ import annotations

import importlib
import math
import pkgutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol, cast

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Number(NamedTuple):
    """One number that a method reaches, beside the one that it should.

    Attributes:
      name: what it is, as the table writes it.
      reached: what the run gave.
      reference: what is known, by quadrature, enumeration or linear algebra.
      tolerance: how far off it may be; the absolute error of the fit, and of what evaluates it.
    """

    name: str
    reached: float
    reference: float
    tolerance: float

    @property
    def holds(self) -> bool:
        """Whether |reached - reference| <= tolerance; NaN never holds."""
        return math.isfinite(self.reached) and abs(self.reached - self.reference) <= self.tolerance


class Outcome(NamedTuple):
    """What a run of a method gives.

    Attributes:
      numbers: what it reached; at least one.
      draw: draws the picture into an empty figure of 8 x 4 inches.
    """

    numbers: Sequence[Number]
    draw: Callable[[Figure], None]


class Method(Protocol):
    """The module of a method."""

    __doc__: str | None
    PAPER: str
    OBJECTIVE: str

    def run(self, progress: bool = True) -> Outcome:
        """Fits and measures, in float32, on two cores in less than half a minute; `progress` shows bars."""
        ...


def names() -> list[str]:
    """The names of all methods: the files of this folder."""
    return sorted(m.name for m in pkgutil.iter_modules([str(Path(__file__).parent)]) if not m.name.startswith("_"))


def load(name: str) -> Method:
    """The module of a method."""
    return cast(Method, importlib.import_module(f"vipl.zoo.{name}"))
