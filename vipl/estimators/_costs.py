"""An objective as a sum of costs: f = Σ_c Σ_i cost_c[i], each with the sites that reach it.

The expected value is linear. So a cost needs the weights of those sites alone that reach it; and where a site stands
in a `vmap` and element i of a cost depends on lane i alone, the weights of that lane alone. The objective is followed
backwards from its value through sums and other linear operations, to the values from which these are computed, the
leaves: f = Σ_leaf <coefficient, leaf> + constant, with coefficients and a constant that no site reaches. What is summed
over lanes is kept apart by lane, and all leaves that are kept apart alike are one cost.

Law: the costs add up to f. With nothing to be kept apart there is one cost, f itself.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from vipl import _compat
from vipl.core._equations import evaluate, plain, read, walk
from vipl.core._reach import Reach, join, moved
from vipl.core._site import Path

MAX_COSTS = 8


class Cost(NamedTuple):
    """One summand of the objective.

    Attributes:
      sizes: its shape: the lanes that are kept apart.
      reach: the sites that reach it, and for each loop around a site the axis along which the loop runs, or None.
      leaves: variables of the program, and which of their axes are kept.
    """

    sizes: tuple[int, ...]
    reach: Reach
    leaves: tuple[tuple[Any, tuple[int, ...]], ...]


class Costs(NamedTuple):
    """An objective, taken apart.

    Attributes:
      costs: its summands.
      tail: the linear equations from the leaves to the objective's value.
      value: the variable of the objective's value.
      aux: the reach of the program's other outputs.
    """

    costs: tuple[Cost, ...]
    tail: tuple[Any, ...]
    value: Any
    aux: tuple[Reach, ...]

    def evaluate(self, env: dict[Any, Any]) -> list[Any]:
        """f[*sizes] of each cost, from the values of the program's variables."""
        (value,) = read(env, [self.value])
        if not self.tail:
            return [value]
        leaves = [v for cost in self.costs for v, _ in cost.leaves]

        def tail(values):
            return read(evaluate(self.tail, env | dict(zip(leaves, values, strict=True)), plain), [self.value])[0]

        constant, pull = jax.vjp(tail, [jnp.zeros_like(env[v]) for v in leaves])
        coefficients = dict(zip(leaves, pull(jnp.ones((), value.dtype))[0], strict=True))
        *parts, _ = self.costs
        return [*(_combined(p, coefficients, env).astype(value.dtype) for p in parts), constant]


def _combined(cost: Cost, coefficients: dict[Any, Any], env: dict[Any, Any]) -> Any:
    kept = [jnp.sum(coefficients[v] * env[v], axis=_complement(env[v].ndim, axes)) for v, axes in cost.leaves]
    return functools.reduce(jnp.add, kept)


def _complement(ndim: int, axes: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(a for a in range(ndim) if a not in axes)


def find_costs(
    jaxpr: Any, wanted: Mapping[Path, int], values: Mapping[Any, Reach] | None, whole: Sequence[Path]
) -> Costs:
    """Takes the objective of a program apart.

    Args:
      jaxpr: the program; its first output is the objective.
      wanted: the sites whose estimators weigh costs, and how many loops are around each.
      values: what they reach; None: not known.
      whole: those among them whose weights belong to the objective as a whole.
    """
    _, _, _, eqns, (value, *others) = _compat.parts(jaxpr)
    everywhere: Reach = {path: (None,) * n for path, n in wanted.items()}
    if values is None or isinstance(value, _compat.Literal):
        return Costs((Cost((), everywhere, ()),), (), value, (everywhere,) * len(others))
    aux = tuple({} if isinstance(v, _compat.Literal) else values.get(v, {}) for v in others)
    costs, tail = _split(eqns, value, values, by_site=True)
    if len(costs) > MAX_COSTS:
        costs, tail = _split(eqns, value, values, by_site=False)
    costs += [Cost((), {}, ())] if tail else []  # what no site reaches
    costs = [c._replace(reach=c.reach | {p: everywhere[p] for p in whole}) for c in costs]
    return Costs(tuple(costs), tail, value, aux)


def _split(
    eqns: Sequence[Any], value: Any, env: Mapping[Any, Reach], by_site: bool
) -> tuple[list[Cost], tuple[Any, ...]]:
    """The costs, and the linear end of the program; `by_site`: kept apart also where they differ by sites alone."""
    leaves, tail = _leaves(eqns, value, env, by_site)
    costs: list[Cost] = []
    for leaf in leaves:
        costs = _add(costs, _cost(leaf, env.get(leaf, {})), by_site)
    return costs, tail


def _cost(leaf: Any, reach: Reach) -> Cost:
    kept = sorted({a for axes in reach.values() for a in axes if a is not None})
    sizes = tuple(leaf.aval.shape[a] for a in kept)
    return Cost(sizes, moved(reach, kept.index), ((leaf, tuple(kept)),))


def _add(costs: list[Cost], new: Cost, by_site: bool) -> list[Cost]:
    """Adds a cost to the one that is kept apart alike, if there is one."""
    for i, cost in enumerate(costs):
        joined = join(cost.reach, new.reach)
        no_conflict = joined == cost.reach | new.reach == new.reach | cost.reach
        if cost.sizes == new.sizes and no_conflict and (not by_site or cost.reach.keys() == new.reach.keys()):
            return [*costs[:i], Cost(cost.sizes, joined, cost.leaves + new.leaves), *costs[i + 1 :]]
    return [*costs, new]


# --- the linear end of a program ------------------------------------------------------------------------------


def _leaves(
    eqns: Sequence[Any], value: Any, env: Mapping[Any, Reach], by_site: bool
) -> tuple[list[Any], tuple[Any, ...]]:
    """The leaves of the objective that a site reaches, and the linear equations that lead from them to it."""
    below: dict[Any, dict[Any, None]] = {}  # variable -> its leaves, where these tell more apart than it does
    linear: dict[Any, Any] = {}
    for eqn in eqns:
        operands = _linear_operands(eqn, env)
        if operands is None:
            continue
        (out,) = eqn.outvars
        found = {leaf: None for v in operands for leaf in below.get(v, {v: None})}
        if any(_tells_more(env[leaf], env[out], by_site) for leaf in found):
            below[out], linear[out] = found, (eqn, operands)
    tail, todo, seen = [], [value], set()
    while todo:
        v = todo.pop()
        if v in linear and v not in seen:
            seen.add(v)
            eqn, operands = linear[v]
            tail.append(eqn)
            todo += operands
    order = {id(eqn): i for i, eqn in enumerate(eqns)}
    return list(below.get(value, {value: None})), tuple(sorted(tail, key=lambda eqn: order[id(eqn)]))


def _tells_more(leaf: Reach, out: Reach, by_site: bool) -> bool:
    """Whether a site does not reach a leaf, or reaches it lane by lane, and reaches what is made of it otherwise."""
    return any(
        (by_site and path not in leaf)
        or any(a is not None and b is None for a, b in zip(leaf.get(path, axes), axes, strict=True))
        for path, axes in out.items()
    )


def _linear_operands(eqn: Any, env: Mapping[Any, Reach]) -> list[Any] | None:
    """The operands that sites reach, if the equation is linear (or affine) in them; None: it is not."""
    rule = _LINEAR.get(eqn.primitive.name)
    if rule is None or not jnp.issubdtype(eqn.outvars[0].aval.dtype, jnp.floating):
        return None
    if any(v.aval.dtype != eqn.outvars[0].aval.dtype for v in eqn.invars):
        return None  # coefficients would pass through the narrower dtype
    numbers = [k for k, v in enumerate(eqn.invars) if not isinstance(v, _compat.Literal) and env.get(v)]
    return [eqn.invars[k] for k in numbers] if numbers and rule(numbers) else None


_LINEAR: dict[str, Callable[[list[int]], bool]] = {
    **dict.fromkeys(("add", "add_any", "sub", "concatenate"), lambda numbers: True),
    **dict.fromkeys(
        "neg reduce_sum reshape squeeze transpose broadcast_in_dim convert_element_type copy div".split(),
        lambda numbers: numbers == [0],
    ),
    **dict.fromkeys(("mul", "dot_general"), lambda numbers: len(numbers) == 1),
}


# --- compiled functions around the end ------------------------------------------------------------------------


def opened(jaxpr: Any) -> Any:
    """The same program, in which no `jit` hides sums at the linear end."""
    while found := _closed(jaxpr):
        jaxpr = jax.make_jaxpr(functools.partial(_opened, jaxpr, found))()
    return jaxpr


def _opened(jaxpr: Any, found: set[int]) -> list[Any]:
    def visit(i, eqn, values):
        return walk(eqn.params["jaxpr"], values, plain) if i in found else plain(i, eqn, values)

    return walk(jaxpr, [], visit)


def _closed(jaxpr: Any) -> set[int]:
    """The numbers of `jit` equations that the objective is a linear function of, and that end in a linear equation."""
    _, _, _, eqns, (value, *_) = _compat.parts(jaxpr)
    made_by = {v: i for i, eqn in enumerate(eqns) for v in eqn.outvars}
    found: set[int] = set()
    todo, seen = [value], set()
    while todo:
        v = todo.pop()
        if isinstance(v, _compat.Literal) or v not in made_by or v in seen:
            continue
        seen.add(v)
        eqn = eqns[made_by[v]]
        if eqn.primitive is _compat.jit_p and _ends_linearly(eqn, v):
            found.add(made_by[v])
        elif eqn.primitive.name in _LINEAR:
            todo += eqn.invars
    return found


def _ends_linearly(eqn: Any, out: Any) -> bool:
    _, _, _, eqns, outvars = _compat.parts(eqn.params["jaxpr"])
    inner = outvars[list(eqn.outvars).index(out)]
    ends = [e.primitive for e in eqns for v in e.outvars if v is inner]
    return any(p is _compat.jit_p or p.name in _LINEAR for p in ends)
