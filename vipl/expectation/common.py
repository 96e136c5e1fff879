"""What the values of an enumerated site are in all lanes alike is computed once for all lanes.

An enumerated site in lanes takes the same value in all of them, x_v for number v; in a lane where that has probability
zero another value stands in. So what depends on the value alone is

    h(x_v) in the lanes where x_v is possible,   h(x_b) elsewhere, with b the number of the lane's most probable value:

a row of a table with one entry for each value, whatever the number of lanes. A program that is staged has the lanes in
its arrays, f[lanes, ...]; here such a value is kept as f[1, ...] (a `Common`), until an equation reads it together
with what differs by lane. There nothing has to stand in, if all that follows is computed element by element and
weighted: it is evaluated at the site's own value (a `Mixed`), and carries no derivative in lanes where that is not
possible, and weight zero. Elsewhere, before another site say, the entry of number b is put in, without a derivative.
A value that no lane can have is not evaluated.

Invariant: weighted values, and their derivatives, are those of the program with the stand-ins at the site.

Not here: a site in a branch or a `scan`; functions with their own derivative rules, but for sums of flips' log
probabilities (`Flips`), and whatever else has no row in the table of `ir.traits` that says that it serves axes of any
length. Where lanes meet in the end of a program (`expectation.joint`), joint values are kept so in other lanes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax

from vipl import _jax
from vipl._jax import Atom, Eqn, Literal, Var
from vipl._types import Array, Bool, Float, Int
from vipl.analysis.decomposition import Later
from vipl.distributions._flips import LOG_BERNOULLI, total_log_bernoulli
from vipl.gen import Points
from vipl.ir.dataflow import Visit
from vipl.ir.keys import is_key
from vipl.ir.primitives import Path
from vipl.ir.rows import row_p, rows_p
from vipl.ir.sites import SiteInfo
from vipl.ir.traits import by_element, is_by_element, traits_of


class StandIn(NamedTuple):
    """What a site says of one of its values; each with leading axes for the lanes.

    Attributes:
      value: the value; None: that of a joint value of several lanes stands elsewhere.
      possible: bool[], whether it is possible; None: it always is.
      log_weights: f[n], of all values.
      best: i[], the number of the most probable value, where it is not left to the log weights.
    """

    value: Array | None = None
    possible: Bool[Array, "*lanes"] | None = None
    log_weights: Float[Array, "*lanes n"] | None = None
    best: Int[Array, "*lanes"] | None = None

    def with_best(self) -> StandIn:
        """The same, with the number of the most probable value instead of all log weights."""
        return self._replace(best=self.best_in(...), log_weights=None) if self.possible is not None else self

    def best_in(self, lanes: Any) -> Int[Array, "..."]:
        """The number of the most probable value in some lanes, an index."""
        assert self.best is not None or self.log_weights is not None
        return best_number(self.log_weights[lanes]) if self.best is None else self.best[lanes]  # type: ignore[index]


class Common(NamedTuple):
    """A value that all lanes of a site have in common, but for what stands in.

    Attributes:
      array: the value, with length 1 along the axes of the lanes.
      path: of the site.
      numbers: [n, ...], for each value of the site what this one is, if that is known beforehand; then `array` is this
        also where no lane can have the value. What is not known beforehand is never evaluated there.
    """

    array: Array
    path: Path
    numbers: np.ndarray | None = None


class Flips(NamedTuple):
    """Log probabilities of flips that differ by lane, by logits that all lanes have in common; not computed yet.

    Their sums are products of matrices.

    Attributes:
      eqn: the equation that gives them.
      value: the flips.
      logits: the logits.
    """

    eqn: Eqn
    value: Array
    logits: Common

    @property
    def path(self) -> Path:
        """Of the site."""
        return self.logits.path


class Mixed(NamedTuple):
    """A value that differs by lane, evaluated at the site's value also in lanes where that is not possible.

    There it may be anything, and its derivatives too; these do not leave the lane, as what it is made of is cut there.

    Attributes:
      array: the value.
      path: of the site.
    """

    array: Array
    path: Path


def best_number(log_weights: Float[Array, "*lanes n"]) -> Int[Array, "*lanes"]:
    """The number of the most probable value."""
    if log_weights.shape[-1] == 2:
        return (log_weights[..., 1] > log_weights[..., 0]).astype(jnp.int32)
    return jnp.argmax(lax.stop_gradient(log_weights), axis=-1).astype(jnp.int32)


def possible_values(points: Points) -> Array:
    """[n, ...], the values; instead of one that is not possible, another one."""
    values, possible = points.values, points.possible
    if possible is None:
        return values
    if values.shape[0] == 2:  # the other one; without a look at a table
        first, second = values
        return rows_p.bind(jnp.where(possible[0], first, second), jnp.where(possible[1], second, first))
    column = jnp.expand_dims(possible, tuple(range(1, values.ndim)))
    return jnp.where(column, values, jnp.asarray(values)[best_number(points.log_weights)])


def stand_in(points: Points, digit: Int[Array, ""], axis: str) -> StandIn:
    """What is known of value number `digit`, in the `vmap` of that axis name over all of them."""
    value = row_p.bind(points.values, digit, axis=axis)
    if points.possible is None:
        return StandIn(value)
    return StandIn(value, row_p.bind(points.possible, digit, axis=axis), lax.stop_gradient(points.log_weights))


Reaches = Mapping[Var, Mapping[Path, Sequence[Any]]]
"""Variable -> site -> for each loop around it, the axis of the variable along which the loop runs."""


def never_stands_in(eqns: Sequence[Eqn], reaches: Reaches, path: Path, others: Collection[Path]) -> bool:
    """Whether no equation that reads what a site's value reaches needs a stand-in, if its values are kept in common.

    Args:
      eqns: the equations of the program.
      reaches: what reaches each variable.
      path: of the site.
      others: the other sites whose values may be kept in common; what two of them reach is settled.
    """
    for eqn in eqns:
        reached = [reaches[v] for v in eqn.invars if not isinstance(v, Literal) and path in reaches.get(v, {})]
        if not reached:
            continue
        traits = traits_of(eqn)
        apart = traits.axes is by_element or (traits.axes is not None and len(eqn.invars) == 1)
        kept = apart and (traits.any_length or eqn.primitive.name in _SHAPED)
        if not (kept or eqn.primitive.name in _PICKS) or any(other in r for r in reached for other in others):
            return False
    return True


class InCommon:
    """The equation loop of a program whose enumerated sites in lanes have their values in common.

    Attributes:
      sites: number of the equation -> the site that it holds.
      values: path of a site -> its values, [n, ...].
      digits: path of a site -> the number of its value.
      reaches: what reaches each variable.
      names: path of a site -> the name of the axis of its values.
      around_all: the names of all axes of values.
    """

    def __init__(
        self,
        sites: Mapping[int, SiteInfo],
        values: Mapping[Path, np.ndarray],
        digits: Mapping[Path, Array],
        reaches: Reaches,
        names: Callable[[Path], str],
        around_all: tuple[str, ...],
    ):
        """Begins with nothing known."""
        self.sites, self.values, self.digits, self.reaches, self.names = sites, values, digits, reaches, names
        self.around_all = around_all
        self._stand_ins: dict[Path, StandIn] = {}
        self._repeated: dict[Var, tuple[Eqn, Array]] = {}

    def around(self, visit: Visit[Array], emits: Mapping[Path, Any]) -> Visit[Any]:
        """An equation loop's visit, which takes and gives values that may be common."""

        def visit_common(i: int, eqn: Eqn, operands: list[Any]) -> Sequence[Any]:
            out = self._kept(eqn, operands)
            if out is not None:
                return [out]
            if eqn.primitive.name == "broadcast_in_dim":
                self._repeated[eqn.outvars[0]] = eqn, operands[0]
            outs: list[Any] = list(visit(i, eqn, list(map(self.settled, eqn.invars, operands))))
            if i in self.sites:
                outs[0] = self._value(self.sites[i], emits)
            return outs

        return visit_common

    def know(self, path: Path, stand_in: StandIn) -> None:
        """Says what is known of a site that stands before the program."""
        self._stand_ins[path] = stand_in

    def possible(self, path: Path) -> Bool[Array, "*lanes"] | None:
        """Where a site's value is possible; None: everywhere."""
        return self._stand_ins[path].possible

    def settled(self, v: Atom, x: Any) -> Array:
        """A value in all lanes, with the stand-ins where the site's value is not possible."""
        x = self._computed(x)
        if not isinstance(x, (Common, Mixed)):
            return x
        axes = self._lanes(v, x.path)
        assert axes is not None
        whole = jnp.broadcast_to(x.array, v.aval.shape)
        stand_in = self._stand_ins[x.path]
        if stand_in.possible is None:
            return whole
        best = stand_in.best_in(...)
        rows = lax.all_gather(lax.stop_gradient(x.array), self.names(x.path))  # [n, ...]
        if rows.shape[0] == 2:
            other = jnp.where(aligned(best == 1, axes, whole.ndim), rows[1], rows[0])
        elif isinstance(x, Mixed):
            other = jnp.take_along_axis(rows, aligned(best, axes, whole.ndim)[None], 0)[0]
        else:
            rows = jnp.squeeze(rows, tuple(a + 1 for a in axes))
            other = jnp.moveaxis(rows[best], range(len(axes)), axes)
        return jnp.where(aligned(stand_in.possible, axes, whole.ndim), whole, other)

    def weighed(self, env: Mapping[Var, Any], summed: Mapping[Var, tuple[int, ...]]) -> dict[Var, Any]:
        """The same where all that is read is weighted, so that nothing has to stand in.

        Args:
          env: the environment.
          summed: variables that are only summed, and over which axes they are not; these may be a `Later`.
        """
        later = {v: self._later(v, x, summed[v]) for v, x in env.items() if isinstance(x, Flips) and v in summed}
        return {v: later.get(v) or self._in_lanes(v, x) for v, x in env.items()}

    def _later(self, v: Var, x: Flips, kept: tuple[int, ...]) -> Later | None:
        """Flips' log probabilities, to be summed over other axes than those kept; None where lanes are added up."""
        lanes = self._lanes(v, x.path)
        if lanes is None or not set(lanes) <= set(kept):
            return None
        logits = self.evaluated(x.logits)
        return Later(lambda c, axes: total_log_bernoulli(x.value, logits, c, lanes, axes, self.around_all))

    def _in_lanes(self, v: Atom, x: Any) -> Any:
        """A value in all lanes, whose derivative counts where the site's value is possible."""
        x = self._computed(x)
        if not isinstance(x, Common):
            return x.array if isinstance(x, Mixed) else x
        axes = self._lanes(v, x.path)
        assert axes is not None
        return self._counted(jnp.broadcast_to(x.array, v.aval.shape), axes, x.path)

    def _counted(self, x: Array, axes: tuple[int, ...], path: Path) -> Array:
        """The same number, with a derivative only in lanes where the site's value is possible."""
        possible = self._stand_ins[path].possible
        if possible is None or not jnp.issubdtype(x.dtype, jnp.inexact):
            return x
        return jnp.where(aligned(possible, axes, x.ndim), x, lax.stop_gradient(x))

    def _kept(self, eqn: Eqn, operands: list[Any]) -> Any:
        """The result of an equation as a common or mixed value; None where it needs stand-ins, or no lanes at all."""
        if any(isinstance(x, Flips) for x in operands):
            if len(operands) == 1 and (total := self._total(eqn, *operands)) is not None:
                return total
            operands[:] = map(self._computed, operands)
        paths = {x.path for x in operands if isinstance(x, (Common, Mixed))}
        if len(paths) != 1 or len(eqn.outvars) != 1 or is_key(eqn.outvars[0].aval):
            return None
        (path,) = paths
        axes = self._lanes(eqn.outvars[0], path)
        if axes is None:
            return None
        if axes and _is_log_bernoulli(eqn) and not isinstance(operands[0], (Common, Mixed)):
            return Flips(eqn, *operands) if isinstance(operands[1], Common) else None
        if not any(isinstance(x, Mixed) for x in operands):
            out = self._looked_up(eqn, operands, axes, path) if eqn.primitive.name in _PICKS else None
            out = self._once(eqn, operands, axes, path) if out is None else out
            if out is not None:
                return out
        return self._by_element(eqn, operands, axes, path)

    def _total(self, eqn: Eqn, x: Flips) -> Any:
        """The sum of flips' log probabilities along axes that are no lanes'; None where the equation is no such sum."""
        lanes, left = self._lanes(eqn.invars[0], x.path), self._lanes(eqn.outvars[0], x.path)
        if eqn.primitive.name != "reduce_sum" or lanes is None or left is None:
            return None
        axes = tuple(map(int, eqn.params["axes"]))
        total = total_log_bernoulli(x.value, self.evaluated(x.logits), None, lanes, axes, self.around_all)
        return total if self._stand_ins[x.path].possible is None else Mixed(self._counted(total, left, x.path), x.path)

    def _computed(self, x: Any) -> Any:
        """The same value, computed if it is not yet."""
        if not isinstance(x, Flips):
            return x
        stand_in, v = self._stand_ins[x.path], x.eqn.invars[1]
        (out,) = _jax.rebind(x.eqn, [x.value, self._in_lanes(v, x.logits)])
        return out if stand_in.possible is None else Mixed(out, x.path)

    def _by_element(self, eqn: Eqn, operands: list[Any], axes: tuple[int, ...], path: Path) -> Mixed | None:
        """The result of an equation that keeps lanes apart: no derivative leaves a lane where nothing counts."""
        traits = traits_of(eqn)
        if self._stand_ins[path].possible is None or not (traits.any_length or eqn.primitive.name in _SHAPED):
            return None
        if traits.axes is not by_element:  # of one array
            ends = tuple(traits.axes(eqn, 0, a) for a in self._lanes(eqn.invars[0], path) or ())  # type: ignore[misc]
            if len(operands) != 1 or ends != axes:
                return None
            return Mixed(_jax.rebind(eqn, [self._in_lanes(eqn.invars[0], operands[0])])[0], path)
        shape, values = eqn.outvars[0].aval.shape, []
        for v, x in zip(eqn.invars, operands, strict=True):
            if isinstance(x, Mixed) or isinstance(v, Literal):
                values.append(x.array if isinstance(x, Mixed) else x)
            elif isinstance(x, Common):
                values.append(self._in_lanes(v, x))
            else:
                values.append(self._counted(jnp.broadcast_to(x, shape), axes, path))
        return Mixed(_jax.rebind(eqn, values)[0], path)

    def _value(self, info: SiteInfo, emits: Mapping[Path, Any]) -> Common:
        """A site's value, which is the same in all lanes."""
        stand_in = self._stand_ins[info.path] = emits[info.path].stand_in
        return Common(stand_in.value[(slice(1),) * len(info.loops)], info.path, self.values[info.path])

    def evaluated(self, x: Common) -> Array:
        """The value; if no lane can have it, another one, so that what is made of it has a derivative."""
        stand_in = self._stand_ins[x.path]
        if x.numbers is None or stand_in.possible is None:
            return x.array
        best = jnp.asarray(x.numbers)[_some(stand_in)].reshape(x.array.shape)
        return jnp.where(jnp.any(stand_in.possible), x.array, best)

    def _is_single(self, path: Path) -> bool:
        """Whether a site has no lanes of its own, and values that may not be possible.

        A `vmap` around the program may make lanes of it, each with its own possible values.
        """
        possible = self._stand_ins[path].possible
        return possible is not None and possible.ndim == 0

    def _lanes(self, v: Atom, path: Path) -> tuple[int, ...] | None:
        """The axes of a variable along which the lanes of a site run; None where they do not run along any."""
        axes = self.reaches.get(v, {}).get(path, (None,))  # type: ignore[call-overload]
        return tuple(axes) if all(isinstance(a, int) for a in axes) else None

    def _once(self, eqn: Eqn, operands: list[Any], axes: tuple[int, ...], path: Path) -> Common | None:
        """The result of an equation that reads nothing that differs by lane; None: it does, or has no rule here."""
        traits = traits_of(eqn)
        # The slices of a table have lengths, its indices any.
        by_index = eqn.primitive.name == "gather" and not isinstance(operands[0], Common)
        if traits.axes is None or not (traits.any_length or by_index or eqn.primitive.name in _SHAPED):
            return None
        values = []
        for k, (v, x) in enumerate(zip(eqn.invars, operands, strict=True)):
            if isinstance(x, Common):
                before = self._lanes(v, path)
                assert before is not None
                if tuple(traits.axes(eqn, k, a) for a in before) != axes:
                    return None
                values.append(x)
                continue
            lanes = [a for a in range(len(v.aval.shape)) if v.aval.shape[a] > 1 and traits.axes(eqn, k, a) in axes]
            value = self._short(v, x, lanes)
            if value is None:
                return None
            values.append(value)
        size = math.prod(n for a, n in enumerate(eqn.outvars[0].aval.shape) if a not in axes)
        numbers = _numbers_after(eqn, operands) if size == 1 else None
        if numbers is None and self._is_single(path):
            return None
        arrays = [
            x if not isinstance(x, Common) else x.array if numbers is not None else self.evaluated(x) for x in values
        ]
        return Common(_shorter(eqn, arrays, axes), path, numbers)

    def _looked_up(self, eqn: Eqn, operands: list[Any], axes: tuple[int, ...], path: Path) -> Any:
        """A row of a table whose number is a function of the site's value, without a look at it; None: it is none."""
        table, *indices = operands
        axis = _row_axis(eqn)
        if (
            isinstance(table, Common)
            or axis is None
            or not isinstance(index := indices[axis if len(indices) > 1 else 0], Common)
        ):
            return None
        if index.numbers is None or index.array.size != 1:
            return None
        numbers, size, ndim = index.numbers.reshape(-1), table.shape[axis], eqn.outvars[0].aval.ndim
        if numbers.min() < 0 or numbers.max() >= size:
            return None
        to: list[Any] = [traits_of(eqn).axes(eqn, 0, a) for a in range(table.ndim) if a != axis]  # type: ignore[misc]
        if None in to or any(n > 1 for a, n in enumerate(eqn.outvars[0].aval.shape) if a not in (*axes, *to)):
            return None
        rows = jnp.moveaxis(table, axis, 0)
        rows = rows if np.array_equal(numbers, np.arange(size)) else rows[numbers]
        rows = jnp.transpose(rows, (0, *(1 + i for i in sorted(range(len(to)), key=lambda i: to[i]))))
        rows = jnp.expand_dims(rows, tuple(1 + a for a in range(ndim) if a not in to))
        own, stand_in = row_p.bind(rows, self.digits[path], axis=self.names(path)), self._stand_ins[path]
        if self._is_single(path):
            return Mixed(self._counted(own, axes, path), path)
        if any(a in axes for a in to):
            own = jnp.broadcast_to(own, eqn.outvars[0].aval.shape)
            return own if stand_in.possible is None else Mixed(self._counted(own, axes, path), path)
        if stand_in.possible is None:
            return Common(own, path)
        other = lax.stop_gradient(rows)[_some(stand_in)]
        return Common(jnp.where(jnp.any(stand_in.possible), own, other), path)

    def _short(self, v: Atom, x: Array, axes: list[int]) -> Array | None:
        """An operand with length 1 along axes, if it is repeated along them."""
        if not axes:
            return x
        eqn, operand = self._repeated.get(v, (None, None))  # type: ignore[call-overload]
        if eqn is None or isinstance(operand, (Common, Mixed)):
            return None
        dims = eqn.params["broadcast_dimensions"]
        if any(a in dims and eqn.invars[0].aval.shape[dims.index(a)] != 1 for a in axes):
            return None
        return _shorter(eqn, [operand], tuple(axes))


_PICKS = ("gather", "dynamic_slice")

_SHAPED = ("broadcast_in_dim", "reshape")


def _shorter(eqn: Eqn, values: list[Array], axes: tuple[int, ...]) -> Array:
    """The result of an equation with length 1 along axes."""
    shape = tuple(1 if a in axes else n for a, n in enumerate(eqn.outvars[0].aval.shape))
    if eqn.primitive.name not in _SHAPED:
        return _jax.rebind(eqn, values)[0]
    with _jax.eqn_context(eqn):
        if eqn.primitive.name == "reshape":
            return lax.reshape(values[0], shape)
        return lax.broadcast_in_dim(values[0], shape, eqn.params["broadcast_dimensions"])


def _row_axis(eqn: Eqn) -> int | None:
    """The axis of a table of which an equation picks one row, whole in all other axes; None: it does something else."""
    sizes, table = eqn.params["slice_sizes"], eqn.invars[0].aval.shape
    if eqn.primitive.name == "dynamic_slice":
        picked = [a for a, n in enumerate(table) if sizes[a] != n or n == 1]
        return picked[0] if len(picked) == 1 and sizes[picked[0]] == 1 else None
    d = eqn.params["dimension_numbers"]
    if len(d.start_index_map) != 1:
        return None
    axis = d.start_index_map[0]
    whole = all(sizes[a] == n or a in d.operand_batching_dims for a, n in enumerate(table) if a != axis)
    return axis if whole and sizes[axis] == 1 else None


_NUMBERS = {
    "add": np.add, "sub": np.subtract, "mul": np.multiply, "lt": np.less, "le": np.less_equal, "ge": np.greater_equal,
    "gt": np.greater, "eq": np.equal, "ne": np.not_equal, "max": np.maximum, "min": np.minimum,
    "select_n": lambda which, *cases: np.choose(which, cases),
    "clamp": lambda low, x, high: np.clip(x, low, high),
} | dict.fromkeys(
    ("broadcast_in_dim", "reshape", "squeeze", "transpose", "stop_gradient", "copy", "convert_element_type"),
    lambda x: x,
)  # fmt: skip
"""What becomes of single numbers that are known beforehand; of integers alone, so that it is exact."""


def _numbers_after(eqn: Eqn, operands: list[Any]) -> np.ndarray | None:
    """What each number becomes, where all operands are known, single, and integers; also as floats."""
    rule, known = _NUMBERS.get(eqn.primitive.name), []
    for v, x in zip(eqn.invars, operands, strict=True):
        if not (np.issubdtype(v.aval.dtype, np.integer) or v.aval.dtype == bool):
            return None
        if isinstance(x, Common) and x.numbers is not None and x.array.size == 1:
            known.append(x.numbers.reshape(-1))
        elif isinstance(v, Literal):
            known.append(x)
        else:
            return None
    return None if rule is None else np.asarray(rule(*known)).astype(eqn.outvars[0].aval.dtype)


def _some(stand_in: StandIn) -> Int[Array, ""]:
    """The number of a value that is possible in some lane of the program: of the best one of the first lane."""
    assert stand_in.possible is not None
    return stand_in.best_in((0,) * stand_in.possible.ndim)


def _is_log_bernoulli(eqn: Eqn) -> bool:
    """Whether an equation gives the log probability of flips, each by its own logit; not in half precision.

    There x φ and softplus(φ), which differ by little, would leave few digits of their sums.
    """
    name, program = _jax.named_function(eqn) or ("", None)
    shape = eqn.outvars[0].aval.shape
    return (
        name.startswith(LOG_BERNOULLI)
        and eqn.outvars[0].aval.dtype.itemsize >= 4
        and all(v.aval.shape == shape for v in eqn.invars)
        and program is not None
        and is_by_element(program, shape)
    )


def aligned(x: Array, axes: Sequence[int], ndim: int) -> Array:
    """[*lanes] with the axes of an array in which the lanes run along `axes`."""
    x = jnp.transpose(x, sorted(range(len(axes)), key=lambda i: axes[i]))
    return jnp.expand_dims(x, tuple(a for a in range(ndim) if a not in axes))
