"""What a guide has to know of the choices of a program before it is made: which are latent, and their coordinates.

A real choice has as many coordinates as the bijection onto its support takes; a discrete one has finitely many values.
What no guide can be made for is refused here, by the site.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from numpyro.distributions import biject_to

from vipl import _jax
from vipl._types import Array, Float
from vipl.distributions._draws import innermost
from vipl.errors import (
    AddressError,
    ChoiceError,
    DistributionError,
    ProgramError,
    SupportError,
    shortened,
    show_address,
    show_addresses,
)
from vipl.gen._choices import Address, check_address
from vipl.ir.primitives import Site
from vipl.ir.sites import SiteInfo


class Latent(NamedTuple):
    """One latent choice that is a real array.

    Attributes:
      address: where it stands.
      shape: its shape, the axes of the loops around its site first.
      coordinates: the shape of its coordinates, with the same first axes.
      loops: of each of these axes, whether it is a `vmap`.
      dtype: of the choice and of its coordinates.
      at: the site, for messages.
      region: the site's support.
      present: bool[*loops], which passes of the loops make it; None: all.
    """

    address: Address
    shape: tuple[int, ...]
    coordinates: tuple[int, ...]
    loops: tuple[bool, ...]
    dtype: Any
    at: str
    region: Any
    present: np.ndarray | None = None

    @property
    def passes(self) -> tuple[bool, ...]:
        """Of each leading axis of the coordinates, whether it is a `vmap`."""
        return self.loops if self.present is None else (all(self.loops),)

    @property
    def size(self) -> int:
        """How many coordinates it has."""
        return math.prod(self.coordinates)


class Discrete(NamedTuple):
    """One latent choice of integers.

    Attributes:
      address: where it stands.
      shape: its shape, the axes of the loops around its site first.
      dtype: of the choice.
      low: the smallest value.
      number: how many values one element takes.
      loops: of every leading axis, whether it is a `vmap`.
    """

    address: Address
    shape: tuple[int, ...]
    dtype: Any
    low: int
    number: int
    loops: tuple[bool, ...]

    @property
    def is_flip(self) -> bool:
        """Whether its values are 0 and 1."""
        return (self.low, self.number) == (0, 2)


class Coordinates:
    """The latent choices of a program, or of one row of its plate, and the vector of their coordinates.

    Attributes:
      real: the latent choices that are real, in the order of their sites.
      discrete: those that are integers.
      in_branch: whether a latent site stands in a branch of a `cond`, and it is not known which passes take it.
    """

    def __init__(self, real: tuple[Latent, ...], discrete: tuple[Discrete, ...], in_branch: bool):  # noqa: FBT001
        """Keeps them."""
        self.real, self.discrete, self.in_branch = real, discrete, in_branch

    @property
    def size(self) -> int:
        """n, how many coordinates there are."""
        return sum(x.size for x in self.real)

    def split(self, u: Float[Array, "... n"]) -> dict[Address, Array]:
        """The coordinates of each choice from the vector of all."""
        out, start = {}, 0
        for x in self.real:
            out[x.address] = u[..., start : start + x.size].reshape(*u.shape[:-1], *x.coordinates)
            start += x.size
        return out

    def join(self, parts: Mapping[Address, Array]) -> Float[Array, " n"]:
        """The vector of all coordinates."""
        return jnp.concatenate([jnp.ravel(parts[x.address]) for x in self.real])

    def of_row(self) -> Coordinates:
        """Those of one lane of the `vmap` that is outermost around all of them."""
        real = tuple(x._replace(shape=x.shape[1:], coordinates=x.coordinates[1:], loops=x.loops[1:]) for x in self.real)
        discrete = tuple(x._replace(shape=x.shape[1:], loops=x.loops[1:]) for x in self.discrete)
        return Coordinates(real, discrete, self.in_branch)


def without_datum(found: Sequence[SiteInfo], given: Mapping[Address, Array], role: str, program: str) -> list[SiteInfo]:
    """The sites without a datum; raises where there is none."""
    latent = [info for info in found if info.site.address not in given]
    if not latent:
        raise ProgramError(
            "a program has no latent choices.",
            at=role,
            got=f"choices for all sites of {program}",
            expected="at least one site without a datum",
            fix="leave the latent sites out of the data",
        )
    return latent


def check_numbers(given: Mapping[Address, Array], found: Sequence[SiteInfo], role: str) -> None:
    """Raises where a datum is NaN, as far as data are known, and their densities do not say what NaN means."""
    for info in found:
        x = given.get(info.site.address)
        if x is None or isinstance(x, _jax.Tracer) or not jnp.issubdtype(x.dtype, jnp.floating):
            continue
        number = int(np.isnan(np.asarray(x)).sum())
        if number and not _knows_missing(info):
            raise ChoiceError(
                "the data hold NaN.",
                at=info.site.at(),
                got=f"{number} NaN among {x.size} numbers",
                expected=f"numbers alone in the data of {role}",
                fix="if these are not observed, write program, data = vipl.partly_observed(model, data), and pass both",
            )


def check_inside(given: Mapping[Address, Array], found: Sequence[SiteInfo]) -> None:
    """Raises where a datum lies outside fixed bounds of its site, as far as data are known: its density is zero.

    Not where a site is not met by every run, counts by a weight, or may leave data out.
    """
    for info in found:
        x, region = given.get(info.site.address), info.site.support
        if x is None or region is None or isinstance(x, _jax.Tracer) or info.in_branch or info.site.scaled:
            continue
        x = np.asarray(x)
        outside = np.zeros(x.shape, bool)
        for bound, beyond in ((region.low, np.less), (region.high, np.greater)):
            if bound is not None:
                edge = bound.array()
                outside |= beyond(x, edge.astype(x.dtype) if jnp.issubdtype(x.dtype, jnp.floating) else edge)
        if not outside.any() or _knows_missing(info):
            continue
        first = tuple(map(int, np.argwhere(outside)[0]))
        raise SupportError(
            "a datum lies outside the support of its site.",
            at=info.site.at(),
            got=f"{x[first]} at index {list(first)}, and {int(outside.sum())} of {x.size} numbers outside in all",
            expected=str(region),
            fix="look at these numbers; or take a distribution that can draw them",
        )


def _knows_missing(info: SiteInfo) -> bool:
    """Whether a site's density may leave data out, by a mask of its own; of `marginal` and `normalize` that is open."""
    if info.site.distribution is None:
        return True
    d = info.site.distribution.combine(info.distribution_avals)
    while isinstance(d, (dist.Independent, dist.ExpandedDistribution)):
        d = d.base_dist
    return isinstance(d, dist.MaskedDistribution) or getattr(d, "observed", None) is not None


def chosen_addresses(addresses: Any, unique: Mapping[Address, Any], program: str, role: str) -> list[Address]:
    """The latent addresses that are asked for, in the order of the program."""
    if addresses is None:
        return list(unique)
    at = f"the addresses of {role}"
    if not isinstance(addresses, Iterable):
        raise AddressError(
            "the addresses of a guide are not addresses.",
            at=at,
            got=shortened(addresses),
            expected=f"a string, or a list of some of {program}'s latent addresses {show_addresses(unique)}",
            fix='write addresses=["x", ("layer", "w")]',
        )
    wanted = [check_address(a, at) for a in ([addresses] if isinstance(addresses, str) else addresses)]
    chosen = [a for a in unique if any(a[: len(w)] == w for w in wanted)]
    missing = [w for w in wanted if not any(a[: len(w)] == w for a in unique)]
    if missing or not chosen:
        raise AddressError(
            "a guide is asked for an address that is no latent choice.",
            at=at,
            got=show_addresses(missing) if missing else "no addresses",
            expected=f"{program}'s latent addresses {show_addresses(unique)}",
            fix="name some of these",
        )
    return chosen


def read_all(chosen: Sequence[SiteInfo], role: str) -> tuple[tuple[Latent, ...], tuple[Discrete, ...]]:
    """What a guide has to know of its sites: of the real ones, and of those of integers."""
    read = [_read(info, role) for info in chosen]
    return tuple(x for x in read if isinstance(x, Latent)), tuple(x for x in read if isinstance(x, Discrete))


def _read(info: SiteInfo, role: str) -> Latent | Discrete:
    """What a guide has to know of a latent site; raises where no guide can be made for it."""
    site = info.site
    d = distribution_of(site, [jnp.zeros(a.shape, a.dtype) for a in info.distribution_avals])
    if d is None:
        expected = "a distribution of NumPyro at the site, or a guide of vipl.guides whose supports are fixed"
        raise _unsupported(site, role, "a value of a program whose density is computed as a whole", expected)
    shape = info.loop_shape + site.shape
    loops = tuple(loop.kind == "lane" for loop in info.loops)
    if not jnp.issubdtype(site.dtype, jnp.floating):
        low, number = _values_of(site, d, role)
        return Discrete(site.address, shape, site.dtype, low, number, loops)
    name = type(innermost(d)).__name__
    try:
        bijection = biject_to(d.support)
        coordinates = bijection.inverse_shape(site.shape)
    except (NotImplementedError, AttributeError, TypeError, ValueError):
        expected = "a support that NumPyro's biject_to maps onto"
        raise _unsupported(site, role, f"{name}, whose support has no bijection from real numbers", expected) from None
    if isinstance(innermost(d), dist.Delta):
        expected = "latent sites with a density; a computed value is no choice"
        raise _unsupported(site, role, "a point mass, which is no density", expected)
    present = info.present
    passes = info.loop_shape if present is None else (int(present.sum()),)
    return Latent(site.address, shape, passes + tuple(coordinates), loops, site.dtype, site.at(), site.support, present)


def distribution_of(site: Site, operands: Sequence[Array]) -> Any:
    """A site's distribution; of a composite's value one that only has its support; None where that is not known."""
    if site.distribution is not None:
        return site.distribution.combine(operands[: site.num_distribution])
    constraint = None if site.constraint is None else site.constraint()
    return None if constraint is None else dist.ImproperUniform(constraint, (), site.shape)


def _values_of(site: Site, d: Any, role: str) -> tuple[int, int]:
    """The smallest value of one element of a discrete site, and how many there are."""
    region = site.support
    low = None if region is None or region.low is None else region.low.array()
    high = None if region is None or region.high is None else region.high.array()
    name = type(innermost(d)).__name__
    if (
        low is None
        or high is None
        or region is None
        or region.structure is not None
        or not np.isfinite([low.min(), high.max()]).all()
    ):
        expected = "finitely many values for each element"
        raise _unsupported(site, role, f"{name}, whose values are not known to be finitely many", expected)
    return int(low.min()), int(high.max()) - int(low.min()) + 1


def _unsupported(site: Site, role: str, got: str, expected: str) -> DistributionError:
    return DistributionError(
        "no guide can be made for a latent site.",
        at=site.at(),
        got=got,
        expected=expected,
        fix=f"write the guide of {show_address(site.address)} as a program, and combine it with {role} of the others",
    )
