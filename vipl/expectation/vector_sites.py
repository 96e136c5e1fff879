"""Vector sites become lanes of sites of one element (`vipl.gen._each`), so that their elements are told apart."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import jax

from vipl import _jax
from vipl._jax import Eqn, Jaxpr, ShapedArray
from vipl._types import Array
from vipl.gen._each import Separated, separated
from vipl.ir.batching import has_site
from vipl.ir.composite import composite_p
from vipl.ir.dataflow import plain, walk
from vipl.ir.primitives import Site, lanes_p, sample_p

Address = tuple[str, ...]

Vectors = Mapping[tuple[Address, tuple[int, ...]], Separated]
"""Address and shape of the values of a site -> the site, taken apart along all of its axes."""

Axes = Mapping[tuple[Address, tuple[int, ...]], int]
"""Address and shape of the values of a site -> how many axes of its elements are lanes."""


def separate_sites(
    jaxpr: Jaxpr, with_estimator: Callable[[Site, tuple[ShapedArray, ...]], Site], axes: Axes
) -> tuple[Jaxpr, Vectors]:
    """The same program with vector sites in lanes.

    Args:
      jaxpr: the program.
      with_estimator: (site, abstract values of its operands) -> the site with its estimator.
      axes: sites that are taken apart along some of their axes only, where their estimators serve that, too.

    Returns:
      The program, and the sites that were taken apart.
    """
    vectors: dict[tuple[Address, tuple[int, ...]], Separated] = {}

    found: dict[int, tuple[Site, Separated | None]] = {}  # by the identity of an equation

    def find(eqn: Eqn) -> tuple[Site, Separated | None]:
        if id(eqn) not in found:
            found[id(eqn)] = look(eqn)
        return found[id(eqn)]

    def look(eqn: Eqn) -> tuple[Site, Separated | None]:
        avals = tuple(v.aval for v in eqn.invars)
        site = with_estimator(eqn.params["site"], avals)
        return site, None if site.estimator is None else _taken_apart(site, avals, axes)

    def in_sight(eqn: Eqn) -> bool:
        if eqn.primitive is sample_p:
            return find(eqn)[1] is not None
        return has_site(eqn) and any(map(holds, _bodies(eqn)))

    def holds(jaxpr: Jaxpr) -> bool:
        return any(map(in_sight, _jax.parts(jaxpr).eqns))

    def inside(jaxpr: Jaxpr) -> Jaxpr:
        if not holds(jaxpr):
            return jaxpr
        return jax.make_jaxpr(lambda *args: walk(jaxpr, args, visit))(*(v.aval for v in _jax.parts(jaxpr).invars))

    def visit(i: int, eqn: Eqn, values: list[Array]) -> Sequence[Array]:
        if not in_sight(eqn):
            return plain(i, eqn, values)
        with _jax.eqn_context(eqn):
            if eqn.primitive is sample_p:
                site, apart = find(eqn)
                assert apart is not None
                vectors[site.address, site.shape] = apart
                return apart.bind(site, values)
            if eqn.primitive is _jax.remat_p:
                (body,) = _bodies(eqn)
                return jax.checkpoint(lambda *xs: walk(body, xs, visit), **_jax.remat_options(eqn.params))(*values)
            if eqn.primitive is composite_p:
                composite = eqn.params["composite"]
                return composite_p.bind(*values, composite=replace(composite, draw=inside(composite.draw)))
            return eqn.primitive.bind(*values, **_jax.map_bodies(eqn, inside))

    return inside(jaxpr), vectors


def _bodies(eqn: Eqn) -> Sequence[Jaxpr]:
    """The programs in an equation that are looked into; in a `while` no site has an estimator."""
    if eqn.primitive is composite_p:
        return (eqn.params["composite"].draw,)
    known = (_jax.scan_p, _jax.cond_p, _jax.remat_p, _jax.jit_p, lanes_p)
    return _jax.bodies(eqn) if eqn.primitive in known else ()


def _taken_apart(site: Site, avals: tuple[ShapedArray, ...], axes: Axes) -> Separated | None:
    """A site taken apart along the axes that are wanted, or along all where its estimator does not serve that."""
    fully, number = separated(site, avals), axes.get((site.address, site.shape))
    if fully is None or number is None:
        return fully
    if number == 0:
        return None if fully.whole_is_served else fully
    return separated(site, avals, number) or fully
