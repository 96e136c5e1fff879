"""Which site's draw a value is, and where it therefore lies: supports are carried through a program.

Invariant: a value that `origin` or `check_marks` knows is a draw of the site that it names, or parts of draws, moved
and converted: each of its numbers is one of the draw's, and together they lie in the region. Arithmetic forgets.

`origin(x)` walks back from a value of the program that is being staged. What enters a function that is staged apart (a
`jit`, the body of a `scan`) has no way back; there `mark` leaves an equation, which `check_marks` reads once the whole
program is staged. Both go by the same rules, one for each primitive that moves values.

Not here: regions (`regions`), which region a site has (`vipl.gen._supports`).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple, TypeVar

import jax.numpy as jnp
import numpy as np

from vipl import _jax
from vipl._jax import Jaxpr, Params, Primitive, ShapedArray
from vipl._types import Array
from vipl.analysis.regions import Region, concatenated, coordinates, included, part, rearranged, reshaped, union
from vipl.ir.composite import composite_p
from vipl.ir.dataflow import walk
from vipl.ir.primitives import lanes_p, sample_p

_mark_p = _jax.define_mark_primitive("vipl_mark")


class OfSite(NamedTuple):
    """What is known of a value that is a site's draw, or parts of draws.

    Attributes:
      at: the site, as messages write it.
      region: where the value lies; None: not known.
      sure: whether all of it does; else it may hold zeros in the place of a `cond`'s other branches, or NaN.
      padded: whether it holds such zeros.
    """

    at: str
    region: Region | None
    sure: bool = True
    padded: bool = False


class OfNoSite(NamedTuple):
    """What is known of any other value: whether it is zeros, or enters a function that is staged apart."""

    zero: bool = False
    enters: bool = False


LOST, ZERO, ENTERS = OfNoSite(), OfNoSite(zero=True), OfNoSite(enters=True)
Known = OfSite | OfNoSite


class _Step(NamedTuple):
    """One equation: its primitive, parameters, and the shapes and dtypes of its operands and results."""

    primitive: Primitive
    params: Params
    ins: Sequence[ShapedArray]
    outs: Sequence[ShapedArray]


Rule = Callable[[_Step, Sequence[Known]], list[Known]]
"""What an equation makes of what is known of its operands."""

Rearrange = Callable[[np.ndarray], np.ndarray]
"""What an equation does to an array, in NumPy."""

About = TypeVar("About", bound=Hashable)


# --- marks ------------------------------------------------------------------------------------------------


def mark(
    value: Array, wanted: Sequence[Region | None], refuse: Callable[[OfSite, About], Exception], about: About
) -> None:
    """Leaves a note that `value` is given to a site whose support is one of `wanted`.

    Args:
      value: a value of the program.
      wanted: the supports.
      refuse: `(drawn, about) -> exception`, raised by `check_marks` where the value lies in none of them.
      about: hashable.
    """
    _mark_p.bind(value, wanted=tuple(wanted), refuse=refuse, about=about)


def verdict(known: Known, wanted: Sequence[Region | None]) -> bool | None:
    """Whether a value lies in all of several supports (True), in none of them (False), or neither is known."""
    if not isinstance(known, OfSite):
        return None
    verdicts = {included(known.region, x) for x in wanted}
    if verdicts == {False}:
        return False
    return True if verdicts == {True} and known.sure else None


def check_marks(jaxpr: Jaxpr) -> None:
    """Raises where a program gives a value to a site in whose support it does not lie, as far as that is known."""
    if _holds_mark(jaxpr, {}):
        _flow(jaxpr, [], True)


def _holds_mark(jaxpr: Jaxpr, seen: dict[int, bool]) -> bool:
    if id(jaxpr) not in seen:
        eqns = _jax.parts(jaxpr).eqns
        seen[id(jaxpr)] = any(e.primitive is _mark_p for e in eqns) or any(
            _holds_mark(inner, seen) for e in eqns for inner in _inner(e.primitive, e.params)
        )
    return seen[id(jaxpr)]


def _inner(primitive: Primitive, params: Params) -> list[Jaxpr]:
    """The programs in an equation through which values are carried."""
    if primitive is composite_p:
        return [params["composite"].draw]
    names = ("jaxpr", "call_jaxpr", "fun_jaxpr", "body_jaxpr", "cond_jaxpr")
    found = [params[name] for name in names if name in params] + list(params.get("branches", ()))
    whole = (x for x in found if _jax.is_jaxpr(x))  # in a kernel there are others, whose constants are elsewhere
    return [x for x in whole if len(_jax.parts(x).constvars) == len(_jax.parts(x).consts)]


# --- two ways through a program ---------------------------------------------------------------------------


def origin(x: object, depth: int = 64) -> Known:
    """What is known of a value of the program that is being staged."""
    if not isinstance(x, _jax.Tracer) or not depth:
        return _of_constant(x)
    if (below := _jax.beneath(x)) is not None:
        inner, lanes = below
        known = origin(inner, depth - 1)
        if lanes == 0:
            return _row(known, _jax.typeof(inner))
        return known if lanes is None or not _rank(known) else LOST
    if (constant := _jax.closed_over(x)) is not x:
        return origin(constant, depth - 1)
    made = _jax.producer(x)
    if made is None:
        return ENTERS
    if not _carries(made.primitive):
        return LOST
    ins = [origin(y, depth - 1) for y in made.operands]
    step = _Step(made.primitive, made.params, [_jax.typeof(y) for y in made.operands], made.outs)
    return _carry(step, ins, False)[made.number]


def _flow(jaxpr: Jaxpr, ins: Sequence[Known], check: bool) -> list[Known]:
    """What is known of a program's results, from what is known of its arguments."""

    def visit(_, eqn, values):
        if eqn.primitive is _mark_p:
            (value,), p = values, eqn.params
            if check and verdict(value, p["wanted"]) is False:
                raise p["refuse"](value, p["about"])
        if not _carries(eqn.primitive) and not (check and _inner(eqn.primitive, eqn.params)):
            return [LOST] * len(eqn.outvars)
        step = _Step(eqn.primitive, eqn.params, [v.aval for v in eqn.invars], [v.aval for v in eqn.outvars])
        return _carry(step, values, check)

    return walk(jaxpr, ins, visit, _of_constant)


def _of_constant(x: Any) -> Known:
    if isinstance(x, _jax.Tracer) or np.ndim(x):
        return LOST
    try:
        return ZERO if x == 0 else LOST
    except TypeError:
        return LOST


def _carries(primitive: Primitive) -> bool:
    return primitive in _WHOLE or primitive.name in _RULES


def _carry(step: _Step, ins: Sequence[Known], check: bool) -> list[Known]:
    if step.primitive in _WHOLE:
        return _WHOLE[step.primitive](step, ins, check)
    rule = _RULES.get(step.primitive.name)
    if rule is not None:
        return rule(step, ins)
    for inner in _inner(step.primitive, step.params):  # what it makes of values is not known; marks in it are read
        _flow(inner, [LOST] * len(_jax.parts(inner).invars), check)
    return [LOST] * len(step.outs)


# --- equations that hold programs -------------------------------------------------------------------------


def _sample(step: _Step, ins: Sequence[Known], check: bool) -> list[Known]:
    site = step.params["site"]
    return [OfSite(site.at(), site.support), *(LOST for _ in step.outs[1:])]


def _composite(step: _Step, ins: Sequence[Known], check: bool) -> list[Known]:
    composite = step.params["composite"]
    return _flow(composite.draw, ins[: composite.num_draw], check)[:-1]


def _call(step: _Step, ins: Sequence[Known], check: bool) -> list[Known]:
    (inner, *_) = _inner(step.primitive, step.params)
    return _flow(inner, ins, check)


def _slices(ins: Sequence[Known], avals: Sequence[ShapedArray], mapped: Sequence[bool]) -> list[Known]:
    """What is known of operands in one pass of a loop or `vmap`."""
    return [_row(x, aval) if is_mapped else x for x, aval, is_mapped in zip(ins, avals, mapped, strict=True)]


def _lanes(step: _Step, ins: Sequence[Known], check: bool) -> list[Known]:
    return _flow(step.params["jaxpr"], _slices(ins, step.ins, step.params["lane"].mapped), check)


def _scan(step: _Step, ins: Sequence[Known], check: bool) -> list[Known]:
    scan = _jax.scan_parts(step.params)
    consts, start, xs = scan.operands(list(ins))
    _, _, avals = scan.operands(list(step.ins))
    rows = _slices(xs, avals, [True] * len(xs))
    carry = _fixed(lambda now: _flow(scan.jaxpr, [*consts, *now, *rows], False)[: scan.num_carry], start)
    return [*carry, *_flow(scan.jaxpr, [*consts, *carry, *rows], check)[scan.num_carry :]]


def _while(step: _Step, ins: Sequence[Known], check: bool) -> list[Known]:
    p = step.params
    n, m = p["cond_nconsts"], p["body_nconsts"]
    carry = _fixed(lambda now: _flow(p["body_jaxpr"], [*ins[n : n + m], *now], False), ins[n + m :])
    _flow(p["cond_jaxpr"], [*ins[:n], *carry], check)
    _flow(p["body_jaxpr"], [*ins[n : n + m], *carry], check)
    return carry


def _cond(step: _Step, ins: Sequence[Known], check: bool) -> list[Known]:
    outs = [_flow(branch, ins[1:], check) for branch in step.params["branches"]]
    return [_either(branches) for branches in zip(*outs, strict=True)]


def _fixed(body: Callable[[list[Known]], list[Known]], start: Sequence[Known]) -> list[Known]:
    """What holds of a loop's state before and after every step."""
    now = list(start)
    for _ in range(4):
        after = [_either(pair, zeros=False) for pair in zip(now, body(now), strict=True)]
        if after == now:
            return now
        now = after
    return [LOST] * len(now)


_WHOLE: dict[Primitive, Callable[[_Step, Sequence[Known], bool], list[Known]]] = {
    sample_p: _sample,
    composite_p: _composite,
    lanes_p: _lanes,
    _jax.jit_p: _call,
    _jax.remat_p: _call,
    _jax.custom_jvp_call_p: _call,
    _jax.custom_vjp_call_p: _call,
    _jax.scan_p: _scan,
    _jax.while_p: _while,
    _jax.cond_p: _cond,
}


def _rank(known: Known) -> int:
    return known.region.rank if isinstance(known, OfSite) and known.region is not None else 0


def _changed(known: OfSite, region: Region | None) -> Known:
    return LOST if region is None else known._replace(region=region)


def _row(known: Known, aval: ShapedArray) -> Known:
    """One row of an array along its first axis."""
    if not isinstance(known, OfSite) or _rank(known) < len(aval.shape):
        return known
    return _changed(known, known.region and coordinates(known.region))


def _either(values: Sequence[Known], *, zeros: bool = True) -> Known:
    """What is known of a value that is one of several; zeros stand for no value, as in the branches of a `cond`."""
    drawn = [x for x in values if isinstance(x, OfSite)]
    padded = zeros and ZERO in values
    if not drawn:
        return values[0] if len(set(values)) == 1 else LOST
    if len(drawn) + padded * list(values).count(ZERO) < len(values):
        return _enters_or_lost(values)
    joint = functools.reduce(_joint, drawn)
    return joint._replace(sure=joint.sure and not padded, padded=joint.padded or padded)


def _enters_or_lost(values: Sequence[Known]) -> Known:
    """What is known of a value that is one of several, some of them no draws."""
    return ENTERS if all(isinstance(x, OfSite) or x.enters for x in values) else LOST


def _joint(a: OfSite, b: OfSite) -> OfSite:
    region = None if a.region is None or b.region is None else union(a.region, b.region)
    at = a.at if a.at == b.at else f"{a.at} or {b.at}"
    return OfSite(at, region, a.sure and b.sure, a.padded or b.padded)


# --- equations that move values ---------------------------------------------------------------------------


def _same(step: _Step, ins: Sequence[Known]) -> list[Known]:
    return list(ins[: len(step.outs)])


def _convert(step: _Step, ins: Sequence[Known]) -> list[Known]:
    """To a dtype that holds the same numbers, up to rounding."""
    old, new = step.ins[0].dtype, step.outs[0].dtype
    order = [jnp.bool_, jnp.integer, jnp.floating, jnp.complexfloating]
    ranks = [next((i for i, kind in enumerate(order) if jnp.issubdtype(d, kind)), -1) for d in (old, new)]
    return [ins[0] if 0 <= ranks[0] <= ranks[1] or ins[0] == ZERO else LOST]


def _move(kept: Callable[[_Step, int], bool], move: Callable[[_Step], Rearrange] | None, picks: bool) -> Rule:
    """The rule of a primitive that moves, repeats or picks entries of its first operand.

    Args:
      kept: (step, k) -> whether the last k axes stay what they are.
      move: the primitive in NumPy; None: which entries are picked is not known.
      picks: whether entries may be left out: of a simplex, a sphere, ... the others have a measure of their own.
    """

    def rule(step: _Step, ins: Sequence[Known]) -> list[Known]:
        known = ins[0]
        if not isinstance(known, OfSite) or known.region is None:
            return [known]
        region, shape = known.region, step.ins[0].shape
        if kept(step, region.rank):
            return [known]
        if move is None or (picks and region.structure is not None):
            return [_changed(known, coordinates(region))]
        return [_changed(known, rearranged(region, shape, move(step)))]

    return rule


def _kept_broadcast(step: _Step, k: int) -> bool:
    shape, out = step.ins[0].shape, step.outs[0].shape
    last = tuple(range(len(out) - k, len(out)))
    return not k or (step.params["broadcast_dimensions"][-k:] == last and shape[-k:] == out[-k:])


def _broadcast(step: _Step) -> Rearrange:
    shape, dimensions = step.params["shape"], step.params["broadcast_dimensions"]

    def move(x):
        full = [x.shape[dimensions.index(i)] if i in dimensions else 1 for i in range(len(shape))]
        return np.broadcast_to(x.reshape(full), shape)

    return move


def _kept_slice(step: _Step, k: int) -> bool:
    p, n = step.params, len(step.ins[0].shape)
    strides = p["strides"] or (1,) * n
    ranges = zip(p["start_indices"], p["limit_indices"], strides, step.ins[0].shape, strict=True)
    return all(a == 0 and b == size and s == 1 for a, b, s, size in list(ranges)[n - k :])


def _slice(step: _Step) -> Rearrange:
    p = step.params
    strides = p["strides"] or (1,) * len(p["start_indices"])
    index = tuple(slice(*x) for x in zip(p["start_indices"], p["limit_indices"], strides, strict=True))
    return lambda x: x[index]


def _above(axes: Sequence[int], step: _Step, k: int) -> bool:
    """Whether all axes stand before the last k."""
    return all(axis < len(step.ins[0].shape) - k for axis in axes)


def _gather(step: _Step, ins: Sequence[Known]) -> list[Known]:
    known, numbers = ins[0], step.params["dimension_numbers"]
    if not isinstance(known, OfSite) or known.region is None:
        return [known]
    k, shape, n = known.region.rank, step.ins[0].shape, len(step.outs[0].shape)
    whole = numbers.offset_dims[len(numbers.offset_dims) - k :] == tuple(range(n - k, n))
    gone = (*numbers.collapsed_slice_dims, *numbers.operand_batching_dims)
    whole = whole and step.params["slice_sizes"][len(shape) - k :] == shape[len(shape) - k :] and _above(gone, step, k)
    region = known.region if not k or whole else coordinates(known.region)
    inside = "FILL" not in str(step.params["mode"]).upper()  # an index out of range gives NaN there
    return [_changed(known._replace(sure=known.sure and inside), region)]


def _pieces(axis: Callable[[_Step], int], sizes: Callable[[_Step], Sequence[int]], drop: bool) -> Rule:
    """The rule of `split` and `unstack`."""

    def rule(step: _Step, ins: Sequence[Known]) -> list[Known]:
        known, outs, start = ins[0], [], 0
        if not isinstance(known, OfSite) or known.region is None or _above([axis(step)], step, known.region.rank):
            return [known] * len(step.outs)
        for size in sizes(step):
            index = (*[slice(None)] * axis(step), start if drop else slice(start, start + size))
            region = known.region
            if region.structure is None:
                outs.append(_changed(known, rearranged(region, step.ins[0].shape, lambda x, i=index: x[i])))
            else:
                outs.append(_changed(known, coordinates(region)))
            start += size
        return outs

    return rule


def _concatenate(step: _Step, ins: Sequence[Known]) -> list[Known]:
    """The rule of `concatenate` and `stack`."""
    drawn = [x for x in ins if isinstance(x, OfSite)]
    regions = [x.region for x in drawn if x.region is not None]
    if not drawn:
        return [_either(ins, zeros=False)]
    if len(regions) < len(ins):
        return [_enters_or_lost(ins)]
    return [functools.reduce(_joint, drawn)._replace(region=_side_by_side(step, regions))]


def _side_by_side(step: _Step, regions: Sequence[Region]) -> Region:
    """Where an array lies that is made of arrays in these regions, along an old or a new axis."""
    stacks = "dimension" not in step.params
    axis = step.params["axis" if stacks else "dimension"]
    if len(set(regions)) == 1 and axis < len(step.outs[0].shape) - regions[0].rank:
        return regions[0]
    if len({r.measure for r in regions}) > 1 or any(r.structure is not None for r in regions):
        region = functools.reduce(union, [coordinates(r) or part(r) for r in regions])
        return region._replace(structure=None, event_dim=0)
    shapes = [(*a.shape[:axis], 1, *a.shape[axis:]) if stacks else a.shape for a in step.ins]
    lifted = [reshaped(r, a.shape, shape) for r, a, shape in zip(regions, step.ins, shapes, strict=True)]
    return concatenated(lifted, shapes, axis)


def _select(step: _Step, ins: Sequence[Known]) -> list[Known]:
    return [_either(ins[1:])]


def _add(step: _Step, ins: Sequence[Known]) -> list[Known]:
    """A sum of what branches of a `cond` hand out: all but one are zeros. Of other sums nothing is known."""
    padded = all(isinstance(x, OfSite) and x.padded for x in ins)
    return [_either(ins) if padded else LOST]


def _first(step: _Step, ins: Sequence[Known]) -> list[Known]:
    return [ins[0]]


def _zeros(step: _Step, ins: Sequence[Known]) -> list[Known]:
    return [ZERO if ins[0] == ZERO else LOST]


_RULES: dict[str, Rule] = {
    "stop_gradient": _same,
    "copy": _same,
    "copy_p": _same,
    "optimization_barrier": _same,
    "sharding_constraint": _first,
    "reduce_precision": _first,
    "vipl_guard": _first,
    "vipl_alarm": _first,
    "convert_element_type": _convert,
    "reshape": _move(
        lambda s, k: not k or s.ins[0].shape[-k:] == s.outs[0].shape[-k:],
        lambda s: lambda x: x.reshape(s.outs[0].shape),
        picks=False,
    ),
    "broadcast_in_dim": _move(_kept_broadcast, _broadcast, picks=False),
    "squeeze": _move(
        lambda s, k: _above(s.params["dimensions"], s, k), lambda s: lambda x: x.reshape(s.outs[0].shape), picks=False
    ),
    "transpose": _move(
        lambda s, k: _above([i for i, j in enumerate(s.params["permutation"]) if i != j], s, k),
        lambda s: lambda x: x.transpose(s.params["permutation"]),
        picks=False,
    ),
    "rev": _move(
        lambda s, k: _above(s.params["dimensions"], s, k),
        lambda s: lambda x: np.flip(x, s.params["dimensions"]),
        picks=False,
    ),
    "slice": _move(_kept_slice, _slice, picks=True),
    "dynamic_slice": _move(lambda s, k: not k or s.params["slice_sizes"][-k:] == s.ins[0].shape[-k:], None, picks=True),
    "gather": _gather,
    "split": _pieces(lambda s: s.params["axis"], lambda s: s.params["sizes"], drop=False),
    "unstack": _pieces(lambda s: s.params["axis"], lambda s: [1] * len(s.outs), drop=True),
    "concatenate": _concatenate,
    "stack": _concatenate,
    "select_n": _select,
    "add": _add,
    "add_any": _add,
    "or": _add,
    "mul": _zeros,
}
