"""What a program that is staged can be asked about its sites.

While `probing()` is active, the sites tell the host what they see when the program runs: whether their parameters,
their value and its log density are finite, and the derivatives that come back to their parameters. So the first site
where a number is not finite is found.

While `tallying(tally)` is active, programs note their sites, and add a number of the tally to each log density, in
which the derivative is what the site counts.

Invariant: outside of both nothing is added to a program.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.custom_batching
import jax.numpy as jnp
import numpy as np
from jax import lax

from vipl import _jax
from vipl._types import Array, ArrayLike
from vipl.ir.primitives import Site
from vipl.ir.sites import SiteInfo

DRAWN, WEIGHED = range(2)
"""Which sites come first: all that an objective draws, then all that its programs weigh; each in its order."""


class Report:
    """What the sites of one run told.

    Attributes:
      values: (order, site) of those with a number that is not finite -> what it is, and the site's parameters.
      slopes: the same of derivatives.
    """

    def __init__(self):
        """Nothing yet."""
        self.values: dict[tuple[tuple[int, int], str], tuple[str, str]] = {}
        self.slopes: dict[tuple[tuple[int, int], str], str] = {}
        self.numbers = itertools.count()

    def tell(
        self, order: tuple[int, int], at: str, names: Sequence[str], ndims: Sequence[int], *values: ArrayLike
    ) -> None:
        """Notes the first of them that is not finite, and the parameters of that lane.

        Args:
          order: of the site.
          at: the site.
          names: of its parameters.
          ndims: of all values, where they are not in lanes.
          values: the parameters, its value, its log density; each with the axes of the lanes first.
        """
        arrays = [np.asarray(x) for x in values]
        if all(np.isfinite(x).all() for x in arrays):
            return
        lanes = arrays[-1].shape[: arrays[-1].ndim - ndims[-1]]
        what = [*["a parameter of its distribution"] * len(names), "its value", "its log density"]
        for lane in np.ndindex(*lanes):
            here = [x[lane] for x in arrays]
            bad = [(w, x[~np.isfinite(x)].flat[0]) for w, x in zip(what, here, strict=True) if not np.isfinite(x).all()]
            if bad:
                each = [f"{name} = {_shown(x)}" for name, x in zip(names, here, strict=False)]
                told = (f"{bad[0][0]} is {bad[0][1]}", ", ".join(sorted(each)))
                self.values.setdefault((order, at), told)
                return

    def tell_slope(self, order: tuple[int, int], at: str, slope: ArrayLike) -> None:
        """Notes a derivative that is not finite."""
        if not np.all(np.isfinite(slope)):
            self.slopes[order, at] = "the derivative that comes back to its parameters is not finite"

    def sentence(self, *, of_derivative: bool) -> str | None:
        """What is to be said; None where no site is at fault. Derivatives count where they alone are not finite."""
        if self.values:
            (_, at), (what, parameters) = min(self.values.items())
            there = f" Its parameters are {parameters}." if parameters else ""
            return f"The first site where a number is not finite is {at}: {what}.{there}"
        if of_derivative and self.slopes:  # they go backwards, from where they arise to all that comes before
            (_, at), what = max(self.slopes.items())
            return f"The numbers of all sites are finite. The last site at which a derivative is not is {at}: {what}."
        return None


_active: Report | None = None
_generations = itertools.count(-1, -1)


@contextlib.contextmanager
def probing() -> Iterator[Report]:
    """Programs that are staged in the block tell the report when they run."""
    global _active
    before, _active = _active, Report()
    try:
        with _jax.in_generation(next(_generations)):  # no trace is shared with programs that do not tell
            yield _active
    finally:
        _active = before


def watch(kind: int, site: Site, operands: Sequence[Array]) -> Sequence[Array]:
    """The operands of a site, whose derivatives are told."""
    if _active is None:
        return operands
    tell = functools.partial(_active.tell_slope, (kind, next(_active.numbers)), site.at())
    return [_watched(tell, x) if _is_float(x) else x for x in operands]


def probe(kind: int, site: Site, operands: Sequence[Array], value: Array, log_prob: ArrayLike = 0.0) -> None:
    """Tells what a site sees: its operands, its value, and the log density of that."""
    if _active is None:
        return
    own = list(operands[: site.num_distribution])
    named = [(name, x) for name, x in zip(_names(site, len(own)), own, strict=True) if _is_float(x)]
    values = [*(x for _, x in named), value, log_prob]
    names, ndims = [name for name, _ in named], [jnp.ndim(x) for x in values]
    _call(functools.partial(_active.tell, (kind, next(_active.numbers)), site.at(), names, ndims), *values)


def _names(site: Site, number: int) -> list[str]:
    """What a site's distribution calls its arrays, as far as it has attributes of them."""
    markers = [object() for _ in range(number)]
    names = dict.fromkeys(map(id, markers), "a parameter")

    def look(x: object, depth: int) -> None:
        for name, value in getattr(x, "__dict__", {}).items():
            if id(value) in names:
                names[id(value)] = name.lstrip("_")
            elif depth < 4:
                look(value, depth + 1)

    if site.distribution is not None and markers:
        look(site.distribution.combine(markers), 0)
    return list(names.values())


def _shown(x: np.ndarray) -> str:
    """A number, or few; of more the range of those that are finite, and how many are not."""
    if x.size <= 4:
        return str(x.tolist()) if x.ndim else f"{x.item():.6g}"
    finite = x[np.isfinite(x)]
    bad = x.size - finite.size
    between = f"{finite.min():.6g} to {finite.max():.6g}" if finite.size else "no finite number"
    return f"{between} ({x.size} numbers{f', {bad} not finite' if bad else ''})"


def _is_float(x: ArrayLike) -> bool:
    return jnp.issubdtype(jnp.result_type(x), jnp.floating)


def _call(tell: Callable[..., None], *values: ArrayLike) -> None:
    """Calls the host once for all lanes, where `jax.debug.callback` alone calls it once for each, written out."""

    @jax.custom_batching.custom_vmap
    def call(*values):
        jax.debug.callback(tell, *values)
        return ()

    @call.def_vmap
    def _(size, in_lanes, *values):
        pairs = zip(values, in_lanes, strict=True)
        _call(tell, *(x if has else jnp.broadcast_to(x, (size, *x.shape)) for x, has in pairs))
        return (), ()

    call(*(lax.stop_gradient(jnp.asarray(x)) for x in values))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _watched(tell: Callable[[Array], None], x: Array) -> Array:
    return x


def _backward(tell: Callable[[Array], None], _: None, slope: Array) -> tuple[Array]:
    _call(tell, slope)
    return (slope,)


_watched.defvjp(lambda tell, x: (x, None), _backward)


# --- what a site counts -------------------------------------------------------------------------------------


Key = tuple[int, tuple[str, ...]]
"""The number of a program that is run, and the address of a site of it."""


class Counted(NamedTuple):
    """A site of a program that was run.

    Attributes:
      at: the site, for messages.
      size: how many numbers it draws in all passes of the loops around it.
      count: how many passes there are.
      scaled: whether its log density has a weight.
    """

    at: str
    size: int
    count: int
    scaled: bool


class Tally:
    """The sites of the programs that are run.

    Attributes:
      bumps: what is added to the log densities of sites, by the number of the program and the address.
      sites: by the same.
    """

    def __init__(self, bumps: Mapping[Key, Array] | None = None):
        """Nothing yet."""
        self.bumps = dict(bumps or {})
        self.sites: dict[Key, Counted] = {}
        self.numbers = itertools.count()


_tally: Tally | None = None


@contextlib.contextmanager
def tallying(tally: Tally) -> Iterator[Tally]:
    """Programs that are staged in the block note their sites in the tally."""
    global _tally
    before, _tally = _tally, tally
    try:
        with _jax.in_generation(next(_generations)):
            yield tally
    finally:
        _tally = before


def tally_sites(found: Sequence[SiteInfo]) -> Callable[[Site, Array], Array]:
    """Notes the sites of a program; what becomes of the log density of each: itself, outside `tallying`."""
    if _tally is None:
        return lambda _, log_prob: log_prob
    bumps, number = _tally.bumps, next(_tally.numbers)
    for info in found:
        size = info.count * math.prod(info.site.shape)
        _tally.sites[number, info.site.address] = Counted(info.site.at(), size, info.count, info.site.scaled)
    return lambda site, log_prob: log_prob + jnp.asarray(bumps.get((number, site.address), 0.0)).astype(log_prob.dtype)
