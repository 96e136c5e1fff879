"""Exact integrals over a linear-Gaussian chain."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax import lax

from vipl._jax import Eqn
from vipl._types import Array, Float
from vipl.errors import ProgramError
from vipl.gen import Source, sample
from vipl.gen._choices import Choices, nest
from vipl.gen._supports import EVERYWHERE
from vipl.inference._algorithms import ExactAlgorithm
from vipl.inference._chain import Chain, chain_of
from vipl.inference._particles import Particles
from vipl.ir.dataflow import walk
from vipl.ir.guards import alarm
from vipl.ir.sites import SiteInfo
from vipl.ir.stage import stage


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Kalman(ExactAlgorithm):
    """Integrates out the states of a linear-Gaussian chain: exact, in O(T d³) for states of d numbers.

    The program has one `lax.scan` that holds sites, at its top level. In each step one site is unknown, Normal or
    MultivariateNormal, and the carry that leaves the step depends on earlier steps through its value alone (a counter
    may go along). Its mean and that of the known sites are affine in the states before them, their covariances do not
    depend on them; more generally, the log density of a step, ℓ_t(u, v) with u and v the states of the step before
    and of this one, is a polynomial of degree two. Before the scan nothing is unknown. Masked data are allowed.

        α_t(v) = ∫ α_{t-1}(u) exp ℓ_t(u, v) du = exp(-½ vᵀ J v + hᵀ v + k),   Z = ∫ α_T(v) dv.   Both sides are Z.

    The filter runs on precisions J, made of the second derivatives of ℓ_t: in single precision its error grows with
    the ratio of the largest to the smallest variance.

    `particles` draws one path from the exact posterior, backwards.

    Raises:
      ProgramError: the program does not have that shape; ℓ_t is not seen to be a polynomial of degree two; the
        unknown site's support is not all of the real numbers.

    Reference: Anderson and Moore (1979), "Optimal filtering", section 6.3, for the filter on precisions; Frühwirth-
    Schnatter (1994), section 3, for the path.
    """

    def log_evidence(self, program: Source, known: Choices) -> Float[Array, ""]:
        """Log Z, without any draw."""
        return _integral(_forward(_gaussian_chain(program, known))[0])

    def particles(self, program: Source, known: Choices) -> Particles:
        """One particle, an exact posterior draw."""
        chain = _gaussian_chain(program, known)
        last, before, steps = _forward(chain)

        def back(state, inputs):
            alpha, step = inputs  # of t, and from t to t + 1
            precision = alpha.precision - step.uu
            shift = alpha.shift + step.u + step.uv @ state
            state = _draw(precision, shift)
            return state, state

        end = _draw(last.precision, last.shift)
        _, states = lax.scan(back, end, (before, steps), reverse=True)
        path = jnp.concatenate([states, end[None]])
        path = (path[::-1] if chain.reverse else path).reshape(-1, *chain.info.site.shape)
        return Particles(nest({chain.info.site.address: path[None]}), jnp.zeros(1), _integral(last))

    def marginals(self, program: Source, known: Choices, info: SiteInfo) -> dist.Normal | dist.MultivariateNormal:
        """Normal of batch shape [T]; MultivariateNormal of that batch shape, where the state is an array."""
        chain = _gaussian_chain(program, known)
        last, before, steps = _forward(chain)

        def back(later, step):  # what the steps after t say of its state, from what those after t + 1 say of theirs
            gain = jnp.linalg.solve(later.precision - step.vv, jnp.column_stack([later.shift + step.v, step.uv.T]))
            now = _Message(-step.uu - step.uv @ gain[:, 1:], step.u + step.uv @ gain[:, 0], later.constant)
            return now, now

        nothing = jax.tree.map(jnp.zeros_like, last)
        _, after = lax.scan(back, nothing, steps, reverse=True)
        joined = jax.tree.map(lambda a, b: a + b, before, after)
        precision = jnp.concatenate([joined.precision, last.precision[None]])
        shift = jnp.concatenate([joined.shift, last.shift[None]])
        if chain.reverse:
            precision, shift = precision[::-1], shift[::-1]
        cov = jnp.linalg.inv(precision)
        mean = jnp.einsum("tij,tj->ti", cov, shift)
        if not info.site.shape:
            return dist.Normal(mean[:, 0], jnp.sqrt(cov[:, 0, 0]))
        return dist.MultivariateNormal(mean, covariance_matrix=(cov + jnp.swapaxes(cov, 1, 2)) / 2)


class _Message(NamedTuple):
    """exp(-½ vᵀ J v + hᵀ v + k): `precision` f[d, d], `shift` f[d], `constant` f[]."""

    precision: Array
    shift: Array
    constant: Array


class _Step(NamedTuple):
    """ℓ(u, v) = constant + u·u_ + v·v_ + ½ (u, v)ᵀ [[uu, uv], [uvᵀ, vv]] (u, v)."""

    constant: Array
    u: Array
    v: Array
    uu: Array
    uv: Array
    vv: Array


def _draw(precision: Array, shift: Array) -> Array:
    mean = jnp.linalg.solve(precision, shift)
    return sample("state", dist.MultivariateNormal(mean, precision_matrix=precision))


def _integral(a: _Message) -> Array:
    """Log ∫ exp(-½ vᵀ J v + hᵀ v + k) dv; raises where J is not positive definite."""
    factor = jnp.linalg.cholesky(a.precision)
    improper = jnp.any(jnp.isnan(factor)) & ~jnp.any(jnp.isnan(a.precision))
    factor = alarm(factor, improper, _improper, "Kalman()")
    solved = jax.scipy.linalg.solve_triangular(factor, a.shift, lower=True)
    log_det = jnp.sum(jnp.log(jnp.diagonal(factor)))
    return a.constant + 0.5 * (solved @ solved + a.shift.size * math.log(2 * math.pi)) - log_det


def _forward(chain: Chain) -> tuple[_Message, _Message, _Step]:
    """The last α; the earlier ones and the steps that follow them, [T - 1]."""
    size = math.prod(chain.info.site.shape)
    dtype = jnp.result_type(chain.info.site.dtype)
    nowhere = jnp.zeros(size, dtype)
    carry, log_w = chain.first
    first_inputs = jax.tree.map(lambda x: x[0], chain.inputs)

    def value(v):
        return v.reshape(chain.info.site.shape)

    def entry(v):
        return chain.step(carry, first_inputs, value(v))[1]

    _check_quadratic(entry, nowhere, chain)
    start = _Message(-jax.hessian(entry)(nowhere), jax.grad(entry)(nowhere), log_w + entry(nowhere))

    def log_step(carry, before, now, both):
        u, v = both[:size], both[size:]
        after, _ = chain.step(carry, before, value(u))
        return chain.step(after, now, value(v))[1]

    def step(state, inputs):
        alpha, carry, before = state

        def log_prob(both):
            return log_step(carry, before, inputs, both)

        origin = jnp.concatenate([nowhere, nowhere])
        _check_quadratic(log_prob, origin, chain)
        c, g, h = log_prob(origin), jax.grad(log_prob)(origin), jax.hessian(log_prob)(origin)
        taken = _Step(c, g[:size], g[size:], h[:size, :size], h[:size, size:], h[size:, size:])
        joint = _Message(alpha.precision - taken.uu, alpha.shift + taken.u, alpha.constant + taken.constant)
        gain = jnp.linalg.solve(joint.precision, jnp.column_stack([joint.shift, taken.uv]))
        new = _Message(-taken.vv - taken.uv.T @ gain[:, 1:], taken.v + taken.uv.T @ gain[:, 0], _integral(joint))
        after, _ = chain.step(carry, before, value(nowhere))
        return (new, after, inputs), (alpha, taken)

    rest = jax.tree.map(lambda x: x[1:], chain.inputs)
    length = chain.info.loops[0].size - 1
    (last, _, _), (before, steps) = lax.scan(step, (start, carry, first_inputs), rest, length=length)
    return last, before, steps


def _gaussian_chain(program: Source, known: Choices) -> Chain:
    chain = chain_of(program, known, "Kalman()")
    site = chain.info.site
    if site.support != EVERYWHERE or not jnp.issubdtype(site.dtype, jnp.floating):
        raise _not_linear(site.at(), "an unknown site whose support is not all of the real numbers")
    return chain


def _check_quadratic(fn: Callable[[Array], Array], x: Array, chain: Chain) -> None:
    """Raises where a function is not seen to be a polynomial of degree two."""
    (degree,) = walk(stage(fn, x)[0], [1], _degree, constant=lambda _: 0)
    if degree > 2:
        raise _not_linear(chain.info.site.at(), "a log density that is not seen to be quadratic in the states")


# Linear in their first operand, or in all of them.
_LINEAR_IN_FIRST = {"div", "gather", "dynamic_slice"}
_LINEAR_IN_ALL = set(
    "add sub neg reshape broadcast_in_dim transpose squeeze expand_dims slice concatenate reduce_sum cumsum rev pad "
    "copy dynamic_update_slice convert_element_type add_any".split()
)


def _degree(_: int, eqn: Eqn, degrees: list[float]) -> list[float]:
    """The degrees of an equation's results as polynomials in the states; infinite where that is not seen.

    It goes by the operations, not by derivatives: |x| and floor(x) have second derivatives of zero.
    """
    name, degree = eqn.primitive.name, math.inf
    if not any(degrees):
        degree = 0
    elif any(not jnp.issubdtype(jnp.result_type(v.aval), jnp.floating) for v in eqn.outvars):
        pass
    elif name in ("mul", "dot_general"):
        degree = sum(degrees)
    elif name == "square" or (name == "integer_pow" and eqn.params["y"] == 2):
        degree = 2 * degrees[0]
    elif name in _LINEAR_IN_ALL:
        degree = max(degrees)
    elif name in _LINEAR_IN_FIRST and not any(degrees[1:]):
        degree = degrees[0]
    elif name in ("select_n", "triangular_solve") and not degrees[0]:
        degree = max(degrees[1:])
    return [degree] * len(eqn.outvars)


def _improper(at: str) -> ProgramError:
    return ProgramError(
        "a chain has no finite integral over its states.",
        at=at,
        got="a precision that is not positive definite",
        expected="a density that falls off in all directions; in single precision, variances of similar size",
        fix="check vipl.factor and the covariances; or switch on jax_enable_x64",
    )


def _not_linear(at: str, got: str) -> ProgramError:
    return ProgramError(
        "a chain is not linear and Gaussian.",
        at=at,
        got=got,
        expected="Normal or MultivariateNormal sites, with means affine in the states, covariances free of them",
        fix="use SMC(...), or write the step with affine means",
    )
