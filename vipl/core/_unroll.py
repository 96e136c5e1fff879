"""Loops that the user has asked to be written out: `jax.lax.scan(..., unroll=True)`, or by as many steps as there are.

Written out, each step's sites are sites of their own. What depends on a value of an early step is then told from what
depends on one of a later step, and only that is evaluated again. In a loop all steps are one body, and what depends on
any of its values is evaluated for all.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from vipl import _compat
from vipl.core._equations import plain, walk
from vipl.core._holds import eqn_holds_site
from vipl.core._site import lanes_p


def unrolled(jaxpr: Any) -> Any:
    """The same program without such loops around sites, in plain code, `vmap` and `jit`."""
    if not _any(jaxpr):
        return jaxpr
    avals = [v.aval for v in _compat.parts(jaxpr).invars]
    return jax.make_jaxpr(lambda *args: walk(jaxpr, args, _visit))(*avals)


def _visit(i: int, eqn: Any, values: list[Any]) -> Sequence[Any]:
    if not _in_sight(eqn):
        return plain(i, eqn, values)
    if eqn.primitive is lanes_p:
        return lanes_p.bind(*values, **eqn.params | {"jaxpr": unrolled(eqn.params["jaxpr"])})
    if eqn.primitive is _compat.jit_p:
        return walk(eqn.params["jaxpr"], values, _visit)
    jaxpr, num_consts, num_carry, options = _compat.scan_parts(eqn.params)
    consts, carry, xs = values[:num_consts], values[num_consts:][:num_carry], values[num_consts + num_carry :]
    numbers = range(options["length"])
    steps: list[Any] = [None] * len(numbers)
    for k in reversed(numbers) if options["reverse"] else numbers:
        outs = walk(jaxpr, [*consts, *carry, *(x[k] for x in xs)], _visit)
        carry, steps[k] = outs[:num_carry], outs[num_carry:]
    return [*carry, *(jnp.stack(ys) for ys in zip(*steps, strict=True))]


def _any(jaxpr: Any) -> bool:
    return any(_in_sight(eqn) for eqn in _compat.parts(jaxpr).eqns)


def _in_sight(eqn: Any) -> bool:
    """Whether an equation is such a loop, or holds one."""
    if not eqn_holds_site(eqn):
        return False
    if eqn.primitive is _compat.scan_p:
        options = _compat.scan_parts(eqn.params).options
        return 0 < options["length"] <= options["unroll"]
    return eqn.primitive in (lanes_p, _compat.jit_p) and _any(eqn.params["jaxpr"])
