"""Which equations hold sites; and what `jax.vmap` does to those that do.

A site is found by the effects of an equation *and* by its parameters: neither alone finds all of them.
"""

from __future__ import annotations

import contextlib
import functools
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax

from vipl import _jax
from vipl._jax import AxisData, Eqn, Jaxpr, Params, Primitive, Tracer
from vipl._types import Array
from vipl.ir.dataflow import backward
from vipl.ir.primitives import Batched, Lane, Site, defer_lanes, sample_effect, sample_p

_SIMPLE = (type(None), bool, int, float, complex, str, bytes, type)


def jaxprs_inside(x: object, seen: set[int], depth: int = 0) -> Iterator[Jaxpr]:
    """The jaxprs in a parameter, also those in objects, closures and containers."""
    if isinstance(x, _SIMPLE) or id(x) in seen or depth > 6:
        return
    seen.add(id(x))
    if _jax.is_jaxpr(x):
        yield x
        return
    for part in _parts(x):
        yield from jaxprs_inside(part, seen, depth + 1)


def _parts(x: object) -> Iterator[object]:
    """What an object holds: entries, contents of cells, attributes; of arrays, of NumPy's objects and of sites none."""
    if isinstance(x, dict):
        yield from x.values()
    elif isinstance(x, (tuple, list, set, frozenset)):
        yield from x
    elif not isinstance(x, (jax.Array, Tracer, Site, Lane)) and not type(x).__module__.startswith("numpy"):
        for cell in getattr(x, "__closure__", None) or ():
            with contextlib.suppress(ValueError):  # an empty cell
                yield cell.cell_contents
        slots = [s for c in type(x).__mro__ for s in _names(getattr(c, "__slots__", ()))]
        for name in [*getattr(x, "__dict__", {}), *slots]:
            yield getattr(x, name, None)


def _names(slots: str | Iterable[str]) -> Sequence[str]:
    return (slots,) if isinstance(slots, str) else tuple(slots)


# Primitives whose parameters hold functions only for their own derivative rules or lowering: searching the
# objects in them is slow and finds nothing that runs. Their jaxprs are searched all the same.
_JAXPR_ONLY = {
    _jax.jit_p, _jax.scan_p, _jax.cond_p, _jax.while_p, _jax.remat_p,
    _jax.custom_jvp_call_p, _jax.custom_vjp_call_p,
}  # fmt: skip


def _params_hold_site(eqn: Eqn) -> bool:
    if eqn.primitive in _JAXPR_ONLY:
        return any(map(holds_site, _jax.bodies(eqn)))
    seen: set[int] = set()
    return any(holds_site(jaxpr) for value in eqn.params.values() for jaxpr in jaxprs_inside(value, seen))


def has_site(eqn: Eqn) -> bool:
    """Says whether an equation is or contains a site: by its effects, or by its parameters."""
    return eqn.primitive is sample_p or sample_effect in eqn.effects or _params_hold_site(eqn)


_HOLDS_SITE: weakref.WeakKeyDictionary[Jaxpr, bool] = weakref.WeakKeyDictionary()


def holds_site(jaxpr: Jaxpr) -> bool:
    """Says whether a jaxpr contains a site."""
    if jaxpr not in _HOLDS_SITE:
        _HOLDS_SITE[jaxpr] = any(has_site(eqn) for eqn in _jax.parts(jaxpr).eqns)
    return _HOLDS_SITE[jaxpr]


def sites_in(jaxpr: Jaxpr) -> Iterator[Site]:
    """All sites that can be found in a jaxpr, for messages."""
    for eqn in _jax.parts(jaxpr).eqns:
        if eqn.primitive is sample_p:
            yield eqn.params["site"]
        else:
            yield from sites_of(eqn)


def sites_of(eqn: Eqn) -> Iterator[Site]:
    """All sites that can be found in an equation's parameters, for messages."""
    seen: set[int] = set()
    for value in eqn.params.values():
        for jaxpr in jaxprs_inside(value, seen):
            yield from sites_in(jaxpr)


def sites_of_value(tracer: Tracer) -> Iterator[Site]:
    """The sites that a traced value depends on, as far as the equations behind it are known."""
    eqns, wanted = _jax.equations_around(tracer)
    for eqn in backward(eqns, wanted).eqns(eqns):
        if eqn.primitive is sample_p:
            yield eqn.params["site"]
        else:
            yield from sites_of(eqn)


# --- vmap -------------------------------------------------------------------------------------------------


def _keep_whole(primitive: Primitive, holds: Callable[[Params], bool], *, mapped_predicate: bool = False) -> None:
    """Makes `vmap` put its lanes around an equation that holds a site, instead of into it.

    Args:
      primitive: of a control flow construct.
      holds: whether an equation with these parameters holds a site.
      mapped_predicate: only where the first operand is mapped; else the lanes go into the branches.
    """

    def rule(
        original: Callable, axis_data: AxisData, values: Sequence[Array], dims: Sequence[int | None], **params: Any
    ) -> Batched:
        if not holds(params) or (mapped_predicate and dims[0] is None):
            return original(axis_data, values, dims, **params)
        return defer_lanes(functools.partial(primitive.bind, **params), axis_data, values, dims)

    _jax.wrap_batching(primitive, rule)


_keep_whole(_jax.scan_p, lambda p: holds_site(p["jaxpr"]))
_keep_whole(_jax.while_p, lambda p: holds_site(p["cond_jaxpr"]) or holds_site(p["body_jaxpr"]))
_keep_whole(_jax.cond_p, lambda p: any(map(holds_site, p["branches"])), mapped_predicate=True)
