"""What holds while a program is staged: no statement of another system, no number where there is none yet.

Staging runs a Python function on abstract values. What it does besides binding equations would be lost, or would fail
with a message about JAX's inside. Invariant: in a program

- a statement of NumPyro (`numpyro.sample`, `factor`, `param`, `plate`, ...) is an error, unless a `handlers.trace` that
  was entered in the program records it (as `numpyro.infer.util.log_density` does: nothing is lost then);
- a handler of NumPyro that was entered in the program, and is still active at a site or where another program starts,
  is an error, since it does nothing to them. Handlers from outside the program are left alone;
- a site in another precision than its program is an error;
- a traced value that is used as a Python number, and state of a Flax module that is changed, are errors that name the
  user's line.

This is the one module that names NumPyro's internals.
"""

from __future__ import annotations

import contextlib
import dataclasses
import re
import threading
from collections.abc import Iterator
from types import TracebackType
from typing import Any

import jax
import numpyro.handlers
import numpyro.primitives

from vipl import _jax
from vipl._jax import Tracer
from vipl.errors import ProgramError, ViplError, show_address, show_addresses, show_aval
from vipl.ir.batching import sites_of_value
from vipl.ir.frames import failing_line, user_frame

Message = dict[str, Any]
"""What NumPyro's statements hand to its handlers."""

_HANDLERS: list[numpyro.primitives.Messenger] = numpyro.primitives._PYRO_STACK

_STATEMENTS = {
    "param": (
        "numpyro.param({name!r}, ...)",
        "pass parameters as arguments of the program, and optimize them with vipl.fit",
    ),
    "plate": ("numpyro.plate({name!r}, ...)", "map the sites over the rows with jax.vmap, or build the distribution "
              "with .expand; minibatches are vipl.fit(..., batch_size=...)"),
    "subsample": ("numpyro.subsample(...)", "pass minibatches as data: vipl.fit(..., batch_size=...)"),
    "deterministic": ("numpyro.deterministic({name!r}, ...)", "return the value: it is `retval` of the trace"),
    "prng_key": ("numpyro.prng_key()", "draw the noise with vipl.sample"),
    "mutable": ("numpyro.mutable_({name!r}, ...)", "pass the state as an argument, and return the new one"),
    "control_flow": (
        "{fn}(...) of numpyro.contrib.control_flow",
        "use jax.lax.scan or jax.lax.cond, with vipl.sample in it",
    ),
}  # fmt: skip

_FIXES = {
    "scale": "multiply the log density by the factor, or add the rest of it with vipl.factor",
    "mask": "write vipl.sample(address, distribution.mask(mask))",
    "condition": "give the values to assess or generate: program.generate({address: value})",
    "substitute": "give the values to assess or generate: program.generate({address: value})",
    "do": "pass the value as an argument of the program",
    "seed": "leave it out: a key is passed at the call, as in program.simulate(key)",
    "plate": "map the sites with jax.vmap",
    "trace": "read the trace that program.simulate() returns",
    "block": "leave it out, or drop choices with vipl.marginal(program, keep)",
    "reparam": "write the reparametrized distribution at the site",
    "replay": "give the values to assess: program.assess(trace.choices)",
}


class _Guard(numpyro.primitives.Messenger):
    """On NumPyro's stack of handlers while a program is staged: the statements inside arrive here.

    Attributes:
      thread: where the program is staged; NumPyro's stack is shared by all threads.
      double: whether the program is staged in double precision.
    """

    def __init__(self) -> None:
        super().__init__(None)
        self.thread, self.double = threading.get_ident(), _jax.double_precision()

    def process_message(self, msg: Message) -> None:
        """Raises, unless nothing is lost."""
        if msg["type"] == "inspect" or threading.get_ident() != self.thread:
            return
        recorded = any(isinstance(h, numpyro.handlers.trace) for h in _since(self))
        missing = msg["type"] == "sample" and msg["value"] is None and msg["kwargs"].get("rng_key") is None
        if not recorded or missing:
            raise _statement(msg)


def _since(guard: _Guard) -> list[numpyro.primitives.Messenger]:
    """The handlers that were entered after staging began."""
    return [h for h in _HANDLERS[_HANDLERS.index(guard) + 1 :] if not isinstance(h, _Guard)]


def _innermost() -> _Guard | None:
    here = threading.get_ident()
    return next((h for h in reversed(_HANDLERS) if isinstance(h, _Guard) and h.thread == here), None)


def check_context(at: str | None = None) -> None:
    """Raises where a handler of NumPyro, or another precision, was entered since the program's staging began.

    Args:
      at: the site; None: the user's line.
    """
    guard = _innermost()
    if guard is None:
        return
    if entered := _since(guard):
        name = type(entered[-1]).__name__
        raise ProgramError(
            "a NumPyro handler stands around a site or a program, to which it does nothing.",
            at=at or user_frame(),
            got=f"numpyro.handlers.{name}" if hasattr(numpyro.handlers, name) else f"numpyro's {name}",
            expected="no handler of NumPyro in a program",
            fix=_FIXES.get(name, "leave it out"),
        )
    if guard.double != _jax.double_precision():
        raise ProgramError(
            "a site or a program stands in another precision than the program around it.",
            at=at or user_frame(),
            got=f"jax.enable_x64({_jax.double_precision()}) in a program that is staged in "
            f"{'double' if guard.double else 'single'} precision",
            expected="one precision for the whole program",
            fix="put jax.enable_x64 around the call, as in `with jax.enable_x64(True): program.simulate(key)`",
        )


@contextlib.contextmanager
def staging() -> Iterator[None]:
    """Runs a program's function under the law of this module."""
    check_context()
    guard = _Guard()
    _HANDLERS.append(guard)
    try:
        yield
    except Exception as error:
        raised = _explained(error)
        if raised is None:
            raise
        raise raised from error
    finally:
        for i in reversed(range(len(_HANDLERS))):
            if _HANDLERS[i] is guard:
                del _HANDLERS[i]


def in_program() -> bool:
    """Whether what is called now becomes a part of a program, and not of another JAX function."""
    return any(isinstance(handler, _Guard) for handler in _HANDLERS)


def _statement(msg: Message) -> ProgramError:
    kind, name = msg["type"], str(msg.get("name", ""))
    if kind == "sample":
        source = msg["fn"]
        if type(source).__name__ == "Unit":
            got, fix = f"numpyro.factor({name!r}, ...)", f'write vipl.factor("{name}", log_weight)'
        elif msg["value"] is not None:
            got = f"numpyro.sample({name!r}, {type(source).__name__}, obs=...)"
            fix = (
                f'write vipl.sample("{name}", distribution), and give the datum to assess or generate: {{"{name}": y}}'
            )
        else:
            got = f"numpyro.sample({name!r}, {type(source).__name__})"
            fix = f'write vipl.sample("{name}", distribution)'
    else:
        template, fix = _STATEMENTS.get(kind, ("a statement {kind!r}", "write it with vipl and JAX"))
        got = template.format(name=name, kind=kind, fn=getattr(msg.get("fn"), "__name__", "scan")[:4])
    return ProgramError(
        "a statement of NumPyro stands in a program, which would lose it.",
        at=f"{show_address([name])} in {user_frame()}" if name else user_frame(),
        got=got,
        expected="vipl.sample, vipl.factor, and plain JAX",
        fix=fix,
    )


# --- errors of JAX and Flax -----------------------------------------------------------------------------------

_USES = (
    (jax.errors.TracerBoolConversionError, "bool(x), as `if`, `while`, `and`, `assert` and `max` call it",
     "use jax.numpy.where, or jax.lax.cond(x > 0, ...)"),
    (jax.errors.TracerIntegerConversionError, "a Python integer, as `range`, lists and lengths want one",
     "use jax.lax.fori_loop, jax.numpy indexing, and shapes that do not depend on it"),
    (jax.errors.TracerArrayConversionError, "a NumPy array",
     "use jax.numpy instead of numpy, and jnp.asarray(...) of what is an array of another library: a pandas Series"),
    (jax.errors.NonConcreteBooleanIndexError, "a mask that changes a shape", "use jax.numpy.where(mask, x, 0.0)"),
    (jax.errors.ConcretizationTypeError, "a Python number, as float(x), int(x) and lengths want one",
     "use jax.numpy on it, jax.lax.cond, jax.numpy.where, jax.lax.fori_loop; shapes must not depend on it"),
)  # fmt: skip
_CONCRETE = tuple(kind for kind, _, _ in _USES)
_KIND = re.compile(r"traced array with shape ([\w\[\],]+)")
"""Which traced value JAX speaks of."""

# Errors of other classes that say the same; believed only where a traced value is in the failing frame.
_TEXTS = (
    (r"^unhashable type: '\w*Tracer", "a key of a dict, an element of a set, or a size",
     "sizes must not depend on it; for a table use jax.numpy indexing: table[x]"),
    (r"^len\(\) of unsized|^iteration over a 0-d", "a sequence, though it is one number",
     "give it an axis: jax.numpy.atleast_1d(x)"),
    (r"^unsupported format string passed to \w*Tracer", "a formatted number", "print it with jax.debug.print"),
    (r"concrete values of integer|[Ss]lice \w+ must (be|have) static|parameter \w+ was not hashable|"
     r"'(list|tuple|str)' and '\w*Tracer", "a Python number, as lengths and shapes want one",
     "use jax.numpy on it; lengths and shapes must not depend on it"),
)  # fmt: skip


def _explained(error: Exception) -> ProgramError | None:
    """The four lines for an error of JAX or Flax; None for any other."""
    if isinstance(error, ViplError):
        return None
    if type(error).__name__ == "TraceContextError" and type(error).__module__.startswith("flax"):
        return _changes_state(error)
    tracers = _tracers_in(error.__traceback__, _KIND.search(str(error)))
    use = _use_of(error, bool(tracers))
    if use is None:
        return None
    found, from_site = _describe(tracers)
    raised = ProgramError(
        "a value that is known only when the program runs is used as a Python value.",
        at=failing_line(error.__traceback__) or user_frame(),
        got=f"{found}, used as {use[0]}",
        expected="operations of JAX; Python values only where nothing drawn or traced goes in",
        fix=use[1] + ("" if from_site else "; an argument that is a number can be closed over instead"),
    )
    raised.needs_number = True
    return raised


def _changes_state(error: Exception) -> ProgramError:
    return ProgramError(
        "a program changes the state of a Flax module that was made outside of it.",
        at=failing_line(error.__traceback__) or user_frame(),
        got=str(error).split(" (")[0],
        expected="parameters as arguments of the program, and modules without other state",
        fix="split the module with vipl.interop.flax.functional, and call apply(params) in the program",
    )


def _use_of(error: Exception, traced: bool) -> tuple[str, str] | None:
    """What a traced value was used as, and what to do; None where the error does not say so.

    Args:
      error: of JAX, or of Python.
      traced: whether the failing frames hold traced values.
    """
    named = next((e for e in (error, error.__cause__) if isinstance(e, _CONCRETE)), None)
    if named is not None:
        return next((use, fix) for kind, use, fix in _USES if isinstance(named, kind))
    if not traced or not isinstance(error, (TypeError, IndexError, ValueError)):
        return None
    return next(((use, fix) for text, use, fix in _TEXTS if re.search(text, str(error))), None)


def _tracers_in(traceback: TracebackType | None, kind: re.Match[str] | None) -> list[Tracer]:
    """The traced values that the failing frames hold, innermost first: those of the kind that the error names.

    Of an error that names none, those of the innermost frame that holds any.
    """
    frames = []
    while traceback is not None:
        frames.append(traceback.tb_frame)
        traceback = traceback.tb_next
    held = [
        [x for value in frame.f_locals.values() for x in _flat(value) if isinstance(x, Tracer)]
        for frame in reversed(frames[-6:])
    ]
    if kind is None:
        return next(filter(None, held), [])
    return [x for tracers in held for x in tracers if x.aval.str_short() == kind[1]]


def _flat(value: object) -> Iterator[object]:
    if isinstance(value, (tuple, list)):
        for x in value:
            yield from _flat(x)
    elif isinstance(value, slice):
        yield from (value.start, value.stop, value.step)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):  # JAX keeps the size of a `vmap` in one
        yield from (getattr(value, field.name, None) for field in dataclasses.fields(value))
    else:
        yield value


def _describe(tracers: list[Tracer]) -> tuple[str, bool]:
    """What a traced value is, and whether the sites that it depends on are known."""
    for tracer in tracers:
        addresses = dict.fromkeys(site.address for site in sites_of_value(tracer))
        if addresses:
            return f"a traced {show_aval(tracer)} that depends on the site {show_addresses(addresses)}", True
    return (f"a traced {show_aval(tracers[0])}" if tracers else "a traced value"), False
