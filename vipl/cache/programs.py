"""Compiled programs, kept by what they read.

Invariant of calls: a call from ordinary Python gives what it would give in a fresh process.

`compiled(...)` reads the functions that a program is made of (`vipl.cache.fingerprint`), and compiles it once for all
that read the same: a function that is defined again as it was is not compiled again, and one that calls something that
has changed is. Where something cannot be read the program is traced at every call, and compiled where the trace is a
new one. What the trace itself changes (a counter, say) is taken as it was before and as it is after.

JAX keeps traces of inner functions by identity (the body of a `scan` that reads a global number, for one). So all that
is traced after a change belongs to a new generation, which shares no trace with the ones before.
"""

from __future__ import annotations

import functools
import operator
import os
import types
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from contextlib import AbstractContextManager
from typing import Any, TypeVar

import jax

from vipl import _jax
from vipl._jax import Jaxpr
from vipl._types import Array, ArrayLike, PyTree
from vipl.cache.fingerprint import nodes_of, read
from vipl.cache.reading import Reading
from vipl.cache.traces import avals_of, has_equation, token_of
from vipl.ir import devices
from vipl.ir.guards import ALARM
from vipl.ir.partition import Skeleton, partition
from vipl.ir.traits import CALLBACKS

V = TypeVar("V")

_MANY = 512


class _Recent(OrderedDict[Hashable, V]):
    """A dictionary that forgets what has not been asked for longest."""

    def find(self, key: Hashable) -> V | None:
        found = self.get(key)
        if found is not None:
            self.move_to_end(key)
        return found

    def put(self, key: Hashable, value: V) -> V:
        self[key] = value
        while len(self) > _MANY:
            self.popitem(last=False)
        return value


class _Kept:
    """The programs of what reads the same."""

    def __init__(self):
        self.programs: _Recent[Program] = _Recent()
        self.values: _Recent[tuple[Any]] = _Recent()


_READINGS: _Recent[tuple[object, Reading]] = _Recent()  # what is read -> its latest reading
_KEPT: _Recent[_Kept] = _Recent()  # token -> programs
_PLAIN: _Recent[Program] = _Recent()  # programs that read nothing
_TRACES: _Recent[Program] = _Recent()  # token of a jaxpr -> the program that was traced to it


def forget() -> None:
    """Forgets all programs; to be called with `jax.clear_caches`, after which what is kept is traced once more."""
    for kept in (_READINGS, _KEPT, _PLAIN, _TRACES):
        kept.clear()


@jax.tree_util.register_pytree_node_class
class _Result:
    """What a program returns, where not all of it is arrays."""

    def __init__(self, skeleton: Skeleton, leaves: list[Array]):
        self.skeleton, self.leaves = skeleton, leaves

    def tree_flatten(self) -> tuple[tuple[list[Array]], Skeleton]:
        return (self.leaves,), self.skeleton

    @classmethod
    def tree_unflatten(cls, skeleton: Any, children: tuple[list[Array]]) -> _Result:
        return cls(skeleton, *children)


_LEVEL = "xla_backend_optimization_level"


def _quickly() -> dict[str, int]:
    """Options of XLA for programs that run a few times: compiled in a third of the time, they run about as fast.

    At level 3 LLVM unrolls short loops: the bits of 10 normal numbers for each of 1000 keys take 2.5 s to compile, and
    0.3 s at level 2. The option is given where CPUs are the default platform, and the user has not asked for a level.
    """
    is_set = _LEVEL in os.environ.get("XLA_FLAGS", "") or jax.config.read("jax_disable_most_optimizations")
    return {_LEVEL: 2} if jax.default_backend() == "cpu" and not is_set else {}


class Program:
    """One compiled program. Its function comes with each call, so that the latest one is traced, and none is kept."""

    def __init__(self, seldom: bool = False):
        """Compiles nothing yet.

        Args:
          seldom: whether it runs a few times, so that compilation costs more than the runs.
        """
        self.fn: Callable | None = None
        self.readings: Sequence[Reading] = ()
        self.traces = 0
        self.by_trace: dict[Hashable, Program] | None = None  # avals -> program, where another one is the same
        self.rings = False  # whether a value of it may raise when it runs
        self.needs_values = False  # whether it cannot be traced without the values of its arguments
        self.calls: Sequence[Reading] | None = None  # for whose objects it calls the host, if it does
        self._inside = jax.jit(self._traced)  # JAX takes no options in a transformation
        self._alone = jax.jit(self._traced, compiler_options=_quickly()) if seldom else self._inside

    @property
    def jitted(self) -> Any:
        """Its function, for a call where it stands."""
        return self._inside if _jax.transforming() else self._alone

    def _traced(self, *args: PyTree) -> PyTree:
        self.traces += 1
        with generation_of(self.readings):
            out = devices.on_devices(self.fn)(*args)  # type: ignore[arg-type]
        skeleton, leaves = partition(out)
        return _Result(skeleton, leaves) if skeleton.types else out

    def __call__(self, fn: Callable, readings: Sequence[Reading], args: Sequence[PyTree]) -> Any:
        """Runs it: `fn(*args)`."""
        self.fn, self.readings = fn, readings
        try:
            out = self.jitted(*args) if self.by_trace is None else self._by_trace(fn, readings, args)
        finally:
            self.fn, self.readings = None, ()
        return out.skeleton.combine(out.leaves) if type(out) is _Result else out

    def _by_trace(self, fn: Callable, readings: Sequence[Reading], args: Sequence[PyTree]) -> Any:
        avals = avals_of(args)
        other = self.by_trace.get(avals)  # type: ignore[union-attr]
        if other is None:
            other = self.by_trace[avals] = self.same_as(args)  # type: ignore[index]
        return self.jitted(*args) if other is self else other(fn, readings, args)

    def same_as(self, args: Sequence[PyTree]) -> Program:
        """Traces it, and returns the one that was kept with this trace; else itself."""
        traced = self.jitted.trace(*args)
        self.rings = has_equation(traced.jaxpr, lambda p: p is ALARM)
        if self.notes_calls(traced.jaxpr):
            return self
        token = (*token_of(traced.jaxpr), jax.tree.structure(traced.out_info), _jax.numeric_mode()[:-1])
        other = _TRACES.find(token)
        return other if other is not None else _TRACES.put(token, self)

    def notes_calls(self, jaxpr: Jaxpr) -> bool:
        """Whether it calls functions of the host, which are those of the objects that were read, not of equal ones."""
        if has_equation(jaxpr, lambda p: p.name in CALLBACKS):
            self.calls = self.readings
        return self.calls is not None

    def look(self, fn: Callable, readings: Sequence[Reading], args: Sequence[PyTree]) -> None:
        """Looks at what was traced inside of another trace."""
        self.fn, self.readings = fn, readings
        try:
            self.notes_calls(self.jitted.trace(*jax.tree.map(_shape, args)).jaxpr)
        finally:
            self.fn, self.readings = None, ()

    def first(self, fn: Callable, readings: Sequence[Reading], args: Sequence[PyTree]) -> None:
        """Looks for a kept program of the same trace, before the first call."""
        self.fn, self.readings = fn, readings
        try:
            other = self.same_as(args)
        finally:
            self.fn, self.readings = None, ()
        if other is not self:
            self.by_trace = {avals_of(args): other}


def compiled(
    kind: str,
    roots: Sequence[object],
    static: Hashable,
    fn: Callable,
    args: Sequence[PyTree],
    instead: Callable | None = None,
    *,
    seldom: bool = False,
) -> Any:
    """`fn(*args)`, compiled, and kept for all calls that would trace the same.

    Args:
      kind: of the program.
      roots: what `fn` is made of, and nothing else but `static` and `args`: functions, objects, `Skeleton` arguments.
      static: what else it depends on.
      fn: the program.
      args: pytrees of arrays.
      instead: the same, as Python runs it op by op. `fn` then returns a pair, the result and whether it is doubtful
        (a parameter is not one, say). What is doubtful, raises, or cannot be compiled is run by `instead`, so that
        errors are those of Python at the call.
      seldom: whether programs of this kind run a few times, so that compilation costs more than the runs.
    """
    if _jax.jit_disabled():
        return fn(*args) if instead is None else instead()
    readings = [reading_of(root) for root in roots]
    program = _program(kind, static, readings, seldom=seldom)
    if program is None:
        program = Program(seldom)
        if any(r.traced for r in readings):
            return program(fn, readings, args) if instead is None else instead()
    if instead is not None:
        return _with_instead(program, fn, readings, args, instead)
    return _run(program, kind, roots, static, readings, fn, args)


def keep(kind: str, roots: Sequence[object], static: Hashable, fn: Callable) -> Callable:
    """`compiled` for many calls: what `fn` reads is read now, and not again between them."""
    readings = [reading_of(root) for root in roots]
    program = _program(kind, static, readings) or Program()
    return lambda *args: _run(program, kind, roots, static, readings, fn, args)


def remembered(kind: str, roots: Sequence[object], static: Hashable, fn: Callable, args: Sequence[PyTree]) -> Any:
    """`fn(*args)`, which depends on what the roots read, on `static`, and on the shapes of the arguments alone."""
    kept = [reading_of(root).kept for root in roots]
    if None in kept:
        return fn(*args)
    key = (kind, static, avals_of(args), *kept[1:])
    return (kept[0].values.find(key) or kept[0].values.put(key, (fn(*args),)))[0]


def _run(
    program: Program,
    kind: str,
    roots: Sequence[object],
    static: Hashable,
    readings: Sequence[Reading],
    fn: Callable,
    args: Sequence[PyTree],
) -> Any:
    before = program.traces
    if not before and not _jax.staging():
        program.first(fn, readings, args)
    out = program(fn, readings, args)
    if program.traces != before:
        if not before and _jax.staging():
            program.look(fn, readings, args)
        _after(program, kind, roots, static, readings)
    return out


def _shape(x: ArrayLike) -> ArrayLike | jax.ShapeDtypeStruct:
    return _jax.struct_of(x) if hasattr(_jax.typeof(x), "shape") else x


def _program(
    kind: str, static: Hashable, readings: Sequence[Reading], known: Program | None = None, seldom: bool = False
) -> Program | None:
    """The program that is kept for what was read, a new one where there is none; None where something is unreadable."""
    kept = [r.kept for r in readings]
    if None in kept:
        return None
    programs = kept[0].programs if kept else _PLAIN
    key = (kind, static, *kept[1:])
    program = programs.find(key)
    if program is not None and program.calls is not None and any(map(operator.is_not, program.calls, readings)):
        program = None
    if program is None or known is not None:
        program = programs.put(key, known or Program(seldom))
    return program


def _with_instead(
    program: Program, fn: Callable, readings: Sequence[Reading], args: Sequence[PyTree], instead: Callable
) -> Any:
    if not program.needs_values:
        try:
            if not program.traces:
                program.first(fn, readings, args)
            out, doubtful = program(fn, readings, args)
            if isinstance(doubtful, _jax.Tracer) or not doubtful:
                return jax.block_until_ready(out) if program.rings else out
        except Exception:  # `instead` raises it, too, or shows that only values were wanted
            doubtful = None
        with generation_of(readings):
            out = instead()
        program.needs_values = doubtful is None
        return out
    with generation_of(readings):
        return instead()


def _after(program: Program, kind: str, roots: Sequence[object], static: Hashable, readings: Sequence[Reading]) -> None:
    """Keeps a program also for what its trace has left behind."""
    if all(r.holds() for r in readings):
        return
    _program(kind, static, [reading_of(root) for root in roots], program)


# --- readings -----------------------------------------------------------------------------------------------


def reading_of(root: object) -> Reading:
    """The reading of something, made anew where it does not hold any more."""
    if isinstance(root, types.MethodType):
        key: Hashable = id(root.__func__), id(root.__self__)
    else:
        key = root if isinstance(root, Skeleton) else id(root)
    found = _READINGS.find(key)  # beside what was read, so that no other object has its `id`
    if found is None or not found[1].holds():
        found = _READINGS.put(key, (root, _new_reading(root)))
    return found[1]


def _new_reading(root: object) -> Reading:
    reading = read((list(nodes_of(root.treedef)), root.static, root.types) if isinstance(root, Skeleton) else root)
    if reading.unreadable is None:
        reading.kept = _KEPT.find(reading.token) or _KEPT.put(reading.token, _Kept())
    return reading


def parts_of(skeleton: Skeleton) -> tuple[tuple[Skeleton, ...], Hashable]:
    """Arguments as `roots` and `static` of `compiled`: to be read, where they hold more than Python's own values.

    Raises:
      TypeError: an argument is neither an array nor hashable.
    """
    if _VALUES.issuperset(skeleton.types) and _plain(skeleton.treedef):
        return (), (skeleton.treedef, skeleton.static, skeleton.types)
    hash(skeleton)
    return (skeleton,), None


_CONTAINERS = (None, type(None), dict, list, tuple, OrderedDict)
_VALUES = frozenset((type(None), bool, int, float, str))


@functools.lru_cache(maxsize=4096)
def _plain(treedef: Any) -> bool:
    return all(cls in _CONTAINERS for cls, *_ in nodes_of(treedef))


# --- generations --------------------------------------------------------------------------------------------

_generation = 0
_traced: list[Reading] = []  # what was read for the traces of this generation


def generation_of(readings: Sequence[Reading]) -> AbstractContextManager[object]:
    """A context for a trace; a new generation where something has changed since another trace of this one."""
    global _generation
    if len(_traced) > _MANY or any(r.unreadable for r in readings) or not all(r.holds() for r in _traced):
        _generation += 1
        _traced.clear()
    _traced.extend(r for r in readings if r not in _traced)
    return _jax.in_generation(_generation)
