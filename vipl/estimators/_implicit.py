"""Pathwise derivatives of draws whose sampler is not differentiable."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax import lax
from jax.custom_derivatives import SymbolicZero

from vipl._checks import is_integer, whole_number
from vipl._jax import Tracer
from vipl._types import Array, ArrayLike, PRNGKeyArray
from vipl.distributions._points import Point, exp_inside
from vipl.distributions._stable import stabilize
from vipl.errors import EstimatorError
from vipl.gen import Draw, Estimator, Law
from vipl.gen._density import innermost
from vipl.ir.functions import check_callable

Standardize = Callable[[Any, Array], Array]
"""(distribution, x) -> T, of the shape of x."""


class ImplicitReparam(Estimator):
    """Implicit reparametrization: the draw moves so that its standardized value stands still.

    T(x; θ) = u with a law of u that is free of θ:   ∂x/∂θ = -(∂T/∂x)⁻¹ ∂T/∂θ,
    as the derivative of two Newton steps at the solution.

    For one number T is the distribution function, whose ∂T/∂x is the density. Mixtures (`MixtureSameFamily`) of
    independent components, also of vectors, have a T of conditional distribution functions, and so are
    reparametrized with learnable weights. The sampler need not be differentiable.

    Unbiased for value and derivatives up to the third, if the rest of the program is differentiable in x almost
    everywhere and continuous, and T is differentiable in θ. In a parameter in which JAX cannot differentiate T (the
    concentrations of Beta, the degrees of freedom of StudentT) a derivative raises; `Reparam()` has these.

    Attributes:
      standardize: (distribution, x) -> T of the shape of x, triangular in x for a vector. None: from the distribution.

    Raises:
      EstimatorError: the distribution has no distribution function.

    Reference: Figurnov, Mohamed and Mnih (2018), eq. (6); Graves (2016) for mixtures.
    """

    standardize: Standardize | None = None

    def points(self, law: Law, key: PRNGKeyArray) -> Draw:
        """The draw, with its implicit derivative."""
        d = law.dist
        if self.standardize is not None:
            check_callable(self.standardize, "ImplicitReparam", "the standardization", "lambda distribution, x: ...")
        standardize = self.standardize or standardization(d)
        try:
            jax.eval_shape(standardize, d, jnp.zeros(d.shape()))
            if not jnp.issubdtype(jax.eval_shape(d.sample, jax.random.key(0)).dtype, jnp.floating):
                raise ValueError("discrete")
        except (NotImplementedError, AttributeError, ValueError) as error:
            raise EstimatorError(
                "a distribution has no distribution function to reparametrize it by.",
                at="",
                got=f"ImplicitReparam() for {type(d).__name__} of shape {d.shape()}",
                expected="a continuous distribution of numbers with a cdf, a mixture of such, or your own function",
                fix="pass ImplicitReparam(standardize), or use Score()",
            ) from error
        x = lax.stop_gradient(law.sample(key))
        d, fixed = _without_derivative(standardize, d, x)
        one_by_one = isinstance(d, dist.Independent) and self.standardize is None
        vector = jnp.ndim(x) == 1 == len(d.event_shape) and not one_by_one
        u = lax.stop_gradient(standardize(d, x))
        for _ in range(2):  # each step leaves the value as it is; one is exact to first order, two are to third
            x = x - _solve(lambda x: standardize(d, x), x, u, vector=vector)
        return Draw(x, fixed=fixed)


def _without_derivative(
    standardize: Standardize, d: dist.Distribution, x: Array
) -> tuple[dist.Distribution, list[ArrayLike]]:
    """The distribution with the parameters held in which T has no derivative, and these."""
    leaves, treedef = jax.tree.flatten(d)
    held = []
    for i, leaf in enumerate(leaves):
        if not (isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jnp.inexact)):
            continue

        def along(value, i=i):
            return standardize(jax.tree.unflatten(treedef, [*leaves[:i], value, *leaves[i + 1 :]]), x)

        try:
            jax.eval_shape(lambda v, along=along: jax.jvp(along, (v,), (v,)), leaf)
        except (NotImplementedError, ValueError, TypeError):
            held.append(i)
    still = [lax.stop_gradient(leaf) if i in held else leaf for i, leaf in enumerate(leaves)]
    return jax.tree.unflatten(treedef, still), [leaves[i] for i in held]


def _solve(standardize: Callable[[Array], Array], x: Array, u: Array, *, vector: bool) -> Array:
    """Newton's step for T(x) = u: (∂T/∂x)⁻¹ (T(x) - u), for a triangular derivative, or a diagonal one."""
    if not vector:
        value, slope = jax.jvp(standardize, (x,), (jnp.ones_like(x),))
        return (value - u) / slope
    return jax.scipy.linalg.solve_triangular(jax.jacfwd(standardize)(x), standardize(x) - u, lower=True)


def standardization(d: dist.Distribution) -> Standardize:
    """T of a distribution: its distribution function, or the conditional ones of a mixture of vectors."""
    if isinstance(d, dist.MixtureSameFamily) and d.event_shape:
        return _conditional_cdfs
    return lambda d, x: _cdf(innermost(d), x)


def _cdf(d: dist.Distribution, x: Array) -> Array:
    if isinstance(d, dist.StudentT):
        return _student_cdf((x - d.loc) / d.scale, jnp.asarray(d.df))  # type: ignore[operator]
    return d.cdf(x)


@jax.custom_jvp
def _student_cdf(z: Array, df: Array) -> Array:
    """The distribution function of Student's t, whose derivative is its density; none in ν.

    (NumPyro's is an incomplete beta function of 1 / (1 + z² / ν), of which JAX's derivative is NaN where that is 1.)
    """
    return dist.StudentT(df).cdf(z)


def _student_jvp(
    primals: tuple[Array, Array], tangents: tuple[Array | SymbolicZero, Array | SymbolicZero]
) -> tuple[Array, Array]:
    z, df = primals
    z_dot, df_dot = tangents
    if not isinstance(df_dot, SymbolicZero):
        raise NotImplementedError("the distribution function of StudentT has no derivative in its degrees of freedom")
    if isinstance(z_dot, SymbolicZero):
        return _student_cdf(z, df), jnp.zeros_like(z)
    return _student_cdf(z, df), jnp.exp(stabilize(dist.StudentT(df)).log_prob(z)) * z_dot


_student_cdf.defjvp(_student_jvp, symbolic_zeros=True)


def _conditional_cdfs(d: dist.MixtureSameFamily, x: Array) -> Array:
    """T_i = Σ_k P(k | x_1, ..., x_{i-1}) F_ki(x_i), for components with independent entries; one lane, no batch."""
    components = d.component_distribution
    if d.batch_shape or not isinstance(components, dist.Independent):
        raise NotImplementedError
    single = components.base_dist
    log_prob = single.log_prob(x)  # f[k, n]
    before = jnp.cumsum(log_prob, axis=-1) - log_prob
    log_weights = jnp.log(d.mixing_distribution.probs)[:, None] + before  # type: ignore[arg-type]
    return jnp.sum(jax.nn.softmax(log_weights, axis=0) * _cdf(single, x), axis=0)


class RejectionReparam(Estimator):
    """Reparametrization of the accepted noise of a rejection sampler; Gamma.

    z = h(ε, α), ε ~ π(ε; α), the law of the accepted noise:   ∇ E[k] = E[∇ k(h(ε, α))] + E[k ∇ log π(ε; α)],
    h of Marsaglia and Tsang, log π = log q(h(ε, α)) + log |∂h/∂ε|, whose score is small.

    Unbiased for value and all derivatives where α + boost > 1/3; NaN below.

    Attributes:
      boost: draws z as Gamma(α + boost) times powers of uniforms, whose score is smaller still; a Python integer.

    Raises:
      EstimatorError: the distribution is not a Gamma.

    Reference: Naesseth, Ruiz, Linderman and Blei (2017), eq. (8) and section 4.
    """

    boost: int = 0

    def __post_init__(self):
        """Makes integers of arrays Python integers, which are not traced."""
        if not isinstance(self.boost, Tracer) and is_integer(self.boost):
            object.__setattr__(self, "boost", int(self.boost))

    def points(self, law: Law, key: PRNGKeyArray) -> Draw:
        """The draw, and the score of its noise."""
        d = innermost(law.dist)
        if not isinstance(d, dist.Gamma):
            raise EstimatorError(
                "rejection-sampling reparametrization stands at a distribution that is not a Gamma.",
                at="",
                got=f"RejectionReparam() for {type(law.dist).__name__}",
                expected="Gamma",
                fix="use Reparam() where the distribution is reparametrized, else Score()",
            )
        boost = whole_number(self.boost, "boost", "", least=0)
        shape = law.dist.shape()
        gamma_key, uniform_key = jax.random.split(key)
        alpha, rate = jnp.broadcast_to(jnp.asarray(d.concentration), shape), jnp.asarray(d.rate)
        a = alpha + boost
        third = a - 1.0 / 3.0
        scale = 1.0 / jnp.sqrt(9.0 * third)
        standard = jax.random.gamma(gamma_key, lax.stop_gradient(a), dtype=a.dtype)
        eps = lax.stop_gradient((jnp.cbrt(standard / third) - 1.0) / scale)
        root = 1.0 + eps * scale
        z = third * root**3
        log_slope = jnp.log(3.0 * third * scale) + 2.0 * jnp.log(root)
        y = jnp.log(z)
        log_density = (a - 1.0) * y - z - jax.scipy.special.gammaln(a)
        u = jax.random.uniform(uniform_key, (boost, *shape), z.dtype, minval=jnp.finfo(z.dtype).tiny)
        for i in range(boost):
            y = y + jnp.log(u[i]) / (alpha + i)
        y = y - jnp.log(rate)
        return Draw(exp_inside(y), log_weight=jnp.sum(log_density + log_slope), point=Point(exp_inside(y), y))
