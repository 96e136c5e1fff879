"""The score-function estimator."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax import lax

from vipl._types import Array, ArrayLike, Float, PRNGKeyArray
from vipl.errors import EstimatorError, show_aval
from vipl.gen import Draw, Estimator, Law, box
from vipl.gen._supports import moving_parameters
from vipl.ir.partition import is_array, is_real


@dataclass(frozen=True)
class LeaveOneOut:
    """The baseline of a sample is the mean of the other samples' values; needs `num_samples >= 2`.

    Reference: Kool, van Hoof and Welling (2019), "Buy 4 REINFORCE samples, get a baseline for free!", eq. (8).
    """


class Score(Estimator):
    """Score-function derivative (REINFORCE), for any distribution with a density.

    ∇ E[k(x)] = E[∇k(x) + (k(x) - b) ∇ log p(x)];
    surrogate  k(sg x) box(l) + b (1 - box(l)),   l = log p(sg x),   box(l) = exp(l - sg l).

    Of the objective, k is the part that the site reaches; in a `vmap` that is summed over lanes, what its lane reaches.
    With a baseline b that is a number, k is the whole objective.

    Unbiased for value and all derivatives, in parameters that do not move the support: in the bounds of Uniform, the
    scale of Pareto or the value of Delta a derivative raises. Variance grows with k²; a baseline b lowers it.

    Attributes:
      baseline: b, or None for 0. A number or array computed from values upstream of the site; or a
        function of the site's distribution; or `LeaveOneOut()`. It must not depend on the site's own value.

    Raises:
      EstimatorError: the baseline is not a scalar.

    Reference: Williams (1992), theorem 1; Foerster et al. (2018), eq. (5), for higher derivatives.
    """

    baseline: Float[ArrayLike, ""] | Callable[[Any], Float[ArrayLike, ""]] | LeaveOneOut | None = None

    def points(self, law: Law, key: PRNGKeyArray) -> Draw:
        """The draw, with its score."""
        point = law.standing(law.draw(key))
        x, log_prob = point.value, law.log_prob(point)
        fixed = support_parameters(law.dist)
        if isinstance(self.baseline, LeaveOneOut):
            return Draw(x, log_weight=log_prob, shared_control=1.0 - box(log_prob), fixed=fixed, point=point)
        if self.baseline is None:
            return Draw(x, log_weight=log_prob, fixed=fixed, point=point)
        b: Any = self.baseline
        if callable(self.baseline) and not isinstance(self.baseline, type):
            b = self.baseline(law.dist)
        if not is_real(b) or jnp.shape(b) != ():
            raise EstimatorError(
                "a baseline is not a scalar.",
                at="",
                got=f"the class {b.__name__} itself" if isinstance(b, type) else show_aval(b),
                expected="one number for the site (one for each lane under vmap)",
                fix="sum or average it, or move the site under jax.vmap"
                if is_array(b)
                else "pass a number, a function of the distribution, or LeaveOneOut()",
            )
        control = lax.stop_gradient(b) * (1.0 - box(log_prob))
        return Draw(x, log_weight=log_prob, control=control, fixed=fixed, point=point)


def support_parameters(d: dist.Distribution) -> list[Array]:
    """The parameters that move the support of a distribution, where a score misses a boundary term.

    Bounds; the places of atoms; what a transform does to a bound, or to a set that is not all of its domain.
    """
    return [x for x in moving_parameters(d) if isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, jnp.inexact)]
