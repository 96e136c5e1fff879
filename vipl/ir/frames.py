"""The user's lines, as messages write them."""

from __future__ import annotations

import contextlib
import functools
import inspect
import pathlib
import sys
import sysconfig
from types import CodeType, TracebackType
from typing import Any

import jax
import numpyro

_PACKAGE = pathlib.Path(__file__).resolve().parent.parent
# Frames that are not the user's; programs in the package's own demo and zoo are users.
_SKIPPED = (
    *(str(pathlib.Path(str(package.__file__)).resolve().parent) for package in (jax, numpyro)),
    contextlib.__file__,
    *(str(path) for path in _PACKAGE.iterdir() if path.stem not in ("demo", "zoo", "__main__", "__init__")),
)
_LIBRARIES = tuple(sysconfig.get_paths()[name] for name in ("stdlib", "platstdlib", "purelib", "platlib"))


def user_frame() -> str:
    """Function, file and line of the innermost caller outside this package, JAX and NumPyro."""
    frame = sys._getframe(1)
    while frame is not None:
        if is_users_file(frame.f_code.co_filename):
            return show_frame(frame.f_code, frame.f_lineno)
        frame = frame.f_back
    return NOWHERE


NOWHERE = "an unknown place"


def failing_line(traceback: TracebackType | None) -> str | None:
    """Function, file and line where an error arose, as far as the user's own files know; None where they do not."""
    found = None
    while traceback is not None:
        code = traceback.tb_frame.f_code
        if is_users_file(code.co_filename) and not code.co_filename.startswith(_LIBRARIES):
            found = show_frame(code, traceback.tb_lineno)
        traceback = traceback.tb_next
    return found


def is_users_file(name: str) -> bool:
    """Whether a file belongs neither to this package nor to JAX or NumPyro; of what has no file, a prompt counts."""
    return not name.startswith(_SKIPPED) and (not name.startswith("<") or name.startswith(("<stdin", "<ipython-input")))


def show_frame(code: CodeType, line: int) -> str:
    """A frame as messages write it."""
    return f"{code.co_name} ({pathlib.Path(code.co_filename).name}:{line})"


def show_function(fn: Any) -> str:
    """A function as messages write it, with the line of its definition where that is known."""
    while isinstance(fn, functools.partial):
        fn = fn.func
    code = getattr(inspect.unwrap(fn), "__code__", None)
    name = getattr(fn, "__name__", repr(fn))
    return name if code is None else f"{name} ({pathlib.Path(code.co_filename).name}:{code.co_firstlineno})"
