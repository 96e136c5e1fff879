"""Bounds of the log evidence, each a program.

Throughout: z ~ q are the guide's choices, y the data, p the model's density, w = p(z, y) / q(z).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from vipl._types import Array, Float
from vipl.analysis.stop_gradients import hold
from vipl.errors import EstimatorError
from vipl.estimators import ImplicitReparam, Reparam
from vipl.gen import Source
from vipl.gen._check_arguments import Real, check_exact, check_range, checked, python_number
from vipl.gen._choices import Addresses, Choices, merge
from vipl.inference import Algorithm, Importance, Proposal
from vipl.inference._algorithms import the_algorithm
from vipl.inference._marginal import marginal, normalize
from vipl.inference._particles import log_mean_exp, log_shares, weighted_sum
from vipl.ir.sites import list_sites
from vipl.ir.stage import stage_program


@checked
def elbo(model: Source, guide: Source, data: Choices) -> Float[Array, ""]:
    """Evidence lower bound.

    L = E[log p(z, y) - log q(z)] <= log p(y), with equality for the exact posterior.

    Unbiased for L; where densities are estimated (`marginal`, `normalize`), for a lower bound of L.

    Args:
      model: over latents and data.
      guide: over the latents.
      data: the observed choices.

    Reference: Jordan et al. (1999), section 6.
    """
    q = guide.simulate()
    return model.assess(merge(q.choices, data)).log_prob - q.log_prob


@checked
def beta_elbo(model: Source, guide: Source, data: Choices, beta: Real) -> Float[Array, ""]:
    """Evidence lower bound with a weight on the divergence; annealed, where the weight changes from step to step.

    L_β = E[log p(y | z) - β (log q(z) - log p(z))].   L_1 is `elbo`.   A bound of log p(y) for β >= 1.

    Unbiased for L_β.

    Args:
      model: over latents and data; log p(y | z) is the sum of its densities at the data (and its factors).
      guide: over the latents.
      data: the observed choices.
      beta: f[], the weight.

    Reference: Higgins et al. (2017), eq. (4); Bowman et al. (2016), section 3.1, for annealing.
    """
    q = guide.simulate()
    log_joint, log_likelihood = model.weigh(data, q.choices)
    return log_likelihood - beta * (q.log_prob - (log_joint - log_likelihood))


@checked
def iwelbo(model: Source, guide: Source, data: Choices, *, num_particles: int) -> Float[Array, ""]:
    """Importance weighted bound.

    L_K = E[log (1/K) Σ_k w_k],  z_k ~ q.   L_1 is `elbo`; L_K grows with K to log p(y).

    Unbiased for L_K, not for log p(y): the bias is about Var(w) / (2 K E[w]²).

    Args:
      model: over latents and data.
      guide: over the latents.
      data: the observed choices.
      num_particles: K.

    Reference: Burda, Grosse and Salakhutdinov (2016), eq. (8).
    """
    return normalize(model, data, Importance(num_particles, guide)).particles().log_normalizer


@checked
def miwae(model: Source, guide: Source, data: Choices, *, num_bounds: int, num_particles: int) -> Float[Array, ""]:
    """The mean of several importance weighted bounds: the value of one, less noise in its gradient.

    (1/M) Σ_m log (1/K) Σ_k w_mk.   Unbiased for L_K of `iwelbo`.

    Args:
      model: over latents and data.
      guide: over the latents.
      data: the observed choices.
      num_bounds: M.
      num_particles: K.

    Reference: Rainforth et al. (2018), "Tighter variational bounds are not necessarily better", eq. (7).
    """
    bounds = jax.vmap(lambda: iwelbo(model, guide, data, num_particles=num_particles), axis_size=num_bounds)()
    return jnp.mean(bounds)


@checked
def ciwae(model: Source, guide: Source, data: Choices, beta: Real, *, num_particles: int) -> Float[Array, ""]:
    """A convex combination of two bounds on the same particles.

    β (1/K) Σ_k log w_k + (1 - β) log (1/K) Σ_k w_k.   Unbiased for β L_1 + (1 - β) L_K.

    Args:
      model: over latents and data.
      guide: over the latents.
      data: the observed choices.
      beta: f[], between 0 and 1.
      num_particles: K.

    Raises:
      ProgramError: beta is known, and not between 0 and 1.

    Reference: Rainforth et al. (2018), eq. (9).
    """
    check_range(beta, "beta", "ciwae", lambda x: bool(np.all((x >= 0) & (x <= 1))), "a number from 0 to 1")
    particles = normalize(model, data, Importance(num_particles, guide)).particles()
    return beta * jnp.mean(particles.log_weights) + (1.0 - beta) * particles.log_normalizer  # type: ignore[return-value]


@checked
def piwae(model: Source, guide: Source, data: Choices, *, num_bounds: int, num_particles: int) -> Float[Array, ""]:
    """One bound for the model, another for the guide.

    Value: that of `miwae` with M bounds of K particles. Gradient in the model's parameters: that of `iwelbo` with M K
    particles. Gradient in the guide's: that of `miwae`. Each is unbiased; together they are the
    gradient of no one function. Parameters that model and guide share get the sum of both.

    Args:
      model: over latents and data.
      guide: over the latents.
      data: the observed choices.
      num_bounds: M.
      num_particles: K.

    Reference: Rainforth et al. (2018), section 4.
    """
    count = num_bounds * num_particles

    def log_joint(z):
        return model.assess(merge(z, data)).log_prob

    drawn = hold(lambda: jax.vmap(guide.simulate, axis_size=count)())
    tight = log_mean_exp(jax.vmap(log_joint)(drawn.choices) - drawn.log_prob)
    q = jax.vmap(guide.simulate, axis_size=count)()
    log_weights = hold(jax.vmap(log_joint), q.choices) - q.log_prob
    loose = jnp.mean(jax.vmap(log_mean_exp)(log_weights.reshape(num_bounds, num_particles)))
    return loose + tight - lax.stop_gradient(tight)


@checked
def hvi(model: Source, guide: Source, data: Choices, keep: Any) -> Float[Array, ""]:
    """Hierarchical variational inference: a guide with auxiliary choices, of which some are kept.

    E[log p(z, y) - log q(z, a) + log r(a | z)], with r the guide's own law of a: the ELBO with
    `marginal(guide, keep)`, whose density is estimated with one particle.   Unbiased for this lower bound of `elbo`.

    Args:
      model: over latents and data.
      guide: over latents and auxiliary choices.
      data: the observed choices.
      keep: the addresses of the latents.

    Reference: Ranganath, Tran and Blei (2016), section 3.
    """
    return elbo(model, marginal(guide, keep), data)


@checked
def iwhvi(
    model: Source, guide: Source, data: Choices, keep: Addresses, *, num_inner: int, proposal: Proposal | None = None
) -> Float[Array, ""]:
    """Importance weighted hierarchical variational inference: `hvi` with a tighter estimate of the guide's density.

    E[log p(z, y) - log (1/K) Σ_k q(z, a_k) / r(a_k | z)], a_1 drawn with z, the others from r.

    Unbiased for this bound, which grows with K to `elbo`.

    Args:
      model: over latents and data.
      guide: over latents and auxiliary choices.
      data: the observed choices.
      keep: the addresses of the latents.
      num_inner: K.
      proposal: r, a source over the auxiliary choices, or a function of the kept ones that makes it.
        None: the guide's own law of them.

    Reference: Sobolev and Vetrov (2019), eq. (6).
    """
    return elbo(model, marginal(guide, keep, Importance(num_inner, proposal)), data)


@checked
def diwhvi(
    model: Source,
    guide: Source,
    data: Choices,
    keep: Addresses,
    *,
    num_outer: int,
    num_inner: int,
    proposal: Proposal | None = None,
) -> Float[Array, ""]:
    """Doubly importance weighted hierarchical variational inference: `iwelbo` with the guide of `iwhvi`.

    E[log (1/M) Σ_m p(z_m, y) / ŵ_m], ŵ_m the estimated density of z_m.   Unbiased for this bound.

    Args:
      model: over latents and data.
      guide: over latents and auxiliary choices.
      data: the observed choices.
      keep: the addresses of the latents.
      num_outer: M.
      num_inner: K.
      proposal: r, a source over the auxiliary choices, or a function of the kept ones that makes it.
        None: the guide's own law of them.

    Reference: Sobolev and Vetrov (2019), section 4.2.
    """
    kept = marginal(guide, keep, Importance(num_inner, proposal))
    return iwelbo(model, kept, data, num_particles=num_outer)


@checked
def renyi(model: Source, guide: Source, data: Choices, alpha: Real, *, num_particles: int) -> Float[Array, ""]:
    """Renyi bound of order alpha.

    E[1 / (1 - α) log (1/K) Σ_k w_k^(1 - α)];   α = 0: `iwelbo`;   α -> 1: `elbo`, which is what α = 1 computes.
    For K -> ∞ a lower bound of log p(y) if α > 0, an upper one if α < 0.

    Unbiased for this expectation, not for its limit.

    Args:
      model: over latents and data.
      guide: over the latents.
      data: the observed choices.
      alpha: the order, a Python number.
      num_particles: K.

    Raises:
      ProgramError: alpha is not a number that is known when the program is staged.

    Reference: Li and Turner (2016), eq. (14).
    """
    alpha = python_number(alpha, "alpha", "renyi")
    particles = normalize(model, data, Importance(num_particles, guide)).particles()
    if alpha == 1:
        return jnp.mean(particles.log_weights)
    return log_mean_exp((1.0 - alpha) * particles.log_weights) / (1.0 - alpha)  # type: ignore[arg-type]


@checked
def chi_upper_bound(
    model: Source, guide: Source, data: Choices, *, order: Real = 2.0, num_particles: int
) -> Float[Array, ""]:
    """Chi upper bound of the log evidence.

    E[(1/n) log (1/K) Σ_k w_k^n];   for K -> ∞ this is (1/n) log E[w^n] >= log p(y), from below.

    Unbiased for the first, not for its limit: with few particles the value may lie below log p(y).

    Args:
      model: over latents and data.
      guide: over the latents.
      data: the observed choices.
      order: n >= 1.
      num_particles: K.

    Raises:
      ProgramError: the order is known, and below 1, where this is no upper bound.

    Reference: Dieng et al. (2017), eq. (5).
    """
    check_range(order, "order", "chi_upper_bound", lambda x: bool(np.all(x >= 1)), "a number of 1 or more")
    particles = normalize(model, data, Importance(num_particles, guide)).particles()
    return log_mean_exp(order * particles.log_weights) / order  # type: ignore[arg-type]


@checked
def thermodynamic(
    model: Source, guide: Source, data: Choices, betas: Real | Sequence[float], *, num_particles: int
) -> Float[Array, ""]:
    """Thermodynamic variational objective: a left Riemann sum of the path from q to the posterior.

    log p(y) = ∫_0^1 E_{π_β}[log w] dβ,   π_β ∝ q^(1 - β) p^β;   TVO = Σ_i (β_{i+1} - β_i) E_{π_βi}[log w] <= log p(y).

    Expectations under π_β are self-normalized: Σ_k W_k log w_k with W ∝ w^β. Unbiased for the expectation of that,
    not for TVO itself, unless β = 0 is the only point (`elbo`).

    Args:
      model: over latents and data.
      guide: over the latents.
      data: the observed choices.
      betas: f[n], increasing, all from 0 to below 1; the last interval ends at 1. The first is 0 for a bound of
        log p(y): what comes before it is left out.
      num_particles: K.

    Raises:
      ProgramError: the betas are known, and do not increase, or are not all from 0 to below 1.

    Reference: Masrani, Le and Wood (2019), eq. (8) and (12).
    """
    check_range(betas, "betas", "thermodynamic", _is_path, "numbers that increase, from 0 to below 1")
    particles = normalize(model, data, Importance(num_particles, guide)).particles()
    betas = jnp.atleast_1d(jnp.asarray(betas, float))
    log_w = particles.log_weights
    tempered = jnp.where(betas[:, None] == 0, 0.0, betas[:, None] * log_w)
    weights = jnp.exp(log_shares(tempered, "thermodynamic"))
    widths = jnp.append(betas[1:], 1.0) - betas
    return widths @ jax.vmap(weighted_sum, in_axes=(0, None))(weights, log_w)


@checked
def fivo(model: Source, data: Choices, algorithm: Algorithm) -> Float[Array, ""]:
    """Bound by any algorithm that estimates the evidence: with `SMC`, the filtering variational objective.

    E[log Ẑ] <= log p(y), since E[Ẑ] = p(y).   With `Importance(K, guide)`: `iwelbo`.

    Unbiased for E[log Ẑ]; its gradient too, if the algorithm's resampling does not drop it.

    Args:
      model: over latents and data.
      data: the observed choices.
      algorithm: `SMC(...)`, `Importance(...)`, `Enumeration()`.

    Reference: Maddison et al. (2017), eq. (5); Naesseth et al. (2018), eq. (4).
    """
    return the_algorithm(algorithm, "fivo").log_evidence(model, data)


def _is_path(betas: np.ndarray) -> bool:
    """Whether numbers increase, and lie between 0 and below 1."""
    steps = np.append(betas, 1.0)
    return betas.ndim <= 1 and betas.size > 0 and steps[0] >= 0 and bool(np.all(steps[1:] > steps[:-1]))


def _pathwise_guide(guide: Source, who: str) -> None:
    """As far as is seen before estimators are replaced from outside."""
    check_exact(guide, "guide", who, "use iwelbo")
    for info in list_sites(stage_program(lambda: guide.simulate().choices, (), {}).jaxpr):
        site = info.site
        estimator = site.estimator and site.estimator.combine(info.avals[site.num_distribution :])
        name = "a site without a pathwise derivative" if estimator is None else type(estimator).__name__
        pathwise = isinstance(estimator, (Reparam, ImplicitReparam)) or (
            estimator is None and site.distribution.combine(info.distribution_avals).has_rsample
        )
        if not pathwise:
            raise EstimatorError(
                "a doubly reparametrized gradient passes a site that is not reparametrized.",
                at=site.at(),
                got=f"{who} with {name}",
                expected="Reparam() or ImplicitReparam() at every site of the guide",
                fix="use iwelbo, whose gradient is unbiased for every estimator",
            )


@checked
def sticking_the_landing(model: Source, guide: Source, data: Choices) -> Float[Array, ""]:
    """`elbo` whose gradient leaves out the score of the guide, which has mean zero.

    ∇ = E[∇_z (log p(z, y) - log q_φ(z)) ∂z/∂φ]:   zero without noise where q is the exact posterior.

    Unbiased for the value and the gradient of `elbo`; not for second derivatives. It lowers the variance of
    reparametrized sites.

    Args:
      model: over latents and data.
      guide: over the latents.
      data: the observed choices.

    Reference: Roeder, Wu and Duvenaud (2017), algorithm 1.
    """
    check_exact(guide, "guide", "sticking_the_landing", "use elbo")
    z = guide.simulate().choices
    log_q = hold(lambda z: guide.assess(z).log_prob, z)
    return model.assess(merge(z, data)).log_prob - log_q


@checked
def doubly_reparametrized(model: Source, guide: Source, data: Choices, *, num_particles: int) -> Float[Array, ""]:
    """`iwelbo` with the doubly reparametrized gradient of the guide.

    ∇_φ = E[Σ_k W_k² ∂log w_k/∂z_k ∂z_k/∂φ],   ∇_θ = E[Σ_k W_k ∂log w_k/∂θ],   W the normalized weights.

    Unbiased for value and gradient of `iwelbo`, if all sites of the guide are reparametrized floats; not for second
    derivatives. Its signal-to-noise ratio grows with K, where that of the plain gradient falls.

    Args:
      model: over latents and data, with an exact density.
      guide: over the latents, with an exact density.
      data: the observed choices.
      num_particles: K.

    Raises:
      ProgramError: a density is estimated.
      EstimatorError: a site of the guide is not reparametrized.

    Reference: Tucker et al. (2019), eq. (8).
    """
    _pathwise_guide(guide, "doubly_reparametrized")
    check_exact(model, "model", "doubly_reparametrized", "use iwelbo")

    def log_weights(z):
        log_q = hold(jax.vmap(lambda z: guide.assess(z).log_prob), z)
        return jax.vmap(lambda z: model.assess(merge(z, data)).log_prob)(z) - log_q

    z = jax.vmap(lambda: guide.simulate().choices, axis_size=num_particles)()
    log_w = lax.stop_gradient(log_weights(z))
    share = jnp.exp(log_shares(log_w, "doubly_reparametrized"))

    def scaled(x):
        """The value of x, its derivative times the share of its particle."""
        w = share.reshape(share.shape + (1,) * (x.ndim - 1))
        return lax.stop_gradient(x) + w * (x - lax.stop_gradient(x))

    weighted = weighted_sum(share, log_weights(jax.tree.map(scaled, z)))
    return log_mean_exp(log_w) + weighted - lax.stop_gradient(weighted)
