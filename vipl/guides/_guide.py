"""What every guide is: a family of programs over the latent choices of a model.

Law: `guide(params)` is a program whose choices are exactly the model's latent ones, of the same shapes, inside their
supports whatever the parameters, and whose density is exact.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from vipl._jax import Tracer
from vipl._types import Array, Float, PRNGKeyArray, PyTree
from vipl.errors import ChoiceError, ProgramError, show_addresses, show_aval
from vipl.gen import GenerativeFunction, Program
from vipl.gen._check_arguments import check_source
from vipl.gen._choices import Address, flatten, match, nest
from vipl.gen._without_choice import valued
from vipl.guides._latents import Latents
from vipl.ir.keys import key_or_first

Start = Mapping[str, Any] | str | None
"""Where a guide begins: choices by address, "prior", "uniform" or "zero"."""

_STARTS = ("prior", "uniform", "zero")


class Guide(abc.ABC):
    """A variational family: parameters -> a program over the latent choices.

    Attributes:
      model: the program that it approximates the posterior of.
      data: the given choices.
      latents: what the program's sites tell.
    """

    def __init__(self, model: Program, data: Mapping[str, Any], *, addresses: Any = None):
        """Reads addresses, shapes and supports by staging the model; draws nothing.

        Args:
          model: over latents and data, a generative function with its arguments.
          data: the observed choices.
          addresses: which latent choices the guide is over; an address stands for all below it. None: all.

        Raises:
          ProgramError: the model is not a program with its arguments, or has no latent choices.
          AddressError: an address of the data or of `addresses` is not the model's.
          ChoiceError: a datum is NaN; see `vipl.partly_observed`.
          DistributionError: a latent choice is of a kind that the family cannot approximate.
        """
        role = type(self).__name__
        check_source(model, "model", role, program=True)
        flatten(dict(data) if isinstance(data, Mapping) else data, f"the data of {role}")
        self.model, self.data, self._addresses = model, dict(data), addresses
        self.latents = Latents(model, self.data, role, addresses)
        self._check()
        fn = self._function()
        fn.__name__ = fn.__qualname__ = f"{role} of {model.name}"
        self._gf = GenerativeFunction(fn)

    def __call__(self, params: PyTree) -> Program:
        """The program of some parameters; may stand wherever a program may."""
        return self._gf(params)

    @property
    def options(self) -> dict[str, Any]:
        """The keyword arguments that, with model and data, make the guide again."""
        return {"addresses": self._addresses}

    def with_options(self, **options: Any) -> Guide:
        """The same family for the same model, with other options."""
        return type(self)(self.model, self.data, **self.options | options)

    def __repr__(self) -> str:
        choices = show_addresses([x.address for x in (*self.latents.real, *self.latents.discrete)])
        return f"{type(self).__name__} of {self.model.name} over {choices}, {self.latents.size} real coordinates"

    def init(self, key: PRNGKeyArray | None = None, *, start: Start = None, scale: float = 0.1) -> PyTree:
        """Parameters to begin with.

        Args:
          key: PRNG key; of `start="uniform"` and `"prior"`, and of families whose parameters are drawn.
          start: where the family is centred, in unconstrained coordinates u:

              choices      the values at their addresses; the other choices as with None
              "zero"       u = 0
              "prior"      the median of 256 draws from the model
              "uniform"    u uniform on [-2, 2]
              None         the first of "zero", "prior" and eight "uniform" at which the density is finite

          scale: the standard deviation of each coordinate.

        Returns:
          A pytree of arrays.

        Raises:
          ChoiceError: the log density, or its gradient, is not finite at the start.
        """
        the_key = key_or_first(key)
        return self._init(self.start(the_key, start), jnp.asarray(scale, float), the_key)

    def start(self, key: PRNGKeyArray, start: Start = None) -> dict[Address, Array]:
        """The unconstrained coordinates of each real choice at which the family is centred first; see `init`."""
        if isinstance(start, str) and start not in _STARTS:
            raise ProgramError(
                "the start is not known.",
                at=f"init of {self!r}",
                got=repr(start),
                expected=f"choices, or one of {', '.join(map(repr, _STARTS))}",
                fix='pass start="zero", or values such as {"x": 1.0}',
            )
        given = flatten(dict(start), "the start") if isinstance(start, Mapping) else {}
        tries: list[Callable[[], dict[Address, Array]]]
        uniform = [lambda k=k: self._uniform(jax.random.fold_in(key, k)) for k in range(8)]
        if isinstance(start, str):
            tries = {"zero": [self._zero], "prior": [lambda: self._prior(key)], "uniform": uniform}[start]
        else:
            tries = [self._zero, lambda: self._prior(key), *uniform]
        wrong = None
        for make in tries:
            u = self._with_values(make(), given)
            wrong = self._what_is_not_finite(u)
            if wrong is None:
                return u
        where, what = wrong or ("", "")
        raise ChoiceError(
            "the density is not finite at the start of a guide.",
            at=where,
            got=what,
            expected="a finite log density and gradient at the start",
            fix='pass values to begin with: init(key, start={"x": ...}); or mend the prior of that site',
        )

    # --- what a family says ---------------------------------------------------------------------------------------

    @abc.abstractmethod
    def _function(self) -> Callable[[PyTree], Any]:
        """The function of the parameters that samples the latent choices."""

    @abc.abstractmethod
    def _init(self, u: dict[Address, Array], scale: Float[Array, ""], key: PRNGKeyArray) -> PyTree:
        """Parameters of a member that is centred at u."""

    def _check(self) -> None:  # noqa: B027 - a family may suit all
        """Raises where the family does not suit the latent choices."""

    # --- starts -----------------------------------------------------------------------------------------------

    def _zero(self) -> dict[Address, Array]:
        return {x.address: jnp.zeros(x.coordinates, x.dtype) for x in self.latents.real}

    def _uniform(self, key: PRNGKeyArray) -> dict[Address, Array]:
        keys = jax.random.split(key, max(1, len(self.latents.real)))
        return {
            x.address: jax.random.uniform(k, x.coordinates, x.dtype, -2.0, 2.0)
            for x, k in zip(self.latents.real, keys, strict=False)
        }

    def _prior(self, key: PRNGKeyArray) -> dict[Address, Array]:
        def one(key: PRNGKeyArray) -> dict[Address, Array]:
            drawn = flatten(self.model.simulate(key).choices, self.model.name)
            return self.latents.unconstrain({x.address: drawn[x.address] for x in self.latents.real})[0]

        u = jax.vmap(lambda k: list(one(k).values()))(jax.random.split(key, 256))
        return {x.address: jnp.median(v, axis=0) for x, v in zip(self.latents.real, u, strict=True)}

    def _with_values(self, u: dict[Address, Array], given: dict[Address, Any]) -> dict[Address, Array]:
        """The coordinates with those of given choices in their places."""
        if not given:
            return u
        found = [info for info in valued(self.model.staged()[1]) if info.site.address in u]
        values = match(nest(given), found, f"the start of {self!r}", complete=False)
        choices, _ = self.latents.constrain(u)
        moved, _ = self.latents.unconstrain(choices | values)
        return moved

    def _what_is_not_finite(self, u: dict[Address, Array]) -> tuple[str, str] | None:
        """The site whose density or gradient is not finite at u, and what it is.

        None where all is, where u is traced, and where the guide leaves choices out, so that no density is known.
        """
        if not u or self.latents.left_out or any(isinstance(x, Tracer) for x in u.values()):
            return None
        addresses = list(u)
        density = lambda values: self.latents.log_density(dict(zip(addresses, values, strict=True)))  # noqa: E731
        value, gradient = jax.jit(jax.value_and_grad(density))(list(u.values()))
        if isinstance(value, Tracer):
            return None
        if not jnp.isfinite(value):
            each = self.latents.log_densities(u)
            at, log_p = next(((at, x) for at, x in each.items() if not jnp.isfinite(x)), (repr(self), value))
            return at, f"log density {log_p}"
        for x, g in zip(self.latents.real, gradient, strict=True):
            if not jnp.all(jnp.isfinite(g)):
                return x.at, f"a gradient {show_aval(g)} that is not finite"
        return None
