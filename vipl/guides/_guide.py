"""What every guide is: a family of programs over the latent choices of a model.

Law: `guide(params)` is a program whose choices are exactly the model's latent ones, of the same shapes, inside their
supports whatever the parameters, and whose density is exact, but for `SemiImplicit`, which has an estimate of it.
"""

from __future__ import annotations

import abc
import functools
from collections.abc import Callable, Hashable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vipl._jax import Tracer, double_precision
from vipl._settings import with_own_settings
from vipl._types import Array, ArrayLike, Float, PRNGKeyArray, PyTree
from vipl.errors import ChoiceError, ProgramError, shortened, show_address, show_addresses, show_aval
from vipl.gen import GenerativeFunction, Program
from vipl.gen._check_arguments import check_source
from vipl.gen._choices import Address, flatten, match, nest
from vipl.gen._visits import visits
from vipl.gen._without_choice import valued
from vipl.guides._latents import Latents
from vipl.guides._once import NotMade, Remade, run_once
from vipl.ir.keys import key_or_first
from vipl.ir.partition import is_array, is_real

Start = Mapping[str, Any] | str | None
"""Where a guide begins: choices by address, "prior", "uniform" or "zero"."""

_STARTS = ("prior", "uniform", "zero")

_NUM_OTHERS = 4
"""For how many draws of choices that a guide leaves out its start is tried."""

_START = 'pass values to begin with: init(key, start={"x": ...}); or mend the prior of that site'
_DATA = (
    "compare the data with the support: what lies outside has density zero; if the support depends on choices, pass "
    'values to begin with: start={"x": ...}'
)
_ARGUMENTS = (
    'leave these rows out; or make them a choice, sample("x", ...), and write program, data = '
    "vipl.partly_observed(model, data), which has a posterior of what is missing"
)
_OTHERS = (
    "if {} can be impossible, alone or with the data, sum it out of the model: vipl.marginal(model, keep, "
    "vipl.inference.Enumeration()), or ForwardBackward() of a chain"
)


class Guide(Remade, abc.ABC):
    """A variational family: parameters -> a program over latent choices. The base of all guides, combinations too.

    Attributes:
      addresses: of the choices that it samples, as far as they are known without parameters.
    """

    addresses: list[Address]

    @abc.abstractmethod
    def __call__(self, params: PyTree) -> Program:
        """The program of some parameters; may stand wherever a program may.

        Raises:
          ProgramError: the parameters are not those of the family: another structure, or other shapes.
        """

    @abc.abstractmethod
    def init(
        self, key: PRNGKeyArray | None = None, *, start: Start = None, scale: Float[ArrayLike, ""] = 0.1, **own: PyTree
    ) -> PyTree:
        """Parameters to begin with; see `ModelGuide.init`."""

    @abc.abstractmethod
    def for_data(self, model: Program, data: Mapping[str, Any]) -> Guide:
        """The same family for another model or other data; see `ModelGuide.for_data`."""

    @abc.abstractmethod
    def start(self, key: PRNGKeyArray, start: Start = None) -> dict[Address, Array]:
        """The unconstrained coordinates of each real choice at which the family is centred first; see `init`."""


class ModelGuide(Guide):
    """A family that is made for a model and its data; the base of all but `combine`.

    Attributes:
      model: the program that it approximates the posterior of.
      data: the given choices.
      latents: what the program's sites tell.
    """

    is_point = False
    """Whether it has all its mass on one value, so that it has no density."""

    @with_own_settings
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
        self._in_double = double_precision()
        self.latents = Latents(model, self.data, role, addresses)
        self.addresses = [x.address for x in (*self.latents.real, *self.latents.discrete)]
        self._check()
        fn = self._function()
        fn.__name__ = fn.__qualname__ = f"{role} of {model.name}"
        self._gf = GenerativeFunction(fn)

    def __call__(self, params: PyTree) -> Program:
        """See `Guide.__call__`."""
        self._check_precision()
        self._check_params(params)
        return self._gf(params)

    def _check_precision(self) -> None:
        """Raises where the setting of `jax_enable_x64` is not that under which the model was staged."""
        if self._in_double != double_precision():
            before, now = ("double", "single") if self._in_double else ("single", "double")
            raise ProgramError(
                "a guide is used in another precision than it was made in.",
                at=repr(self),
                got=f"made in {before} precision, used in {now}",
                expected="one setting of jax_enable_x64",
                fix="make the guide again under this setting; vipl.load reads a posterior that was saved",
            )

    @property
    def options(self) -> dict[str, Any]:
        """The keyword arguments that, with model and data, make the guide again."""
        return {"addresses": self._addresses}

    def with_options(self, **options: Any) -> ModelGuide:
        """The same family for the same model, with other options."""
        return type(self)(self.model, self.data, **self.options | options)

    def apart(self) -> tuple[Callable[[PyTree, PyTree], Any], PyTree, PyTree]:
        """See `Remade.apart`; of a class that is not of this package, nobody knows what its options leave out."""
        self._check_precision()
        if type(self).__module__.partition(".")[0] != __name__.partition(".")[0]:
            raise NotMade
        return _made_of, (type(self), self.options, self.model), self.data

    def layout(self) -> Hashable:
        """See `Remade.layout`."""
        return self.latents.layout()

    def for_data(self, model: Program, data: Mapping[str, Any], **options: Any) -> ModelGuide:
        """The same family for another model or other data, with the same options; its parameters may have other shapes.

        Args:
          model: such as `model(x_new)`.
          data: the observed choices.
          **options: that are others.
        """
        return type(self)(model, data, **self.options | options)

    def __repr__(self) -> str:
        over = f"over {show_addresses(self.addresses)}, {self.latents.size} real coordinates"
        return f"{type(self).__name__} of {self.model.name} {over}"

    @with_own_settings
    def init(
        self, key: PRNGKeyArray | None = None, *, start: Start = None, scale: Float[ArrayLike, ""] = 0.1
    ) -> PyTree:
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
          ProgramError: the start or the scale is something else; the guide was made in another precision.
          AddressError: the start has an address that the guide does not have.
          ChoiceError: a start lies outside its support; or the log density, or its gradient, is not finite there. Of a
            guide that leaves choices out, that is asked at four draws of these from the prior: one has to do.
        """
        the_key = key_or_first(key)
        check_scale(scale, self)
        return self._init(self.start(the_key, start), jnp.asarray(scale, float), the_key)

    def start(self, key: PRNGKeyArray, start: Start = None) -> dict[Address, Array]:
        """See `Guide.start`."""
        self._check_precision()
        check_start(start, self)
        given = flatten(dict(start), "the start") if isinstance(start, Mapping) else {}
        tries: list[Callable[[], dict[Address, Array]]]
        uniform = [lambda k=k: self._uniform(jax.random.fold_in(key, k)) for k in range(8)]
        if isinstance(start, str):
            tries = {"zero": [self._zero], "prior": [lambda: self._prior(key)], "uniform": uniform}[start]
        else:
            # Where the probability of a branch is fitted beside what is drawn there, a branch whose choices lie far
            # away is given up before these have moved.
            first = [self._zero, lambda: self._prior(key)]
            tries = [*(reversed(first) if self.latents.in_branch else first), *uniform]
        wrong = None
        for make in tries:
            u = self._with_values(make(), given)
            wrong = self._what_is_not_finite(u, key)
            if wrong is None:
                return u
        where, what, fix = wrong or ("", "", "")
        raise ChoiceError(
            "the density is not finite at the start of a guide.",
            at=where,
            got=what,
            expected="a finite log density and gradient at the start",
            fix=fix,
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
        found = run_once("the median of a prior", _median_of_prior, (self,), (key,))
        return {x.address: v for x, v in zip(self.latents.real, found, strict=True)}

    def _with_values(self, u: dict[Address, Array], given: dict[Address, Any]) -> dict[Address, Array]:
        """The coordinates with those of given choices in their places."""
        if not given:
            return u
        found = [info for info in valued(self.model.staged()[1]) if info.site.address in u]
        values = match(nest(given), found, f"the start of {self!r}", complete=False)
        moved = self.latents.with_choices(u, values)
        for info in found:
            address, x = info.site.address, values.get(info.site.address)
            if x is None or isinstance(moved[address], Tracer) or jnp.all(jnp.isfinite(moved[address])):
                continue
            raise ChoiceError(
                "a start lies outside the support of its site.",
                at=info.site.at(),
                got=shortened(np.asarray(x).tolist()),
                expected="numbers inside the support, not at its edge",
                fix=f"pass start={{{show_address(address[-1:])}: ...}} with numbers that the site can draw",
            )
        return moved

    def _what_is_not_finite(self, u: dict[Address, Array], key: PRNGKeyArray) -> tuple[str, str, str] | None:
        """Where density or gradient is not finite at u, what it is, and what helps; None if all is, or u is traced."""
        if not u or any(isinstance(x, Tracer) for x in u.values()):
            return None
        if self.latents.left_out:
            return self._not_finite_for_others(u, key)
        value, gradient = run_once("a start", _density_and_gradient, (self,), (list(u.values()),))
        if isinstance(value, Tracer):
            return None
        if not jnp.isfinite(value):
            each = self.latents.log_densities(u)
            at, log_p = next(((at, x) for at, x in each.items() if not jnp.isfinite(x)), (repr(self), value))
            if jnp.isnan(value) and (number := _num_nan(self.model)):
                return at, f"log density {log_p}, and {number} NaN in the arguments of {self.model.name}", _ARGUMENTS
            if log_p == -jnp.inf and at in self.latents.observed_sites():
                return at, f"log density {log_p} of its data", _DATA
            return at, f"log density {log_p}", _START
        for x, g in zip(self.latents.real, gradient, strict=True):
            if not jnp.all(jnp.isfinite(g)):
                return x.at, f"a gradient {show_aval(g)} that is not finite", _START
        return None

    def _not_finite_for_others(self, u: dict[Address, Array], key: PRNGKeyArray) -> tuple[str, str, str] | None:
        """As `_what_is_not_finite`, for draws of the choices that are left out."""
        keys = jax.random.split(key, _NUM_OTHERS)
        value, gradient = run_once("a start beside others", _with_others, (self,), (keys, list(u.values())))
        if isinstance(value, Tracer):
            return None
        finite = [jnp.isfinite(value), *(jnp.isfinite(g).all(range(1, g.ndim)) for g in gradient)]
        if jnp.any(jnp.all(jnp.stack(finite), 0)):
            return None
        others = show_addresses(self.latents.left_out)
        got = f"log densities {np.asarray(value).tolist()} with {others} from the prior, or their gradients"
        at = next(info.site.at() for info in self.model.staged()[1] if info.site.address in self.latents.left_out)
        return at, got, _OTHERS.format(others)

    # --- parameters -------------------------------------------------------------------------------------------

    def _shapes(self) -> PyTree:
        """The shapes of the parameters."""
        return jax.eval_shape(lambda key: self._init(self._zero(), jnp.ones(()), key), jax.random.key(0))

    @functools.cached_property
    def _by_path(self) -> dict[str, tuple[int, ...]]:
        return shapes_by_path(self._shapes())

    @with_own_settings
    def _check_params(self, params: PyTree) -> None:
        """Raises where the parameters are not those of the family."""
        given = shapes_by_path(params)
        if given == self._by_path:
            return
        wrong = {p: x for p, x in self._by_path.items() if given.get(p) != x} or self._by_path
        raise ProgramError(
            "the parameters are not those of the guide.",
            at=repr(self),
            got=show_aval(params) if set(given) == {"params"} else differences(given, self._by_path),
            expected=", ".join(f"{p} {list(x)}" for p, x in wrong.items()),
            fix="begin with guide.init(key), and keep structure and shapes; another model or guide has others",
        )


def _num_nan(program: Program) -> int:
    """How many numbers of a program's arguments are NaN, as far as they are known."""
    leaves = [x for x in jax.tree.leaves((program.args, program.kwargs)) if is_real(x) and not isinstance(x, Tracer)]
    return sum(int(np.isnan(np.asarray(x, float)).sum()) for x in leaves)


def _made_of(fixed: tuple[type, dict[str, Any], Program], data: dict[str, Any]) -> Any:
    cls, options, model = fixed
    return cls(model, data, **options)


def _median_of_prior(guide: ModelGuide, key: PRNGKeyArray) -> list[Array]:
    """The coordinates of each choice at the median of those of 256 draws from the model that make it."""
    real = guide.latents.real
    branches = [x.address for x in real if x.present is None]  # of the others the passes that make one are known

    def one(key: PRNGKeyArray) -> tuple[list[Array], dict[Address, Array]]:
        drawn = flatten(guide.model.simulate(key).choices, guide.model.name)
        u = guide.latents.unconstrain({x.address: drawn[x.address] for x in (*real, *guide.latents.discrete)})[0]
        made = visits(guide.model, drawn) if guide.latents.in_branch else {}
        return [u[x.address] for x in real], {a: made[a] for a in branches if a in made}

    coordinates, made = jax.vmap(one)(jax.random.split(key, 256))
    return [_median(u, made.get(x.address)) for x, u in zip(real, coordinates, strict=True)]


def _median(u: Array, made: Array | None) -> Array:
    """The median of the first axis; of the rows alone in which a choice was made, and 0 where it never was."""
    if made is None:
        return jnp.median(u, axis=0)
    made = jnp.expand_dims(made, tuple(range(made.ndim, u.ndim)))
    return jnp.where(made.any(0), jnp.nanmedian(jnp.where(made, u, jnp.nan), axis=0), 0)


def _density_and_gradient(guide: ModelGuide, values: list[Array]) -> tuple[Array, list[Array]]:
    """The log density at coordinates of each choice, and its gradient."""
    return jax.value_and_grad(guide.latents.density().of_parts)(values)


def _with_others(guide: ModelGuide, keys: PRNGKeyArray, values: list[Array]) -> tuple[Array, list[Array]]:
    """`_density_and_gradient` with the choices that are left out from the prior, for each key."""

    def one(key: PRNGKeyArray) -> tuple[Array, list[Array]]:
        drawn = flatten(guide.model.simulate(key).choices, guide.model.name)
        others = {a: drawn[a] for a in guide.latents.left_out}

        def density(values: list[Array]) -> Array:
            pairs = zip(guide.latents.real, values, strict=True)
            return guide.latents.log_density({x.address: v for x, v in pairs} | others)

        return jax.value_and_grad(density)(values)

    return jax.vmap(one)(keys)


def differences(given: Mapping[str, tuple[int, ...]], wanted: Mapping[str, tuple[int, ...]]) -> str:
    """How parameters differ from those that are wanted."""
    parts = {
        "nothing at": [p for p in wanted if p not in given],
        "also": [p for p in given if p not in wanted],
        "other shapes": [f"{p} {list(x)}" for p, x in given.items() if wanted.get(p, x) != x],
    }
    return "; ".join(f"{what} {', '.join(paths)}" for what, paths in parts.items() if paths)


def shapes_by_path(params: PyTree) -> dict[str, tuple[int, ...]]:
    """The shape of each leaf, by where it stands."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(params)
    return {f"params{jax.tree_util.keystr(path)}": np.shape(x) for path, x in leaves}


def check_start(start: object, guide: Guide) -> None:
    """Raises where a start is neither values by address nor one of the words."""
    if start is None or isinstance(start, Mapping) or (isinstance(start, str) and start in _STARTS):
        return
    raise ProgramError(
        "the start is not known.",
        at=f"init of {guide!r}",
        got=shortened(start),
        expected=f"choices, or one of {', '.join(map(repr, _STARTS))}",
        fix='pass start="zero", or values such as {"x": 1.0}',
    )


def check_scale(scale: object, guide: Guide) -> None:
    """Raises where a scale is not a positive number, as far as it is known."""
    if is_array(scale) and is_real(scale) and np.shape(scale) == ():
        if isinstance(scale, Tracer) or 0 < np.asarray(scale) < np.inf:
            return
    raise ProgramError(
        "the scale of a start is not a positive number.",
        at=f"init of {guide!r}",
        got=shortened(scale),
        expected="the standard deviation of each coordinate, a positive number",
        fix="pass scale=0.1",
    )
