"""Biased devices. None is ever a default: they are asked for by name, at the site, and are subclasses of `Biased`.

Their sites are floats: `sample("b", dist.Bernoulli(p), StraightThrough())` returns 0.0 or 1.0 with a derivative.
One-hot vectors are `dist.Multinomial(1, probs)`.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax import lax

from vipl._jax import Tracer
from vipl._types import Array, ArrayLike, Float, PRNGKeyArray
from vipl.errors import EstimatorError, show_aval
from vipl.estimators._logits import bernoulli_logits
from vipl.gen import Draw, Estimator, Law
from vipl.gen._density import innermost
from vipl.ir.partition import is_real


class Biased(Estimator):
    """Base of estimators whose derivatives are biased: on purpose, for their small variance."""

    makes_float = True
    has_weights = False


class GumbelSoftmax(Biased):
    """BIASED. Relaxation: the draw is replaced by a softmax of perturbed logits, itself not 0 or 1.

    x = σ((φ + logistic noise) / τ), or softmax((φ + Gumbel noise) / τ).

    Biased in value and derivatives; the bias vanishes, and the variance grows, as τ -> 0.

    Attributes:
      temperature: τ > 0.

    Reference: Jang, Gu and Poole (2017), eq. (2); Maddison, Mnih and Teh (2017), section 3.
    """

    temperature: Float[ArrayLike, ""] = 1.0

    def points(self, law: Law, key: PRNGKeyArray) -> Draw:
        """The relaxed draw."""
        logits, binary = _logits(law, "GumbelSoftmax()")
        if not is_real(self.temperature):
            raise EstimatorError(
                "a temperature is not a number.",
                at="",
                got=show_aval(self.temperature),
                expected="a positive number",
                fix="write GumbelSoftmax(temperature=0.5)",
            )
        if binary:
            return Draw(
                jax.nn.sigmoid((logits + jax.random.logistic(key, logits.shape, logits.dtype)) / self.temperature)
            )
        gumbel = jax.random.gumbel(key, logits.shape, logits.dtype)
        return Draw(jax.nn.softmax((logits + gumbel) / self.temperature))


class StraightThrough(Biased):
    """BIASED in derivatives, not in value. The draw, with the derivative of its mean.

    x = b + p - sg p.   Exact where the rest of the program is linear in b.

    Reference: Bengio, Leonard and Courville (2013), section 4.
    """

    def points(self, law: Law, key: PRNGKeyArray) -> Draw:
        """The draw with the derivative of its probability."""
        logits, binary = _logits(law, "StraightThrough()")
        p = jax.nn.sigmoid(logits) if binary else jax.nn.softmax(logits)
        b = lax.stop_gradient(law.sample(key)).astype(p.dtype)
        return Draw(b + (p - lax.stop_gradient(p)))


class ReinMax(Biased):
    """BIASED in derivatives, not in value. Straight-through of second order.

    x = b + y - sg y,   y = 2 softmax(sg(log((b + p) / 2) - φ) + φ) - p / 2.   Exact where the rest of the program is
    quadratic in b.

    Reference: Liu et al. (2023), "Bridging discrete and backpropagation: straight-through and beyond", algorithm 2.
    """

    def points(self, law: Law, key: PRNGKeyArray) -> Draw:
        """The draw with a second-order derivative."""
        logits, binary = _logits(law, "ReinMax()")
        squash = jax.nn.sigmoid if binary else jax.nn.softmax
        p = squash(logits)
        b = lax.stop_gradient(law.sample(key)).astype(p.dtype)
        middle = lax.stop_gradient((b + p) / 2.0)
        shifted = jnp.log(middle) - (jnp.log1p(-middle) if binary else 0.0)
        free = jnp.isfinite(logits)  # what is certain has no second order
        inner = jnp.where(free, logits, 0.0)
        moved = lax.stop_gradient(jnp.where(free, shifted, 0.0) - inner) + inner
        y = 2.0 * squash(jnp.where(free, moved, logits)) - 0.5 * p
        return Draw(b + (y - lax.stop_gradient(y)))


def _logits(law: Law, who: str) -> tuple[Array, bool]:
    """Logits of the shape of the draw, and whether it is a Bernoulli."""
    d, logits = innermost(law.dist), bernoulli_logits(law)
    if logits is not None:
        return logits, True
    if isinstance(d, (dist.MultinomialLogits, dist.MultinomialProbs)) and _one_trial(d):
        logits = jnp.asarray(d.logits) if isinstance(d, dist.MultinomialLogits) else jnp.log(jnp.asarray(d.probs))
        return jnp.broadcast_to(logits, law.dist.shape()), False
    raise EstimatorError(
        "a relaxation stands at a distribution that has none here.",
        at="",
        got=f"{who} for {type(law.dist).__name__}",
        expected="Bernoulli, or Multinomial of one trial (one-hot vectors)",
        fix="use an unbiased estimator: Score(), LocalEnumerate(), MeasureValued()",
    )


def _one_trial(d: dist.MultinomialLogits | dist.MultinomialProbs) -> bool:
    return not isinstance(d.total_count, Tracer) and bool(np.all(np.asarray(d.total_count) == 1))
