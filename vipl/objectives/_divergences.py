"""Divergences, balance conditions and discrepancies between two programs.

Throughout: z ~ q are the guide's choices, y the data, p the model's density, w = p(z, y) / q(z).
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from vipl._types import Array, Float
from vipl.analysis.stop_gradients import hold
from vipl.errors import AddressError, ChoiceError, ProgramError, show_address, show_addresses, show_aval
from vipl.gen import Source
from vipl.gen._check_arguments import Real, check_exact, check_range, checked
from vipl.gen._choices import Address, Choices, flatten, merge
from vipl.ir.frames import user_frame
from vipl.objectives._generators import Generator


@checked
def forward_kl(target: Source, guide: Source) -> Float[Array, ""]:
    """Forward Kullback-Leibler divergence from a target that can be drawn from and assessed.

    KL(p || q) = E_{z ~ p}[log p(z) - log q(z)] >= 0.   Unbiased.

    Args:
      target: p.
      guide: q, over the same choices.
    """
    p = target.simulate()
    return p.log_prob - guide.assess(p.choices).log_prob


@checked
def reverse_kl(target: Source, guide: Source) -> Float[Array, ""]:
    """Reverse Kullback-Leibler divergence from a target that can be assessed.

    KL(q || p) = E_{z ~ q}[log q(z) - log p(z)], plus the log normalizer of an unnormalized p.   Unbiased.

    Args:
      target: p.
      guide: q, over the same choices.
    """
    return -_log_ratio(target, guide)


@checked
def f_divergence(
    target: Source, guide: Source, generator: Callable[[Float[Array, ""]], Float[Array, ""]] | Generator
) -> Float[Array, ""]:
    """Divergence by its generator.

    D_f(p || q) = E_{z ~ q}[f(p(z) / q(z))], f convex with f(1) = 0.   Unbiased, p normalized.

    `ForwardKL()`, `ReverseKL()`, `ChiSquared()`, `TotalVariation()`, `SquaredHellinger()` and `JensenShannon()` are
    written in the log ratio l = log p - log q, as is `OfLogRatio(fn)` with a function l -> f(exp l) of your own. A
    function of the ratio itself, such as `lambda t: t * jnp.log(t)`, is NaN where the ratio underflows to 0.

    Args:
      target: p.
      guide: q, over the same choices.
      generator: f, as one of these objects; or a function of the ratio, f[] -> f[].

    Raises:
      ProgramError: the density of one of them is estimated, as f of an estimate has another mean; or the generator is
        a class.

    Reference: Csiszar (1967), eq. (1.1).
    """
    if isinstance(generator, type):
        raise ProgramError(
            "the generator of f_divergence is a class.",
            at=user_frame(),
            got=f"the class {generator.__name__}",
            expected="one of its objects",
            fix=f"write {generator.__name__}()",
        )
    for role, source in (("target", target), ("guide", guide)):
        check_exact(source, role, "f_divergence", "use forward_kl or reverse_kl, which an estimate makes bounds")
    log_ratio = _log_ratio(target, guide)
    return generator.of_log_ratio(log_ratio) if isinstance(generator, Generator) else generator(jnp.exp(log_ratio))


@checked
def trajectory_balance(model: Source, guide: Source, data: Choices, log_z: Real) -> Float[Array, ""]:
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
    check_exact(guide, "guide", "trajectory_balance", "use elbo or iwelbo")
    check_exact(model, "model", "trajectory_balance", "use elbo or iwelbo")
    z = hold(lambda: guide.simulate().choices)
    defect = log_z + guide.assess(z).log_prob - model.assess(merge(z, data)).log_prob
    return defect**2  # type: ignore[return-value]


@checked(num_particles=2)
def log_variance(model: Source, guide: Source, data: Choices, *, num_particles: int) -> Float[Array, ""]:
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
    check_exact(guide, "guide", "log_variance", "use elbo or iwelbo")
    check_exact(model, "model", "log_variance", "use elbo or iwelbo")
    z = hold(lambda: jax.vmap(lambda: guide.simulate().choices, axis_size=num_particles)())
    log_w = jax.vmap(lambda z: model.assess(merge(z, data)).log_prob - guide.assess(z).log_prob)(z)
    return 0.5 * jnp.var(log_w, ddof=1)


@checked
def fisher(target: Source, guide: Source) -> Float[Array, ""]:
    """Fisher divergence: expected squared distance of the scores in z.

    E_{z ~ q}[|∇_z log p(z) - ∇_z log q(z)|²];   p may be unnormalized.   Unbiased, for float choices.

    Args:
      target: p, over the guide's choices (with data given: `vipl.gen` of a function that assesses a model).
      guide: q, over float choices; both with an exact density.

    Raises:
      ProgramError: a density is estimated.
      ChoiceError: a choice is not a float.

    Reference: Hyvarinen (2005), eq. (2); Yang et al. (2019) for variational inference.
    """
    for role, source in (("target", target), ("guide", guide)):
        check_exact(source, role, "fisher", "use forward_kl or reverse_kl")
    z = guide.simulate().choices
    for address, x in flatten(z, guide.name).items():
        if not jnp.issubdtype(x.dtype, jnp.floating):
            raise ChoiceError(
                "the score of a density is asked for at a choice that is not a float.",
                at=f"{show_address(address)} of {guide.name}",
                got=f"fisher with {show_aval(x)}",
                expected="float choices alone",
                fix="use reverse_kl or f_divergence, or integrate the choice out: marginal(..., Enumeration())",
            )
    score = jax.grad(lambda z: target.assess(z).log_prob - guide.assess(z).log_prob)(z)
    return sum(jnp.sum(s**2) for s in jax.tree.leaves(score))  # type: ignore[return-value]


@checked(num_samples=2)
def mmd(first: Source, second: Source, *, num_samples: int, bandwidth: Real = 1.0) -> Float[Array, ""]:
    """Squared maximum mean discrepancy with a Gaussian kernel.

    E k(x, x') + E k(y, y') - 2 E k(x, y),   k(a, b) = exp(-|a - b|² / (2 h²)).   Unbiased: no diagonal terms.

    With a guide's aggregate and a prior it is the penalty of InfoVAE: `elbo(...) - weight * mmd(...)`.

    Args:
      first: draws x.
      second: draws y, over the same choices.
      num_samples: draws of each, at least 2.
      bandwidth: h.

    Raises:
      ProgramError: the bandwidth is known, and not above 0.
      AddressError: the two have not the same choices.
      ChoiceError: a choice has not the same shape in both.

    Reference: Gretton et al. (2012), eq. (3); Zhao, Song and Ermon (2019), section 4.
    """
    check_range(bandwidth, "bandwidth", "mmd", lambda x: bool(np.all(x > 0)), "a number above 0")

    def draws(source):
        return flatten(jax.vmap(lambda: source.simulate().choices, axis_size=num_samples)(), source.name)

    def joined(flat):
        return jnp.concatenate([flat[a].reshape(num_samples, -1).astype(float) for a in sorted(flat)], axis=1)

    of_first, of_second = draws(first), draws(second)
    _check_same(of_first, of_second, first.name, second.name)
    x, y = joined(of_first), joined(of_second)

    def kernel(a, b):
        return jnp.exp(-jnp.sum((a[:, None] - b[None]) ** 2, axis=-1) / (2.0 * bandwidth**2))

    def within(a):
        return (jnp.sum(kernel(a, a)) - num_samples) / (num_samples * (num_samples - 1))

    return within(x) + within(y) - 2.0 * jnp.mean(kernel(x, y))


def _check_same(one: dict[Address, Array], other: dict[Address, Array], name: str, other_name: str) -> None:
    """Raises where draws of two programs are not at the same addresses, in the same shapes."""
    if one.keys() != other.keys() or not one:
        raise AddressError(
            "mmd compares two programs that have not the same choices.",
            at=f"mmd of {name} and {other_name}",
            got=f"{show_addresses(one) or 'no choices'} and {show_addresses(other) or 'no choices'}",
            expected="the same addresses in both",
            fix=f"take a part of one of them: marginal({name}(...), addresses)",
        )
    for a, x in one.items():
        if x.shape != other[a].shape:
            raise ChoiceError(
                "mmd compares choices of different shapes.",
                at=f"{show_address(a)} of {name} and {other_name}",
                got=f"{list(x.shape[1:])} and {list(other[a].shape[1:])}",
                expected="the same shape in both",
                fix="reshape one of them where it is sampled",
            )


def _log_ratio(target: Source, guide: Source) -> Float[Array, ""]:
    q = guide.simulate()
    return target.assess(q.choices).log_prob - q.log_prob
