"""What is held: which `stop_gradient`s are meant by the user, and programs whose parameters are held.

JAX and other libraries stop gradients inside their functions, where it changes no derivative (`logsumexp` does, of a
maximum). Those are no statements of the user's. The frames in which an equation was made tell: a library's own frame
that names `stop_gradient` comes before every frame of the user's. So does vipl's, but for `hold`, which means it.
"""

from __future__ import annotations

import os
import sys
import sysconfig
import weakref
from collections.abc import Callable
from typing import TypeVar

import jax
from jax import lax

from vipl import _jax
from vipl._jax import Eqn, Jaxpr
from vipl._types import PyTree
from vipl.ir.batching import jaxprs_inside
from vipl.ir.dataflow import plain, walk
from vipl.ir.frames import NOWHERE, is_users_file, show_frame
from vipl.ir.partition import Skeleton, partition
from vipl.ir.traits import Move, traits_of

T = TypeVar("T")

LIBRARIES = ("jax", "numpyro", "flax", "optax", "distrax", "tensorflow_probability", "equinox", "chex", "blackjax")
"""Whose `stop_gradient`s are no statements of the user's."""


def stopped(x: T) -> T:
    """The arrays of a pytree without derivative, as the user means it."""
    return jax.tree.map(lambda x: lax.stop_gradient(x) if isinstance(x, _jax.Tracer) else x, x)


def hold(fn: Callable[..., T], *args: PyTree) -> T:
    """`fn(*args)`, a program, with derivatives in `args` alone: there is none in anything that `fn` closes over.

    So `hold(guide.simulate)` draws without any derivative, and `hold(lambda z: guide.assess(z).log_prob, z)` is a
    log density that has one in the choices, but not in the parameters.
    """
    flat, treedef = jax.tree.flatten(args)
    traced = [isinstance(x, _jax.Tracer) for x in flat]
    box: list[Skeleton] = []

    def run(*inputs):
        rest = iter(inputs)
        values = [next(rest) if is_traced else x for x, is_traced in zip(flat, traced, strict=True)]
        skeleton, outs = partition(fn(*jax.tree.unflatten(treedef, values)))
        box.append(skeleton)
        return outs

    inputs = [x for x, is_traced in zip(flat, traced, strict=True) if is_traced]
    jaxpr = jax.make_jaxpr(run)(*inputs)
    held = _jax.with_consts(jaxpr, stopped(list(jaxpr.consts)))
    return box[0].combine(walk(held, inputs, plain))


_HERE = stopped.__code__.co_filename
_JAX = lax.stop_gradient.__code__.co_filename


def is_meant(eqn: Eqn) -> bool:
    """Whether an equation is a `stop_gradient` that the user wrote, or `hold` did.

    What has no frame of `stop_gradient` was made in the place of another equation, as the density of a site is.
    """
    if not _jax.stops_gradient(eqn):
        return False
    roots, called, told = _library_roots(), False, False
    for code, _ in _jax.frames_of(eqn):
        file, told = code.co_filename, True
        if file == _JAX:
            called = called or "stop_gradient" in code.co_name
        elif not file.startswith(roots) and (is_users_file(file) or file.startswith("<")):
            return called
        elif any("stop_gradient" in name for name in code.co_names):
            return called and file == _HERE
    return called or not told  # nobody knows: as if it were meant


def _library_roots() -> tuple[str, ...]:
    """Where code stands that is not the user's."""
    files = [getattr(sys.modules.get(name), "__file__", None) for name in LIBRARIES]
    return (*(os.path.dirname(file) + os.sep for file in files if file), *_PYTHON)


_PYTHON = tuple(os.path.join(sysconfig.get_path("stdlib"), file) for file in ("functools.py", "contextlib.py"))


def line_of(eqn: Eqn) -> str:
    """Function, file and line of the user's code that made an equation."""
    roots = _library_roots()
    for code, line in _jax.frames_of(eqn):
        if is_users_file(code.co_filename) and not code.co_filename.startswith(roots):
            return show_frame(code, line())
    return NOWHERE


_MEANT: weakref.WeakKeyDictionary[Jaxpr, bool] = weakref.WeakKeyDictionary()


def any_meant(jaxpr: Jaxpr) -> bool:
    """Whether a program holds a `stop_gradient` that is meant."""
    if jaxpr not in _MEANT:
        _MEANT[jaxpr] = any(is_meant(eqn) or meant_inside(eqn) for eqn in _jax.parts(jaxpr).eqns)
    return _MEANT[jaxpr]


def meant_inside(eqn: Eqn) -> bool:
    """Whether a program in an equation holds one; in a function with a rule of its own, the rule says what it means."""
    if traits_of(eqn).move != Move.STAYS or eqn.primitive in (_jax.custom_jvp_call_p, _jax.custom_vjp_call_p):
        return False
    seen: set[int] = set()
    return any(any_meant(jaxpr) for value in eqn.params.values() for jaxpr in jaxprs_inside(value, seen))
