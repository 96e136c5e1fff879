"""Which part of a value a site reaches: what is computed in one lane of a `vmap` stays in that lane.

`find_dependence` says for every value of a program, for each of the sites that are asked for and for each loop around
that site, along which axis of the value the loop runs. Under axis a, element i depends on pass i of the loop alone;
under an indexed one (`vipl.analysis.index`) on pass index[i], or on those of group i; under a window
(`vipl.analysis.window`) on passes near i, up to i, or from i on. None: any element may depend on any pass. A site that
is not named does not reach the value.

Where the user holds values by `stop_gradient`, it is also said of each site whether it reaches a value under one, or
not, or both (`Mark`).

Loops are the lanes of a `vmap` and the steps of a `scan`. In a step, what the carry brings is of the steps before.

Invariant (tests/analysis/test_reach.py): another value of a site in pass j changes no element i that does not depend
on j.

It holds for every program: a primitive without a rule here loses the axes.
"""

from __future__ import annotations

import functools
import numbers
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from vipl import _jax
from vipl._jax import Eqn, Jaxpr, Primitive, Var
from vipl.analysis.index import Indexed, Known, groups_axis, known_values, lanes_axis, rows_axis
from vipl.analysis.stop_gradients import any_meant, is_meant, line_of, meant_inside
from vipl.analysis.window import Axis, Window, axis_of, joined, window_of, without_growth
from vipl.ir.batching import jaxprs_inside
from vipl.ir.composite import composite_p
from vipl.ir.dataflow import Visit, evaluate, walk
from vipl.ir.guards import GUARDS
from vipl.ir.primitives import Path, SampleEffect, lanes_p, sample_p
from vipl.ir.traits import traits_of


class Mark(NamedTuple):
    """A site as a value sees it: `held` under a `stop_gradient` that is meant, or not. A value may have both marks."""

    path: Path
    held: bool


Loops = tuple[Axis | None, ...]

Dependence = dict[Any, Loops]
"""Site -> for each loop around it, outermost first, the axis of a value along which the loop runs, or None.

Inside a loop its passes have no axis: they are written as -1 - depth, the outermost loop being -1. In a program with
`stop_gradient`s that are meant, a reach also has the marks of its sites, with no axes.
"""


class Dependences(NamedTuple):
    """What sites reach.

    Attributes:
      values: the reach of every variable at the top level of a program; None where it has effects through which values
        could pass unseen.
      sites: the reach of every site's value, and of whether it is visited, in which a loop's axis is the number of the
        loop around the site.
      stops: the sites that a meant `stop_gradient` may hold, and a line where one does.
    """

    values: dict[Var, Dependence] | None
    sites: dict[Path, Dependence]
    stops: dict[Path, str]


def find_dependence(jaxpr: Jaxpr, wanted: Mapping[Path, int]) -> Dependences:
    """What the sites of a program without inputs reach.

    Args:
      jaxpr: the program.
      wanted: the sites that are followed, and how many loops are around each.
    """
    values, marked = _marked_run(jaxpr, wanted)
    if _passes_unseen(jaxpr):
        return Dependences(None, {}, marked.stops)
    if marked.stops:
        return Dependences(values, marked.sites, marked.stops)
    plain = marked._replace(sites={}, marks=False)
    return Dependences(_follow(jaxpr, plain), plain.sites, {})


def holds_drawn_values(jaxpr: Jaxpr, sites: Mapping[Path, int]) -> bool:
    """Whether a `stop_gradient` that is meant may hold the value of a site; with the number of loops around each."""
    return bool(_marked_run(jaxpr, sites)[1].stops)


class Followed(NamedTuple):
    """What is followed, what was found so far, and where the way stands.

    Attributes:
      wanted: the sites that are followed, with the number of loops around each.
      sites: the reach of all sites.
      stops: the sites that are held somewhere, and a line where they are.
      marks: whether `stop_gradient`s are looked at.
      known: what no site reaches, at the top level (`known_values`).
      path: the position of the program or equation.
      loops: the loops around it, as their axes are written inside.
      branch: what reaches the choice of the branch in which it stands.
    """

    wanted: Mapping[Path, int]
    sites: dict[Path, Dependence]
    stops: dict[Path, str]
    marks: bool
    known: Mapping[Var, Known]
    path: Path = ()
    loops: Loops = ()
    branch: Dependence = {}

    def below(self, number: int) -> Followed:
        """At an equation or branch of where this stands."""
        return self._replace(path=(*self.path, number))

    def inside(self, loop: int) -> Followed:
        """In a loop."""
        return self._replace(loops=(*self.loops, loop))


def _marked_run(jaxpr: Jaxpr, wanted: Mapping[Path, int]) -> tuple[dict[Var, Dependence], Followed]:
    followed = Followed(wanted, {}, {}, marks=True, known=known_values(jaxpr))
    return _follow(jaxpr, followed) if any_meant(jaxpr) else {}, followed


def _follow(jaxpr: Jaxpr, followed: Followed) -> dict[Var, Dependence]:
    constvars, _, _, eqns, _ = _jax.parts(jaxpr)
    return evaluate(eqns, dict.fromkeys(constvars, {}), _visitor(followed), _of_constant)


_HARMLESS = ("DebugEffect", "OrderedDebugEffect")


def _passes_unseen(part: Jaxpr | Eqn) -> bool:
    """Whether a program or an equation has effects through which values could pass unseen."""
    return any(not isinstance(e, SampleEffect) and type(e).__name__ not in _HARMLESS for e in part.effects)


def join(*parts: Dependence) -> Dependence:
    """The reach of a value that is computed from several, elementwise."""
    first, *others = [p for p in parts if p] or [{}]
    others = [p for p in others if p is not first]
    if not others:
        return first
    out = dict(first)
    for part in others:
        for path, axes in part.items():
            old = out.setdefault(path, axes)
            if old != axes:
                out[path] = tuple(map(joined, old, axes))
    return out


def moved(
    reach: Dependence,
    to: Callable[[int], Axis | None],
    of_rows: Callable[[Indexed], Axis | None] = lambda _: None,
) -> Dependence:
    """The reach after a change of axes; two loops along one axis are not told apart.

    Args:
      reach: the reach before.
      to: an axis -> what becomes of it.
      of_rows: an indexed axis -> what it was before its last index, if it becomes that again; else it goes where its
        axis goes.
    """
    if not any(reach.values()):  # no site is in a loop
        return reach
    out = {}
    for path, axes in reach.items():
        new = [_moved(a, to, of_rows) for a in axes]
        taken = [None if a is None else axis_of(a) for a in new]
        out[path] = tuple(None if a is not None and taken.count(axis_of(a)) > 1 else a for a in new)
    return out


def _moved(a: Axis | None, to: Callable[[int], Axis | None], of_rows: Callable[[Indexed], Axis | None]) -> Axis | None:
    """What becomes of an axis; an indexed one is an axis of a whole value, and tells no lanes apart."""
    if a is None or isinstance(a, int):
        return None if a is None else to(a)
    if isinstance(a, Indexed) and (lanes := of_rows(a)) is not None:
        return lanes
    new = to(a.axis)
    if isinstance(a, Window):
        return new.after(a) if isinstance(new, Window) else a._replace(axis=new) if isinstance(new, int) else None
    if isinstance(new, Indexed):
        return new.after(a)
    return a._replace(axis=new) if isinstance(new, int) and new >= 0 else None


def _run(jaxpr: Jaxpr, ins: Sequence[Dependence], followed: Followed) -> list[Dependence]:
    """The reaches of a program's outputs."""
    return walk(jaxpr, ins, _visitor(followed), _of_constant)


def _visitor(followed: Followed) -> Visit[Dependence]:
    def visit(i, eqn, operands):
        return _INSIDE.get(eqn.primitive, _plain)(eqn, operands, followed.below(i))

    return visit


def _of_constant(_: object) -> Dependence:
    return {}


# --- equations with programs inside ---------------------------------------------------------------------------


def _depth(loops: Loops) -> int:
    """How the axis of the next loop inwards is written inside."""
    return -1 - len(loops)


def _site(eqn: Eqn, operands: list[Dependence], followed: Followed) -> list[Dependence]:
    path, loops = followed.path, followed.loops
    own: Dependence = {path: loops} if path in followed.wanted else {}
    site = eqn.params["site"]
    if followed.marks:
        own |= {Mark(path, False): () for _ in own}
        if not site.makes_float:  # no law depends on its estimator
            operands = operands[: site.num_distribution]
    reach = join(*(moved(r, _in_lane) for r in operands), own)
    followed.sites[path] = moved(join(reach, followed.branch), loops.index)
    return [reach] * len(eqn.outvars)


def _in_lane(a: int) -> int | None:
    return a if a < 0 else None


def _lanes(eqn: Eqn, operands: list[Dependence], followed: Followed) -> list[Dependence]:
    mark = _depth(followed.loops)

    def enter(mapped):
        return lambda a: a if a < 0 or not mapped else mark if a == 0 else a - 1

    ins = [moved(r, enter(m)) for r, m in zip(operands, eqn.params["lane"].mapped, strict=True)]
    outs = _run(eqn.params["jaxpr"], ins, followed.inside(mark))
    return [moved(r, lambda a: 0 if a == mark else a if a < 0 else a + 1) for r in outs]


def _scan(eqn: Eqn, operands: list[Dependence], followed: Followed) -> list[Dependence]:
    scan = _jax.scan_parts(eqn.params)
    mark, back = _depth(followed.loops), 1 if scan.options["reverse"] else -1
    consts, carry, xs = scan.operands(operands)
    xs = [moved(r, lambda a: a if a < 0 else a - 1 if a else mark) for r in xs]
    while True:
        outs = _run(scan.jaxpr, [*consts, *carry, *xs], followed.inside(mark))
        in_next = [moved(r, lambda a: Window(a, back, back) if a == mark else a) for r in outs[: scan.num_carry]]
        after = [_settled(old, join(old, new), mark) for old, new in zip(carry, in_next, strict=True)]
        if after == carry:
            break
        carry = after
    last = [moved(r, lambda a: None if a == mark else a) for r in carry]
    return [*last, *(moved(r, lambda a: 0 if a == mark else a if a < 0 else a + 1) for r in outs[scan.num_carry :])]


def _settled(old: Dependence, new: Dependence, mark: int) -> Dependence:
    """What is known of a carry, without the bounds of windows that grow with each step."""
    return {
        p: tuple(without_growth(a, b, mark) for a, b in zip(old.get(p, axes), axes, strict=True))
        for p, axes in new.items()
    }


def _cond(eqn: Eqn, operands: list[Dependence], followed: Followed) -> list[Dependence]:
    index, *rest = operands
    if "branches_platforms" in eqn.params:
        return _plain(eqn, operands, followed)
    decides = moved(index, _in_lane)
    inside = followed._replace(branch=join(followed.branch, decides))
    branches = [_run(b, rest, inside.below(k)) for k, b in enumerate(eqn.params["branches"])]
    return [join(decides, *outs) for outs in zip(*branches, strict=True)]


def _composite(eqn: Eqn, operands: list[Dependence], followed: Followed) -> list[Dependence]:
    composite = eqn.params["composite"]
    return _run(composite.draw, operands[: composite.num_draw], followed)[:-1]


def _call(eqn: Eqn, operands: list[Dependence], followed: Followed) -> list[Dependence]:
    inner = eqn.params.get("jaxpr", eqn.params.get("call_jaxpr"))
    if inner is None or len(_jax.parts(inner).invars) != len(operands):
        return _plain(eqn, operands, followed)
    return _run(inner, operands, followed)


def _ruled(eqn: Eqn, operands: list[Dependence], followed: Followed) -> list[Dependence]:
    """As `_call`; the function's own rule says what its derivative is, whatever is held in it."""
    return _call(eqn, operands, followed._replace(marks=False))


def _while(eqn: Eqn, operands: list[Dependence], followed: Followed) -> list[Dependence]:
    """As any other equation, but for the marks: those of each carry, and of what decides how often the loop runs."""
    outs = _plain(eqn, operands, followed._replace(marks=False))
    if not followed.marks:
        return outs
    (whole, *_), p = outs, eqn.params
    n, m = p["cond_nconsts"], p["body_nconsts"]
    carry = operands[n + m :]
    while True:
        (again,) = _run(p["cond_jaxpr"], [*operands[:n], *carry], followed.below(0))
        outs = _run(p["body_jaxpr"], [*operands[n : n + m], *carry], followed.below(1))
        after = [join(old, new, again) for old, new in zip(carry, outs, strict=True)]
        if after == carry:
            return [{k: whole.get(k, ()) for k in r} for r in carry]
        carry = after


_INSIDE: dict[Primitive, Callable[..., list[Dependence]]] = {
    sample_p: _site,
    composite_p: _composite,
    lanes_p: _lanes,
    _jax.scan_p: _scan,
    _jax.cond_p: _cond,
    _jax.jit_p: _call,
    _jax.remat_p: _call,
    _jax.while_p: _while,
    _jax.custom_jvp_call_p: _ruled,
    _jax.custom_vjp_call_p: _ruled,
}


# --- other equations ------------------------------------------------------------------------------------------


def _plain(eqn: Eqn, operands: list[Dependence], followed: Followed) -> list[Dependence]:
    """Each operand's axes go where the primitive moves them; sites that are out of sight reach everything."""
    if eqn.primitive in GUARDS:
        return operands[:1]
    out = join(*_after_axes_move(eqn, operands, followed), _unseen(eqn, followed))
    if followed.marks:
        out = _marked(eqn, out, followed)
    return [out for _ in eqn.outvars]


def _after_axes_move(eqn: Eqn, operands: list[Dependence], followed: Followed) -> list[Dependence]:
    """What each operand brings to the result: along the axes that are kept, if no lane is left."""
    axes = traits_of(eqn).axes
    in_lane = any(isinstance(a, int) and a < 0 for r in operands for axes in r.values() for a in axes)
    across = in_lane and _crosses_lanes(eqn)

    known = followed.known if len(followed.path) == 1 else {}

    def to(k: int, a: int) -> Axis | None:
        if a < 0:
            return None if across else a
        kept = None if axes is None else axes(eqn, k, a)
        if kept is not None:
            return int(kept)
        return window_of(eqn, k, a) or rows_axis(eqn, k, a, known) or groups_axis(eqn, k, a, known)

    def of_rows(k: int, a: Indexed) -> Axis | None:
        return lanes_axis(eqn, k, a, known)

    return [moved(r, functools.partial(to, k), functools.partial(of_rows, k)) for k, r in enumerate(operands)]


def _unseen(eqn: Eqn, followed: Followed) -> Dependence:
    """The sites inside an equation, or all of them where values could pass through it unseen."""
    hidden = followed.marks and _passes_unseen(eqn)
    unseen: Dependence = {
        p: (None,) * n for p, n in followed.wanted.items() if hidden or p[: len(followed.path)] == followed.path
    }
    return unseen | ({Mark(p, False): () for p in unseen} if followed.marks else {})


def _marked(eqn: Eqn, out: Dependence, followed: Followed) -> Dependence:
    """The reach behind a `stop_gradient`; of what has one inside, where it is not followed, both marks."""
    if is_meant(eqn):
        out = {Mark(k.path, True) if isinstance(k, Mark) else k: axes for k, axes in out.items()}
    elif meant_inside(eqn):
        out = out | {Mark(k.path, True): () for k in out if isinstance(k, Mark)}
    else:
        return out
    for k in out:
        if isinstance(k, Mark):
            followed.stops.setdefault(k.path, line_of(eqn))
    return out


def _crosses_lanes(eqn: Eqn) -> bool:
    """Whether an equation is a collective over a named axis, or holds one."""
    names = eqn.params.get("axis_name"), eqn.params.get("axes")
    each = [n for given in names for n in (given if isinstance(given, tuple) else (given,))]
    if any(n is not None and not isinstance(n, numbers.Integral) for n in each):
        return True
    inside = [jaxpr for value in eqn.params.values() for jaxpr in jaxprs_inside(value, set())]
    return any(_crosses_lanes(e) for jaxpr in inside for e in _jax.parts(jaxpr).eqns)
