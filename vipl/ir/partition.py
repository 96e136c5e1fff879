"""A pytree split into arrays (operands of an equation) and a hashable rest (a parameter of it).

Invariant: `combine(skeleton, leaves)` of `skeleton, leaves = partition(tree)` is `tree`, leaf for leaf.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from typing import Any, TypeGuard

import jax
import jax.numpy as jnp
import numpy as np

from vipl._jax import Tracer
from vipl._types import ArrayLike, PyTree
from vipl.errors import ChoiceError
from vipl.ir.frames import user_frame


@dataclass(frozen=True)
class Integers:
    """A concrete array of integers or booleans, made hashable."""

    shape: tuple[int, ...]
    dtype: str
    data: bytes

    @classmethod
    def of(cls, array: np.ndarray) -> Integers:
        """An array, made hashable."""
        return cls(array.shape, array.dtype.str, array.tobytes())

    def array(self) -> np.ndarray:
        """The array."""
        return np.frombuffer(self.data, self.dtype).reshape(self.shape)


@dataclass(frozen=True)
class Skeleton:
    """The hashable rest of a pytree whose array leaves were taken out.

    Attributes:
      treedef: the structure.
      static: for every leaf, in order, `(True, value)` where it stays here, `(False, None)` where it is an operand.
      types: the types of the leaves that stay, since True == 1 in Python.
    """

    treedef: Any
    static: tuple[tuple[bool, Hashable], ...]
    types: tuple[type, ...]

    def __eq__(self, other: object) -> bool:
        """Whether both are alike; arrays that NumPyro keeps in a structure, such as counts, are compared by content."""
        if not isinstance(other, Skeleton) or (self.static, self.types) != (other.static, other.types):
            return False
        try:
            return self.treedef == other.treedef
        except ValueError:
            return _alike(self.treedef, other.treedef)

    def combine(self, leaves: Iterable[object]) -> Any:
        """Puts the operands back."""
        operands = iter(leaves)
        values = [
            (value.array() if isinstance(value, Integers) else value) if kept else next(operands)
            for kept, value in self.static
        ]
        return jax.tree.unflatten(self.treedef, values)


def _alike(a: Any, b: Any) -> bool:
    """Whether two structures, or what nodes of them keep, are equal."""
    if isinstance(a, jax.tree_util.PyTreeDef):
        return _alike((a.node_data(), a.children()), (b.node_data(), b.children()))
    if type(a) is type(b) and isinstance(a, (tuple, list)):
        return len(a) == len(b) and all(map(_alike, a, b))
    if isinstance(a, Tracer) or isinstance(b, Tracer):
        return a is b
    if isinstance(a, (np.ndarray, jax.Array)) or isinstance(b, (np.ndarray, jax.Array)):
        return type(a) is type(b) and a.dtype == b.dtype and np.array_equal(np.asarray(a), np.asarray(b))
    return a == b


def not_arrays(tree: PyTree) -> list[object]:
    """The leaves of a pytree that are not arrays or numbers."""
    return [leaf for leaf in jax.tree.leaves(tree) if not is_array(leaf)]


def python_integer(leaf: object) -> bool:
    """An integer or boolean of Python, or a scalar of NumPy, such as a length."""
    return isinstance(leaf, (bool, int, np.integer, np.bool_))


def concrete_integer(leaf: object) -> bool:
    """Any integers that are not traced: `Binomial.total_count`, bounds of `DiscreteUniform`, a mask."""
    if isinstance(leaf, (Tracer, str)):
        return False
    if python_integer(leaf):
        return True
    return isinstance(leaf, (np.ndarray, jax.Array)) and np.dtype(leaf.dtype).kind in "iub"


def _hashable(leaf: object) -> object:
    if isinstance(leaf, (np.ndarray, jax.Array)) and is_array(leaf):
        return Integers.of(np.asarray(leaf))
    return leaf


def is_array(leaf: object) -> TypeGuard[ArrayLike]:
    """A leaf that can be an operand: an array, a tracer, a Python number."""
    if isinstance(leaf, (np.ndarray, np.generic)):
        return leaf.dtype.kind in "biufcV"  # not text, dates, or objects
    return isinstance(leaf, (Tracer, jax.Array, bool, int, float, complex))


def as_array(x: object) -> ArrayLike | None:
    """What is an array or is made of numbers (a list, a data frame) as an array; None of anything else."""
    if is_array(x):
        return canonical(x)
    try:
        if isinstance(x, (list, tuple)):
            try:
                return jnp.asarray(x)
            except OverflowError:
                x = np.asarray(x)
        if hasattr(x, "__array__") and not isinstance(x, type):
            x = np.asarray(x)
            return canonical(x) if is_array(x) else None
    except (TypeError, ValueError):
        return None
    return None


def canonical(x: Any) -> Any:
    """The same numbers, as an array that JAX takes as it is.

    Integers that are too large for JAX's are floats: it would wrap them in silence, as 3_000_000_000 at 32 bits.

    Raises:
      ChoiceError: a masked array of NumPy has masked elements, whose numbers JAX would take.
    """
    if isinstance(x, np.ma.MaskedArray):
        if np.ma.is_masked(x):
            raise _masked(x)
        x = x.data
    if isinstance(x, bool) or not isinstance(x, (int, np.integer, np.ndarray)):
        return x
    kind = np.dtype(int) if isinstance(x, int) else x.dtype
    if kind.kind not in "iu":
        return x
    own = jax.dtypes.canonicalize_dtype(kind)
    if own == kind and not isinstance(x, int):
        return x
    least, most = np.iinfo(own).min, np.iinfo(own).max
    if np.size(x) == 0 or (least <= np.min(x) and np.max(x) <= most):
        return x
    return np.asarray(x, np.float64) if isinstance(x, np.ndarray) else float(x)


def _masked(x: np.ma.MaskedArray) -> ChoiceError:
    return ChoiceError(
        "a masked array stands where its mask is not looked at.",
        at=user_frame(),
        got=f"{int(np.ma.getmaskarray(x).sum())} masked of {x.size} elements",
        expected="an array of numbers",
        fix="for data with holes write program, data = vipl.partly_observed(program, data), and pass both; elsewhere "
        "pass x.filled(0.0), and ~x.mask as an array of its own",
    )


def is_real(x: object) -> bool:
    """A real number or an array of them; not a boolean, nor a string."""
    return is_array(x) and any(jnp.issubdtype(jnp.result_type(x), kind) for kind in (jnp.floating, jnp.integer))


def partition(tree: PyTree, *, keep: Callable[[object], bool] | None = None) -> tuple[Skeleton, list[Any]]:
    """Splits a pytree into a hashable rest and its array leaves.

    Args:
      tree: any pytree; a data frame or the like is an array of its numbers; other leaves have to be hashable.
      keep: which arrays and numbers stay in the rest as well, so that shapes and supports may depend on them.
    """
    flat, treedef = jax.tree.flatten(tree)
    static, leaves = [], []
    for leaf in flat:
        if not is_array(leaf) and hasattr(leaf, "__array__") and (array := as_array(leaf)) is not None:
            leaf = array
        if is_array(leaf) and not (keep is not None and keep(leaf)):
            leaves.append(canonical(leaf))
            static.append((False, None))
        else:
            static.append((True, _hashable(leaf)))
    return Skeleton(treedef, tuple(static), tuple(type(v) for kept, v in static if kept)), leaves
