"""What the code of a function names: globals, cells of closures, attributes, constants.

Invariant: code of equal `body` does the same to equal things. Names of files, numbers of lines, documentation and
annotations are not part of it.
"""

from __future__ import annotations

import dis
import functools
import types
from collections.abc import Sequence
from typing import Any, NamedTuple

# A container of which such a method is called, and nothing else, is a log, not an input.
_ADDS = frozenset("append appendleft extend add insert update clear".split())

# `counts["n"] += 1`, after the key; `counter.n += 1`.
_COUNTS_ITEM = ("COPY", "COPY", "BINARY_SUBSCR", "LOAD_CONST", "BINARY_OP", "SWAP", "SWAP", "STORE_SUBSCR")
_COUNTS_ATTRIBUTE = ("COPY", "LOAD_ATTR", "LOAD_CONST", "BINARY_OP", "SWAP", "STORE_ATTR")


class Code(NamedTuple):
    """What a code object and those inside it say.

    Attributes:
      body: hashable; equal for code that does the same.
      names: globals that are read.
      cells: variables of closures that are read.
      logs: globals and variables of closures that are only added to, if they are containers or numbers.
      attributes: names of attributes that are read; and strings, which may be such names.
      imports: modules that are imported.
    """

    body: Any
    names: frozenset[str]
    cells: frozenset[str]
    logs: frozenset[str]
    attributes: frozenset[str]
    imports: frozenset[str]


@functools.lru_cache(maxsize=4096)
def code_of(code: types.CodeType) -> Code:
    """Reads a code object."""
    steps = [i for i in dis.get_instructions(code) if i.opname not in ("CACHE", "EXTENDED_ARG", "NOP")]
    names, cells, logs, attributes, imports = set(), set(), set(), set(), set()
    loaded, counted = set(), set()
    for number, step in enumerate(steps):
        rest = steps[number + 1 : number + 11]
        if step.opcode in dis.hasconst:
            loaded.add(step.arg)
        elif step.opname in ("LOAD_GLOBAL", "LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS"):
            (logs if _only_added_to(step.argval, rest) else names).add(step.argval)
        elif step.opname in ("LOAD_DEREF", "LOAD_CLASSDEREF", "LOAD_FROM_DICT_OR_DEREF"):
            (logs if _only_added_to(step.argval, rest) else cells).add(step.argval)
        elif step.opname in ("LOAD_ATTR", "LOAD_METHOD", "LOAD_SUPER_ATTR", "IMPORT_FROM"):
            if step.offset not in counted:
                attributes.add(step.argval)
        elif step.opname == "IMPORT_NAME":
            imports.add(step.argval)
        if _matches(rest, _COUNTS_ATTRIBUTE):
            counted.add(rest[1].offset)
    consts = [c for i, c in enumerate(code.co_consts) if i in loaded]
    inner = [code_of(c) for c in consts if isinstance(c, types.CodeType)]
    body = (
        code.co_code,
        tuple(_constant(c) if i in loaded else None for i, c in enumerate(code.co_consts)),
        (code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars, code.co_name),
        (code.co_flags, code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_exceptiontable),
    )
    names, cells = names.union(*(c.names for c in inner)), cells.union(*(c.cells for c in inner))
    logs = logs.union(*(c.logs for c in inner)) - names - cells
    attributes = attributes.union(*(c.attributes for c in inner), *map(_strings, consts))
    imports = imports.union(*(c.imports for c in inner))
    return Code(body, *map(frozenset, (names, cells, logs, attributes, imports)))


def _only_added_to(name: str, rest: Sequence[Any]) -> bool:
    """Whether something is loaded only to be added to, or counted up."""
    if rest and rest[0].opname in ("LOAD_ATTR", "LOAD_METHOD"):
        return rest[0].argval in _ADDS
    if _matches(rest, ("LOAD_CONST", "BINARY_OP", "STORE")):
        return rest[2].argval == name and "=" in rest[1].argrepr
    return _matches(rest, ("LOAD_CONST", *_COUNTS_ITEM))


def _matches(steps: Sequence[Any], pattern: Sequence[str]) -> bool:
    return len(steps) >= len(pattern) and all(s.opname.startswith(p) for s, p in zip(steps, pattern, strict=False))


def _strings(constant: Any) -> list[str]:
    if isinstance(constant, str):
        return [constant]
    return [s for c in constant for s in _strings(c)] if isinstance(constant, (tuple, frozenset)) else []


def _constant(c: Any) -> Any:
    return code_of(c).body if isinstance(c, types.CodeType) else (type(c), repr(c))
