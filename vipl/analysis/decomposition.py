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
from vipl._jax import Atom, ClosedJaxpr, Eqn, Jaxpr, Literal, Var
from vipl._types import Array
from vipl.analysis.dependence import Dependence, Dependences, Mark, holds_drawn_values, join, moved
from vipl.analysis.index import Indexed
from vipl.analysis.stop_conflicts import Conflicts
from vipl.analysis.stop_gradients import any_meant
from vipl.analysis.sums import floats_stacked, summed_after
from vipl.analysis.window import Axis, Window, axis_of
from vipl.ir import devices
from vipl.ir.dataflow import backward, evaluate, plain, read, read_arrays
from vipl.ir.primitives import Path
from vipl.ir.sites import list_sites
from vipl.ir.traits import traits_of

FEW = 8
"""Up to how many costs there are, whatever the sites' estimators are."""

MANY = 1 << 20
"""Up to how many pairs of a cost and a site there are, where each pair is one entry of a matrix."""


class Cost(NamedTuple):
    """One summand of the objective.

    Attributes:
      sizes: its shape: the passes of loops that are kept apart.
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


class Later(NamedTuple):
    """A value that is not computed yet, and may be summed without that.

    Attributes:
      summed: (coefficients, axes) -> the sum over axes of the value times coefficients.
    """

    summed: Callable[[Array, tuple[int, ...]], Array]


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
    tail: tuple[Eqn, ...]
    value: Atom
    aux: tuple[Cost, ...]
    picking: bool = False

    @property
    def leaves(self) -> dict[Var, tuple[int, ...]]:
        """What is only summed, with coefficients, and the axes that are kept."""
        leaves = [] if self.picking or not self.tail else [leaf for cost in self.costs for leaf in cost.leaves]
        return {v: axes for v, axes in leaves if sum(v is w for w, _ in leaves) == 1}

    def evaluate(self, env: Mapping[Var, Any]) -> list[Array]:
        """f[*sizes] of each cost, from the values of the program's variables; a leaf's may be computed later."""
        (value,) = read_arrays(env, [self.value])
        if not self.tail:
            return [value]
        leaves = [v for cost in self.costs for v, _ in cost.leaves]

        def tail(values):
            known = {**env, **dict(zip(leaves, values, strict=True))}
            return read(evaluate(self.tail, known, plain), [self.value])[0]

        zeros = [devices.zeros(v.aval if isinstance(env[v], Later) else env[v]) for v in leaves]
        constant, pull = jax.vjp(tail, zeros)
        one = devices.vary(jnp.ones((), value.dtype), _jax.varying(constant))
        coefficients = dict(zip(leaves, pull(one)[0], strict=True))
        *parts, _ = self.costs
        if self.picking:  # a part that is left out counts for nothing; a NaN of the program's own comes back
            constant = jnp.where(jnp.isnan(value), jnp.nan, constant)
        return [*(self._combined(p, coefficients, env).astype(value.dtype) for p in parts), constant]

    def _combined(self, cost: Cost, coefficients: dict[Var, Array], env: Mapping[Var, Any]) -> Array:
        def times(c, x):
            return jnp.where(c != 0, c * jnp.where(c != 0, x, 0), 0) if self.picking else c * x

        def summed(v, kept):
            c, x, axes = coefficients[v], env[v], _complement(v.aval.ndim, kept)
            return x.summed(c, axes) if isinstance(x, Later) else jnp.sum(times(c, x), axis=axes)

        return functools.reduce(jnp.add, [summed(v, kept) for v, kept in cost.leaves])


def _complement(ndim: int, axes: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(a for a in range(ndim) if a not in axes)


def find_costs(
    jaxpr: Jaxpr, wanted: Mapping[Path, int], reached: Dependences, whole: Sequence[Path], weights_alone: bool
) -> Costs:
    """Takes the objective of a program apart.

    Args:
      jaxpr: the program; its first output is the objective.
      wanted: the sites whose estimators weigh costs, and how many loops are around each.
      reached: what they reach.
      whole: those among them whose weights belong to the objective as a whole.
      weights_alone: whether log weights are all that their estimators have, so that there may be many costs.
    """
    _, _, _, eqns, (value, *others) = _jax.parts(jaxpr)
    everywhere: Dependence = {path: (None,) * n for path, n in wanted.items()}
    if reached.values is None:
        return _unknown_costs(value, len(others), everywhere, reached.stops)
    values, picking = reached.values, bool(reached.stops)
    aux = [Cost((), {} if isinstance(v, Literal) else values.get(v, {}), ((v, ()),)) for v in others]
    costs, tail = _costs_of(eqns, value, values, picking, MANY // max(1, len(wanted)) if weights_alone else FEW)
    costs += [Cost((), {})] if tail else []  # what no site reaches
    if reached.stops:
        conflicts = Conflicts(eqns, values, reached.stops)
        costs = [_unmarked(cost, conflicts) for cost in costs]
        # The derivatives of aux are traced, whether they are asked for or not.
        aux = [_unmarked(cost, conflicts)._replace(mixed={}) for cost in aux]
    costs = [c._replace(reach=c.reach | {p: everywhere[p] for p in whole if p not in c.held}) for c in costs]
    return Costs(tuple(costs), tail, value, tuple(aux), picking)


def _unknown_costs(value: Atom, others: int, everywhere: Dependence, stops: Mapping[Path, str]) -> Costs:
    """The objective whole, where values could pass unseen: every site may reach it, held and not."""
    unknown = Cost((), everywhere, mixed={p: (line, "what cannot be followed") for p, line in stops.items()})
    return Costs((unknown,), (), value, (unknown._replace(mixed={}),) * others)


def _unmarked(cost: Cost, conflicts: Conflicts) -> Cost:
    """The same cost, its marks turned into what it holds and what it sees both ways."""
    reach = {p: axes for p, axes in cost.reach.items() if not isinstance(p, Mark)}
    held = {p for p in reach if Mark(p, True) in cost.reach}
    mixed = {p for p in held if Mark(p, False) in cost.reach}
    lines = {p: conflicts.lines([v for v, _ in cost.leaves], p) for p in mixed}
    return cost._replace(reach=reach, held=frozenset(held - mixed), mixed=lines)


def _costs_of(
    eqns: Sequence[Eqn], value: Atom, env: Mapping[Var, Dependence], picking: bool, most: int
) -> tuple[list[Cost], tuple[Eqn, ...]]:
    """The costs, and the linear end of the program.

    They are kept apart also where they differ by sites alone, unless these are more than `most`.
    """
    if isinstance(value, Literal):
        return [Cost((), {})], ()
    leaves, tail = _leaves(eqns, value, env, True, picking)
    costs = _alike([_cost(leaf, env.get(leaf, {})) for leaf in leaves])
    if len(costs) > most:
        leaves, tail = _leaves(eqns, value, env, False, picking)
        costs = []
        for leaf in leaves:
            costs = _add(costs, _cost(leaf, env.get(leaf, {})))
    return costs, tail


def _cost(leaf: Var, reach: Dependence) -> Cost:
    kept = sorted({axis_of(a) for axes in reach.values() for a in axes if a is not None})
    sizes = tuple(leaf.aval.shape[a] for a in kept)
    return Cost(sizes, moved(reach, kept.index), ((leaf, tuple(kept)),))


def _alike(costs: Sequence[Cost]) -> list[Cost]:
    """The costs, those that the same sites reach alike as one."""
    groups: dict[Any, list[Cost]] = {}
    for cost in costs:
        groups.setdefault((cost.sizes, frozenset(cost.reach.items())), []).append(cost)
    return [first._replace(leaves=sum((c.leaves for c in (first, *more)), ())) for first, *more in groups.values()]


def _add(costs: list[Cost], new: Cost) -> list[Cost]:
    """Adds a cost to the one whose lanes are kept apart alike, if there is one, whatever sites reach them."""
    for i, cost in enumerate(costs):
        joined = join(cost.reach, new.reach)
        no_conflict = joined == cost.reach | new.reach == new.reach | cost.reach and not _mixes(cost.reach, new.reach)
        if cost.sizes == new.sizes and no_conflict:
            return [*costs[:i], Cost(cost.sizes, joined, cost.leaves + new.leaves), *costs[i + 1 :]]
    return [*costs, new]


def _mixes(one: Dependence, other: Dependence) -> bool:
    """Whether a site reaches two values unlike: held one of them, and not so the other."""
    return any(isinstance(k, Mark) and k.path in b and k not in b for a, b in ((one, other), (other, one)) for k in a)


# --- the linear end of a program ------------------------------------------------------------------------------


def _leaves(
    eqns: Sequence[Eqn], value: Var, env: Mapping[Var, Dependence], by_site: bool, picking: bool
) -> tuple[list[Var], tuple[Eqn, ...]]:
    """The leaves of the objective that a site reaches, and the linear equations that lead from them to it."""
    below: dict[Var, dict[Var, None]] = {}  # variable -> its leaves, where these tell more apart than it does
    for eqn in eqns:
        operands = _linear_operands(eqn, env, picking)
        if operands is None:
            continue
        (out,) = eqn.outvars
        found = {leaf: None for v in operands for leaf in below.get(v, {v: None})}
        if any(_tells_more(env[leaf], env[out], by_site) for leaf in found):
            below[out] = found
    tail = backward(eqns, [value], lambda _, v: v in below)
    return list(below.get(value, {value: None})), tuple(tail.eqns(eqns))


def _tells_more(leaf: Dependence, out: Dependence, by_site: bool) -> bool:
    """Whether a site does not reach a leaf, or less of it reaches each element than of what is made of it."""
    return _mixes(leaf, out) or any(
        (by_site and path not in leaf)
        or any(_tells(a) > _tells(b) for a, b in zip(leaf.get(path, axes), axes, strict=True))
        for path, axes in out.items()
    )


def _tells(a: Axis | None) -> int:
    """How much an axis tells apart: each pass; groups of them, or windows, the less the more are put together; none."""
    if isinstance(a, Window):
        return 2 - (a.first, a.last).count(None)
    if isinstance(a, Indexed):
        return 3 - min(len(a.sums), 2)
    return 0 if a is None else 3


def _linear_operands(eqn: Eqn, env: Mapping[Var, Dependence], picking: bool) -> list[Var] | None:
    """The operands that sites reach, if the equation is linear (or affine) in them; None: it is not.

    Equations that leave out parts of their operands count where that is allowed for (`picking`).
    """
    traits = traits_of(eqn)
    if traits.linear is None or (traits.leaves_out and not picking):
        return None
    dtype = eqn.outvars[0].aval.dtype
    if not jnp.issubdtype(dtype, jnp.floating):
        return None
    reached = {k: v for k, v in enumerate(eqn.invars) if not isinstance(v, Literal) and env.get(v)}
    counted = [v for k, v in enumerate(eqn.invars) if k in reached or jnp.issubdtype(v.aval.dtype, jnp.inexact)]
    if any(v.aval.dtype != dtype for v in counted):
        return None  # coefficients would pass through the narrower dtype
    return list(reached.values()) if reached and traits.linear(list(reached)) else None


# --- sums that loops and branches hide ------------------------------------------------------------------------


def expose_sums(jaxpr: ClosedJaxpr, numbers: bool) -> ClosedJaxpr:
    """The same program; where drawn values are held, no loop, branch or checkpoint hides sums of its linear end.

    With `numbers`, no scan hides the steps of a number that it adds up.
    """
    if any_meant(jaxpr) and holds_drawn_values(jaxpr, {p.path: len(p.loops) for p in list_sites(jaxpr)}):
        return floats_stacked(summed_after(jaxpr))
    return summed_after(jaxpr, numbers_alone=True) if numbers else jaxpr
