"""Which equations hold sites; and what `jax.vmap` does to those that do.

A site is found by the effects of an equation *and* by its parameters: neither alone finds all of them.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax

from vipl import _jax
from vipl.ir.dataflow import follow_back
from vipl.ir.primitives import Lane, Site, defer_lanes, sample_effect, sample_p

_SIMPLE = (type(None), bool, int, float, complex, str, bytes, type)


def jaxprs_inside(x: Any, seen: set[int], depth: int = 0) -> Iterator[Any]:
    """The jaxprs in a parameter, also those in objects, closures and containers."""
    if isinstance(x, _SIMPLE) or id(x) in seen or depth > 6:
        return
    seen.add(id(x))
    if _jax.is_jaxpr(x):
        yield x
    elif isinstance(x, dict):
        for y in x.values():
            yield from jaxprs_inside(y, seen, depth + 1)
    elif isinstance(x, (tuple, list, set, frozenset)):
        for y in x:
            yield from jaxprs_inside(y, seen, depth + 1)
    elif isinstance(x, (jax.Array, _jax.Tracer, Site, Lane)) or type(x).__module__.startswith("numpy"):
        return
    else:
        for cell in getattr(x, "__closure__", None) or ():
            try:
                yield from jaxprs_inside(cell.cell_contents, seen, depth + 1)
            except ValueError:  # an empty cell
                continue
        slots = [s for c in type(x).__mro__ for s in _names(getattr(c, "__slots__", ()))]
        for name in [*getattr(x, "__dict__", {}), *slots]:
            yield from jaxprs_inside(getattr(x, name, None), seen, depth + 1)


def _names(slots: Any) -> Sequence[str]:
    return (slots,) if isinstance(slots, str) else tuple(slots)


# Primitives whose parameters hold functions only for their own derivative rules or lowering: searching the
# objects in them is slow and finds nothing that runs. Their jaxprs are searched all the same.
_JAXPR_ONLY = {
    _jax.jit_p, _jax.scan_p, _jax.cond_p, _jax.while_p, _jax.remat_p,
    _jax.custom_jvp_call_p, _jax.custom_vjp_call_p,
}  # fmt: skip


def _params_hold_site(eqn: Any) -> bool:
    seen: set[int] = set()
    for value in eqn.params.values():
        if isinstance(value, _SIMPLE):
            continue
        if eqn.primitive in _JAXPR_ONLY:
            found = [value] if _jax.is_jaxpr(value) else value if isinstance(value, tuple) else ()
            found = [j for j in found if _jax.is_jaxpr(j)]
        else:
            found = list(jaxprs_inside(value, seen))
        if any(holds_site(j) for j in found):
            return True
    return False


def has_site(eqn: Any) -> bool:
    """Says whether an equation is or contains a site: by its effects, or by its parameters."""
    return eqn.primitive is sample_p or sample_effect in eqn.effects or _params_hold_site(eqn)


_HOLDS_SITE: weakref.WeakKeyDictionary[Any, bool] = weakref.WeakKeyDictionary()


def holds_site(jaxpr: Any) -> bool:
    """Says whether a jaxpr contains a site."""
    if jaxpr not in _HOLDS_SITE:
        _HOLDS_SITE[jaxpr] = any(has_site(eqn) for eqn in _jax.parts(jaxpr).eqns)
    return _HOLDS_SITE[jaxpr]


def sites_in(jaxpr: Any) -> Iterator[Site]:
    """All sites that can be found in a jaxpr, for messages."""
    for eqn in _jax.parts(jaxpr).eqns:
        if eqn.primitive is sample_p:
            yield eqn.params["site"]
        else:
            yield from sites_of(eqn)


def sites_of(eqn: Any) -> Iterator[Site]:
    """All sites that can be found in an equation's parameters, for messages."""
    seen: set[int] = set()
    for value in eqn.params.values():
        for jaxpr in jaxprs_inside(value, seen):
            yield from sites_in(jaxpr)


def sites_of_value(tracer: Any) -> Iterator[Site]:
    """The sites that a traced value depends on, as far as the equations behind it are known."""
    eqns, wanted = _jax.equations_around(tracer)
    behind, _ = follow_back(eqns, wanted)
    for eqn in (eqns[i] for i in sorted(behind)):
        if eqn.primitive is sample_p:
            yield eqn.params["site"]
        else:
            yield from sites_of(eqn)


# --- vmap -------------------------------------------------------------------------------------------------


def _keep_whole(primitive: Any, holds: Callable[[dict[str, Any]], bool], *, mapped_predicate: bool = False) -> None:
    """Makes `vmap` put its lanes around an equation that holds a site, instead of into it.

    Args:
      primitive: of a control flow construct.
      holds: whether an equation with these parameters holds a site.
      mapped_predicate: only where the first operand is mapped; else the lanes go into the branches.
    """

    def rule(original: Callable, axis_data: Any, values: Sequence[Any], dims: Sequence[Any], **params: Any) -> Any:
        if not holds(params) or (mapped_predicate and dims[0] is None):
            return original(axis_data, values, dims, **params)
        return defer_lanes(functools.partial(primitive.bind, **params), axis_data, values, dims)

    _jax.wrap_batching(primitive, rule)


_keep_whole(_jax.scan_p, lambda p: holds_site(p["jaxpr"]))
_keep_whole(_jax.while_p, lambda p: holds_site(p["cond_jaxpr"]) or holds_site(p["body_jaxpr"]))
_keep_whole(_jax.cond_p, lambda p: any(map(holds_site, p["branches"])), mapped_predicate=True)
