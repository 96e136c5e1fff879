"""Lanes that meet only in the end of a program (`analysis.joint_end`): what leads there, and the end itself.

What leads there is run for every value of one lane, in all lanes at once; the end for every joint value e of a site's
lanes, for which each lane takes its own entry of what was run.

Where a site has other lanes besides, which never meet, its joint values are the same in all of these, and what depends
on them alone is computed once for all (`expectation.common`): a layer of units that all images have in common.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from vipl._jax import Var
from vipl._types import Array, Int, Shaped
from vipl.analysis.decomposition import Cost
from vipl.analysis.joint_end import JointEnd
from vipl.expectation.common import Common, InCommon, StandIn, aligned
from vipl.expectation.plan import Plan
from vipl.expectation.run import Emitted, SiteInput, run_to_end, values_axis
from vipl.interpret.interpreter import Outcome
from vipl.ir.dataflow import evaluate, plain
from vipl.ir.primitives import Path
from vipl.ir.sites import SiteInfo

T = TypeVar("T")

FEW = 4096
"""Up to how many joint values stand in the program as numbers."""

Numbers = Mapping[Path, Array]
"""For each site whose lanes meet, the number of its value in each of these."""


class Heads(NamedTuple):
    """What is known before the end, each with one leading axis for the values of each site whose lanes meet there.

    Attributes:
      common: those of the variables that the end reads which other lanes have in common, and whose values they are.
      leaves: the values of all of them, with length 1 along the lanes that have them in common.
      emits: what the sites before the end hand out.
    """

    common: dict[Var, Path]
    leaves: list[Array]
    emits: dict[Path, Emitted]


def for_each(fn: Callable[..., Any], tables: Mapping[str, Array]) -> Any:
    """`fn` of one row of each table, for all of them: one leading axis, of the name given, for each table."""
    for i, axis in reversed(list(enumerate(tables))):
        fn = jax.vmap(fn, in_axes=tuple(0 if j == i else None for j in range(len(tables))), axis_name=axis)
    return fn(*tables.values())


def joint_numbers(base: int, shape: Sequence[int]) -> Int[Array, " joint *shape"]:
    """i[base**count, *shape]: all arrays of digits, the first one slowest."""
    count = base ** math.prod(shape)
    numbers = np if count <= FEW else jnp  # a constant of the program, if it is small
    joint = numbers.arange(count, dtype=np.int32).reshape(-1, *[1] * len(shape))
    return jnp.asarray((joint // _powers(base, shape)) % base)


def _powers(base: int, shape: Sequence[int]) -> np.ndarray:
    """i[*shape]: what each digit counts in the number of an array of digits."""
    count = math.prod(shape)
    return np.asarray([base**i for i in reversed(range(count))], np.int32).reshape(shape)


def before_end(
    plan: Plan,
    end: JointEnd,
    noise: dict[Path, list[Array]],
    tables: Mapping[Path, Array],
    digits: dict[Path, Array],
    weigh: Callable[[Outcome, dict[Path, Array]], T],
) -> tuple[Heads, T]:
    """Runs what leads to the end, for all rows of the tables; and what `weigh` makes of each run, added up."""
    common: dict[Var, Path] = {}  # known once `at` has been traced

    def at(*rows):
        chosen = digits | dict(zip(tables, rows, strict=True))
        given = {path: SiteInput(x, None) for path, x in noise.items()}
        found, leaves, out = run_to_end(plan, end, given, chosen)
        common.update(found)
        emits = {path: _with_best(out.emits[path]) for path in end.sites}
        return leaves, emits, weigh(out, chosen)

    leaves, emits, sample = for_each(at, {values_axis(path): table for path, table in tables.items()})
    return Heads(common, leaves, emits), added_up(sample, len(tables))


def _with_best(emitted: Emitted) -> Emitted:
    known = emitted.stand_in
    return emitted if known is None else emitted._replace(stand_in=known.with_best())


def is_apart(end: JointEnd, cost: Cost) -> bool:
    """Whether each element of a cost is reached by one of the lanes alone that meet in the end."""
    reaches = [cost.reach[path][i] for path, loops in end.lanes.items() if path in cost.reach for i in loops]
    return all(isinstance(a, int) for a in reaches)


def added_up(x: T, axes: int) -> T:
    """Arrays, each the sum over its first axes."""
    return jax.tree.map(lambda x: jnp.sum(x, axis=tuple(range(axes))), x) if axes else x


def run_end(
    plan: Plan, end: JointEnd, heads: Heads, joint: Numbers, names: Mapping[Path, str], around: tuple[str, ...]
) -> tuple[dict[Var, Array], dict[Path, Emitted]]:
    """The environment of the end at one joint value, and what the sites hand out there.

    Args:
      plan: the plan.
      end: the end.
      heads: what is before it.
      joint: the joint value.
      names: those of the axes of the joint values of each site.
      around: the names of other axes of values.
    """
    emits = {
        path: jax.tree.map(functools.partial(_at_joint_value, end.lanes, joint, reach), heads.emits[path])
        for path, reach in end.sites.items()
    }
    leaves: dict[Var, Any] = {
        v: _at_joint_value(end.lanes, joint, reach, x)
        for (v, reach), x in zip(end.leaves.items(), heads.leaves, strict=True)
    }
    if not heads.common:
        return evaluate(end.eqns, leaves, plain), emits
    infos = {p.path: p for p in plan.found}
    others = {path: [i for i in range(len(infos[path].loops)) if i not in end.lanes[path]] for path in end.lanes}
    reaches = {
        v: {path: tuple(axes[i] for i in others[path]) for path, axes in reach.items() if path in others}
        for v, reach in (plan.reached.values or {}).items()
    }
    kept = InCommon({}, {}, {}, reaches, names.__getitem__, (*names.values(), *around))
    some: dict[Path, Array] = {}
    for path in set(heads.common.values()):
        size = plan.points(infos[path]).log_weights.shape[0]
        known, some[path] = _joint_stand_in(emits[path].stand_in, end.lanes[path], others[path], size)
        kept.know(path, known)
    for v, x in zip(end.leaves, heads.leaves, strict=True):
        if v in heads.common:
            path = heads.common[v]
            possible, own = kept.possible(path), leaves[v]
            if possible is not None:  # if no lane can have the joint value, another one
                other = _at_joint_value(end.lanes, {**joint, path: some[path]}, end.leaves[v], x)
                own = jnp.where(jnp.any(possible), own, lax.stop_gradient(other))
            leaves[v] = Common(own, path)
    return kept.weighed(evaluate(end.eqns, leaves, kept.around(plain, {})), plan.only_summed), emits


def _joint_stand_in(known: StandIn, lanes: Sequence[int], others: Sequence[int], size: int) -> tuple[StandIn, Any]:
    """What is known of a joint value, in each of the other lanes; and the digits of one that is possible in some."""
    if known.possible is None or known.best is None:
        return StandIn(), None
    best = jnp.moveaxis(known.best, lanes, range(-len(lanes), 0))
    number = jnp.sum(best * _powers(size, best.shape[len(others) :]), axis=tuple(range(len(others), best.ndim)))
    return StandIn(possible=jnp.all(known.possible, axis=tuple(lanes)), best=number), best[(0,) * len(others)]


def _at_joint_value(
    lanes: Mapping[Path, tuple[int, ...]], numbers: Numbers, reach: Mapping[Path, Any], x: Array
) -> Any:
    """Of [values of each site, ...] what stands there at a joint value: each site's numbers, one for each lane."""
    for left, (path, number) in zip(reversed(range(len(numbers))), numbers.items(), strict=True):
        reached = path in reach  # otherwise it is the same for all values
        x = looked_up(x, number, [left + reach[path][i] for i in lanes[path]]) if reached else x[0]
    return x


def over_loops(info: SiteInfo, digits: Int[Array, "values ..."]) -> Int[Array, " values *loops"]:
    """i[..., *loops] of digits that all visits may share."""
    if digits.ndim > 1 or not info.loops:
        return digits
    return jnp.broadcast_to(digits.reshape(-1, *[1] * len(info.loops)), (digits.size, *info.loop_shape))


def looked_up(x: Shaped[Array, "values ..."], number: Int[Array, "*lanes"], axes: Sequence[int]) -> Array:
    """Of [values, ...], in every lane the entry with that lane's number: i[*lanes], `axes` of the result.

    Along these axes x may have length 1.
    """
    if x.shape[0] == 2:  # without a look at a table
        return jnp.where(aligned(number == 1, axes, x.ndim - 1), x[1], x[0])
    front = range(len(axes))
    x = jnp.moveaxis(x, [a + 1 for a in axes], [1 + i for i in front])
    rest = x.shape[1 + len(axes) :]
    x = jnp.broadcast_to(x, (x.shape[0], *number.shape, *rest)).reshape(x.shape[0], number.size, *rest)
    x = x[number.reshape(-1), jnp.arange(number.size)]
    return jnp.moveaxis(x.reshape(*number.shape, *rest), list(front), list(axes))
