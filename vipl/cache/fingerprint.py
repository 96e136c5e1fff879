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

`holds` is a flat loop over what was read, most of it comparisons by `is`.
"""

from __future__ import annotations

import builtins
import collections
import functools
import hashlib
import operator
import pathlib
import site
import struct
import sys
import sysconfig
import types
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from vipl._jax import Trace, Tracer, derivative_rule, is_jaxpr, is_node_class
from vipl.cache.code import code_of

_MISSING: Any = type("Missing", (), {"__repr__": lambda _: "missing"})()
_MOST = 20_000  # things that are read before it is given up
_COPIED = 1 << 20  # bytes of a JAX array that is compared by content

_PATHS = sysconfig.get_paths()
_PACKAGE = pathlib.Path(__file__).resolve().parent.parent
_LIBRARIES = tuple(
    {f"{p}/" for p in (*(_PATHS[k] for k in ("stdlib", "platstdlib", "purelib", "platlib")), *site.getsitepackages())}
)
_OWN = tuple(str(p) for p in _PACKAGE.iterdir() if p.stem != "demo")

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
_HEAP_TYPE = 1 << 9
_KNOWN_LAYOUTS = (
    object, dict, list, tuple, set, frozenset, int, float, str, bytes, complex, BaseException, Exception, type,
    types.ModuleType, types.SimpleNamespace, collections.deque, collections.defaultdict, collections.OrderedDict,
)  # fmt: skip


class Same:
    """Is equal to what holds the same object, which it keeps alive."""

    __slots__ = ("thing",)

    def __init__(self, thing: Any):
        """Holds an object."""
        self.thing = thing

    def __eq__(self, other: Any) -> bool:
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
        self.token: Any = None
        self.unreadable: str | None = None
        self.traced = False
        self.slots: list[tuple[Mapping[str, Any], Any, Any]] = []
        self.sizes: list[tuple[Any, int]] = []
        self.cells: list[tuple[Any, Any]] = []
        self.functions: list[tuple[Any, Any, Any, Any]] = []
        self.sequences: list[tuple[Sequence[Any], tuple[Any, ...]]] = []
        self.attributes: list[tuple[Any, str, Any]] = []
        self.arrays: list[tuple[np.ndarray, np.ndarray]] = []
        self.again: list[tuple[Callable[[], Any], Any]] = []
        self.kept: Any = None  # of `vipl.cache.programs`

    def holds(self) -> bool:
        """Says whether all that was read is still the same object, or array of the same content."""
        for mapping, name, value in self.slots:
            if mapping.get(name, _MISSING) is not value:
                return False
        for sized, size in self.sizes:
            if len(sized) != size:
                return False
        for cell, value in self.cells:
            if _content(cell) is not value:
                return False
        for fn, code, defaults, keyword_defaults in self.functions:
            if fn.__code__ is not code or fn.__defaults__ is not defaults or fn.__kwdefaults__ is not keyword_defaults:
                return False
        for sequence, values in self.sequences:
            if len(sequence) != len(values) or not all(map(operator.is_, sequence, values)):
                return False
        for thing, name, value in self.attributes:
            if getattr(thing, name, _MISSING) is not value:
                return False
        for array, copy in self.arrays:
            if not _same_bits(array, copy):
                return False
        return all(look() == seen for look, seen in self.again)


def read(thing: Any) -> Reading:
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


def reader_token() -> tuple[Callable[[Any], None], list[Any]]:
    """A function that reads a value, and the list to which it adds what it finds."""
    reader = _Reader()
    reader.dynamic = True

    def read_value(x: Any) -> None:
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
        self.atoms: list[Any] = []
        self.seen: dict[int, int] = {}
        self.alive: list[Any] = []
        self.names = set(_CALLED)
        self.dynamic = self.clock = False
        # Things of which attributes are read by name: (number, thing, attributes by name, those that were read).
        self.named: list[tuple[int, Any, Mapping[str, Any], set[str]]] = []
        self.whole: set[int] = set()

    def cannot(self, what: str) -> None:
        self.reading.unreadable = self.reading.unreadable or what
        self.atoms.append("unreadable")

    def add(self, *atoms: Any) -> None:
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

    def read_all(self, xs: Sequence[Any]) -> None:
        self.add(len(xs))
        for x in xs:
            self.read(x)

    # --- functions ------------------------------------------------------------------------------------------

    def function(self, fn: types.FunctionType, number: int) -> None:
        self.reading.functions.append((fn, fn.__code__, fn.__defaults__, fn.__kwdefaults__))
        library = _of_library(fn.__code__.co_filename, fn.__module__)
        if library and (rule := derivative_rule(fn)) is not None:
            self.read(rule)
            return
        said = code_of(fn.__code__)
        self.add("function", Same(fn.__code__) if library else said.body)
        self.read(fn.__defaults__)
        self.read(fn.__kwdefaults__)
        for name, cell in zip(fn.__code__.co_freevars, fn.__closure__ or (), strict=True):
            value = _content(cell)
            if not library and (name not in said.cells and not self.is_read_log(name, value, said.logs)):
                continue
            self.reading.cells.append((cell, value))
            self.add(("cell", name))
            self.read(value)
        if library:
            return
        self.names |= said.attributes
        self.dynamic |= not _DYNAMIC.isdisjoint(said.attributes | said.names)
        for name in sorted(said.names | said.logs):
            value = fn.__globals__.get(name, _MISSING)
            if name not in said.names and not self.is_read_log(name, value, said.logs):
                continue
            if name in said.logs and value is _MISSING:
                continue
            self.slot(fn.__globals__, name)
            self.add(("global", name))
            if value is _MISSING and name in _IMPURE_BUILTINS:
                self.cannot(f"what `{name}` gives")
            self.read(getattr(builtins, name, _MISSING) if value is _MISSING else value)
        for name in sorted(said.imports):
            self.add(("import", name))
            self.read(sys.modules.get(name.partition(".")[0]))
            self.read(sys.modules.get(name))
        if fn.__dict__:
            self.by_name(number, fn, fn.__dict__)

    def is_read_log(self, name: str, value: Any, logs: frozenset[str]) -> bool:
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

    def text(self, x: Any, _: int) -> None:
        self.add((type(x), x[:]))

    def sequence(self, x: Any, number: int) -> None:
        self.add(type(x) if _library_class(type(x)) else "sequence")
        if not isinstance(x, tuple):
            self.reading.sequences.append((x, tuple(x)))
        self.read_all(tuple(x))
        self.extra(x, number)

    def mapping(self, x: Any, number: int) -> None:
        self.add(type(x) if _library_class(type(x)) else "mapping")
        keys = tuple(x)
        self.reading.sequences.append((x, keys))
        self.reading.slots.extend((x, k, x[k]) for k in keys)
        self.read_all(keys)
        self.read_all([x[k] for k in keys])
        self.extra(x, number)

    def unordered(self, x: Any, _: int) -> None:
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
        if not _frozen(x):
            self.reading.arrays.append((x, x.copy()))
        self.add((type(x), x.shape, str(x.dtype), _bits(x)))

    def jax_array(self, x: Any, _: int) -> None:
        try:
            if jax.numpy.issubdtype(x.dtype, jax.dtypes.prng_key):
                bits, kind = _bits(np.asarray(jax.random.key_data(x))), str(jax.random.key_impl(x))
            elif x.nbytes > _COPIED or len(x.devices()) > 1:
                bits, kind = Same(x), ""
            else:
                bits, kind = _bits(np.asarray(x)), str(x.devices())
        except Exception:  # deleted, or not on this machine
            bits, kind = Same(x), ""
        self.add(("array", x.shape, str(x.dtype), bool(getattr(x, "weak_type", False)), kind, bits))

    def tracer(self, _: Any, __: int) -> None:
        self.reading.traced = True
        self.cannot("a value of a transformation that is going on")

    # --- things with attributes -----------------------------------------------------------------------------

    def module(self, x: types.ModuleType, number: int) -> None:
        self.add("module", Same(x) if _library_module(x) else x.__name__)
        if x.__name__ in _IMPURE_MODULES:
            self.cannot(f"what `{x.__name__}` gives")
        self.clock |= x.__name__ == "datetime"
        self.by_name(number, x, vars(x))

    def class_(self, cls: type, number: int, made: bool = True) -> None:
        """A class; its construction only where the code may construct it."""
        if _library_class(cls):
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
        if _has_library_base(cls):
            self.whole.add(number)

    def instance(self, x: Any, number: int) -> None:
        cls = type(x)
        root = (cls.__module__ or "").partition(".")[0]
        jitted = root in ("jax", "jaxlib", "functools") and hasattr(x, "__wrapped__") and "custom" not in cls.__name__
        if root == "jax" and (rule := derivative_rule(x)) is not None:
            self.read(rule)
        elif cls is object or isinstance(x, Trace):
            self.add(cls)
        elif isinstance(x, (types.GeneratorType, types.CoroutineType, types.AsyncGeneratorType)) or (
            hasattr(cls, "__next__") and _library_class(cls)
        ):
            self.cannot(f"the state of a {cls.__name__}")
        elif jitted:
            self.add(Same(cls))
            self.read(x.__wrapped__)
        elif root in ("jax", "jaxlib") and "custom" not in cls.__name__:
            self.add(Same(x) if is_jaxpr(x) or cls.__hash__ is None else x)
        elif isinstance(x, (np.ufunc, type(len), types.GetSetDescriptorType, types.MemberDescriptorType)) or root in (
            "logging", "_thread", "threading"
        ):  # fmt: skip
            self.add(Same(x))
        elif root == "typing" or isinstance(x, (types.UnionType, types.GenericAlias)):
            self.add(repr(x))
        elif root == "numpy" and isinstance(x, (np.random.Generator, np.random.RandomState)):
            self.cannot("the state of NumPy's random numbers")
        elif any(not c.__flags__ & _HEAP_TYPE and c not in _KNOWN_LAYOUTS for c in cls.__mro__):
            self.reduced(x)
        else:
            self.ordinary(x, number)

    def ordinary(self, x: Any, number: int) -> None:
        """An object of Python's: its class, and its attributes."""
        cls = type(x)
        library = _library_class(cls)
        if library:
            self.add(Same(cls))
        elif id(cls) in self.seen:
            self.add(("again", self.seen[id(cls)]))
        else:
            self.seen[id(cls)] = inner = len(self.seen)
            self.alive.append(cls)
            self.class_(cls, inner, made=False)
        if library or _has_library_base(cls) or is_node_class(cls) or _is_frozen(cls):
            self.whole.add(number)
        self.extra(x, number)

    def extra(self, x: Any, number: int) -> None:
        """Attributes of an object, in its dictionary and its slots."""
        own = getattr(x, "__dict__", None)
        slots = _slots(type(x))
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
            value = getattr(x, name, _MISSING)
            self.reading.attributes.append((x, name, value))
            self.add(("slot", name))
            self.read(value)

    def by_name(self, number: int, thing: Any, attributes: Mapping[str, Any]) -> None:
        self.named.append((number, thing, attributes, set()))

    def attributes_of(self, number: int, names: Sequence[str]) -> None:
        """Reads some attributes of the latest thing that is read by name."""
        _, thing, attributes, done = self.named[-1]
        done.update(names)
        self.some(number, thing, attributes, names)

    def some(self, number: int, thing: Any, attributes: Mapping[str, Any], names: Sequence[str]) -> None:
        library = isinstance(thing, types.ModuleType) and _library_module(thing)
        for name in sorted(names):
            if (
                name not in attributes
                or name in getattr(type(thing), "_not_read", ())
                or (not isinstance(thing, type) and _derived(type(thing), name))
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
                if isinstance(thing, types.ModuleType):
                    wanted = [n for n in attributes if n in self.names]
                elif number in self.whole or self.dynamic:
                    wanted = [n for n in attributes if n not in _SAID_OF_CLASSES]
                    wanted = [n for n in wanted if n == "__wrapped__" or n[:2] != "__" or isinstance(thing, type)]
                else:
                    wanted = [n for n in attributes if n in self.names]
                new = [n for n in wanted if n not in done]
                done.update(new)
                self.some(number, thing, attributes, new)
        if not self.names.isdisjoint(_IMPURE_METHODS - {"load"}):
            self.cannot("a file")
        if self.clock and not self.names.isdisjoint(("now", "today", "utcnow")):
            self.cannot("the clock")

    def slot(self, mapping: Mapping[str, Any], name: str) -> None:
        self.reading.slots.append((mapping, name, mapping.get(name, _MISSING)))

    def reduced(self, x: Any) -> None:
        """An object with state that Python does not see, as it would be pickled."""

        def look() -> Any:
            inner = read(_reduced(x))
            return inner.token if inner.unreadable is None else None

        token = look()
        if token is None:
            self.cannot(f"the state of a {type(x).__name__}")
        else:
            self.add(token)
            self.reading.again.append((look, token))


_RULES: list[tuple[Any, Callable[[_Reader, Any, int], Any]]] = [
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
    (types.CellType, lambda reader, x, _: (reader.reading.cells.append((x, _content(x))), reader.read(_content(x)))),
    (weakref.ref, lambda reader, x, _: reader.read(x())),
    (
        (types.WrapperDescriptorType, types.MethodDescriptorType, types.ClassMethodDescriptorType, slice),
        lambda reader, x, _: reader.add(repr(x)),
    ),
    (types.MethodWrapperType, lambda reader, x, _: (reader.add(x.__name__), reader.read(x.__self__))),
]


def _content(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # empty
        return _MISSING


def _same_bits(array: np.ndarray, copy: np.ndarray) -> bool:
    if array.shape != copy.shape or array.dtype != copy.dtype:
        return False
    if array.nbytes < 4096 or not array.flags.c_contiguous or not copy.flags.c_contiguous:
        return array.tobytes() == copy.tobytes()
    width = "u8" if array.nbytes % 8 == 0 else "u1"
    return np.array_equal(array.reshape(-1).view(width), copy.reshape(-1).view(width))


def _bits(array: np.ndarray) -> Any:
    data = array.tobytes()
    return data if len(data) <= 64 else hashlib.sha256(data).digest()


def _frozen(array: np.ndarray) -> bool:
    """Whether nobody can change an array in place."""
    base: Any = array
    while isinstance(base, np.ndarray):
        if base.flags.writeable:
            return False
        base = base.base
    return base is None or isinstance(base, (bytes, jax.Array))


def _of_library(filename: str, module: str | None) -> bool:
    """Whether code stands in the standard library, an installed package, or this one."""
    if filename.startswith("<"):
        if filename.startswith("<frozen"):
            return True
        known = sys.modules.get(module or "")
        return filename == "<string>" and known is not None and _library_module(known)
    return filename.startswith((*_LIBRARIES, *_OWN)) or "site-packages/" in filename or "dist-packages/" in filename


_LIBRARY: dict[str, bool] = {"builtins": True, "__main__": False}


def _library_module(module: types.ModuleType) -> bool:
    name = module.__name__
    if name not in _LIBRARY or sys.modules.get(name) is not module:
        path = getattr(module, "__file__", None)
        known = _of_library(path, None) if path else name in sys.builtin_module_names or hasattr(module, "__path__")
        if sys.modules.get(name) is not module:
            return known
        _LIBRARY[name] = known
    return _LIBRARY[name]


def _library_class(cls: type) -> bool:
    module = sys.modules.get(cls.__module__)
    return not cls.__flags__ & _HEAP_TYPE or (module is not None and _library_module(module))


_ORDINARY_BASES = {"object", "ABC", "Generic", "Protocol", "type", "ABCMeta"}


@functools.lru_cache(maxsize=1024)
def _has_library_base(cls: type) -> bool:
    return any(_library_class(c) and c.__name__ not in _ORDINARY_BASES for c in cls.__mro__)


def _is_frozen(cls: type) -> bool:
    return getattr(getattr(cls, "__dataclass_params__", None), "frozen", False)


@functools.lru_cache(maxsize=1024)
def _slots(cls: type) -> tuple[str, ...]:
    kinds = types.MemberDescriptorType
    return tuple(n for c in cls.__mro__ if c.__flags__ & _HEAP_TYPE for n, v in vars(c).items() if isinstance(v, kinds))


def _derived(cls: type, name: str) -> bool:
    """Whether an attribute is computed from others, and kept."""
    known = next((vars(c)[name] for c in cls.__mro__ if name in vars(c)), None)
    kind = type(known)
    return hasattr(kind, "__get__") and not hasattr(kind, "__set__") and not isinstance(known, types.FunctionType)


def _reduced(x: Any) -> Any:
    try:
        return x.__reduce_ex__(4)
    except Exception:
        return (i for i in ())  # what cannot be read, either
