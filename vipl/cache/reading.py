"""What was read of a function, and whether it still holds.

`holds` is a flat loop over what was read, most of it comparisons by `is`.
"""

from __future__ import annotations

import hashlib
import operator
from collections.abc import Callable, Collection, Hashable, Mapping, Sized
from types import CellType, CodeType, FunctionType
from typing import Any

import jax
import numpy as np

MISSING: Any = type("Missing", (), {"__repr__": lambda _: "missing"})()
"""Stands for what has no value: a name, a cell, an attribute."""


class Same:
    """Is equal to what holds the same object, which it keeps alive."""

    __slots__ = ("thing",)

    def __init__(self, thing: object):
        """Holds an object."""
        self.thing = thing

    def __eq__(self, other: object) -> bool:
        """Compares by identity."""
        return isinstance(other, Same) and other.thing is self.thing

    def __hash__(self) -> int:
        """By identity."""
        return id(self.thing)


class Reading:
    """What was read.

    Attributes:
      token: hashable; equal where the same was read.
      unreadable: what could not be read, in words; None where everything was.
      traced: whether a value of a JAX transformation that is going on was read.
    """

    __slots__ = ("token", "unreadable", "traced", "slots", "sizes", "cells", "functions", "sequences", "attributes",
                 "arrays", "again", "kept")  # fmt: skip

    def __init__(self):
        """An empty reading."""
        self.token: Hashable = None
        self.unreadable: str | None = None
        self.traced = False
        self.slots: list[tuple[Mapping[Any, object], Hashable, object]] = []
        self.sizes: list[tuple[Sized, int]] = []
        self.cells: list[tuple[CellType, object]] = []
        self.functions: list[tuple[FunctionType, CodeType, object, object]] = []
        self.sequences: list[tuple[Collection[object], tuple[object, ...]]] = []
        self.attributes: list[tuple[object, str, object]] = []
        self.arrays: list[tuple[np.ndarray, np.ndarray]] = []
        self.again: list[tuple[Callable[[], object], object]] = []
        self.kept: Any = None  # of `vipl.cache.programs`

    def holds(self) -> bool:
        """Says whether all that was read is still the same object, or array of the same content."""
        return (
            self._names_hold()
            and self._parts_hold()
            and all(same_bits(array, copy) for array, copy in self.arrays)
            and all(look() == seen for look, seen in self.again)
        )

    def _names_hold(self) -> bool:
        """Whether names, cells and attributes still stand for the same objects."""
        for mapping, name, value in self.slots:
            if mapping.get(name, MISSING) is not value:
                return False
        for cell, value in self.cells:
            if content_of(cell) is not value:
                return False
        return all(getattr(thing, name, MISSING) is value for thing, name, value in self.attributes)

    def _parts_hold(self) -> bool:
        """Whether functions and containers still have the same parts."""
        for sized, size in self.sizes:
            if len(sized) != size:
                return False
        for fn, code, defaults, keyword_defaults in self.functions:
            if fn.__code__ is not code or fn.__defaults__ is not defaults or fn.__kwdefaults__ is not keyword_defaults:
                return False
        for sequence, values in self.sequences:
            if len(sequence) != len(values) or not all(map(operator.is_, sequence, values)):
                return False
        return True


def content_of(cell: CellType) -> Any:
    """The value of a cell."""
    try:
        return cell.cell_contents
    except ValueError:  # empty
        return MISSING


def same_bits(array: np.ndarray, copy: np.ndarray) -> bool:
    """Whether two arrays are equal to the bit."""
    if array.shape != copy.shape or array.dtype != copy.dtype:
        return False
    if array.nbytes < 4096 or not array.flags.c_contiguous or not copy.flags.c_contiguous:
        return array.tobytes() == copy.tobytes()
    width = "u8" if array.nbytes % 8 == 0 else "u1"
    return np.array_equal(array.reshape(-1).view(width), copy.reshape(-1).view(width))


def bits_of(array: np.ndarray) -> bytes:
    """The content of an array, or a hash of it."""
    data = array.tobytes()
    return data if len(data) <= 64 else hashlib.sha256(data).digest()


def is_frozen(array: np.ndarray) -> bool:
    """Whether nobody can change an array in place."""
    base: Any = array
    while isinstance(base, np.ndarray):
        if base.flags.writeable:
            return False
        base = base.base
    return base is None or isinstance(base, (bytes, jax.Array))
