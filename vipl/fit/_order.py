"""The order of the rows in an epoch: a pseudorandom permutation, computed for a batch's positions alone.

Law: for a given key and epoch, position -> row is a bijection of 0, ..., n - 1; the row at a position is a function of
key, epoch, position and n, and costs the same for any n.

A generalized Feistel cipher permutes the pairs Z_a x Z_b, with a b >= n:

    left <- left + F_1(right) mod a,   right <- right + F_2(left) mod b,   left <- left + F_3(right) mod a,   ...

Each F is a hash whose key is drawn from that of the epoch. The m = a b - n numbers that are no rows are walked over:
what is mapped to one of them is mapped on until it is a row (Black and Rogaway 2002, "Ciphers with Arbitrary Finite
Domains", methods 3 and 2; Mitchell, Stokes, Frank and Holmes 2022, "Bandwidth-Optimal Random Shuffling for GPUs",
shuffle rows of memory so). a and b are chosen so that m is small, and where each of the m numbers leads is found first:
on the way from a row to a row none occurs twice, so that m steps lead to the end, and log2(m) doublings do.

With random functions F the law of the rows at two positions would differ from that of a random permutation by less than
about `_ERROR` in total variation: a pair that shares its right number keeps the difference of its left numbers, and
each two rounds it is free with probability 1 - 1 / min(a, b) (`rounds`). a b is even, so that odd permutations occur,
too. The hash is no cipher: a permutation looks random, and keeps nothing secret.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from vipl._types import Array, PRNGKeyArray, Shaped
from vipl.ir.keys import fold_tag

_ERROR = 1e-5
"""How far the law of the rows at two positions is from that of a random permutation, about, in total variation."""

_MOST = 2**16
"""The most left or right numbers: 32 bits hold the product of one with half a hash."""

MOST_ROWS = 2**31 - 1
"""The most rows: their numbers have 32 bits."""


class Shape(NamedTuple):
    """How n rows are written as pairs.

    Attributes:
      n: how many rows there are.
      a: how many left numbers there are.
      b: how many right numbers there are.
      rounds: of the cipher.
    """

    n: int
    a: int
    b: int
    rounds: int

    @property
    def outside(self) -> int:
        """How many pairs are no rows."""
        return self.a * self.b - self.n


@functools.lru_cache(maxsize=256)
def shape_of(n: int) -> Shape:
    """The pairs of the least even a b >= n, where a is between half and twice the root of n."""
    root = math.sqrt(n)
    a = np.arange(math.ceil(root / 2), min(math.floor(2 * root), _MOST) + 1)
    b = -(-n // a)
    fits = (a * b % 2 == 0) & (b <= _MOST)
    a, b = a[fits], b[fits]
    best = np.lexsort((np.maximum(a, b), a * b))[0]
    least = int(min(a[best], b[best]))
    rounds = 2 if least == 1 else 2 + 2 * math.ceil(math.log(1 / _ERROR) / math.log(least))
    return Shape(n, int(a[best]), int(b[best]), rounds)


class Order(NamedTuple):
    """The order of an epoch, as a function of the position.

    Attributes:
      keys: u32[rounds], of the hashes.
      ends: u32[m], the row to which the walk from the number n + i leads, for those m numbers that are no rows; what
        stands for one that is reached from no row means nothing.
    """

    keys: Shaped[Array, " rounds"]
    ends: Shaped[Array, " outside"]


def order_of(key: PRNGKeyArray, epoch: Array, n: int) -> Order:
    """The order of n rows in an epoch."""
    shape = shape_of(n)
    key = jax.random.fold_in(fold_tag(key, "epoch"), epoch.astype(jnp.uint32))
    keys = jax.random.bits(key, (shape.rounds,), jnp.uint32)
    if shape.outside == 0:
        return Order(keys, keys[:0])
    ends = _permuted(shape, keys, n + jnp.arange(shape.outside, dtype=jnp.uint32))
    for _ in range((shape.outside - 1).bit_length()):
        ends = _walked(shape, ends, ends)
    return Order(keys, ends)


def rows_at(order: Order, first: Array, count: int, n: int) -> Array:
    """i32[count], the rows at `count` positions from `first` on."""
    shape = shape_of(n)
    positions = first.astype(jnp.uint32) + jnp.arange(count, dtype=jnp.uint32)
    return _walked(shape, _permuted(shape, order.keys, positions), order.ends).astype(jnp.int32)


def _walked(shape: Shape, numbers: Array, ends: Array) -> Array:
    """Numbers, with those that are no rows replaced by where they lead."""
    if shape.outside == 0:
        return numbers
    is_row = numbers < shape.n
    if shape.outside == 1:
        return jnp.where(is_row, numbers, ends[0])
    return jnp.where(is_row, numbers, ends[jnp.where(is_row, 0, numbers - np.uint32(shape.n))])


def _permuted(shape: Shape, keys: Array, numbers: Array) -> Array:
    """The cipher, on numbers below a b."""
    a, b = np.uint32(shape.a), np.uint32(shape.b)

    def two_rounds(pair, keys):
        left, right = pair
        left = _sum(left, _hash(right + keys[0], a), a)
        right = _sum(right, _hash(left + keys[1], b), b)
        return (left, right), None

    first = numbers // b, numbers % b
    is_slow_to_start = jax.default_backend() != "cpu"  # there a loop starts a kernel for each pass
    (left, right), _ = lax.scan(two_rounds, first, keys.reshape(-1, 2), unroll=is_slow_to_start)
    return left * b + right


def _sum(x: Array, y: Array, modulus: np.uint32) -> Array:
    """The sum modulo something, of numbers below it."""
    total = x + y
    return jnp.where(total >= modulus, total - modulus, total)


def _hash(x: Array, size: np.uint32) -> Array:
    """A number below `size` (at most `_MOST`): the upper half of size * h, with h 32 well mixed bits of x.

    The mixing is that of C. Wellons, "Prospecting for Hash Functions" (2018), "lowbias32", without its last shift,
    which changes lower bits alone.
    """
    h = (x ^ (x >> 16)) * np.uint32(0x7FEB352D)
    h = (h ^ (h >> 15)) * np.uint32(0x846CA68B)
    return ((h >> 16) * size + ((h & np.uint32(0xFFFF)) * size >> 16)) >> 16
