"""Arrays that are indexed by data, `effect[group]`, or added up by them, `segment_sum(effect, group)`.

Row i of the first depends on lane group[i] alone; element k of the second on the lanes j with group[j] = k.

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


class Column(NamedTuple):
    """A column of an index i[n, columns] that no site reaches."""

    index: Var
    column: int


class Indexed(NamedTuple):
    """An axis whose elements are made of passes of a loop, by indices: first put together, then looked up.

    Without `sums` element i depends on pass takes[0][... takes[-1][i]] alone. With one, on the passes j for which
    sums[0][j] is that number; with more, on those whose groups are put together so.

    Each pass is in at most one group: what is looked up is not put together again but by the same index, since a pass
    would stand in several rows of a group then.

    Attributes:
      axis: the axis of the value.
      takes: the indices by which rows are looked up, the first ones first, and how many elements there are to look up.
      sums: those by which passes are put together before, and how many groups there are.
    """

    axis: int
    takes: tuple[tuple[Column, int], ...] = ()
    sums: tuple[tuple[Column, int], ...] = ()

    def after(self, inner: Indexed) -> Indexed | None:
        """The axis of a value computed along `self` from one along `inner`; None where a pass would count twice."""
        if inner.takes and self.sums:
            return None
        return Indexed(self.axis, inner.takes + self.takes, inner.sums + self.sums)

    @property
    def columns(self) -> list[Column]:
        """All indices."""
        return [column for column, _ in (*self.sums, *self.takes)]


class Known(NamedTuple):
    """A variable that no site reaches.

    Attributes:
      number: equal for variables that are computed alike.
      raw: the number of what it is, element by element in another shape or type, without the rule that a negative
        index counts from the end. Where that is negative, the two differ.
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
            raw = own
            if counts_from_end is not None:
                raw = known[counts_from_end].raw
            elif _keeps_numbers(eqn) and isinstance(operands[0], Known):
                raw = number(*what, operands[0].raw)
            add(v, own, raw)
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


def _keeps_numbers(eqn: Eqn) -> bool:
    """Whether the elements are those of the operand, which are less than 2^31 in size: an axis has no more."""
    if eqn.primitive.name == "convert_element_type":
        dtype = eqn.outvars[0].aval.dtype
        return jnp.issubdtype(dtype, jnp.signedinteger) and dtype.itemsize >= 4  # JAX's own, of an index
    return eqn.primitive.name in ("broadcast_in_dim", "reshape", "squeeze")


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
    column = Column(index.first, list(d.start_index_map).index(a))
    return Indexed(rows[0], ((column, eqn.invars[0].aval.shape[a]),))


def groups_axis(eqn: Eqn, k: int, a: int, known: Mapping[Var, Known]) -> Indexed | None:
    """The axis of groups that axis `a` of operand `k` becomes, if its elements are put together by known integers."""
    if (found := _groups(eqn, k, a, known)) is None:
        return None
    index, axis = found
    return Indexed(axis, (), ((Column(index.first, 0), eqn.outvars[0].aval.shape[axis]),))


def lanes_axis(eqn: Eqn, k: int, a: Indexed, known: Mapping[Var, Known]) -> int | Indexed | None:
    """What rows become again where they are put together by the index by which they were looked up, in their places.

    An index that is not counted from the end, as that of segment_sum, leaves out the rows where it is negative.
    """
    if not a.takes or (found := _groups(eqn, k, a.axis, known)) is None:
        return None
    (index, axis), (last, size) = found, a.takes[-1]
    if last.column or index.number not in (known[last.index].number, known[last.index].raw):
        return None
    if eqn.outvars[0].aval.shape[axis] != size:
        return None
    before = Indexed(axis, a.takes[:-1], a.sums)
    return before if before.columns else axis


_SCATTERS = ("scatter", "scatter-add", "scatter-mul", "scatter-min", "scatter-max", "scatter-sub")


def _groups(eqn: Eqn, k: int, a: int, known: Mapping[Var, Known]) -> tuple[Known, int] | None:
    """The index by which what stands along axis `a` of operand `k` is put together, and the axis of the groups."""
    if eqn.primitive.name not in _SCATTERS or k != 2 or (index := _index(eqn, known)) is None:
        return None
    d = eqn.params["dimension_numbers"]
    rows = [i for i in range(len(eqn.invars[2].aval.shape)) if i not in d.update_window_dims]
    groups = tuple(d.scatter_dims_to_operand_dims)
    clips = eqn.params["mode"] == jax.lax.GatherScatterMode.CLIP
    if clips or rows != [a] or len(groups) != 1 or groups != tuple(d.inserted_window_dims) or d.operand_batching_dims:
        return None
    return index, int(groups[0])


def _index(eqn: Eqn, known: Mapping[Var, Known]) -> Known | None:
    index = eqn.invars[1]
    return None if isinstance(index, Literal) else known.get(index)


def summed_by(x: Array, axis: int, indexed: Indexed, values: Mapping[Var, Array]) -> Array:
    """Along an axis of passes, the sum over those on which each element depends.

    Args:
      x: f[..., passes, ...].
      axis: that of the passes.
      indexed: how the elements are made of them.
      values: those of the indices.
    """
    for (index, column), size in indexed.sums:
        x = jnp.moveaxis(jax.ops.segment_sum(jnp.moveaxis(x, axis, 0), values[index][:, column], size), 0, axis)
    for (index, column), _ in indexed.takes:
        x = jnp.take(x, values[index][:, column], axis=axis, mode="clip")
    return x


def values_of(jaxpr: Jaxpr, wanted: list[Var]) -> dict[Var, Array]:
    """The values of variables that no site reaches."""
    constvars, consts, _, eqns, _ = _jax.parts(jaxpr)
    env = evaluate(backward(eqns, wanted).eqns(eqns), dict(zip(constvars, consts, strict=True)), plain)
    return {v: env[v] for v in wanted}
