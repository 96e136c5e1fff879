"""Programs from programs: composites from functions, and the same program with other sites."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import jax

from vipl import _jax
from vipl._jax import ClosedJaxpr, Jaxpr, ShapedArray
from vipl._types import Array
from vipl.interpret.interpreter import Interpreter, Outcome, plain, run, walk
from vipl.ir.composite import Composite, composite_p
from vipl.ir.primitives import Site, bind_site, split_weight


def bind_composite(
    sites: Sequence[Site], draw: Callable, weigh: Callable, where: str, weight: Array | None = None
) -> list[Array]:
    """Binds a composite of two functions, which may close over values of the program around them.

    Args:
      sites: the values.
      draw: `() -> (*values, log_w)`.
      weigh: `(*values) -> (log_w,)`.
      where: the user's call.
      weight: f[], that its log weight counts with, where its sites are `scaled`.

    Returns:
      The values.
    """
    values = [_jax.drawn_aval(s.shape, s.dtype) for s in sites]
    draw_jaxpr, draw_operands = _closed(draw)
    weigh_jaxpr, weigh_operands = _closed(weigh, *values)
    composite = Composite(tuple(sites), draw_jaxpr, weigh_jaxpr, len(draw_operands), where)
    weights = [] if weight is None else [weight]
    return composite_p.bind(*draw_operands, *weigh_operands, *weights, composite=composite)


def bind_whole(composite: Composite, operands: Sequence[Array], *_: object) -> Outcome:
    """Binds a composite as a part of the program around, as it is; a way to `compose`."""
    return Outcome(composite_p.bind(*operands, composite=composite), {}, {})


def _closed(fn: Callable, *args: ShapedArray) -> tuple[ClosedJaxpr, list[Array]]:
    """The jaxpr of a function with everything that it closes over as its first arguments, and those."""
    jaxpr = jax.make_jaxpr(fn)(*args)
    operands = list(jaxpr.consts)
    n = len(operands)
    closed = jax.make_jaxpr(lambda *xs: walk(_jax.with_consts(jaxpr, xs[:n]), xs[n:], plain))(*operands, *args)
    return closed, operands


def rewrite(
    jaxpr: Jaxpr,
    args: Sequence[Array],
    rename: Callable[[tuple[str, ...]], tuple[str, ...]],
    change: Callable[[Site, Sequence[Array]], tuple[Site, Sequence[Array]]],
    bind: Callable[[Sequence[Array], Site], Array | tuple[Array, ...]] = bind_site,
) -> list[Array]:
    """Runs a program as a part of the one around it, with other sites.

    Args:
      jaxpr: the program.
      args: its arguments.
      rename: address -> address, for every site and value of a composite.
      change: what else becomes of a site and its operands.
      bind: (operands, site) -> what the site gives.
    """

    def handle(visit, operands, _):
        site, operands = change(visit.site, operands)
        return Outcome(bind(operands, replace(site, address=rename(site.address))), {}, {})

    def compose(composite: Composite, operands: list[Array], *_: object) -> Outcome:
        def part(jaxpr, given):
            return lambda *values: rewrite(jaxpr, [*given, *values], rename, change, bind)

        n = composite.num_draw
        operands, weight = split_weight(composite.sites[0], operands)
        sites = [replace(s, address=rename(s.address)) for s in composite.sites]
        draw, weigh = part(composite.draw, operands[:n]), part(composite.weigh, operands[n:])
        return Outcome(bind_composite(sites, draw, weigh, composite.where, weight), {}, {})

    return run(jaxpr, args, Interpreter(handle, lambda *_: {}, "sample", compose), {}).value
