"""Densities of sites, and the checks that a source is a distribution a site can hold."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax import lax

from vipl import _compat
from vipl._errors import DistributionError, show_aval
from vipl.core._packed import Packed
from vipl.core._site import Site
from vipl.gen._supports import Interval, describe


@jax.tree_util.register_pytree_node_class
class Factor:
    """The source of `factor`: no value, a log weight as its log density."""

    has_rsample = True
    batch_shape = ()

    def __init__(self, log_weight: Any):
        """Keeps the log weight, f[...]; its sum counts."""
        self.log_weight = log_weight

    def tree_flatten(self) -> Any:
        """Pytree interface."""
        return (self.log_weight,), None

    @classmethod
    def tree_unflatten(cls, _: Any, children: Any) -> Factor:
        """Pytree interface."""
        return cls(*children)

    def sample(self, _: Any) -> Any:
        """Nothing to draw."""
        return jnp.zeros((0,))

    def log_prob(self, _: Any) -> Any:
        """The log weight."""
        return jnp.sum(self.log_weight)


def is_factor(site: Site) -> bool:
    """Says whether a site is a factor."""
    return site.source.treedef == jax.tree.structure(Factor(0.0))


_EVERYWHERE = Interval("real", -math.inf, math.inf)


def describe_source(d: Any) -> Any:
    """The support of a distribution as checks compare it; None where what it claims is not what it draws."""
    base = d
    while isinstance(base, (dist.Independent, dist.ExpandedDistribution, dist.MaskedDistribution)):
        base = base.base_dist
    claims = isinstance(base, (dist.Delta, dist.TransformedDistribution)) or base.support is None
    return None if claims and not _honest(base) else describe(d.support)


def _honest(d: Any) -> bool:
    """Whether a transformed distribution's support follows from its base's: every number for every number."""
    if not isinstance(d, dist.TransformedDistribution):
        return False
    base = d.base_dist
    while isinstance(base, (dist.Independent, dist.ExpandedDistribution)):
        base = base.base_dist
    return describe(base.support) == _EVERYWHERE


class _NoSampler(Exception):
    """The distribution cannot be drawn."""


@functools.lru_cache(maxsize=4096)
def _value_aval(packed: Packed, avals: tuple[Any, ...], mode: Any) -> tuple[Any, tuple[int, ...], tuple[int, ...]]:
    """Aval of a draw, shape of its log density, and the batch shape that the distribution claims."""
    del mode
    key = jax.eval_shape(lambda: jax.random.key(0))
    claimed: list[Any] = []

    def both(key, *leaves):
        d = packed.unpack(leaves)
        claimed.append(tuple(d.batch_shape))
        try:
            value = d.sample(key)
        except NotImplementedError as error:
            raise _NoSampler(str(error)) from error
        return value, d.log_prob(value)

    value, log_prob = jax.eval_shape(both, key, *avals)
    return value, tuple(log_prob.shape), claimed[0]


def check_distribution(source: Any, packed: Packed, leaves: Sequence[Any], at: str) -> Any:
    """The aval of one draw; raises where the source is not a distribution with up-to-date shapes."""
    if not isinstance(source, (dist.Distribution, Factor)):
        raise DistributionError(
            "the source of a site is neither a distribution nor a generative function with its arguments.",
            at=at,
            got=_describe_source(source),
            expected="a NumPyro distribution, or program(*args) with @vipl.gen on program",
            mend="pass e.g. numpyro.distributions.Normal(0.0, 1.0), or call the generative function",
        )
    try:
        hash(packed)
    except TypeError:
        raise DistributionError(
            "a distribution holds something that is neither an array nor hashable.",
            at=at,
            got=type(source).__name__,
            expected="a distribution that is a pytree of arrays",
            mend="build it from arrays, NumPyro's transforms and constraints",
        ) from None
    avals = tuple(_compat.typeof(x) for x in leaves)
    try:
        value, log_prob_shape, batch_shape = _value_aval(packed, avals, _compat.numeric_mode())
    except _NoSampler:
        raise DistributionError(
            "a distribution cannot be drawn from.",
            at=at,
            got=type(source).__name__,
            expected="a distribution with a sampler",
            mend="use a proper distribution, and put the ratio of densities into vipl.factor",
        ) from None
    if log_prob_shape != batch_shape:
        raise DistributionError(
            "a distribution's batch shape is out of date; its draws would repeat or misalign.",
            at=at,
            got=f"{type(source).__name__} that claims batch shape {batch_shape}, "
            f"with densities of shape {log_prob_shape}",
            expected="a distribution built from its parameters where it is used",
            mend="build the distribution inside jax.vmap, from mapped parameters, not outside it",
        )
    if not hasattr(value, "shape"):
        raise DistributionError(
            "a distribution's draw is not one array.",
            at=at,
            got=type(source).__name__,
            expected="a distribution over one array",
            mend="split it into several sites",
        )
    return value


def _describe_source(source: Any) -> str:
    if callable(source) and hasattr(source, "__name__"):
        return f"the function {source.__name__} itself"
    return f"{show_aval(source)} of {type(source).__module__.split('.')[0]}"


def in_support(d: Any, value: Any) -> Any:
    """Where the density may be nonzero; masked entries and NaN count as inside, so that NaN stays NaN."""
    if isinstance(d, dist.MaskedDistribution):
        return jnp.logical_or(jnp.logical_not(d._mask), in_support(d.base_dist, value))
    ok = d.support(value)
    if jnp.issubdtype(value.dtype, jnp.inexact):
        nan = jnp.isnan(value)
        ok = ok | jnp.any(nan, axis=tuple(range(jnp.ndim(ok), nan.ndim)))
    return ok


def site_log_prob(site: Site, operands: Sequence[Any], value: Any, *, check_support: bool) -> Any:
    """f[], the log density of a site's value, summed over batch dimensions.

    Args:
      site: the site.
      operands: its operands.
      value: [...], the value.
      check_support: whether values outside the support get -inf (NumPyro's densities alone do not).
    """
    d = site.source.unpack(operands[: site.num_source])
    log_prob = d.log_prob(value)
    if check_support and not is_factor(site) and site.support != _EVERYWHERE:
        log_prob = jnp.where(in_support(d, value), log_prob, -jnp.inf)
    return lax.convert_element_type(jnp.sum(log_prob), float)
