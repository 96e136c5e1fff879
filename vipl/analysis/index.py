"""Arrays that are indexed by data, `effect[group]`: row i depends on lane group[i] alone.

An index is a variable at the top level of a program that no site reaches. Equal computations of an index are one and
the same: that of `effect[group]`, say, and that of a sum of costs by the same group (JAX's segment_sum).
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vipl import _jax
from vipl._jax import Atom, Eqn, Jaxpr, Literal, Var
from vipl._types import Array
from vipl.ir.dataflow import backward, evaluate, maker, plain
from vipl.ir.purity import is_pure


class Indexed(NamedTuple):
    """An axis along which element i depends on pass index[i, column] of a loop alone.

    Attributes:
      axis: the axis of the value.
      index: of integers, i[n, columns], n the length of the axis.
      column: that of this loop.
    """

    axis: int
    index: Var
    column: int = 0


class Known(NamedTuple):
    """A variable that no site reaches.

    Attributes:
      number: equal for variables that are computed alike.
      raw: the number of what it is without the rule that a negative index counts from the end.
      first: the first variable that is computed like it.
    """

    number: int
    raw: int
    first: Var


def known_values(jaxpr: Jaxpr) -> dict[Var, Known]:
    """The integers of a program without inputs that no site reaches, and its constants."""
    constvars, _, _, eqns, _ = _jax.parts(jaxpr)
    numbers: dict[Hashable, int] = {}
    first: dict[int, Var] = {}
    known: dict[Var, Known] = {}

    def number(*key: Hashable) -> int:
        return numbers.setdefault(key, len(numbers))

    def add(v: Var, own: int, raw: int) -> None:
        known[v] = Known(own, raw, first.setdefault(own, v))

    for v in constvars:
        add(v, number(v), number(v))
    made_by = maker(eqns)
    for eqn in eqns:
        integers = all(jnp.issubdtype(v.aval.dtype, jnp.integer) or v.aval.dtype == bool for v in eqn.outvars)
        if not integers or _jax.bodies(eqn) or not is_pure(eqn):
            continue
        operands = [v if isinstance(v, Literal) else known.get(v) for v in eqn.invars]
        if None in operands:
            continue
        counts_from_end = _counts_from_end(eqn, made_by)
        for k, v in enumerate(eqn.outvars):
            what = (eqn.primitive.name, str(eqn.params), k)
            own = number(*what, *(x.number if isinstance(x, Known) else _literal(x) for x in operands))
            raw = number(*what, *(x.raw if isinstance(x, Known) else _literal(x) for x in operands))
            add(v, own, raw if counts_from_end is None else known[counts_from_end].raw)
    return known


def _literal(v: Literal | None) -> Hashable:
    return None if v is None else (np.asarray(v.val).tobytes(), str(v.aval))


def _counts_from_end(eqn: Eqn, made_by: Callable[[Atom], Eqn | None]) -> Var | None:
    """Of `where(i < 0, i + n, i)`, i."""
    if eqn.primitive.name != "select_n" or len(eqn.invars) != 3:
        return None
    index, less, added = eqn.invars[1], made_by(eqn.invars[0]), made_by(eqn.invars[2])
    if isinstance(index, Literal) or less is None or added is None:
        return None
    is_less = less.primitive.name == "lt" and less.invars[0] is index and _is_zero(less.invars[1])
    return index if is_less and added.primitive.name == "add" and added.invars[0] is index else None


def _is_zero(v: Atom) -> bool:
    return isinstance(v, Literal) and not np.any(v.val)


def rows_axis(eqn: Eqn, k: int, a: int, known: Mapping[Var, Known]) -> Indexed | None:
    """The axis of rows that axis `a` of operand `k` becomes, where it is indexed by known integers."""
    if eqn.primitive.name != "gather" or k != 0 or (index := _index(eqn, known)) is None:
        return None
    d, out = eqn.params["dimension_numbers"], eqn.outvars[0].aval
    rows = [i for i in range(len(out.shape)) if i not in d.offset_dims]
    one_lane_each = a in d.start_index_map and eqn.params["slice_sizes"][a] == 1
    if not one_lane_each or d.operand_batching_dims or len(rows) != 1:
        return None
    return Indexed(rows[0], index.first, list(d.start_index_map).index(a))


def lanes_axis(eqn: Eqn, k: int, a: Indexed, known: Mapping[Var, Known]) -> int | None:
    """The axis of lanes that rows become again, where they are added up by the same index.

    An index that is not counted from the end, as that of segment_sum, drops the rows where it is negative.
    """
    if eqn.primitive.name != "scatter-add" or k != 2 or (index := _index(eqn, known)) is None:
        return None
    d, same = eqn.params["dimension_numbers"], known[a.index]
    rows = [i for i in range(len(eqn.invars[2].aval.shape)) if i not in d.update_window_dims]
    lanes = tuple(d.scatter_dims_to_operand_dims)
    if rows != [a.axis] or len(lanes) != 1 or lanes != tuple(d.inserted_window_dims) or d.operand_batching_dims:
        return None
    drops = eqn.params["mode"] == jax.lax.GatherScatterMode.FILL_OR_DROP
    return lanes[0] if index.number == same.number or (drops and index.number == same.raw) else None


def _index(eqn: Eqn, known: Mapping[Var, Known]) -> Known | None:
    index = eqn.invars[1]
    return None if isinstance(index, Literal) else known.get(index)


def values_of(jaxpr: Jaxpr, wanted: list[Var]) -> dict[Var, Array]:
    """The values of variables that no site reaches."""
    constvars, consts, _, eqns, _ = _jax.parts(jaxpr)
    env = evaluate(backward(eqns, wanted).eqns(eqns), dict(zip(constvars, consts, strict=True)), plain)
    return {v: env[v] for v in wanted}
