"""`detach`: a source of choices whose parameters are held.

Invariant: what it draws and its densities are those of the source, bit for bit; a derivative is that with respect to
values that are passed in (the choices of `assess`), and never one with respect to anything that the source was applied
to or closes over. Its sites' laws have no derivative, whatever their estimators.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import jax
import numpyro.distributions as dist

from vipl._types import Array, Float
from vipl.analysis.stop_gradients import hold as held_call
from vipl.analysis.stop_gradients import stopped
from vipl.errors import ProgramError
from vipl.gen._choices import Address, Choices
from vipl.gen._density import ScaledDistribution
from vipl.gen._program import GenerativeFunction, Program
from vipl.gen._source import Source, Trace
from vipl.ir.frames import user_frame
from vipl.ir.partition import concrete_integer, partition

S = TypeVar("S", Program, Source, dist.Distribution)


def detach(source: S) -> S:
    """The same source with its parameters held: there is no derivative in them, closures included.

    `stop_gradient(guide(phi))` holds the arguments alone, and what `guide` closes over keeps its derivative. `detach`
    holds both: parameters that arrive as arguments, in a closure, or in the closure of a helper function. Values that
    are passed in later, such as the choices of `detach(guide(phi)).assess(z)`, keep theirs.

    May stand wherever the source may: in `sample`, in an objective, in `marginal` and `normalize`, in another `detach`.
    Draws, densities, addresses and estimators are those of the source.

    Args:
      source: a program `guide(phi)`; what `marginal` or `normalize` returns; or a NumPyro distribution.

    Returns:
      A source of the same kind.

    Raises:
      ProgramError: it is none of these; a generative function has to be applied to its arguments first.

    Example:
      >>> import jax, numpyro.distributions as dist, vipl
      >>> @vipl.gen
      ... def guide(m):
      ...     vipl.sample("z", dist.Normal(m, 1.0))
      >>> float(jax.grad(lambda m: vipl.detach(guide(m)).assess({"z": 2.0}).log_prob)(0.5))
      0.0
    """
    if isinstance(source, Program):
        return Program(_held_function(source.gf), source.args, source.kwargs)
    if isinstance(source, Source):
        return source if isinstance(source, HeldSource) else HeldSource(source)
    if isinstance(source, (dist.Distribution, ScaledDistribution)):
        skeleton, leaves = partition(source, keep=concrete_integer)
        return skeleton.combine(stopped(leaves))
    is_function = callable(source) and hasattr(source, "__name__")
    raise ProgramError(
        "what is to be held is not a program with its arguments.",
        at=user_frame(),
        got=f"the function {source.__name__} itself" if is_function else type(source).__name__,
        expected="program(*args), with @vipl.gen on program; another source; or a distribution",
        fix=f"write detach({source.__name__}(...))" if is_function else "for arrays, write jax.lax.stop_gradient(x)",
    )


_HELD: weakref.WeakKeyDictionary[GenerativeFunction, GenerativeFunction] = weakref.WeakKeyDictionary()


def _held_function(gf: GenerativeFunction) -> GenerativeFunction:
    """The same generative function, its arguments and closures held; one object for one function."""
    if gf not in _HELD:
        _HELD[gf] = GenerativeFunction(_held(gf.fn), gf.estimators)
    return _HELD[gf]


def _held(fn: Callable) -> Callable:
    @functools.wraps(fn)
    def held(*args, **kwargs):
        return held_call(lambda: fn(*args, **kwargs))

    return held


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class HeldSource(Source):
    """A source that is not a program, such as a posterior, with its parameters held; made by `detach`.

    Attributes:
      source: what is held.
    """

    source: Source

    @property
    def name(self) -> str:
        """The source's name."""
        return self.source.name

    def weigh(self, known: Choices, drawn: Choices) -> tuple[Float[Array, ""], Float[Array, ""]]:
        """See `Source.weigh`."""
        return held_call(self.source.weigh, known, drawn)

    def simulate_split(self, counts: Callable[[Address], bool]) -> tuple[Trace, Float[Array, ""]]:
        """See `Source.simulate_split`."""
        return held_call(lambda: self.source.simulate_split(counts))

    def is_exact(self) -> bool:
        """Whether its density is exact."""
        return self.source.is_exact()

    def inline(self, address: Address, where: str) -> Any:
        """Becomes a part of the program around it."""
        return held_call(lambda: self.source.inline(address, where))

    def _simulate(self) -> Trace:
        return held_call(self.source._simulate)

    def _assess(self, choices: Choices) -> Trace:
        return held_call(self.source._assess, choices)

    def _generate(self, choices: Choices) -> tuple[Trace, Float[Array, ""]]:
        return held_call(self.source._generate, choices)

    def __getattr__(self, name: str) -> Any:
        """Its other methods, such as `particles`, held likewise."""
        if name.startswith("_") or name == "source":
            raise AttributeError(name)
        method = getattr(self.source, name)
        return functools.partial(held_call, method) if callable(method) else method
