"""Where a cost sees a site's value both under a `stop_gradient` and without one, and the error that says so."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from vipl._jax import Atom, Eqn, Literal, Var
from vipl.analysis.dependence import Dependence, Mark
from vipl.analysis.stop_gradients import line_of
from vipl.errors import EstimatorError
from vipl.ir.batching import has_site
from vipl.ir.dataflow import maker
from vipl.ir.frames import NOWHERE
from vipl.ir.primitives import Path


class Conflicts:
    """Follows a program backwards to the lines where a value is held, and where it is not."""

    def __init__(self, eqns: Sequence[Eqn], values: Mapping[Var, Dependence], stops: Mapping[Path, str]):
        """Takes the equations of a program, what reaches its variables, and for each site a line that holds it."""
        self.values, self.stops = values, stops
        self.made_by = maker(eqns)

    def lines(self, variables: Sequence[Atom], path: Path) -> tuple[str, str]:
        """Where the value of a site is held that reaches one of the variables both ways, and where it is not."""
        held, free = Mark(path, True), Mark(path, False)
        both = self._first([v for v in variables if self._sees(v, held) and self._sees(v, free)], (held, free))
        if both is None:
            return self.stops.get(path, NOWHERE), NOWHERE
        stop = self._first([v for v in both.invars if self._sees(v, held)], (held,))
        free_only = [v for v in both.invars if self._sees(v, free) and not self._sees(v, held)]
        at = [eqn for eqn in (*map(self.made_by, free_only[:1]), both) if eqn is not None and not has_site(eqn)]
        return _line([stop, both], self.stops[path]), _line([*at, *map(self.made_by, variables)], self.stops[path])

    def _first(self, variables: Sequence[Atom], marks: Sequence[Mark]) -> Eqn | None:
        """The equation upstream of a variable in which it gets all these marks, which none of its operands has."""
        eqn = None
        while variables:
            eqn = self.made_by(variables[0])
            if eqn is None:
                break
            variables = [v for v in eqn.invars if all(self._sees(v, m) for m in marks)]
        return eqn

    def _sees(self, v: Atom, mark: Mark) -> bool:
        return not isinstance(v, Literal) and mark in self.values.get(v, {})


def _line(eqns: Sequence[Eqn | None], otherwise: str) -> str:
    """The first line of the user's in which one of these equations was made."""
    lines = [line_of(eqn) for eqn in eqns if eqn is not None]
    return next((line for line in lines if line != NOWHERE), otherwise)


def conflict_error(at: tuple[str, str, str]) -> EstimatorError:
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
