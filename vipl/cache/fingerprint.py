"""What a function reads: its code, and all values that the code can reach.

    reading = read(fn);   reading.token: equal for functions that do the same;   reading.holds(): nothing has changed

A function is followed through the cells of its closure, its defaults, the globals and attributes that its code names,
and the functions, classes, objects, containers and arrays that it meets there.

- Code, numbers, strings, arrays and containers are compared by content; modules, functions and classes of libraries by
  being the same (what a library's function closes over is followed, so that two `optax.adam(0.1)` are equal).
- Of modules, classes and objects of the user's, attributes count whose names occur in the code that was read; all of
  them where the code can reach attributes that it does not name, and where a library's class looks at the object.
- Containers that the code only adds to, and numbers that it only counts up, are logs, and do not count.
- What cannot be read (a generator, the state of an extension, a clock, a file, the environment) is said:
  `reading.unreadable`.
"""

from __future__ import annotations

import builtins
import collections
import functools
import struct
import sys
import types
import weakref
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from vipl._jax import Trace, Tracer, derivative_rule, is_jaxpr, is_node_class
from vipl.cache.code import Code, code_of
from vipl.cache.libraries import (
    HEAP_TYPE,
    has_library_base,
    is_derived,
    is_frozen_class,
    is_library_class,
    is_library_module,
    of_library,
    slots_of,
)
from vipl.cache.reading import MISSING, Reading, Same, bits_of, content_of, is_frozen

_MOST = 20_000  # things that are read before it is given up
_COPIED = 1 << 20  # bytes of a JAX array that is compared by content

# With one of these, code reaches attributes that it does not name.
_DYNAMIC = frozenset("getattr vars dir attrgetter methodcaller asdict astuple fields __dict__ __getattribute__".split())
_IMPURE_MODULES = frozenset("time random os posix secrets uuid io _io socket subprocess numpy.random".split())
_IMPURE_BUILTINS = frozenset("open input eval exec globals locals __import__ compile breakpoint".split())
_IMPURE_METHODS = frozenset(
    "read_text read_bytes read_csv read_parquet load loadtxt genfromtxt fromfile memmap".split()
)

_PLAIN = (type(None), bool, int, str, bytes, type(...), type(NotImplemented), range, types.CodeType)
_SAID_OF_CLASSES = frozenset(
    """__dict__ __weakref__ __doc__ __module__ __qualname__ __annotations__ __annotate__ __annotations_cache__
    __static_attributes__ __firstlineno__ _abc_impl __abstractmethods__ __parameters__ __orig_bases__ __type_params__
    __dataclass_params__ __dataclass_fields__ __match_args__ __slots__ __repr__ __str__""".split()
)
_OF_CONSTRUCTION = frozenset("__init__ __new__ __post_init__ __init_subclass__ __set_name__ __del__".split())
_CALLED = ("init", "update")  # what this package calls of the user's objects, without a base class that says so
_HOOKS = ("tree_flatten", "tree_unflatten")
_KNOWN_LAYOUTS = (
    object, dict, list, tuple, set, frozenset, int, float, str, bytes, complex, BaseException, Exception, type,
    types.ModuleType, types.SimpleNamespace, collections.deque, collections.defaultdict, collections.OrderedDict,
)  # fmt: skip


def read(thing: object) -> Reading:
    """Reads a function, or anything that holds functions."""
    reader = _Reader()
    try:
        reader.read(thing)
        reader.read_named()
    except RecursionError:
        reader.cannot("nested too deeply")
    except _TooMuch:
        reader.cannot(f"more than {_MOST} things")
    reader.reading.token = tuple(reader.atoms)
    return reader.reading


def nodes_of(treedef: Any) -> Iterator[tuple[type | None, Hashable, int]]:
    """Class and auxiliary data of every node, with the number of its children; None, None, 0 for a leaf."""
    cls, said = treedef.node_data() or (None, None)
    yield cls, said, len(treedef.children())
    for child in treedef.children():
        yield from nodes_of(child)


def reader_token() -> tuple[Callable[[object], None], list[Hashable]]:
    """A function that reads a value, and the list to which it adds what it finds."""
    reader = _Reader()
    reader.dynamic = True

    def read_value(x: object) -> None:
        reader.read(x)
        reader.read_named()
        reader.named.clear()

    return read_value, reader.atoms


class _TooMuch(Exception):
    """More is to be read than is worth it."""


class _Reader:
    """One walk. What is met twice, also in a cycle, is a number the second time."""

    def __init__(self):
        self.reading = Reading()
        self.atoms: list[Hashable] = []
        self.seen: dict[int, int] = {}
        self.alive: list[object] = []
        self.names = set(_CALLED)
        self.dynamic = self.clock = False
        # Things of which attributes are read by name: (number, thing, attributes by name, those that were read).
        self.named: list[tuple[int, object, Mapping[str, object], set[str]]] = []
        self.whole: set[int] = set()

    def cannot(self, what: str) -> None:
        self.reading.unreadable = self.reading.unreadable or what
        self.atoms.append("unreadable")

    def add(self, *atoms: Hashable) -> None:
        self.atoms.extend(atoms)

    def read(self, x: Any) -> None:
        """Adds a value to the token, and what keeps it the same to the checks."""
        if isinstance(x, _PLAIN) and type(x) in _PLAIN:
            if isinstance(x, types.CodeType):
                self.add(code_of(x).body)
            elif isinstance(x, str):
                self.add(x)
                self.names.add(x)
            else:
                self.add((type(x), x))
            return
        if isinstance(x, float) and type(x) is float:
            self.add((float, struct.pack("d", x)))
            return
        if id(x) in self.seen:
            self.add(("again", self.seen[id(x)]))
            return
        if len(self.alive) > _MOST:
            raise _TooMuch
        number = self.seen[id(x)] = len(self.seen)
        self.alive.append(x)
        for kinds, rule in _RULES:
            if isinstance(x, kinds):
                rule(self, x, number)
                return
        self.instance(x, number)

    def read_all(self, xs: Sequence[object]) -> None:
        self.add(len(xs))
        for x in xs:
            self.read(x)

    # --- functions ------------------------------------------------------------------------------------------

    def function(self, fn: types.FunctionType, number: int) -> None:
        self.reading.functions.append((fn, fn.__code__, fn.__defaults__, fn.__kwdefaults__))
        library = of_library(fn.__code__.co_filename, fn.__module__)
        if library and (rule := derivative_rule(fn)) is not None:
            self.read(rule)
            return
        said = code_of(fn.__code__)
        self.add("function", Same(fn.__code__) if library else said.body)
        self.read(fn.__defaults__)
        self.read(fn.__kwdefaults__)
        self.closure(fn, None if library else said)
        if library:
            return
        self.names |= said.attributes
        self.dynamic |= not _DYNAMIC.isdisjoint(said.attributes | said.names)
        self.globals(fn.__globals__, said)
        for name in sorted(said.imports):
            self.add(("import", name))
            self.read(sys.modules.get(name.partition(".")[0]))
            self.read(sys.modules.get(name))
        if fn.__dict__:
            self.by_name(number, fn, fn.__dict__)

    def closure(self, fn: types.FunctionType, said: Code | None) -> None:
        """The cells that the code reads; None: all of them."""
        for name, cell in zip(fn.__code__.co_freevars, fn.__closure__ or (), strict=True):
            value = content_of(cell)
            if said is None or name in said.cells or self.is_read_log(name, value, said.logs):
                self.reading.cells.append((cell, value))
                self.add(("cell", name))
                self.read(value)

    def globals(self, names: dict[str, object], said: Code) -> None:
        """The globals that the code reads; of builtins their values."""
        for name in sorted(said.names | said.logs):
            value = names.get(name, MISSING)
            if name not in said.names and (value is MISSING or not self.is_read_log(name, value, said.logs)):
                continue
            self.slot(names, name)
            self.add(("global", name))
            if value is MISSING and name in _IMPURE_BUILTINS:
                self.cannot(f"what `{name}` gives")
            self.read(getattr(builtins, name, MISSING) if value is MISSING else value)

    def is_read_log(self, name: str, value: object, logs: frozenset[str]) -> bool:
        """Whether something that looks like a log is none: not a container or number that is only added to."""
        return name in logs and type(value) not in (list, set, dict, collections.deque, int, float)

    def method(self, method: types.MethodType, _: int) -> None:
        self.add("method")
        self.read(method.__func__)
        self.read(method.__self__)

    def builtin(self, fn: Any, _: int) -> None:
        owner = getattr(fn, "__self__", None)
        if owner is None or isinstance(owner, types.ModuleType):
            module = getattr(fn, "__module__", None) or ""
            if module in _IMPURE_MODULES or fn.__name__ in _IMPURE_BUILTINS and module == "io":
                self.cannot(f"what `{module}.{fn.__name__}` gives")
            self.add(Same(fn))
        else:
            self.add(("bound", fn.__name__))
            self.read(owner)

    def partial(self, fn: functools.partial, _: int) -> None:
        self.add("partial", Same(type(fn)))
        for part in (fn.func, fn.args, fn.keywords):
            self.read(part)

    def wrapper(self, x: Any, _: int) -> None:
        """Descriptors that hold functions."""
        self.add(type(x))
        for name in ("fget", "fset", "fdel", "__func__", "func"):
            if hasattr(x, name):
                self.read(getattr(x, name))

    # --- containers and arrays ------------------------------------------------------------------------------

    def number(self, x: Any, _: int) -> None:
        """Numbers of NumPy, complex numbers, subclasses of Python's."""
        self.add((type(x), repr(x), x.tobytes() if isinstance(x, np.generic) else None))

    def text(self, x: str | bytes, _: int) -> None:
        self.add((type(x), x[:]))

    def sequence(self, x: list | tuple | collections.deque, number: int) -> None:
        self.add(type(x) if is_library_class(type(x)) else "sequence")
        if not isinstance(x, tuple):
            self.reading.sequences.append((x, tuple(x)))
        self.read_all(tuple(x))
        self.extra(x, number)

    def mapping(self, x: Mapping[Any, object], number: int) -> None:
        self.add(type(x) if is_library_class(type(x)) else "mapping")
        keys = tuple(x)
        self.reading.sequences.append((x, keys))
        self.reading.slots.extend((x, k, x[k]) for k in keys)
        self.read_all(keys)
        self.read_all([x[k] for k in keys])
        self.extra(x, number)

    def unordered(self, x: set | frozenset, _: int) -> None:
        self.reading.again.append((lambda: len(x), len(x)))
        self.reading.again.append((lambda: frozenset(x), frozenset(x)))
        self.add(type(x))
        try:
            self.read_all(sorted(x))
        except TypeError:
            self.add(frozenset(x))

    def array(self, x: np.ndarray, _: int) -> None:
        if x.dtype.hasobject:
            values = x.ravel().tolist()
            self.reading.again.append((lambda: [Same(v) for v in x.ravel().tolist()], [Same(v) for v in values]))
            self.add(x.shape)
            self.read_all(values)
            return
        if not is_frozen(x):
            self.reading.arrays.append((x, x.copy()))
        self.add((type(x), x.shape, str(x.dtype), bits_of(x)))

    def jax_array(self, x: jax.Array, _: int) -> None:
        try:
            if jax.numpy.issubdtype(x.dtype, jax.dtypes.prng_key):
                bits, kind = bits_of(np.asarray(jax.random.key_data(x))), str(jax.random.key_impl(x))
            elif x.nbytes > _COPIED or len(x.devices()) > 1:
                bits, kind = Same(x), ""
            else:
                bits, kind = bits_of(np.asarray(x)), str(x.devices())
        except Exception:  # deleted, or not on this machine
            bits, kind = Same(x), ""
        self.add(("array", x.shape, str(x.dtype), bool(getattr(x, "weak_type", False)), kind, bits))

    def tracer(self, _: Tracer, __: int) -> None:
        self.reading.traced = True
        self.cannot("a value of a transformation that is going on")

    # --- things with attributes -----------------------------------------------------------------------------

    def module(self, x: types.ModuleType, number: int) -> None:
        self.add("module", Same(x) if is_library_module(x) else x.__name__)
        if x.__name__ in _IMPURE_MODULES:
            self.cannot(f"what `{x.__name__}` gives")
        self.clock |= x.__name__ == "datetime"
        self.by_name(number, x, vars(x))

    def class_(self, cls: type, number: int, made: bool = True) -> None:
        """A class; its construction only where the code may construct it."""
        if is_library_class(cls):
            self.add(Same(cls))
            self.clock |= cls.__module__ == "datetime"
            return
        registered = is_node_class(cls)
        self.add("class", cls.__name__, Same(cls) if registered else None)
        self.read_all(cls.__bases__)
        if type(cls) is not type:
            self.read(type(cls))
        self.reading.sizes.append((vars(cls), len(vars(cls))))
        always = [n for n in vars(cls) if n in _HOOKS or (n[:2] == "__" == n[-2:] and n not in _SAID_OF_CLASSES)]
        self.by_name(number, cls, vars(cls))
        self.attributes_of(number, [n for n in always if made or n not in _OF_CONSTRUCTION])
        if has_library_base(cls):
            self.whole.add(number)

    def instance(self, x: object, number: int) -> None:
        """Anything else: by the first of `_OBJECTS` that it is, or by its attributes."""
        for applies, rule in _OBJECTS:
            if applies(x):
                rule(self, x)
                return
        self.ordinary(x, number)

    def jitted(self, x: Any) -> None:
        self.add(Same(type(x)))
        self.read(x.__wrapped__)

    def ordinary(self, x: object, number: int) -> None:
        """An object of Python's: its class, and its attributes."""
        cls = type(x)
        library = is_library_class(cls)
        if library:
            self.add(Same(cls))
        elif id(cls) in self.seen:
            self.add(("again", self.seen[id(cls)]))
        else:
            self.seen[id(cls)] = inner = len(self.seen)
            self.alive.append(cls)
            self.class_(cls, inner, made=False)
        if library or has_library_base(cls) or is_node_class(cls) or is_frozen_class(cls):
            self.whole.add(number)
        self.extra(x, number)

    def extra(self, x: object, number: int) -> None:
        """Attributes of an object, in its dictionary and its slots."""
        own = getattr(x, "__dict__", None)
        slots = slots_of(type(x))
        if not own and not slots:
            if own is not None:
                self.reading.sizes.append((own, 0))
            return
        if own is not None:
            self.reading.sizes.append((own, len(own)))
        self.by_name(number, x, own or {})
        if slots and number not in self.whole and not isinstance(x, (tuple, list, dict)):
            self.whole.add(number)
        for name in slots:
            value = getattr(x, name, MISSING)
            self.reading.attributes.append((x, name, value))
            self.add(("slot", name))
            self.read(value)

    def by_name(self, number: int, thing: object, attributes: Mapping[str, object]) -> None:
        self.named.append((number, thing, attributes, set()))

    def attributes_of(self, number: int, names: Sequence[str]) -> None:
        """Reads some attributes of the latest thing that is read by name."""
        _, thing, attributes, done = self.named[-1]
        done.update(names)
        self.some(number, thing, attributes, names)

    def some(self, number: int, thing: object, attributes: Mapping[str, object], names: Sequence[str]) -> None:
        library = isinstance(thing, types.ModuleType) and is_library_module(thing)
        for name in sorted(names):
            if (
                name not in attributes
                or name in getattr(type(thing), "_not_read", ())
                or (not isinstance(thing, type) and is_derived(type(thing), name))
            ):
                continue
            value = attributes[name]
            self.slot(attributes, name)
            self.add(("attribute", number, name))
            if not library:
                self.read(value)
            elif isinstance(value, types.ModuleType):
                self.read(value)
            else:
                self.of_library(value)

    def of_library(self, value: Any) -> None:
        """An attribute of a library's module."""
        if isinstance(value, types.BuiltinFunctionType):
            self.builtin(value, 0)
        elif isinstance(value, (float, int, str, np.ndarray)) and not isinstance(value, type):
            self.read(value)
        elif getattr(value, "__name__", "") in _IMPURE_METHODS or type(value).__name__ == "_Environ":
            self.cannot(f"what `{getattr(value, '__name__', type(value).__name__)}` gives")
        else:
            self.add(Same(value))

    def read_named(self) -> None:
        """Reads attributes by name until no new names come up."""
        before = None
        while before != (before := (len(self.names), len(self.named), len(self.whole), self.dynamic)) or before is None:
            for number, thing, attributes, done in list(self.named):
                new = [n for n in attributes if n not in done and self.is_wanted(n, number, thing)]
                done.update(new)
                self.some(number, thing, attributes, new)
        if not self.names.isdisjoint(_IMPURE_METHODS - {"load"}):
            self.cannot("a file")
        if self.clock and not self.names.isdisjoint(("now", "today", "utcnow")):
            self.cannot("the clock")

    def is_wanted(self, name: str, number: int, thing: object) -> bool:
        """Whether code may read this attribute: its name occurs, or all of the thing's attributes count."""
        whole = not isinstance(thing, types.ModuleType) and (number in self.whole or self.dynamic)
        if not whole:
            return name in self.names
        own = name == "__wrapped__" or name[:2] != "__" or isinstance(thing, type)
        return own and name not in _SAID_OF_CLASSES

    def slot(self, mapping: Mapping[str, object], name: str) -> None:
        self.reading.slots.append((mapping, name, mapping.get(name, MISSING)))

    def reduced(self, x: object) -> None:
        """An object with state that Python does not see, as it would be pickled."""

        def look() -> Hashable:
            inner = read(_reduced(x))
            return inner.token if inner.unreadable is None else None

        token = look()
        if token is None:
            self.cannot(f"the state of a {type(x).__name__}")
        else:
            self.add(token)
            self.reading.again.append((look, token))


def _root(x: object) -> str:
    """The package in which the class of an object is defined."""
    return (type(x).__module__ or "").partition(".")[0]


def _is_jitted(x: object) -> bool:
    known = _root(x) in ("jax", "jaxlib", "functools") and hasattr(x, "__wrapped__")
    return known and "custom" not in type(x).__name__


def _has_place(x: object) -> bool:
    """Whether reading on depends on how much was read, as of a generator."""
    generators = (types.GeneratorType, types.CoroutineType, types.AsyncGeneratorType)
    return isinstance(x, generators) or (hasattr(type(x), "__next__") and is_library_class(type(x)))


def _is_opaque(x: object) -> bool:
    kinds = (np.ufunc, type(len), types.GetSetDescriptorType, types.MemberDescriptorType)
    return isinstance(x, kinds) or _root(x) in ("logging", "_thread", "threading")


# Kinds of objects, and how they are read; the first that applies.
_OBJECTS: list[tuple[Callable[[Any], bool], Callable[[_Reader, Any], None]]] = [
    (
        lambda x: _root(x) == "jax" and derivative_rule(x) is not None,
        lambda reader, x: reader.read(derivative_rule(x)),
    ),
    (lambda x: type(x) is object or isinstance(x, Trace), lambda reader, x: reader.add(type(x))),
    (_has_place, lambda reader, x: reader.cannot(f"the state of a {type(x).__name__}")),
    (_is_jitted, _Reader.jitted),
    (
        lambda x: isinstance(x, jax.tree_util.PyTreeDef),  # its nodes may be programs, with functions to read
        lambda reader, x: reader.read(list(nodes_of(x))),
    ),
    (
        lambda x: _root(x) in ("jax", "jaxlib") and "custom" not in type(x).__name__,
        lambda reader, x: reader.add(Same(x) if is_jaxpr(x) or type(x).__hash__ is None else x),
    ),
    (_is_opaque, lambda reader, x: reader.add(Same(x))),
    (
        lambda x: _root(x) == "typing" or isinstance(x, (types.UnionType, types.GenericAlias)),
        lambda reader, x: reader.add(repr(x)),
    ),
    (
        lambda x: _root(x) == "numpy" and isinstance(x, (np.random.Generator, np.random.RandomState)),
        lambda reader, x: reader.cannot("the state of NumPy's random numbers"),
    ),
    (
        lambda x: any(not c.__flags__ & HEAP_TYPE and c not in _KNOWN_LAYOUTS for c in type(x).__mro__),
        _Reader.reduced,
    ),
]

_RULES: list[tuple[Any, Callable[[_Reader, Any, int], object]]] = [
    (Tracer, _Reader.tracer),
    (jax.Array, _Reader.jax_array),
    (types.FunctionType, _Reader.function),
    (types.MethodType, _Reader.method),
    (types.BuiltinFunctionType, _Reader.builtin),
    (types.ModuleType, _Reader.module),
    (type, _Reader.class_),
    (np.ndarray, _Reader.array),
    ((np.generic, complex, int, float), _Reader.number),
    ((str, bytes), _Reader.text),
    ((dict, types.MappingProxyType), _Reader.mapping),
    ((list, tuple, collections.deque), _Reader.sequence),
    ((set, frozenset), _Reader.unordered),
    (functools.partial, _Reader.partial),
    ((property, classmethod, staticmethod, functools.cached_property), _Reader.wrapper),
    (np.dtype, lambda reader, x, _: reader.add(str(x))),
    (
        types.CellType,
        lambda reader, x, _: (reader.reading.cells.append((x, content_of(x))), reader.read(content_of(x))),
    ),
    (weakref.ref, lambda reader, x, _: reader.read(x())),
    (
        (types.WrapperDescriptorType, types.MethodDescriptorType, types.ClassMethodDescriptorType, slice),
        lambda reader, x, _: reader.add(repr(x)),
    ),
    (types.MethodWrapperType, lambda reader, x, _: (reader.add(x.__name__), reader.read(x.__self__))),
]


def _reduced(x: object) -> object:
    try:
        return x.__reduce_ex__(4)
    except Exception:
        return (i for i in ())  # what cannot be read, either
