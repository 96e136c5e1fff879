"""An estimator that runs the program again at other values of one site."""

from __future__ import annotations

from vipl._types import PRNGKeyArray
from vipl.estimators._alternatives import all_values
from vipl.estimators._enumerate import finite_support
from vipl.gen import Draw, Estimator, Law


class LocalEnumerate(Estimator):
    """Enumerates one site at a time, the others sampled: local expectation gradients.

    ∂ E[k(x)] = Σ_j ∂p_j k(j);   the term of the draw itself is that of the main run.

    The rest of the program is run again for each other value of each element, step and lane, without derivatives,
    with the same noise, under one `vmap`: linear in the number of sites, where `Enumerate` is exponential. Lanes whose
    costs are only summed are run again together. Any finite support. (Of a single element with more than two values
    all are run, the draw's own too: they are then the same for all draws.)
    For Bernoulli and Categorical it is `MeasureValued`.

    Unbiased for value and first derivatives; a second derivative raises.

    Raises:
      EstimatorError: the support is not finite.

    Reference: Titsias and Lazaro-Gredilla (2015), eq. (6).
    """

    def points(self, law: Law, key: PRNGKeyArray) -> Draw:
        """The draw, and all other values of each element."""
        x = law.sample(key)
        return Draw(x, alternatives=all_values(x, *finite_support(law, "LocalEnumerate()")))
