"""Loops that the user has asked to be written out: `jax.lax.scan(..., unroll=True)`, or by as many steps as there are.

Written out, each step's sites are sites of their own. What depends on a value of an early step is then told from what
depends on one of a later step, and only that is evaluated again. In a loop all steps are one body, and what depends on
any of its values is evaluated for all.

Invariant: a program draws the same numbers, bit for bit, whether its loops are written out or not. So nothing is drawn
for a site that was written out: noise is drawn for the loop's site, for all passes at once, and each pass is given its
own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from vipl import _jax
from vipl._jax import ClosedJaxpr, Eqn, Jaxpr, Params
from vipl._types import Array
from vipl.ir.batching import has_site
from vipl.ir.dataflow import plain, walk
from vipl.ir.primitives import Path, lanes_p
from vipl.ir.sites import SiteInfo, list_sites


class Origin(NamedTuple):
    """What a site was before loops were written out.

    Attributes:
      info: the site in the program as it was.
      passes: for each loop around it there, outermost first, which pass of it this is; None: the loop is still a loop.
    """

    info: SiteInfo
    passes: tuple[int | None, ...]

    def of_passes(self, x: Array, first: int = 0) -> Array:
        """This site's part of an array that has the loops around `info` as axes, from axis `first`."""
        for axis in reversed(range(len(self.passes))):
            if (number := self.passes[axis]) is not None:
                x = lax.index_in_dim(x, number, first + axis, keepdims=False)
        return x


def origins(jaxpr: Jaxpr) -> list[Origin]:
    """The sites of `unroll_scans(jaxpr)`, in the order of `list_sites`, each with what it was in `jaxpr`."""
    below: dict[Path, list[SiteInfo]] = {}
    for info in list_sites(jaxpr):
        for n in range(len(info.path) + 1):
            below.setdefault(info.path[:n], []).append(info)
    return list(_origins(jaxpr, (), (), below))


def _origins(
    jaxpr: Jaxpr, path: Path, passes: tuple[int | None, ...], below: dict[Path, list[SiteInfo]]
) -> Iterator[Origin]:
    for i, eqn in enumerate(_jax.parts(jaxpr).eqns):
        here = (*path, i)
        if here not in below:
            continue
        if not _in_sight(eqn):
            for info in below[here]:
                yield Origin(info, passes + (None,) * (len(info.loops) - len(passes)))
        elif eqn.primitive is _jax.scan_p:
            for k in _steps(_jax.scan_parts(eqn.params).options):
                yield from _origins(eqn.params["jaxpr"], here, (*passes, k), below)
        else:
            inside = (*passes, None) if eqn.primitive is lanes_p else passes
            yield from _origins(eqn.params["jaxpr"], here, inside, below)


def unroll_scans(jaxpr: ClosedJaxpr) -> ClosedJaxpr:
    """The same program without such loops around sites, in plain code and `vmap`."""
    if not _any(jaxpr):
        return jaxpr
    avals = [v.aval for v in _jax.parts(jaxpr).invars]
    return jax.make_jaxpr(lambda *args: walk(jaxpr, args, _visit))(*avals)


def _visit(i: int, eqn: Eqn, values: list[Array]) -> Sequence[Array]:
    if not _in_sight(eqn):
        return plain(i, eqn, values)
    if eqn.primitive is lanes_p:
        return lanes_p.bind(*values, **eqn.params | {"jaxpr": unroll_scans(eqn.params["jaxpr"])})
    scan = _jax.scan_parts(eqn.params)
    consts, carry, xs = scan.operands(values)
    steps: list[list[Array]] = [[]] * scan.options["length"]
    for k in _steps(scan.options):
        outs = walk(scan.jaxpr, [*consts, *carry, *(x[k] for x in xs)], _visit)
        carry, steps[k] = outs[: scan.num_carry], outs[scan.num_carry :]
    return [*carry, *(jnp.stack(ys) for ys in zip(*steps, strict=True))]


def _steps(options: Params) -> Sequence[int]:
    """The numbers of a loop's steps in the order in which they are run; those of the xs."""
    numbers = range(options["length"])
    return numbers[::-1] if options["reverse"] else numbers


def _any(jaxpr: Jaxpr) -> bool:
    return any(_in_sight(eqn) for eqn in _jax.parts(jaxpr).eqns)


def _in_sight(eqn: Eqn) -> bool:
    """Whether an equation is such a loop, or holds one."""
    if not has_site(eqn):
        return False
    if eqn.primitive is _jax.scan_p:
        options = _jax.scan_parts(eqn.params).options
        return 0 < options["length"] <= options["unroll"]
    return eqn.primitive is lanes_p and _any(eqn.params["jaxpr"])
