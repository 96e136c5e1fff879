"""An objective as a sum of costs: f = Σ_c Σ_i cost_c[i], each with the sites that reach it.

The expected value is linear. So a cost needs the weights of those sites alone that reach it; and where a site stands
in a `vmap` and element i of a cost depends on lane i alone, the weights of that lane alone. The objective is followed
backwards from its value through sums and other linear operations, to the values from which these are computed, the
leaves: f = Σ_leaf <coefficient, leaf> + constant, with coefficients and a constant that no site reaches. What is summed
over lanes is kept apart by lane, and all leaves that are kept apart alike are one cost.

What sees a site's value under a `stop_gradient` of the user's is kept apart from what sees it without one: the law of
the site counts in the second alone. A cost that is no sum of such parts sees the value both ways.

Invariant: the costs add up to f. With nothing to be kept apart there is one cost, f itself.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from vipl import _jax
from vipl.analysis.both_ways import Trail
from vipl.analysis.dependence import Dependence, Dependences, Mark, holds_drawn_values, join, moved
from vipl.analysis.stop_gradients import any_meant
from vipl.analysis.sums import floats_stacked, summed_after
from vipl.ir import devices
from vipl.ir.dataflow import evaluate, follow_back, plain, read, read_arrays
from vipl.ir.primitives import Path
from vipl.ir.sites import list_sites

MAX_COSTS = 8


class Cost(NamedTuple):
    """One summand of the objective.

    Attributes:
      sizes: its shape: the lanes that are kept apart.
      reach: the sites that reach it, and for each loop around a site the axis along which the loop runs, or None.
      leaves: variables of the program, and which of their axes are kept.
      held: the sites among them that reach it under a `stop_gradient` alone.
      mixed: those that reach it both ways, and two lines: where it is held, and where it is not.
    """

    sizes: tuple[int, ...]
    reach: Dependence
    leaves: tuple[tuple[Any, tuple[int, ...]], ...] = ()
    held: frozenset[Path] = frozenset()
    mixed: Mapping[Path, tuple[str, str]] = MappingProxyType({})


class Costs(NamedTuple):
    """An objective, taken apart.

    Attributes:
      costs: its summands.
      tail: the linear equations from the leaves to the objective's value.
      value: the variable of the objective's value.
      aux: the program's other outputs, as what they see.
      picking: whether parts of the leaves may be left out, whatever their values.
    """

    costs: tuple[Cost, ...]
    tail: tuple[Any, ...]
    value: Any
    aux: tuple[Cost, ...]
    picking: bool = False

    def evaluate(self, env: dict[Any, Any]) -> list[Any]:
        """f[*sizes] of each cost, from the values of the program's variables."""
        (value,) = read_arrays(env, [self.value])
        if not self.tail:
            return [value]
        leaves = [v for cost in self.costs for v, _ in cost.leaves]

        def tail(values):
            return read(evaluate(self.tail, env | dict(zip(leaves, values, strict=True)), plain), [self.value])[0]

        constant, pull = jax.vjp(tail, [devices.zeros(env[v]) for v in leaves])
        coefficients = dict(
            zip(leaves, pull(devices.vary(jnp.ones((), value.dtype), _jax.varying(constant)))[0], strict=True)
        )
        *parts, _ = self.costs
        if self.picking:  # a part that is left out counts for nothing; a NaN of the program's own comes back
            constant = jnp.where(jnp.isnan(value), jnp.nan, constant)
        return [*(self._combined(p, coefficients, env).astype(value.dtype) for p in parts), constant]

    def _combined(self, cost: Cost, coefficients: dict[Any, Any], env: dict[Any, Any]) -> Any:
        def times(c, x):
            return jnp.where(c != 0, c * jnp.where(c != 0, x, 0), 0) if self.picking else c * x

        kept = [jnp.sum(times(coefficients[v], env[v]), axis=_complement(env[v].ndim, axes)) for v, axes in cost.leaves]
        return functools.reduce(jnp.add, kept)


def _complement(ndim: int, axes: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(a for a in range(ndim) if a not in axes)


def find_costs(jaxpr: Any, wanted: Mapping[Path, int], reached: Dependences, whole: Sequence[Path]) -> Costs:
    """Takes the objective of a program apart.

    Args:
      jaxpr: the program; its first output is the objective.
      wanted: the sites whose estimators weigh costs, and how many loops are around each.
      reached: what they reach.
      whole: those among them whose weights belong to the objective as a whole.
    """
    _, _, _, eqns, (value, *others) = _jax.parts(jaxpr)
    values, stops = reached.values, reached.stops
    everywhere: Dependence = {path: (None,) * n for path, n in wanted.items()}
    if values is None:
        mixed = {p: (line, "what cannot be followed") for p, line in stops.items()}
        unknown = Cost((), everywhere, mixed=mixed)
        return Costs((unknown,), (), value, (unknown._replace(mixed={}),) * len(others))
    aux = [Cost((), {} if isinstance(v, _jax.Literal) else values.get(v, {}), ((v, ()),)) for v in others]
    rules = _PICKING if stops else _LINEAR
    constant = isinstance(value, _jax.Literal)
    costs, tail = ([Cost((), {})], ()) if constant else _split(eqns, value, values, True, rules)
    if len(costs) > MAX_COSTS:
        costs, tail = _split(eqns, value, values, False, rules)
    costs += [Cost((), {})] if tail else []  # what no site reaches
    if stops:
        trail = Trail(eqns, values, stops)
        costs, aux = ([_unmarked(c, trail) for c in kind] for kind in (costs, aux))
        aux = [c._replace(mixed={}) for c in aux]  # their derivatives are traced, whether they are asked for or not
    costs = [c._replace(reach=c.reach | {p: everywhere[p] for p in whole if p not in c.held}) for c in costs]
    return Costs(tuple(costs), tail, value, tuple(aux), picking=bool(stops))


def _unmarked(cost: Cost, trail: Trail) -> Cost:
    """The same cost, its marks turned into what it holds and what it sees both ways."""
    reach = {p: axes for p, axes in cost.reach.items() if not isinstance(p, Mark)}
    held = {p for p in reach if Mark(p, True) in cost.reach}
    mixed = {p for p in held if Mark(p, False) in cost.reach}
    lines = {p: trail.lines([v for v, _ in cost.leaves], p) for p in mixed}
    return cost._replace(reach=reach, held=frozenset(held - mixed), mixed=lines)


def _split(
    eqns: Sequence[Any], value: Any, env: Mapping[Any, Dependence], by_site: bool, rules: Linear
) -> tuple[list[Cost], tuple[Any, ...]]:
    """The costs, and the linear end of the program; `by_site`: kept apart also where they differ by sites alone."""
    leaves, tail = _leaves(eqns, value, env, by_site, rules)
    costs: list[Cost] = []
    for leaf in leaves:
        costs = _add(costs, _cost(leaf, env.get(leaf, {})), by_site)
    return costs, tail


def _cost(leaf: Any, reach: Dependence) -> Cost:
    kept = sorted({a for axes in reach.values() for a in axes if a is not None})
    sizes = tuple(leaf.aval.shape[a] for a in kept)
    return Cost(sizes, moved(reach, kept.index), ((leaf, tuple(kept)),))


def _add(costs: list[Cost], new: Cost, by_site: bool) -> list[Cost]:
    """Adds a cost to the one that is kept apart alike, if there is one."""
    for i, cost in enumerate(costs):
        joined = join(cost.reach, new.reach)
        no_conflict = joined == cost.reach | new.reach == new.reach | cost.reach and not _mixes(cost.reach, new.reach)
        if cost.sizes == new.sizes and no_conflict and (not by_site or cost.reach.keys() == new.reach.keys()):
            return [*costs[:i], Cost(cost.sizes, joined, cost.leaves + new.leaves), *costs[i + 1 :]]
    return [*costs, new]


def _mixes(one: Dependence, other: Dependence) -> bool:
    """Whether a site reaches two values unlike: held one of them, and not so the other."""
    return any(isinstance(k, Mark) and k.path in b and k not in b for a, b in ((one, other), (other, one)) for k in a)


# --- the linear end of a program ------------------------------------------------------------------------------


def _leaves(
    eqns: Sequence[Any], value: Any, env: Mapping[Any, Dependence], by_site: bool, rules: Linear
) -> tuple[list[Any], tuple[Any, ...]]:
    """The leaves of the objective that a site reaches, and the linear equations that lead from them to it."""
    below: dict[Any, dict[Any, None]] = {}  # variable -> its leaves, where these tell more apart than it does
    for eqn in eqns:
        operands = _linear_operands(eqn, env, rules)
        if operands is None:
            continue
        (out,) = eqn.outvars
        found = {leaf: None for v in operands for leaf in below.get(v, {v: None})}
        if any(_tells_more(env[leaf], env[out], by_site) for leaf in found):
            below[out] = found
    tail, _ = follow_back(eqns, [value], lambda _, v: v in below)
    return list(below.get(value, {value: None})), tuple(eqns[i] for i in sorted(tail))


def _tells_more(leaf: Dependence, out: Dependence, by_site: bool) -> bool:
    """Whether a site does not reach a leaf, or reaches it lane by lane, and reaches what is made of it otherwise."""
    return _mixes(leaf, out) or any(
        (by_site and path not in leaf)
        or any(a is not None and b is None for a, b in zip(leaf.get(path, axes), axes, strict=True))
        for path, axes in out.items()
    )


def _linear_operands(eqn: Any, env: Mapping[Any, Dependence], linear: Linear) -> list[Any] | None:
    """The operands that sites reach, if the equation is linear (or affine) in them; None: it is not."""
    rule = linear.get(eqn.primitive.name)
    if rule is None:
        return None
    dtype = eqn.outvars[0].aval.dtype
    if not jnp.issubdtype(dtype, jnp.floating):
        return None
    numbers = [k for k, v in enumerate(eqn.invars) if not isinstance(v, _jax.Literal) and env.get(v)]
    counted = [v for k, v in enumerate(eqn.invars) if k in numbers or jnp.issubdtype(v.aval.dtype, jnp.inexact)]
    if any(v.aval.dtype != dtype for v in counted):
        return None  # coefficients would pass through the narrower dtype
    return [eqn.invars[k] for k in numbers] if numbers and rule(numbers) else None


Linear = Mapping[str, Callable[[list[int]], bool]]
"""Primitive -> whether it is linear in these operands."""

_LINEAR: Linear = {
    **dict.fromkeys(("add", "add_any", "sub", "concatenate"), lambda numbers: True),
    **dict.fromkeys(
        "neg reduce_sum reshape squeeze transpose broadcast_in_dim convert_element_type copy div".split(),
        lambda numbers: numbers == [0],
    ),
    **dict.fromkeys(("mul", "dot_general"), lambda numbers: len(numbers) == 1),
}

_PICKING: Linear = _LINEAR | {
    **dict.fromkeys(("stack", "pad"), lambda numbers: True),
    **dict.fromkeys("slice rev cumsum gather dynamic_slice".split(), lambda numbers: numbers == [0]),
    "dynamic_update_slice": lambda numbers: set(numbers) <= {0, 1},
    "select_n": lambda numbers: 0 not in numbers,
}
"""The same with those that leave out parts of their operands."""


# --- sums that loops and branches hide ------------------------------------------------------------------------


def expose_sums(jaxpr: Any) -> Any:
    """The same program; where drawn values are held, no loop, branch or checkpoint hides sums of its linear end."""
    if any_meant(jaxpr) and holds_drawn_values(jaxpr, {p.path: len(p.loops) for p in list_sites(jaxpr)}):
        return floats_stacked(summed_after(jaxpr))
    return jaxpr
