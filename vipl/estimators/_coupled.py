"""An estimator that runs the program again at one alternative of all sites."""

from __future__ import annotations

from vipl._types import PRNGKeyArray
from vipl.estimators._alternatives import one_at_a_time, other_values
from vipl.estimators._enumerate import finite_support
from vipl.gen import Draw, Estimator, Law


class CoupledAlternative(Estimator):
    """Measure-valued derivative with one surviving alternative for all sites that have this estimator.

    Of the N runs that `LocalEnumerate` would make, over elements, steps and lanes, one is drawn uniformly, and
    its term counts N times: one more run of the program, whatever N. Paths are coupled: the survivor has the noise
    of the draw everywhere else.

    Unbiased for value and first derivatives; a second derivative raises. Variance grows with N; between that of
    `Score` and that of `LocalEnumerate`.

    Raises:
      EstimatorError: the support is not finite.

    Reference: Arya et al. (2022), "Automatic differentiation of programs with discrete randomness", section 2.4.
    """

    def points(self, law: Law, key: PRNGKeyArray) -> Draw:
        """The draw, and all other values, to be pruned."""
        x = law.sample(key)
        others = other_values(x, *finite_support(law, "CoupledAlternative()"))
        return Draw(x, pruned=one_at_a_time(x, others) if len(others.values) else None)
