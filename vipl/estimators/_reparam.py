"""Reparametrization."""

from __future__ import annotations

from vipl._types import PRNGKeyArray
from vipl.errors import EstimatorError
from vipl.gen import Draw, Estimator, Law


class Reparam(Estimator):
    """Pathwise derivative: the draw is a differentiable function of noise and parameters.

    ∇ E[k(x)] = E[∇ k(g(ε; θ))],   x = g(ε; θ).

    Explicit (location-scale, transforms) and implicit (Gamma, Beta, Dirichlet, StudentT, VonMises), as NumPyro
    and JAX provide it. Unbiased for value and all derivatives, if the rest of the program is differentiable in x
    almost everywhere and continuous (a comparison `x > 0` that selects a result is neither). JAX has second
    derivatives of implicit draws in forward-over-reverse mode only (`jax.hessian`).

    Raises:
      EstimatorError: the distribution is not reparametrized.

    Reference: Kingma and Welling (2014), section 2.4; Figurnov, Mohamed and Mnih (2018), eq. (5).
    """

    has_weights = False

    def points(self, law: Law, key: PRNGKeyArray) -> Draw:
        """The draw itself."""
        if not law.dist.has_rsample:
            raise EstimatorError(
                "a distribution is not reparametrized: the derivative of its draw would be silently wrong.",
                at="",
                got=f"Reparam() for {type(law.dist).__name__}",
                expected="a distribution whose draw is a differentiable function of its parameters",
                fix="use Score(), or Enumerate() or MeasureValued() where they exist; or leave the estimator out",
            )
        point = law.draw(key)
        return Draw(point.value, point=point)
