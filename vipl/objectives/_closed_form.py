"""The evidence lower bound with divergences in closed form, site by site where there is one."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpyro.distributions as dist

from vipl._types import Array, ArrayLike, Float
from vipl.gen import Program
from vipl.gen._check_arguments import checked
from vipl.gen._choices import Address, Choices, match, merge
from vipl.gen._program import merge_emits
from vipl.gen._weighing import Drawn, Given, weighing
from vipl.gen._without_choice import valued
from vipl.interpret.interpreter import run
from vipl.ir.primitives import Path
from vipl.ir.sites import SiteInfo


@checked
def elbo_with_kl(model: Program, guide: Program, data: Choices) -> Float[Array, ""]:
    """Evidence lower bound, the divergence of each site in closed form where NumPyro has one.

    L = E[log p(y | z) - Σ_i KL(q(z_i | z_<i) || p(z_i | z_<i))],   the value of `elbo` with less noise.

    A site is taken in closed form if NumPyro's `kl_divergence` knows the two distributions (or one is a
    MultivariateNormal, and the other Normals over the same array), if neither is scaled, nor stands in a `scan` or a
    branch, and if model and guide draw their common addresses in one order (else p(z_i | ...) might depend on what the
    guide draws after z_i). The others are sampled, as in `elbo`.

    Unbiased for L and its gradient, whatever the estimators of the sites.

    Args:
      model: a generative function with its arguments, over latents and data.
      guide: a generative function with its arguments, over the latents.
      data: the observed choices.

    Reference: Kingma and Welling (2014), eq. (7).
    """
    staged_q, found_q = guide.staged()
    staged_p, found_p = model.staged()
    closed = _in_closed_form(valued(found_p), valued(found_q))

    def with_parameters(site, operands, value):
        return value, tuple(operands[: site.num_distribution]) if site.address in closed else ()

    drawing = weighing(lambda site, _: Drawn(weighs=site.address not in closed), emit=with_parameters, name="simulate")
    _, totals, emits = run(staged_q.jaxpr, [], drawing, {})
    log_q = totals.get("log_w", jnp.zeros(()))
    choices = merge_emits(valued(found_q), {path: value for path, (value, _) in emits.items()})
    given = match(merge(choices, data), valued(found_p), model.name, complete=True)
    sources = {
        p.site.address: (p.site.distribution, emits[p.path][1]) for p in valued(found_q) if p.site.address in closed
    }
    site_inputs: dict[Path, tuple[Array, tuple[ArrayLike, ...]]] = {
        p.path: (given[p.site.address], sources[p.site.address][1] if p.site.address in closed else ())
        for p in valued(found_p)
    }

    def policy(site, given):
        value, leaves = given

        def minus_divergence(site, operands, *_):
            q, p = sources[site.address][0], site.distribution
            kl = _divergence(q.combine(leaves), p.combine(operands[: site.num_distribution]))
            return -jnp.sum(kl).astype(float)

        return Given(value, minus_divergence) if site.address in closed else Given(value)

    _, totals, _ = run(staged_p.jaxpr, [], weighing(policy, emit=None, name="assess"), site_inputs)
    return totals.get("log_w", jnp.zeros(())) - log_q


def _in_closed_form(of_model: list[SiteInfo], of_guide: list[SiteInfo]) -> set[Address]:
    """The addresses whose divergence is taken in closed form."""
    in_model, in_guide = _by_address(of_model), _by_address(of_guide)
    common = [a for a in in_model if a in in_guide]
    if common != [a for a in in_guide if a in in_model]:
        return set()
    return {a for a in common if _has_closed_form(in_guide[a], in_model[a])}


def _by_address(found: list[SiteInfo]) -> dict[Address, list[SiteInfo]]:
    """The places of each address, in the order in which the addresses are met first."""
    places: dict[Address, list[SiteInfo]] = {}
    for info in found:
        places.setdefault(info.site.address, []).append(info)
    return places


def _has_closed_form(q: list[SiteInfo], p: list[SiteInfo]) -> bool:
    """Whether the guide and the model have one place each, in the same lanes, and a divergence between them."""
    if len(q) > 1 or len(p) > 1 or q[0].loops != p[0].loops:
        return False
    return _plain(q[0]) and _plain(p[0]) and _has_divergence(q[0], p[0])


def _plain(info: SiteInfo) -> bool:
    has_law = info.site.distribution is not None and not (info.site.scaled or info.site.log_shape)
    return has_law and not info.in_branch and all(loop.kind == "lane" for loop in info.loops)


def _has_divergence(q: SiteInfo, p: SiteInfo) -> bool:
    def divergence(q_leaves, p_leaves):
        return _divergence(q.site.distribution.combine(q_leaves), p.site.distribution.combine(p_leaves))

    try:
        jax.eval_shape(divergence, q.distribution_avals, p.distribution_avals)
    except (NotImplementedError, ValueError, TypeError):
        return False
    return True


def _divergence(q: dist.Distribution, p: dist.Distribution) -> ArrayLike:
    """KL(q || p) by NumPyro; independent Normals beside a MultivariateNormal are one with a diagonal covariance."""
    if isinstance(p, dist.MultivariateNormal):
        q = _as_multivariate(q, p)
    elif isinstance(q, dist.MultivariateNormal):
        p = _as_multivariate(p, q)
    return dist.kl_divergence(q, p)


def _as_multivariate(d: dist.Distribution, like: dist.MultivariateNormal) -> dist.Distribution:
    """Normals over arrays of the same shape as a MultivariateNormal; anything else stays what it is."""
    base = d
    while isinstance(base, (dist.Independent, dist.ExpandedDistribution)):
        base = base.base_dist
    if not isinstance(base, dist.Normal) or d.shape() != like.shape():
        return d
    loc, scale = (jnp.broadcast_to(jnp.asarray(x), d.shape()) for x in (base.loc, base.scale))
    return dist.MultivariateNormal(loc, scale_tril=scale[..., None] * jnp.eye(scale.shape[-1], dtype=scale.dtype))
