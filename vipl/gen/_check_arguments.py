"""Checks of what is given where a program is wanted: the program has to be applied to its arguments.

Also `checked`, by which a function says in its annotations what it wants.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, TypeVar, overload

import jax
import numpy as np
import numpyro.distributions as dist

from vipl._checks import whole_number
from vipl._jax import Tracer
from vipl._types import ArrayLike, Shaped
from vipl.errors import ProgramError, shortened, show_aval
from vipl.gen._choices import Choices, flatten
from vipl.gen._program import GenerativeFunction, Program
from vipl.gen._source import Source, Trace
from vipl.ir.frames import user_frame
from vipl.ir.partition import is_real

Real = Shaped[ArrayLike, "..."]
"""A real number, or an array of them; `checked` looks at it."""


def check_source(source: object, role: str, who: str, *, program: bool = False) -> None:
    """Raises where something is not a program that was applied to its arguments, or another source.

    Args:
      source: what is given.
      role: the argument's name.
      who: the function that wants it.
      program: whether it has to be a `vipl.gen` program.
    """
    if isinstance(source, Program if program else Source):
        return
    got, fix = _what(source, role)
    expected = "program(*args), with @vipl.gen on program"
    raise ProgramError(
        f"the {role} of {who} is not a generative function with its arguments.",
        at=user_frame(),
        got=got,
        expected=expected if program else f"{expected}; or marginal(...), normalize(...)",
        fix=fix,
    )


def _what(source: object, role: str) -> tuple[str, str]:
    """What is given instead of a source, and what to write."""
    if isinstance(source, Source):
        return source.name, "write it as one program, whose sites are distributions"
    inner = getattr(source, "func", source)
    if isinstance(inner, GenerativeFunction):
        return f"the generative function {inner.name} itself", f"apply it to its arguments: {inner.name}(...)"
    if isinstance(source, Trace):
        return "a trace, which simulate returned", "pass the program itself, not what it drew"
    if isinstance(source, dist.Distribution):
        name = type(source).__name__
        return (
            f"the distribution {name}, which has no address",
            f'make it a program: vipl.gen(lambda: vipl.sample("z", {name}(...)))()',
        )
    if callable(source):
        name = getattr(source, "__name__", type(source).__name__)
        return f"the function {name} itself", f"put @vipl.gen on it, and apply it to its arguments: {name}(...)"
    return show_aval(source), f"pass a program as the {role}"


def call_maker(maker: object, known: Choices, role: str, who: str) -> Source:
    """The source that a function of known choices makes (a proposal, a guide); raises where it makes none."""
    if not callable(maker):
        raise not_a_function(maker, role, who)
    check_takes_known(maker, role, who)
    source: Any = maker(known)
    check_source(source, f"{role}'s result", who)
    return source


def check_takes_known(maker: Callable, role: str, who: str, and_more: str = "") -> None:
    """Raises where a function cannot be called with the known choices alone.

    Args:
      maker: the function.
      role: the argument's name.
      who: the function that wants it.
      and_more: what the error says of the known choices besides.
    """
    try:
        signature = inspect.signature(maker)
    except (TypeError, ValueError):  # of a builtin, which does not say
        return
    try:
        signature.bind(None)
    except TypeError:
        is_program = isinstance(maker, GenerativeFunction)
        what, name = (
            (f"the generative function {maker.name}", maker.name) if is_program else ("a function of ", "program")
        )
        raise ProgramError(
            f"the {role} of {who} is not a function of one argument.",
            at=user_frame(),
            got=f"{what}({', '.join(signature.parameters)})",
            expected="a function of the known choices",
            fix=f"write lambda known: {name}({'...' if signature.parameters else ''}){and_more}",
        ) from None


def not_a_function(given: object, role: str, who: str) -> ProgramError:
    """The error where a source stands in the place of a function that makes one."""
    got = f"{given.name}(...), already applied" if isinstance(given, Program) else _what(given, role)[0]
    return ProgramError(
        f"the {role} of {who} is not a function.",
        at=user_frame(),
        got=got,
        expected="a function" if role == "generator" else "a function from choices to program(*args)",
        fix=f"pass a function: {'lambda t: (t - 1) ** 2' if role == 'generator' else 'lambda known: program(...)'}",
    )


F = TypeVar("F", bound=Callable)


@overload
def checked(fn: F) -> F: ...


@overload
def checked(fn: None = None, **least: int) -> Callable[[F], F]: ...


def checked(fn: Callable | None = None, **least: int) -> Callable:
    """Lets a function check its arguments by their annotations, before anything else; a decorator.

    Arguments annotated `Source` or `Program` have to be one, those annotated `int` integers that are known when the
    program is staged, those annotated `Real` real numbers, those annotated `Callable` functions, and those annotated
    `Choices` choices.

    Args:
      fn: the function; its annotations are strings.
      **least: the smallest value of an integer argument, by its name; else 1.
    """
    if fn is None:
        return functools.partial(checked, **least)
    signature, name = inspect.signature(fn), fn.__name__

    @functools.wraps(fn)
    def function(*args, **kwargs):
        given = signature.bind(*args, **kwargs)
        for role, value in given.arguments.items():
            kind = signature.parameters[role].annotation
            if kind in ("Source", "Program"):
                check_source(value, role, name, program=kind == "Program")
            elif kind == "int":
                at = f"{name} in {user_frame()}"
                given.arguments[role] = whole_number(value, role, at, least=least.get(role, 1))
            elif kind.startswith("Real"):
                _check_real(value, role, name, scalar=kind == "Real")
            elif kind.startswith("Callable") and not callable(value):
                raise not_a_function(value, role, name)
            elif kind == "Choices":
                flatten(value, f"the {role} of {name} in {user_frame()}")
        return fn(*given.args, **given.kwargs)

    return function


def check_range(value: Any, role: str, who: str, lies_in: Callable[[np.ndarray], bool], expected: str) -> None:
    """Raises where a number that is known when the program is staged is not what a definition asks for."""
    if any(isinstance(x, Tracer) for x in jax.tree.leaves(value)):
        return
    if lies_in(np.asarray(value, float)):
        return
    raise ProgramError(
        f"{who} is not defined for the given {role}.",
        at=user_frame(),
        got=shortened(np.asarray(value).tolist()),
        expected=expected,
        fix=f"pass {role} as {expected}",
    )


def python_number(value: Any, role: str, who: str) -> float:
    """A real number that is known when the program is staged; raises where it is not."""
    if not isinstance(value, Tracer):
        return float(np.asarray(value))
    error = ProgramError(
        f"the {role} of {who} is not known when the program is staged.",
        at=user_frame(),
        got=f"a traced {show_aval(value)}",
        expected="a Python number",
        fix=f"pass {role} as a Python float, and make the objective anew for another one",
    )
    error.needs_number = True
    raise error


def check_exact(source: Source, role: str, who: str, fix: str) -> None:
    """Raises where a density is an estimate, which differs from one look to the next."""
    if source.is_exact():
        return
    raise ProgramError(
        f"the density of the {role} is estimated, and {who} needs its number.",
        at=source.name,
        got=f"{who} with an estimated {role}",
        expected=f"a {role} with an exact density, without marginal(...) of an estimate and without random_key",
        fix=fix,
    )


def _check_real(value: object, role: str, who: str, *, scalar: bool) -> None:
    if is_real(value) and not (scalar and np.ndim(value)):  # type: ignore[arg-type]
        return
    if not scalar and isinstance(value, (tuple, list)) and all(map(is_real, value)):
        return
    raise ProgramError(
        f"the {role} of {who} is not a real number.",
        at=user_frame(),
        got=show_aval(value),
        expected="a number" if scalar else "a number, or an array of them",
        fix=f"pass {role} as a float",
    )
