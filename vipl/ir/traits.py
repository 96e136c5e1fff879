"""What is assumed of JAX's primitives: one table, `TRAITS`, from a primitive's name to its traits.

Invariant: a primitive that is not in the table is taken for the worst: impure, not to be moved, mixing all lanes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from enum import IntEnum
from typing import NamedTuple

from vipl import _jax
from vipl._jax import Atom, ClosedJaxpr, Eqn, Jaxpr


class Move(IntEnum):
    """What moving an equation from each step of a loop to all steps at once means; the worst comes last."""

    CHEAP = 0
    """It may be evaluated twice."""
    COSTLY = 1
    PICKS = 2
    """It picks a part of an array."""
    STAYS = 3
    """It is not known to be safe to move."""


Axes = Callable[[Eqn, int, int], int | None]
"""(equation, number of an operand, axis of it) -> the axis of the results that it becomes; None: its lanes mix."""


class Traits(NamedTuple):
    """What is assumed of a primitive.

    Attributes:
      pure: whether it is a function of its operands and parameters, if the programs inside it are. No effect is no
        proof: a generator of uniform numbers (rng_uniform) has none, and gives another number each time.
      move: what moving it out of a loop means.
      axes: where lanes go that are an axis of an operand; None: they mix.
      linear: numbers of operands -> whether it is linear (or affine) in all of these together; None: in none.
      leaves_out: whether parts of its operands may not count in the result, whatever their values.
      signs: of a sum, the signs of its terms, which are the operands.
      makes_keys: whether it makes keys of keys.
      any_length: whether its parameters say nothing of how long the axes are that it keeps, so that it is the same
        function where they are shorter.
    """

    pure: bool = True
    move: Move = Move.STAYS
    axes: Axes | None = None
    linear: Callable[[Sequence[int]], bool] | None = None
    leaves_out: bool = False
    signs: tuple[int, ...] = ()
    makes_keys: bool = False
    any_length: bool = False


def traits_of(eqn: Eqn) -> Traits:
    """The traits of an equation's primitive."""
    return TRAITS.get(eqn.primitive.name, _UNKNOWN)


_UNKNOWN = Traits(pure=False)

CALLBACKS = ("pure_callback", "io_callback", "debug_callback", "debug_print")
"""Names of the primitives that call Python functions from compiled code."""

RANDOM_BITS = "random_bits"
"""The primitive that makes bits of a key."""

HASHES = (RANDOM_BITS, "random_fold_in", "random_split")
"""The primitives that take a hash for each key or number that they make."""


# --- where lanes go -------------------------------------------------------------------------------------------


def _shape(eqn: Eqn, k: int) -> tuple[int, ...]:
    return eqn.invars[k].aval.shape


def _out(eqn: Eqn) -> tuple[int, ...]:
    return eqn.outvars[0].aval.shape


def by_element(eqn: Eqn, k: int, a: int) -> int | None:
    """Axes of size 1 may be repeated."""
    shape, out = _shape(eqn, k), _out(eqn)
    return a if len(shape) == len(out) and shape[a] == out[a] else None


def _without(a: int, dropped: Sequence[int]) -> int | None:
    return None if a in dropped else a - sum(d < a for d in dropped)


def _dropped(name: str) -> Axes:
    """The axes that a parameter names are gone."""
    return lambda eqn, k, a: _without(a, eqn.params[name])


def _mixed(name: str) -> Axes:
    """The axes that a parameter names are mixed; the others stay."""

    def axes(eqn: Eqn, k: int, a: int) -> int | None:
        mixed = eqn.params[name]
        return None if a in (mixed if isinstance(mixed, tuple) else (mixed,)) else a

    return axes


def _all_but_last_two(eqn: Eqn, k: int, a: int) -> int | None:
    return a if a < len(_shape(eqn, k)) - 2 else None


def _pad(eqn: Eqn, k: int, a: int) -> int | None:
    return a if tuple(eqn.params["padding_config"][a]) == (0, 0, 0) else None


def _stack(eqn: Eqn, k: int, a: int) -> int:
    return a if a < eqn.params["axis"] else a + 1


def _after_rows(eqn: Eqn, k: int, a: int) -> int:
    return a + 1


def _unstack(eqn: Eqn, k: int, a: int) -> int | None:
    return _without(a, [eqn.params["axis"]])


def _transpose(eqn: Eqn, k: int, a: int) -> int:
    return list(eqn.params["permutation"]).index(a)


def _broadcast(eqn: Eqn, k: int, a: int) -> int | None:
    to = eqn.params["broadcast_dimensions"][a]
    return to if _out(eqn)[to] == _shape(eqn, k)[a] else None


def _reshape(eqn: Eqn, k: int, a: int) -> int | None:
    """The axis that has as many elements before it, and the same size."""
    before, after = _shape(eqn, k), _out(eqn)
    if eqn.params["dimensions"] is not None or 0 in before:
        return None
    same = (b for b, n in enumerate(after) if n == before[a] and math.prod(after[:b]) == math.prod(before[:a]))
    return next(same, None)


def _slice(eqn: Eqn, k: int, a: int) -> int | None:
    p = eqn.params
    whole = p["start_indices"][a] == 0 and p["limit_indices"][a] == _shape(eqn, k)[a]
    return a if whole and (p["strides"] is None or p["strides"][a] == 1) else None


def _dynamic_slice(eqn: Eqn, k: int, a: int) -> int | None:
    return a if eqn.params["slice_sizes"][a] == _shape(eqn, 0)[a] else None


def _dynamic_update_slice(eqn: Eqn, k: int, a: int) -> int | None:
    return a if _shape(eqn, 1)[a] == _shape(eqn, 0)[a] else None


def _dot_general(eqn: Eqn, k: int, a: int) -> int | None:
    contracting, batch = eqn.params["dimension_numbers"]
    if a in contracting[k]:
        return None
    if a in batch[k]:
        return list(batch[k]).index(a)
    free = a - sum(d < a for d in (*contracting[k], *batch[k]))
    of_left = len(_shape(eqn, 0)) - len(contracting[0]) - len(batch[0]) if k == 1 else 0
    return len(batch[0]) + of_left + free


def _gather(eqn: Eqn, k: int, a: int) -> int | None:
    d, sizes = eqn.params["dimension_numbers"], eqn.params["slice_sizes"]
    rows = [i for i in range(len(_out(eqn))) if i not in d.offset_dims]  # the axes of the indices, but the last
    if k == 1:
        return rows[a] if a < len(rows) else None
    if a in d.operand_batching_dims:
        at = d.start_indices_batching_dims[list(d.operand_batching_dims).index(a)]
        return rows[at]
    gone = (*d.collapsed_slice_dims, *d.operand_batching_dims)
    if a in gone or sizes[a] != _shape(eqn, 0)[a]:
        return None
    return d.offset_dims[a - sum(g < a for g in gone)]


def _scatter(eqn: Eqn, k: int, a: int) -> int | None:
    """An element of the operand stays in its place; of an update, along the axes of a window that is whole."""
    d = eqn.params["dimension_numbers"]
    if k == 0:
        return a
    if k == 1 or a not in d.update_window_dims or d.operand_batching_dims:
        return None
    whole = [i for i in range(len(_out(eqn))) if i not in d.inserted_window_dims]
    to = whole[list(d.update_window_dims).index(a)]
    return to if _shape(eqn, 2)[a] == _out(eqn)[to] and to not in d.scatter_dims_to_operand_dims else None


def _conv(eqn: Eqn, k: int, a: int) -> int | None:
    d = eqn.params["dimension_numbers"]
    batch = k == 0 and a == d.lhs_spec[0] and eqn.params["batch_group_count"] == 1
    return d.out_spec[0] if batch else None


# --- the table ------------------------------------------------------------------------------------------------


def _in_all(numbers: Sequence[int]) -> bool:
    return True


def _in_first(numbers: Sequence[int]) -> bool:
    return numbers == [0]


def _in_one(numbers: Sequence[int]) -> bool:
    return len(numbers) == 1


TRAITS: dict[str, Traits] = {}


def _row(names: str, traits: Traits) -> None:
    TRAITS.update(dict.fromkeys(names.split(), traits))


_CHEAP, _COSTLY, _PICKS = (Traits(move=move) for move in (Move.CHEAP, Move.COSTLY, Move.PICKS))
_BY_ELEMENT = _CHEAP._replace(axes=by_element, any_length=True)

# elementwise
_row(
    """abs acos acosh and asin asinh atan atan2 atanh cbrt ceil clamp copy_p cos cosh eq erf erf_inv erfc exp exp2 expm1
    floor ge gt integer_pow is_finite le log log1p logistic lt max min ne nextafter not or pow rem round rsqrt
    shift_left shift_right_arithmetic shift_right_logical sign sin sinh sqrt square stop_gradient tan tanh xor""",
    _BY_ELEMENT,
)
_row("add add_any", _BY_ELEMENT._replace(linear=_in_all, signs=(1, 1)))
_row("sub", _BY_ELEMENT._replace(linear=_in_all, signs=(1, -1)))
_row("neg", _BY_ELEMENT._replace(linear=_in_first, signs=(-1,)))
_row("convert_element_type copy div", _BY_ELEMENT._replace(linear=_in_first))
_row("mul", _BY_ELEMENT._replace(linear=_in_one))
_row("select_n", _BY_ELEMENT._replace(linear=lambda numbers: 0 not in numbers, leaves_out=True))
_row(
    """bessel_i0e bessel_i1e digamma igamma igamma_grad_a igammac lgamma polygamma random_gamma_grad
    regularized_incomplete_beta zeta""",
    _COSTLY._replace(axes=by_element),
)
_row("reduce_precision", Traits(axes=by_element))
_row("complex conj imag iota log2 one_minus_square polynomial real", _CHEAP)

# from one shape to another
_row("broadcast_in_dim", _CHEAP._replace(axes=_broadcast, linear=_in_first))
_row("reshape", _CHEAP._replace(axes=_reshape, linear=_in_first, makes_keys=True))
_row("squeeze", _CHEAP._replace(axes=_dropped("dimensions"), linear=_in_first, makes_keys=True, any_length=True))
_row("transpose", _CHEAP._replace(axes=_transpose, linear=_in_first, any_length=True))
_row("concatenate", _CHEAP._replace(axes=_mixed("dimension"), linear=_in_all, any_length=True))
_row("stack", _CHEAP._replace(axes=_stack, linear=_in_all))
_row("vipl_rows", _CHEAP._replace(axes=_after_rows, linear=_in_all))
_row("split", _CHEAP._replace(axes=_mixed("axis")))
_row("pad", _CHEAP._replace(axes=_pad, linear=_in_all, leaves_out=True))
_row("rev", _CHEAP._replace(axes=_mixed("dimensions"), linear=_in_first, leaves_out=True))
_row("slice", _CHEAP._replace(axes=_slice, linear=_in_first, leaves_out=True, makes_keys=True))
_row("dynamic_slice", _PICKS._replace(axes=_dynamic_slice, linear=_in_first, leaves_out=True))
_row("gather", _PICKS._replace(axes=_gather, linear=_in_first, leaves_out=True))
_row(
    "dynamic_update_slice",
    Traits(axes=_dynamic_update_slice, linear=lambda numbers: set(numbers) <= {0, 1}, leaves_out=True),
)
_row("scatter scatter-max scatter-min scatter-mul scatter-sub", Traits(axes=_scatter))
_row("scatter-add", Traits(axes=_scatter, linear=lambda numbers: set(numbers) <= {0, 2}, leaves_out=True))

# along axes
_row("reduce_sum", _COSTLY._replace(axes=_dropped("axes"), linear=_in_first, any_length=True))
_row(
    "argmax argmin reduce_and reduce_max reduce_min reduce_or reduce_prod",
    _COSTLY._replace(axes=_dropped("axes"), any_length=True),
)
_row("reduce_xor", Traits(axes=_dropped("axes")))
_row("cumsum", _COSTLY._replace(axes=_mixed("axis"), linear=_in_first, leaves_out=True))
_row("cumlogsumexp cummax cummin cumprod", _COSTLY._replace(axes=_mixed("axis")))
_row("sort", _COSTLY._replace(axes=_mixed("dimension")))
_row("conv_general_dilated", _COSTLY._replace(axes=_conv))
_row("dot_general", _COSTLY._replace(axes=_dot_general, linear=_in_one, any_length=True))
_row("cholesky triangular_solve", _COSTLY._replace(axes=_all_but_last_two))
_row("top_k", _COSTLY)

# pure, and no more is known
_row(
    """approx_top_k bitcast_convert_type broadcast_to cholesky_update clz custom_linear_solve eig eigh eq_to fft
    from_edtype geqp3 geqrf hessenberg householder_product le_to lt_to lu lu_pivots_to_permutation mesh_cast mulhi name
    ormqr platform_index population_count pvary qr ragged_dot_general random_bits random_gamma random_seed random_unwrap
    random_wrap reduce reduce_window reduce_window_max reduce_window_min reduce_window_sum reshard rng_bit_generator
    schur select_and_gather_add select_and_scatter select_and_scatter_add sharding_constraint svd symmetric_product
    threefry2x32 to_edtype tridiagonal
    tridiagonal_solve zeros_like vipl_alarm vipl_guard vipl_mark vipl_row""",
    Traits(),
)
_row("unstack", Traits(axes=_unstack))
_row("tile", Traits(axes=by_element))
_row("random_clone random_fold_in random_split", Traits(makes_keys=True))
_WITH_BODIES = (
    _jax.jit_p, _jax.scan_p, _jax.cond_p, _jax.while_p, _jax.remat_p, _jax.custom_jvp_call_p, _jax.custom_vjp_call_p,
)  # fmt: skip
_row(" ".join(primitive.name for primitive in _WITH_BODIES), Traits())


def is_by_element(jaxpr: Jaxpr | ClosedJaxpr, shape: tuple[int, ...]) -> bool:
    """Whether a program of arrays of that shape, and of single numbers, is computed element by element."""
    _, _, invars, eqns, outvars = _jax.parts(jaxpr)
    repeated = set()  # single numbers, repeated

    def is_aligned(v: Atom) -> bool:
        return v.aval.shape in ((), shape) or v in repeated

    if not all(v.aval.shape == shape for v in outvars) or not all(map(is_aligned, invars)):
        return False
    for eqn in eqns:
        if eqn.primitive.name == "broadcast_in_dim" and (eqn.invars[0].aval.shape == () or eqn.invars[0] in repeated):
            repeated.add(eqn.outvars[0])
            continue
        inside = _jax.bodies(eqn)
        if not all(map(is_aligned, (*eqn.invars, *eqn.outvars))) or not (inside or traits_of(eqn).axes is by_element):
            return False
        if not all(is_by_element(body, eqn.outvars[0].aval.shape) for body in inside):
            return False
    return True
