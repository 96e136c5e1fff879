"""Where a cost sees a site's value both under a `stop_gradient` and without one, and the error that says so."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vipl import _jax
from vipl.analysis.dependence import Dependence, Mark
from vipl.analysis.stop_gradients import line_of
from vipl.errors import EstimatorError
from vipl.ir.batching import has_site
from vipl.ir.primitives import NOWHERE, Path


class Trail:
    """Follows a program backwards to the lines where a value is held, and where it is not."""

    def __init__(self, eqns: Sequence[Any], values: Mapping[Any, Dependence], stops: Mapping[Path, str]):
        """Takes the equations of a program, what reaches its variables, and for each site a line that holds it."""
        self.values, self.stops = values, stops
        self.made_by = {v: eqn for eqn in eqns for v in eqn.outvars}

    def lines(self, variables: Sequence[Any], path: Path) -> tuple[str, str]:
        """Where the value of a site is held that reaches one of the variables both ways, and where it is not."""
        held, free = Mark(path, True), Mark(path, False)
        both = self._first([v for v in variables if self._sees(v, held) and self._sees(v, free)], (held, free))
        if both is None:
            return self.stops.get(path, NOWHERE), NOWHERE
        stop = self._first([v for v in both.invars if self._sees(v, held)], (held,))
        live = next((v for v in both.invars if self._sees(v, free) and not self._sees(v, held)), None)
        makes_it = self.made_by.get(live)
        at = [eqn for eqn in (makes_it, both) if eqn is not None and not has_site(eqn)]
        at += [self.made_by[v] for v in variables if v in self.made_by]
        return _line([stop, both], self.stops[path]), _line(at, self.stops[path])

    def _first(self, variables: Sequence[Any], marks: Sequence[Mark]) -> Any:
        """The equation upstream of a variable in which it gets all these marks, which none of its operands has."""
        eqn = None
        while variables:
            eqn = self.made_by.get(variables[0])
            if eqn is None:
                break
            variables = [v for v in eqn.invars if all(self._sees(v, m) for m in marks)]
        return eqn

    def _sees(self, v: Any, mark: Mark) -> bool:
        return not isinstance(v, _jax.Literal) and mark in self.values.get(v, {})


def _line(eqns: Sequence[Any], otherwise: str) -> str:
    """The first line of the user's in which one of these equations was made."""
    lines = [line_of(eqn) for eqn in eqns if eqn is not None]
    return next((line for line in lines if line != NOWHERE), otherwise)


def both_ways(at: tuple[str, str, str]) -> EstimatorError:
    """The error where the law of a site is differentiated whose value a cost sees both ways: the site, two lines."""
    site, stopped, live = at
    return EstimatorError(
        "a site's law is differentiated, and its value is both held by `stop_gradient` and not, in what is no sum.",
        at=site,
        got=f"held in {stopped}; not held in {live}",
        expected="each term of the objective sees the value either held or not held",
        fix="hold it in both places, z = stop_gradient(z) where it is drawn; or use Reparam() at the site; "
        "from step to step of a loop: scan(..., unroll=True)",
    )
