"""What the code of a function names: globals, cells of closures, attributes, constants.

Invariant: code of equal `body` does the same to equal things. Names of files, numbers of lines, documentation and
annotations are not part of it.
"""

from __future__ import annotations

import dis
import functools
import types
from collections.abc import Hashable, Sequence
from typing import NamedTuple

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

    body: Hashable
    names: frozenset[str]
    cells: frozenset[str]
    logs: frozenset[str]
    attributes: frozenset[str]
    imports: frozenset[str]


# How an instruction names something -> the attribute of `Code`.
_NAMING = {
    **dict.fromkeys(("LOAD_GLOBAL", "LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS"), "names"),
    **dict.fromkeys(("LOAD_DEREF", "LOAD_CLASSDEREF", "LOAD_FROM_DICT_OR_DEREF"), "cells"),
    **dict.fromkeys(("LOAD_ATTR", "LOAD_METHOD", "LOAD_SUPER_ATTR", "IMPORT_FROM"), "attributes"),
    "IMPORT_NAME": "imports",
}


@functools.lru_cache(maxsize=4096)
def code_of(code: types.CodeType) -> Code:
    """Reads a code object."""
    steps = [i for i in dis.get_instructions(code) if i.opname not in ("CACHE", "EXTENDED_ARG", "NOP")]
    loaded = {step.arg for step in steps if step.opcode in dis.hasconst}
    consts = [c for i, c in enumerate(code.co_consts) if i in loaded]
    body = (
        code.co_code,
        tuple(_constant(c) if i in loaded else None for i, c in enumerate(code.co_consts)),
        (code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars, code.co_name),
        (code.co_flags, code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_exceptiontable),
    )
    inner = [code_of(c) for c in consts if isinstance(c, types.CodeType)]
    found = _named_in(steps)
    for kind, names in found.items():
        names.update(*(getattr(c, kind) for c in inner))
    found["logs"] -= found["names"] | found["cells"]
    found["attributes"].update(*map(_strings, consts))
    return Code(body, **{kind: frozenset(names) for kind, names in found.items()})


def _named_in(steps: Sequence[dis.Instruction]) -> dict[str, set[str]]:
    """What instructions name, by the attributes of `Code`."""
    found: dict[str, set[str]] = {kind: set() for kind in ("names", "cells", "logs", "attributes", "imports")}
    counted = set()  # where attributes are read only to be counted up
    for number, step in enumerate(steps):
        rest = steps[number + 1 : number + 11]
        kind = _NAMING.get(step.opname)
        if kind in ("names", "cells") and _only_added_to(step.argval, rest):
            kind = "logs"
        if kind is not None and not (kind == "attributes" and step.offset in counted):
            found[kind].add(step.argval)
        if _matches(rest, _COUNTS_ATTRIBUTE):
            counted.add(rest[1].offset)
    return found


def _only_added_to(name: str, rest: Sequence[dis.Instruction]) -> bool:
    """Whether something is loaded only to be added to, or counted up."""
    if rest and rest[0].opname in ("LOAD_ATTR", "LOAD_METHOD"):
        return rest[0].argval in _ADDS
    if _matches(rest, ("LOAD_CONST", "BINARY_OP", "STORE")):
        return rest[2].argval == name and "=" in rest[1].argrepr
    return _matches(rest, ("LOAD_CONST", *_COUNTS_ITEM))


def _matches(steps: Sequence[dis.Instruction], pattern: Sequence[str]) -> bool:
    return len(steps) >= len(pattern) and all(s.opname.startswith(p) for s, p in zip(steps, pattern, strict=False))


def _strings(constant: object) -> list[str]:
    if isinstance(constant, str):
        return [constant]
    return [s for c in constant for s in _strings(c)] if isinstance(constant, (tuple, frozenset)) else []


def _constant(c: object) -> Hashable:
    return code_of(c).body if isinstance(c, types.CodeType) else (type(c), repr(c))
