"""Score function with a control variate of a relaxed draw."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax import lax

from vipl._types import Array, Float, PRNGKeyArray
from vipl.errors import EstimatorError
from vipl.estimators._logits import bernoulli_logits, logit
from vipl.gen import Draw, Estimator, Law, box
from vipl.gen._density import innermost
from vipl.ir.functions import check_callable


class Relax(Estimator):
    """RELAX: the score function, less a control variate that is differentiable; Bernoulli and Categorical.

    b = H(z), z ~ p(z; θ) with Gumbel or logistic noise, z' ~ p(z' | b; θ):

        ∇ = (k(b) - c(z')) ∇log p(b) + ∇ c(z) - ∇ c(z').

    REBAR is c(z) = η f(σ(z / λ)), with the integrand f written once more for relaxed values:
    `Relax(lambda z: eta * f(jax.nn.sigmoid(z / temperature)))`.

    Unbiased for value and all derivatives, whatever c. A derivative in parameters of c has mean zero; they are learned
    by minimizing the variance, which is the user's.

    Attributes:
      control: z -> f[], c; z has the shape of the site for Bernoulli, with an axis of categories for Categorical. A
        function, or a `jax.tree_util.Partial` of one with parameters of the program.

    Raises:
      EstimatorError: another distribution, or c is not a scalar.

    Reference: Grathwohl et al. (2018), eq. (7) and appendix B; Tucker et al. (2017) for z' and REBAR.
    """

    control: Callable[[Float[Array, "..."]], Float[Array, ""]]

    def points(self, law: Law, key: PRNGKeyArray) -> Draw:
        """The draw, its score, and the control variate."""
        check_callable(self.control, "Relax", "the control variate", "lambda z: jnp.sum(...)")
        d = innermost(law.dist)
        keys = tuple(jax.random.split(key))
        if (logits := bernoulli_logits(law)) is not None:
            b, z, z_given_b = _flip(logits, keys)
        elif isinstance(d, (dist.CategoricalProbs, dist.CategoricalLogits)):
            logits = jax.nn.log_softmax(d.logits) if isinstance(d, dist.CategoricalLogits) else jnp.log(d.probs)
            b, z, z_given_b = _category(jnp.broadcast_to(logits, (*law.dist.shape(), logits.shape[-1])), keys)
        else:
            raise EstimatorError(
                "RELAX stands at a distribution that is neither a Bernoulli nor a Categorical.",
                at="",
                got=f"Relax(...) for {type(law.dist).__name__}",
                expected="Bernoulli or Categorical",
                fix="use Score(), or MeasureValued() where it exists",
            )
        dtype = jax.eval_shape(lambda: law.sample(jax.random.key(0))).dtype
        x = b.astype(dtype)
        log_prob = law.log_prob(x)
        c, c_given_b = self.control(z), self.control(z_given_b)
        if jnp.shape(c) != ():
            raise EstimatorError(
                "the control variate of RELAX is not a scalar.",
                at="",
                got=f"shape {jnp.shape(c)}",
                expected="one number for the site",
                fix="sum it: lambda z: jnp.sum(...)",
            )
        control = c - c_given_b * box(log_prob)  # E[c] = E[box c(z')], whatever the parameters
        return Draw(x, log_weight=log_prob, control=control - lax.stop_gradient(control))


def _flip(logits: Array, keys: tuple[PRNGKeyArray, ...]) -> tuple[Array, Array, Array]:
    """b, z and z' of Bernoulli flips."""
    p = jax.nn.sigmoid(logits)
    u, v = (_uniform(k, logits.shape, logits.dtype) for k in keys)
    z = logits + logit(u)
    b = lax.stop_gradient(z) > 0
    return b, z, logits + logit(jnp.where(b, 1.0 - p + v * p, v * (1.0 - p)))


def _category(logits: Array, keys: tuple[PRNGKeyArray, ...]) -> tuple[Array, Array, Array]:
    """b, z and z' of categories, by log probabilities f[..., n]."""
    u, v = (_uniform(k, logits.shape, logits.dtype) for k in keys)
    z = logits - jnp.log(-jnp.log(u))
    b = jnp.argmax(lax.stop_gradient(z), axis=-1)
    v_b = jnp.take_along_axis(v, b[..., None], -1)
    best = jnp.arange(logits.shape[-1]) == b[..., None]
    of_best = -jnp.log(-jnp.log(v))
    return b, z, jnp.where(best, of_best, -jnp.log(-jnp.log(v) / jnp.exp(logits) - jnp.log(v_b)))


def _uniform(key: PRNGKeyArray, shape: tuple[int, ...], dtype: np.dtype) -> Array:
    tiny = jnp.finfo(dtype).eps
    return jax.random.uniform(key, shape, dtype, minval=tiny, maxval=1.0 - tiny)
