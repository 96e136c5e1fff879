"""Objectives that learn the model and the guide apart: wake-sleep, divergences, balance conditions, discrepancies.

Throughout: z ~ q are the guide's choices, y the data, p the model's density, w = p(z, y) / q(z), W = w / Σ w.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from vipl.analysis.stop_gradients import hold
from vipl.errors import AddressError, shortened
from vipl.gen import Source
from vipl.gen._arguments import Real, call_maker, checked, not_a_function
from vipl.gen._choices import check_address, flatten, merge, nest
from vipl.inference import Importance
from vipl.inference._marginal import normalize
from vipl.inference._particles import weighted_sum
from vipl.ir.primitives import user_frame
from vipl.objectives._bounds import exact_guide
from vipl.objectives._generators import Generator


@checked
def wake_theta(model: Source, guide: Source, data: dict[str, Any], *, num_particles: int) -> Any:
    """Reweighted wake phase of the model: maximizes log p_θ(y).

    Value: log (1/K) Σ_k w_k. Gradient: Σ_k W_k ∇ log p_θ(z_k, y) in the model's parameters, none in the guide's.

    Unbiased for the gradient of `iwelbo` in θ; biased for that of log p_θ(y), by O(1/K).

    Args:
      model: over latents and data.
      guide: over the latents.
      data: the observed choices.
      num_particles: K.

    Reference: Bornschein and Bengio (2015), eq. (8).
    """
    particles = hold(lambda: normalize(model, data, Importance(num_particles, guide)).particles())
    log_joint = jax.vmap(lambda z: model.assess(merge(z, data)).log_prob)(particles.choices)
    weighted = weighted_sum(jnp.exp(particles.log_probs), log_joint)
    return particles.log_normalizer + weighted - lax.stop_gradient(weighted)


@checked
def wake_phi(model: Source, guide: Source, data: dict[str, Any], *, num_particles: int) -> Any:
    """Reweighted wake phase of the guide: maximizes -KL(p(z | y) || q_φ(z)) up to a constant.

    Σ_k W_k log q_φ(z_k), z_k ~ q: the self-normalized estimate of E_{p(z | y)}[log q_φ(z)]. Gradient in the guide's
    parameters at fixed draws and weights, none in the model's; discrete latents need no score function.

    Biased by O(1/K), as W is self-normalized; exact where q is the exact posterior.

    Args:
      model: over latents and data.
      guide: over the latents.
      data: the observed choices.
      num_particles: K.

    Reference: Bornschein and Bengio (2015), eq. (10); Le et al. (2019), section 3.
    """
    particles = hold(lambda: normalize(model, data, Importance(num_particles, guide)).particles())
    log_q = jax.vmap(lambda z: guide.assess(z).log_prob)(particles.choices)
    return weighted_sum(jnp.exp(particles.log_probs), log_q)


@checked
def sleep(model: Source, guide: Callable[[dict[str, Any]], Source], data: Any) -> Any:
    """Sleep phase: the guide learns from the model's own draws.

    E_{(z, y) ~ p}[log q(z | y)] = -E_{y ~ p}[KL(p(z | y) || q(z | y))] + constant.

    Unbiased for the value, and for its gradient in the guide's parameters; there is none in the model's.

    Args:
      model: over latents and data.
      guide: drawn data -> guide.
      data: the addresses that are data: a string, or a tuple of strings (a nested one as a tuple).

    Reference: Hinton et al. (1995); Le et al. (2019), eq. (5).
    """
    if not callable(guide):
        raise not_a_function(guide, "guide", "sleep")
    parts = (data,) if isinstance(data, str) else data if isinstance(data, (tuple, list, set, frozenset)) else ()
    names = {check_address(part, f"the data of sleep in {user_frame()}") for part in parts}
    if not names:
        raise AddressError(
            "sleep is not told which addresses are data.",
            at=user_frame(),
            got=shortened(data),
            expected="a string, or a tuple of strings; their values are drawn from the model",
            fix='name them: sleep(model, guide, "y")',
        )
    dreamt = flatten(hold(lambda: model.simulate().choices), "sleep")
    y = nest({a: x for a, x in dreamt.items() if a in names})
    z = nest({a: x for a, x in dreamt.items() if a not in names})
    return call_maker(guide, (y,), "guide", "sleep").assess(z).log_prob


@checked
def forward_kl(target: Source, guide: Source) -> Any:
    """Forward Kullback-Leibler divergence from a target that can be drawn from and assessed.

    KL(p || q) = E_{z ~ p}[log p(z) - log q(z)] >= 0.   Unbiased.

    Args:
      target: p.
      guide: q, over the same choices.
    """
    p = target.simulate()
    return p.log_prob - guide.assess(p.choices).log_prob


@checked
def reverse_kl(target: Source, guide: Source) -> Any:
    """Reverse Kullback-Leibler divergence from a target that can be assessed.

    KL(q || p) = E_{z ~ q}[log q(z) - log p(z)], plus the log normalizer of an unnormalized p.   Unbiased.

    Args:
      target: p.
      guide: q, over the same choices.
    """
    return -_log_ratio(target, guide)


@checked
def f_divergence(target: Source, guide: Source, generator: Callable[[Any], Any] | Generator) -> Any:
    """Divergence by its generator.

    D_f(p || q) = E_{z ~ q}[f(p(z) / q(z))], f convex with f(1) = 0.   Unbiased, p normalized.

    `ForwardKL()`, `ReverseKL()`, `ChiSquared()`, `TotalVariation()`, `SquaredHellinger()` and `JensenShannon()` are
    written in the log ratio l = log p - log q, as is `OfLogRatio(fn)` with a function l -> f(exp l) of your own. A
    function of the ratio itself, such as `lambda t: t * jnp.log(t)`, is NaN where the ratio underflows to 0.

    Args:
      target: p.
      guide: q, over the same choices.
      generator: f, as one of these objects; or a function of the ratio, f[] -> f[].

    Reference: Csiszar (1967), eq. (1.1).
    """
    log_ratio = _log_ratio(target, guide)
    return generator.of_log_ratio(log_ratio) if isinstance(generator, Generator) else generator(jnp.exp(log_ratio))


@checked
def trajectory_balance(model: Source, guide: Source, data: dict[str, Any], log_z: Real) -> Any:
    """Squared defect of detailed balance between guide and posterior, at draws of the guide.

    E_{z ~ q}[(log Z + log q_φ(z) - log p(z, y))²]:   0 if and only if q_φ is the posterior and Z = p(y).

    Unbiased for its value. The gradient is that of the squared defect at fixed draws, which is not the gradient of the
    value: in φ it is 2 ∇KL(q_φ || p(z | y)) in expectation, whatever Z.

    Args:
      model: over latents and data.
      guide: over the latents.
      data: the observed choices.
      log_z: f[], the estimate of log p(y), learned jointly.

    Reference: Malkin et al. (2022), eq. (14); Malkin et al. (2023), proposition 1, for the gradient.
    """
    exact_guide(guide, "trajectory_balance")
    z = hold(lambda: guide.simulate().choices)
    defect = log_z + guide.assess(z).log_prob - model.assess(merge(z, data)).log_prob
    return defect**2


@checked(num_particles=2)
def log_variance(model: Source, guide: Source, data: dict[str, Any], *, num_particles: int) -> Any:
    """Half the variance of the log weights, at draws of the guide.

    (1/2) Var_{z ~ q}[log p(z, y) - log q_φ(z)],  by K draws (with K - 1 in the denominator).

    Unbiased for its value. The gradient is taken at fixed draws: in φ it is ∇KL(q_φ || p(z | y)) in expectation, the
    score-function gradient with a leave-one-out baseline.

    Args:
      model: over latents and data.
      guide: over the latents.
      data: the observed choices.
      num_particles: K, at least 2.

    Reference: Richter et al. (2020), eq. (9) and proposition 1.
    """
    exact_guide(guide, "log_variance")
    z = hold(lambda: jax.vmap(lambda: guide.simulate().choices, axis_size=num_particles)())
    log_w = jax.vmap(lambda z: model.assess(merge(z, data)).log_prob - guide.assess(z).log_prob)(z)
    return 0.5 * jnp.var(log_w, ddof=1)


@checked
def fisher(target: Source, guide: Source) -> Any:
    """Fisher divergence: expected squared distance of the scores in z.

    E_{z ~ q}[|∇_z log p(z) - ∇_z log q(z)|²];   p may be unnormalized.   Unbiased, for float choices.

    Args:
      target: p, over the guide's choices (with data given: `vipl.gen` of a function that assesses a model).
      guide: q, with an exact density.

    Reference: Hyvarinen (2005), eq. (2); Yang et al. (2019) for variational inference.
    """
    z = guide.simulate().choices
    score = jax.grad(lambda z: target.assess(z).log_prob - guide.assess(z).log_prob)(z)
    return sum(jnp.sum(s**2) for s in jax.tree.leaves(score))


@checked(num_samples=2)
def mmd(first: Source, second: Source, *, num_samples: int, bandwidth: Real = 1.0) -> Any:
    """Squared maximum mean discrepancy with a Gaussian kernel.

    E k(x, x') + E k(y, y') - 2 E k(x, y),   k(a, b) = exp(-|a - b|² / (2 h²)).   Unbiased: no diagonal terms.

    With a guide's aggregate and a prior it is the penalty of InfoVAE: `elbo(...) - weight * mmd(...)`.

    Args:
      first: draws x.
      second: draws y, over the same choices.
      num_samples: draws of each, at least 2.
      bandwidth: h.

    Reference: Gretton et al. (2012), eq. (3); Zhao, Song and Ermon (2019), section 4.
    """

    def draws(source):
        choices = jax.vmap(lambda: source.simulate().choices, axis_size=num_samples)()
        flat = flatten(choices, source.name)
        return jnp.concatenate([flat[a].reshape(num_samples, -1).astype(float) for a in sorted(flat)], axis=1)

    x, y = draws(first), draws(second)

    def kernel(a, b):
        return jnp.exp(-jnp.sum((a[:, None] - b[None]) ** 2, axis=-1) / (2.0 * bandwidth**2))

    def within(a):
        return (jnp.sum(kernel(a, a)) - num_samples) / (num_samples * (num_samples - 1))

    return within(x) + within(y) - 2.0 * jnp.mean(kernel(x, y))


def _log_ratio(target: Source, guide: Source) -> Any:
    q = guide.simulate()
    return target.assess(q.choices).log_prob - q.log_prob
