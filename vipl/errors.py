"""The errors of the package: four lines, always, so that a message says where and what to write instead.

    AddressError: the guide samples an address that the model does not have.
      at:        "scale" in mean_field (regression.py:41)
      got:       choices at "scale", "w"
      expected:  the model's addresses "sigma", "w", "y"
      fix:       rename the site to "sigma"

Invariant: every error that a user can cause is one of these classes, is raised as early as both sides are
known, and has a test that pins its text.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any, Self

__all__ = [
    "AddressError",
    "ChoiceError",
    "ControlFlowError",
    "DistributionError",
    "EstimatorError",
    "ProgramError",
    "SupportError",
    "ViplError",
]


class ViplError(Exception):
    """Base of all errors of this package.

    Attributes:
      summary: one sentence, what is wrong.
      at: the site, program, file and line.
      got: what was found.
      expected: what would have been right.
      fix: what to write instead.
      needs_number: whether it is that a traced value is used as a Python number.
      needs_by_site: whether it is that log densities by site are read, which the program was not asked for.
    """

    needs_number: bool = False
    needs_by_site: bool = False

    def __init__(self, summary: str, *, at: str, got: str, expected: str, fix: str):
        """Builds the four lines."""
        self.summary, self.at, self.got, self.expected, self.fix = summary, at, got, expected, fix
        super().__init__(
            f"{summary}\n  at:        {at}\n  got:       {got}\n  expected:  {expected}\n  fix:       {fix}"
        )

    def located(self, at: str) -> Self:
        """The same error at a place that was not known where it was raised."""
        return self._with(at, self.fix)

    def advised(self, fix: str) -> Self:
        """The same error with other advice."""
        return self._with(self.at, fix)

    def _with(self, at: str, fix: str) -> Self:
        other = type(self)(self.summary, at=at, got=self.got, expected=self.expected, fix=fix)
        other.needs_number, other.needs_by_site = self.needs_number, self.needs_by_site
        return other

    def __reduce__(self) -> tuple[Callable[[], ViplError], tuple[()], dict[str, bool]]:
        """For copies, and for other processes."""
        lines = {"at": self.at, "got": self.got, "expected": self.expected, "fix": self.fix}
        return functools.partial(type(self), self.summary, **lines), (), {"needs_number": self.needs_number}


class AddressError(ViplError):
    """An address is unknown, missing, malformed, or used twice."""


class ChoiceError(ViplError):
    """A given value does not fit its site: shape, dtype, or structure."""


class SupportError(ViplError):
    """A value can lie where the site's density is zero, or comes from a density with respect to another measure."""


class DistributionError(ViplError):
    """The source of a site is not a distribution that a site can hold."""


class EstimatorError(ViplError):
    """An estimator is not supported at its site."""


class ControlFlowError(ViplError):
    """A site stands in a construct where it is not supported."""


class ProgramError(ViplError):
    """A program is used outside its place, or returns what it must not."""


def show_address(address: Iterable[str]) -> str:
    """An address as messages write it: `"layer" / "w"`."""
    return " / ".join(f'"{part}"' for part in address)


def show_addresses(addresses: Iterable[Iterable[str]]) -> str:
    """Several addresses, in order, or the word none."""
    return ", ".join(show_address(a) for a in addresses) or "none"


def shortened(x: object) -> str:
    """What `repr` says, in one line that is not too long."""
    text = " ".join(repr(x).split())
    if " at 0x" in text or "<class" in text:
        return getattr(x, "__name__", type(x).__name__)
    return text if len(text) <= 80 else f"{type(x).__name__} {text[:60]}..."


def show_aval(x: Any) -> str:
    """`dtype[shape]` of an array or abstract value; the Python type of anything else."""
    if hasattr(x, "shape") and hasattr(x, "dtype"):
        return f"{x.dtype}[{','.join(map(str, x.shape))}]"
    return type(x).__name__
