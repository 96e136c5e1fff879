"""What a gradient estimator is: one method that puts a few weighted points in the place of a distribution.

A site draws x ~ p_θ, and the rest of the program is a function k(x). An estimator replaces p_θ by a random
*signed measure with finitely many points*, Σ_j w_j δ(x_j), whose expectation is p_θ and whose θ-derivatives
are unbiased for those of p_θ:

    E[Σ_j w_j(θ) k(x_j(θ))] = E_{p_θ}[k(x)],   and the same for the derivatives in θ.

That is all that the score function, reparametrization, enumeration and measure-valued derivatives do; and,
unlike a continuation that an estimator calls at will, points can be carried through `scan`, `vmap` and `cond`.
There are two forms:

- `Draw`: one point whose weight is 1 in value and may carry a derivative, a term of mean zero (control
  variate), and alternatives whose weights are 0 in value: only their derivatives count.
- `Points`: several points with weights that sum to 1; the program is evaluated for all of them.
"""

from __future__ import annotations

import abc
import dataclasses
import typing
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpyro.distributions as dist

from vipl._types import Array, ArrayLike, Bool, Float, PRNGKeyArray, PyTree, Shaped
from vipl.distributions._draws import Point, draw, log_density, standing


class Law:
    """The distribution of one site, as an estimator sees it: one lane, unmasked.

    Attributes:
      dist: the NumPyro distribution, of the family that the site has. A mask changes the density that a program counts,
        not what is drawn; the derivative of an expectation needs the density of what is drawn, so masks are taken off.
    """

    def __init__(self, distribution: dist.Distribution):
        """Takes the masks off."""
        self.dist: Any = unmasked(distribution)

    def sample(self, key: PRNGKeyArray) -> Shaped[Array, "..."]:
        """Draws a value; differentiable in the parameters where the distribution is reparametrized."""
        return self.draw(key).value

    def draw(self, key: PRNGKeyArray) -> Point:
        """Draws a value with what is known of it beside: its log density is that of the number before it was rounded.

        An estimator that hands the point on as `Draw(..., point=point)` has the site's density computed so.
        """
        return draw(self.dist, key)

    def standing(self, point: Point) -> Point:
        """The same point without a derivative of its value, as a score needs it."""
        return standing(self.dist, point)

    def log_prob(self, value: Shaped[ArrayLike, "..."] | Point) -> Float[Array, ""]:
        """f[], the log density of the whole value, or of a point, summed over batch dimensions."""
        return jnp.sum(log_density(self.dist, value if isinstance(value, Point) else Point(jnp.asarray(value))))


def unmasked(d: dist.Distribution) -> dist.Distribution:
    """The distribution that draws what `d` draws, without masks on its density."""
    if isinstance(d, dist.MaskedDistribution):
        return unmasked(d.base_dist)
    if not isinstance(d, (dist.Independent, dist.ExpandedDistribution)):
        return d
    base = unmasked(d.base_dist)
    if base is d.base_dist:
        return d
    is_event = isinstance(d, dist.Independent)
    return base.to_event(d.reinterpreted_batch_ndims) if is_event else base.expand(d.batch_shape)


class Alternatives(NamedTuple):
    """Points whose weights are zero in value.

    Attributes:
      values: [n, ...], the other values of the site.
      weights: f[n], zero in value: (θ - stop_gradient(θ)) c. The main draw implicitly has minus their sum.
      possible: bool[n]; of a value that is not, nothing counts, whatever comes out of the run at it. None: all are.
    """

    values: Shaped[Array, "n ..."]
    weights: Float[Array, " n"]
    possible: Bool[Array, " n"] | None = None


class Draw(NamedTuple):
    """One point, with what its derivatives need.

    The surrogate is  exp(l - sg l) k(x) + control + Σ_j weights_j (k(values_j) - k(x)),  with k the part of the
    objective that the site reaches; all of it, where there is a control.

    Attributes:
      value: the value of the site, x.
      log_weight: f[], l; its derivative is the score. None for 0.
      control: f[], a term of mean zero and value 0, such as b (1 - exp(l - sg l)). None for 0.
      shared_control: f[], the same with b the mean of the other samples of `estimate(num_samples=...)`.
      alternatives: points of weight 0, or None. With them a second derivative raises.
      pruned: the same, of which one alone is run: drawn uniformly among those of all sites, it counts for all.
      fixed: pytree of parameters in which the estimator has no derivative; differentiating in them raises.
      point: the `Point` that the value is of, moving as the value does; None: nothing but the value is known.
    """

    value: Shaped[Array, "..."]
    log_weight: Float[Array, ""] | None = None
    control: Float[Array, ""] | None = None
    shared_control: Float[Array, ""] | None = None
    alternatives: Alternatives | None = None
    pruned: Alternatives | None = None
    fixed: PyTree = None
    point: Point | Float[Array, "..."] | None = None


class Points(NamedTuple):
    """Several points; the program is evaluated for each.

    The surrogate is  Σ_j exp(log_weights_j) k(values_j).

    Attributes:
      values: [n, ...].
      log_weights: f[n], differentiable; their exponentials sum to 1.
      possible: bool[n]; a value that is not has weight zero, and is not evaluated: another one stands in, one that is
        possible. None: all are.
    """

    values: Shaped[Array, "n ..."]
    log_weights: Float[Array, " n"]
    possible: Bool[Array, " n"] | None = None


@typing.dataclass_transform(frozen_default=True)
class Estimator(abc.ABC):
    """Base of all gradient estimators: a frozen dataclass and a pytree with one method, `points`.

    Fields may be arrays (also values computed in the program), numbers, or hashable objects.

    Attributes:
      makes_float: whether the site's value is a float, whatever the distribution draws: for relaxations of discrete
        values. It is asked at the site; `with_estimators` does not change what a site is.
      has_weights: whether its points may have anything besides a value: weights, a control, alternatives. By these the
        elements of a vector site are told apart; where there are none, it is not taken apart, which is quicker.
    """

    makes_float: typing.ClassVar[bool] = False
    has_weights: typing.ClassVar[bool] = True

    def __init_subclass__(cls, **kwargs: object):
        """Makes the subclass a frozen dataclass and a pytree."""
        super().__init_subclass__(**kwargs)
        dataclasses.dataclass(frozen=True)(cls)
        names = [f.name for f in dataclasses.fields(cls)]  # type: ignore[arg-type]
        jax.tree_util.register_dataclass(cls, data_fields=names, meta_fields=[])

    @abc.abstractmethod
    def points(self, law: Law, key: PRNGKeyArray) -> Draw | Points:
        """Replaces the law of one site by weighted points.

        Written for one site in one lane; loops, lanes and branches around it are not its concern.

        Args:
          law: the distribution; its parameters are differentiable.
          key: PRNG key, consumed.

        Raises:
          EstimatorError: the law is not one that the estimator can serve.
        """


def box(log_weight: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """exp(l - stop_gradient(l)): equals 1, carries the derivatives of the score.

    Reference: Foerster et al. (2018), "DiCE: The infinitely differentiable Monte Carlo estimator", eq. (5).
    """
    return jnp.exp(log_weight - jax.lax.stop_gradient(log_weight))
