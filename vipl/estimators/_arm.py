"""Estimators of Bernoulli flips by an antithetic pair."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from vipl._types import Array, PRNGKeyArray
from vipl.errors import EstimatorError
from vipl.estimators._alternatives import change
from vipl.estimators._logits import bernoulli_logits
from vipl.gen import Alternatives, Draw, Estimator, Law


class DisARM(Estimator):
    """Augment-REINFORCE-merge with an antithetic pair, the uniform integrated out; Bernoulli.

    b = 1[u < σ(φ)], b' = 1[u > σ(-φ)];   ∂_φi = (1/2) (k(b) - k(b')) (b_i - b'_i) σ(|φ_i|).

    All elements of a site change to b' together: one more run of the program for each visit, whatever its size.
    Elements that the objective only adds up have each its own difference, in the same run.

    Unbiased for value and first derivatives in the logits (or the probabilities behind them); a second derivative
    raises. A flip whose probability is 0 or 1, or rounds to it, is certain, and has a derivative of 0.

    Raises:
      EstimatorError: the distribution is not a Bernoulli.

    Reference: Dong, Mnih and Tucker (2020), eq. (5).
    """

    def points(self, law: Law, key: PRNGKeyArray) -> Draw:
        """The draw and its antithetic partner."""
        return _antithetic(
            law, key, "DisARM()", lambda b, other, phi, u: 0.5 * (b - other) * jax.nn.sigmoid(jnp.abs(phi))
        )


class ARM(Estimator):
    """Augment-REINFORCE-merge; Bernoulli.

    b = 1[u < σ(φ)], b' = 1[u > σ(-φ)];   ∂_φi = (k(b') - k(b)) (u_i - 1/2).

    As `DisARM`, of larger variance.

    Unbiased for value and first derivatives; a second derivative raises.

    Raises:
      EstimatorError: the distribution is not a Bernoulli.

    Reference: Yin and Zhou (2019), theorem 1.
    """

    def points(self, law: Law, key: PRNGKeyArray) -> Draw:
        """The draw and its antithetic partner."""
        return _antithetic(law, key, "ARM()", lambda b, other, phi, u: 0.5 - u)


def _antithetic(law: Law, key: PRNGKeyArray, who: str, slope: Callable[[Array, Array, Array, Array], Array]) -> Draw:
    """The draw b, and b' beside it, with ∂_φi = slope_i (k(b) - k(b'))."""
    phi = bernoulli_logits(law)
    if phi is None:
        raise EstimatorError(
            "an antithetic estimator stands at a distribution that is not a Bernoulli.",
            at="",
            got=f"{who} for {type(law.dist).__name__}",
            expected="Bernoulli",
            fix="use LocalEnumerate(), MeasureValued() or Score()",
        )
    u = jax.random.uniform(key, phi.shape, phi.dtype)
    fixed = lax.stop_gradient(phi)
    b, other = u < jax.nn.sigmoid(fixed), u > jax.nn.sigmoid(-fixed)
    slopes = slope(b.astype(phi.dtype), other.astype(phi.dtype), fixed, u)
    dtype = jax.eval_shape(lambda: law.sample(jax.random.key(0))).dtype
    certain = jnp.isinf(fixed)
    weight = -jnp.sum(jnp.where(certain, 0, slopes * change(jnp.where(certain, 0, phi))))
    return Draw(b.astype(dtype), alternatives=Alternatives(other.astype(dtype)[None], weight[None]))
