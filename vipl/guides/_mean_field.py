"""Guides with one site for each latent choice, independent of the others."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from numpyro.distributions import biject_to
from numpyro.distributions.transforms import IdentityTransform, Transform

from vipl._types import Array, Float, PRNGKeyArray, PyTree
from vipl.distributions._integers import categorical
from vipl.estimators import Enumerate, LeaveOneOut, Score
from vipl.gen import Estimator, Program, sample
from vipl.gen._choices import Address, flatten, nest
from vipl.gen._sample import check_estimator
from vipl.guides._coordinates import Discrete
from vipl.guides._guide import ModelGuide

FEW = 256
"""The most joint values of a discrete choice that are enumerated."""


class MeanField(ModelGuide):
    """Independent choices: Gaussians in unconstrained coordinates, and probabilities of each discrete value.

    z = T(u),   u_i ~ N(loc_i, exp(log_scale_i)²);   P(element = v) = softmax(logits)_v of a discrete one.

    Parameters, by address: `loc` and `log_scale`, of the shape of the coordinates; or `logits`, of the choice's shape
    for elements that are 0 or 1, with a last axis of K for those of K other values.
    Cost: as many draws and densities as there are coordinates. Use it where there are many latent choices, and
    correlations in the posterior matter little: it understates the spread of correlated choices.
    Where a support depends on other choices, or a site stands in a branch, the guide runs the model's own control flow
    around its sites; otherwise a choice is drawn whole, outside loops.

    Unbiased derivatives: real choices are reparametrized; a discrete choice is enumerated if it takes at most 256 joint
    values, or stands in lanes alone, else it has `Score(LeaveOneOut())`, which wants `num_samples` of 2 or more.

    Reference: Kucukelbir et al. (2017), "Automatic differentiation variational inference", eq. (8).
    """

    def __init__(
        self,
        model: Program,
        data: Mapping[str, Any],
        *,
        addresses: Any = None,
        discrete: Estimator | None = None,
    ):
        """See `Guide`; `discrete` is the estimator of discrete choices, None as said above."""
        if discrete is not None:
            check_estimator(discrete, "MeanField")
        self.discrete = discrete
        super().__init__(model, data, addresses=addresses)

    @property
    def options(self) -> dict[str, Any]:
        """See `Guide.options`."""
        return super().options | {"discrete": self.discrete}

    def _function(self) -> Callable[[PyTree], Any]:
        latents = self.latents
        integers = {x.address: x for x in latents.discrete}

        def at_site(address: Address, d: Any, params: dict[str, Array]) -> Array:
            if address in integers:
                return _sample_discrete(integers[address], params["logits"], self._estimator(integers[address]), ())
            return _sample_real(address, biject_to(d.support), params)

        def function(params: PyTree) -> Any:
            each = by_address(params, type(self).__name__)
            if latents.in_place:
                return nest(latents.guided(each, at_site))
            bijections = latents.bijections()
            out = {a: _sample_real(a, bijections[a], each[a]) for a in bijections}
            for x in latents.discrete:
                out[x.address] = _sample_discrete(x, each[x.address]["logits"], self._estimator(x), x.shape)
            return nest(out)

        return function

    def _estimator(self, x: Discrete) -> Estimator:
        if self.discrete is not None:
            return self.discrete
        in_lanes = len(x.loops) == len(x.shape) and all(x.loops)
        return Enumerate() if in_lanes or x.number ** math.prod(x.shape) <= FEW else Score(LeaveOneOut())

    def of_moments(self, loc: Float[Array, " n"], scale: Float[Array, " n"]) -> PyTree:
        """The parameters with these means and standard deviations of the coordinates; of real choices alone."""
        split, scales = self.latents.split(loc), self.latents.split(scale)
        return nest({a: {"loc": split[a], "log_scale": jnp.log(scales[a])} for a in split})  # type: ignore[arg-type]

    def _init(self, u: dict[Address, Array], scale: Float[Array, ""], key: PRNGKeyArray) -> PyTree:
        params = {a: {"loc": x, "log_scale": jnp.full(x.shape, jnp.log(scale), x.dtype)} for a, x in u.items()}
        for x in self.latents.discrete:
            params[x.address] = {"logits": jnp.zeros(x.shape if x.is_flip else (*x.shape, x.number))}
        return nest(params)  # type: ignore[arg-type]


def by_address(params: PyTree, role: str) -> dict[Address, dict[str, Array]]:
    """The parameters of each choice."""
    out: dict[Address, dict[str, Array]] = {}
    for (*address, name), x in flatten(params, f"the parameters of {role}").items():
        out.setdefault(tuple(address), {})[name] = x
    return out


def _sample_real(address: Address, bijection: Transform, params: dict[str, Array]) -> Array:
    base = dist.Normal(params["loc"], jnp.exp(params["log_scale"]))
    d = base if isinstance(bijection, IdentityTransform) else dist.TransformedDistribution(base, bijection)
    return sample(address, d)


def _sample_discrete(x: Discrete, logits: Array, estimator: Estimator, shape: tuple[int, ...]) -> Array:
    """A choice whose elements are sites of their own, in lanes."""
    if shape:
        return jax.vmap(functools.partial(_sample_discrete, x, estimator=estimator, shape=shape[1:]))(logits)
    return sample(x.address, dist.Bernoulli(logits=logits) if x.is_flip else categorical(logits, x.low), estimator)
