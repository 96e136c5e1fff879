"""What the objective is given at each step: the same arrays, or the next batch of a stream.

Law: step t of a stream gets its t-th batch, however many batches are read ahead, and wherever a fit that is continued
begins: a stream is read from its beginning, and the batches of the steps that were taken are passed over.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any

import jax

from vipl._types import PyTree
from vipl.fit._check import as_arrays, check_batch, check_has_batches, check_is_batch

_END = object()
"""What is read where a stream has no more batches."""

_AHEAD = 2
"""How many batches are read, and on their way to the device, while a step is taken."""


def is_stream(data: PyTree) -> bool:
    """Says whether data are batches to be read one by one: an iterator, an iterable, or a function that makes one.

    What NumPy makes one array of (a data frame, a range), and containers that are pytrees, are arrays.
    """
    if not jax.tree_util.all_leaves([data]) or isinstance(data, type) or hasattr(data, "__array__"):
        return False
    if isinstance(data, Iterator) or callable(data):
        return True
    return hasattr(data, "__iter__") and not hasattr(data, "__getitem__")


class Fixed:
    """The same arrays at every step."""

    def __init__(self, data: PyTree):
        """`data`: …, a pytree of arrays; None for an objective of the parameters alone."""
        self.args = () if data is None else (data,)

    def example(self) -> tuple[PyTree, ...]:
        """The arguments of every step."""
        return self.args

    def begin(self, start: int) -> None:
        """Every step gets the same."""

    def next(self) -> tuple[PyTree, ...] | None:
        """The arguments of the next step."""
        return self.args

    def read_ahead(self) -> None:
        """Reads nothing."""


class Stream:
    """The batches of a stream, one for each step.

    Attributes:
      args: those of the latest step.
    """

    def __init__(self, data: PyTree):
        """Nothing is read yet."""
        self.args: tuple[PyTree, ...] = ()
        self._make = data if callable(data) and not isinstance(data, Iterable) else None
        self._source: Any = () if self._make is not None else data
        self._batches = iter(self._source)
        self._read: deque[PyTree] = deque()
        self._first: PyTree = None
        self._of_this_pass = 0
        self._passed = False

    def example(self) -> tuple[PyTree, ...]:
        """The arguments of the first step of all; the stream still begins with them."""
        if self._make is not None:
            self._source = self._make(0)
            self._batches = iter(self._source)
            return (self._arrays(),)
        self._read.append(self._arrays())
        return (self._read[0],)

    def begin(self, start: int) -> None:
        """Passes over the batches of the steps that were taken."""
        self._passed = start > 0
        if self._make is not None:
            self._source = self._make(start)
            self._batches, self._of_this_pass = iter(self._source), 0
            return
        for _ in range(start):
            self._read.popleft() if self._read else self._raw()

    def next(self) -> tuple[PyTree, ...] | None:
        """The arguments of the next step; None where there are no more batches.

        Raises:
          ProgramError: there was no batch at all, or one is not of the kind of the first.
          Exception: what the stream raised when this batch was read.
        """
        batch = self._read.popleft() if self._read else self._arrays()
        if isinstance(batch, Exception):
            raise batch
        if batch is None:
            return None
        self.args = (batch,)
        return self.args

    def read_ahead(self) -> None:
        """Reads the next few batches; what the stream raises is raised when its batch is used."""
        while len(self._read) < _AHEAD and (not self._read or _is_batch(self._read[-1])):
            try:
                self._read.append(self._arrays())
            except Exception as error:
                self._read.append(error)

    def _arrays(self) -> PyTree:
        batch = self._raw()
        if batch is _END:
            check_has_batches(self._first is not None or self._passed)
            return None
        check_is_batch(batch)
        batch = as_arrays(batch, "data")
        self._first = batch if self._first is None else self._first
        check_batch(batch, self._first)
        return batch

    def _raw(self) -> PyTree:
        """The next batch as the stream has it; what is not an iterator is gone through again and again."""
        for batch in self._batches:
            self._of_this_pass += 1
            return batch
        if self._source is self._batches or self._of_this_pass == 0:
            return _END
        self._batches, self._of_this_pass = iter(self._source), 0
        return self._raw()


def _is_batch(read: PyTree) -> bool:
    return read is not None and not isinstance(read, Exception)


Feed = Fixed | Stream
