"""Wake-sleep: phases that learn the model and the guide apart.

Throughout: z ~ q are the guide's choices, y the data, p the model's density, w = p(z, y) / q(z), W = w / Σ w.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from vipl._types import Array, Float
from vipl.analysis.stop_gradients import hold
from vipl.errors import AddressError, shortened
from vipl.gen import Source
from vipl.gen._check_arguments import call_maker, check_exact, checked, not_a_function
from vipl.gen._choices import Addresses, Choices, check_address, flatten, merge, nest
from vipl.inference import Importance
from vipl.inference._marginal import normalize
from vipl.inference._particles import weighted_sum
from vipl.ir.frames import user_frame


@checked
def wake_theta(model: Source, guide: Source, data: Choices, *, num_particles: int) -> Float[Array, ""]:
    """Reweighted wake phase of the model: maximizes log p_θ(y).

    Value: log (1/K) Σ_k w_k. Gradient: Σ_k W_k ∇ log p_θ(z_k, y) in the model's parameters, none in the guide's.

    Unbiased for the gradient of `iwelbo` in θ; biased for that of log p_θ(y), by O(1/K).

    Args:
      model: over latents and data, with an exact density.
      guide: over the latents.
      data: the observed choices.
      num_particles: K.

    Raises:
      ProgramError: the density of the model is estimated.

    Reference: Bornschein and Bengio (2015), eq. (8).
    """
    check_exact(model, "model", "wake_theta", "use iwelbo with vipl.detach(guide), which has the same gradient")
    particles = hold(lambda: normalize(model, data, Importance(num_particles, guide)).particles())
    log_joint = jax.vmap(lambda z: model.assess(merge(z, data)).log_prob)(particles.choices)
    weighted = weighted_sum(jnp.exp(particles.log_probs), log_joint)
    return particles.log_normalizer + weighted - lax.stop_gradient(weighted)


@checked
def wake_phi(model: Source, guide: Source, data: Choices, *, num_particles: int) -> Float[Array, ""]:
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
def sleep(model: Source, guide: Callable[[Choices], Source], data: Addresses) -> Float[Array, ""]:
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
    return call_maker(guide, y, "guide", "sleep").assess(z).log_prob
