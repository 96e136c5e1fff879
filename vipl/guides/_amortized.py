"""A guide whose parameters a function computes from data.

    q(z | data) = Π_rows r(z_i; f(params, row_i)),     r a family of `vipl.guides`, f any function,

or r(z; f(params, data)) of all choices together. The parameters are those of f, so that they are the same for any rows.
"""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, SupportsIndex

import jax
import jax.numpy as jnp
import numpy as np

from vipl._checks import whole_number
from vipl._jax import Tracer
from vipl._types import Array, ArrayLike, Float, PRNGKeyArray, PyTree
from vipl.errors import ChoiceError, DistributionError, ProgramError, show_address, show_addresses, show_aval
from vipl.gen import Program, Source, gen, sample, scaled
from vipl.gen._choices import Address, nest
from vipl.guides._coordinates import Coordinates, Discrete, Latent
from vipl.guides._delta import Delta
from vipl.guides._flow import Flow
from vipl.guides._guide import ModelGuide, Start, check_scale, check_start, differences, shapes_by_path
from vipl.guides._joint import JointGuide, Laplace, OfLatents
from vipl.guides._mean_field import MeanField
from vipl.guides._pathfinder import Pathfinder
from vipl.ir.partition import is_array

_SAME = 1e-5
"""Weights whose ratio differs from one by less are the same."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class RowsForward(OfLatents):
    """The law of T(u) whose coordinates are independent over rows.

    Attributes:
      base: samples f[rows, d], the coordinates of each row, at "coordinates".
      row: how the d coordinates of a row are split into those of its choices.
    """

    base: Program
    row: Coordinates = field(metadata={"static": True})

    def _draw(self) -> tuple[dict[str, Any], Array]:
        trace = self.base.simulate()
        choices, log_det = self.latents.constrain(self.row.split(trace.choices["coordinates"]))
        return nest(choices), trace.log_prob - log_det

    def _weigh(self, choices: dict[str, Any]) -> Array:
        u, log_det, log_inside = self.latents.located(self._own(choices))
        v = jax.vmap(self.row.join)(u)
        return self.base.assess({"coordinates": v}).log_prob - log_det + log_inside


class Amortized(ModelGuide):
    """A family whose parameters a function, such as a network, computes from data.

    By row, where the latent choices stand in a plate, lanes of a `vmap` of the model:

        q(z) = Π_i r(z_i; encode(params, row_i)),     log q counts num_rows / b times with b rows in the batch.

    Otherwise q(z) = r(z; encode(params, data)) of all choices together. `r` is the `family`, in unconstrained
    coordinates, so that supports, discrete choices and estimators are those of the family; its density is exact.

    Parameters: those of `encode`, any pytree of arrays; they do not know how many rows there are. The same guide for
    other rows is `guide.for_data(model(x), data)`, also inside an objective, or in `jax.vmap` over datasets.
    Cost: a call of `encode` a row, in one `jax.vmap`, and that of the family. Use it where there are too many rows to
    learn parameters of each, or where new rows come: minibatches, autoencoders, simulation-based inference. It
    understates the bound of the family by what a function cannot tell of a row (the amortization gap). Global choices
    take a guide of their own, by `combine`.

    Unbiased derivatives: those of the family. The gradient of a bound of b of n rows is unbiased for that of all rows
    if the model's rows are `vipl.scaled` by n / b, and `num_rows=n`.

    Reference: Kingma and Welling (2014), section 2.3; Gershman and Goodman (2014), "Amortized inference in
    probabilistic reasoning"; Hoffman et al. (2013), eq. (24), for the weight of a row.

    Example:
      >>> import jax, jax.numpy as jnp, numpyro.distributions as dist, vipl
      >>> @vipl.gen
      ... def model(x):
      ...     def row(x):
      ...         z = vipl.sample("z", dist.Normal(0.0, 1.0))
      ...         vipl.sample("y", dist.Normal(x * z, 1.0))
      ...     jax.vmap(row)(x)
      >>> def encode(params, row):
      ...     return {"z": {"loc": params["slope"] * row["y"], "log_scale": params["log_scale"]}}
      >>> x, y = jnp.ones(3), jnp.array([0.2, 1.0, -0.4])
      >>> guide = vipl.guides.Amortized(model(x), {"y": y}, encode, {"slope": 0.5, "log_scale": 0.0})
      >>> guide(guide.init()).simulate(jax.random.key(0)).choices["z"].shape
      (3,)
      >>> new = guide.for_data(model(jnp.ones(2)), {"y": jnp.zeros(2)})
      >>> new(guide.init()).simulate(jax.random.key(0)).choices["z"].shape
      (2,)
    """

    def __init__(
        self,
        model: Program,
        data: Mapping[str, Any],
        encode: Callable[[PyTree, PyTree], PyTree],
        params: PyTree | None = None,
        *,
        inputs: PyTree | None = None,
        family: Callable[..., ModelGuide] = MeanField,
        addresses: Any = None,
        by_row: bool | None = None,
        num_rows: SupportsIndex | None = None,
    ):
        """See `Guide`.

        Args:
          model: over latents and data.
          data: the observed choices.
          encode: (params, row) -> the parameters of the family for one row, as `row_params` has their shapes; a pure
            function of JAX.
          params: …, its parameters to begin with, a pytree of arrays, as a network's own initialization makes them.
            None: `init` takes them.
          inputs: …, what `encode` sees: a pytree of arrays whose leading axis is that of the rows (by row), or any
            pytree of arrays. None: the data, by address.
          family: a class of `vipl.guides` (MeanField, Delta, FullRank, LowRank, Mixture, Flow, Structured), or a
            function (model, data, addresses=...) -> guide, such as functools.partial(LowRank, rank=2).
          addresses: which latent choices; None: all.
          by_row: whether `encode` is called for each row. None: by row if all latent choices stand in lanes of one
            `vmap`, together if none does.
          num_rows: n, how many rows these stand for, whatever their number b. None: b.

        Raises:
          ProgramError: `encode` is not a function of two arguments; its outputs at `params` are not the parameters of
            the family; the family or an option is none; the model's rows have another weight than the guide's.
          DistributionError: some latent choices stand in a plate of rows, and others do not; or what `Guide` says.
          ChoiceError: the inputs have no axis of rows, or hold NaN; or what `Guide` says.
          AddressError: see `Guide`.
        """
        self._at = f"Amortized of {model.name if isinstance(model, Program) else 'a model'}"
        self.encode, self.family, self._by_row, self._inputs = encode, family, by_row, inputs
        _check_encode(encode, self._at)
        if by_row is not None and not isinstance(by_row, bool):
            raise self._wrong("by_row is no truth value", repr(by_row), "True, False or None", "write by_row=True")
        self.num_rows = None if num_rows is None else whole_number(num_rows, "num_rows", self._at)
        self._params = params
        self._seen: set[Any] = set()
        super().__init__(model, data, addresses=addresses)
        if params is not None:
            self._check_params(params)

    @property
    def options(self) -> dict[str, Any]:
        """See `Guide.options`; without `inputs`, which belong to the data."""
        return super().options | {
            "encode": self.encode,
            "params": self._params,
            "family": self.family,
            "by_row": self._by_row,
            "num_rows": self.num_rows,
        }

    def with_options(self, **options: Any) -> ModelGuide:
        """See `ModelGuide.with_options`."""
        return super().with_options(**{"inputs": self._inputs} | options)

    def apart(self) -> tuple[Callable[[PyTree, PyTree], Any], PyTree, PyTree]:
        """See `Remade.apart`."""
        make, (cls, options, model), data = super().apart()
        return make, (cls, options | {"inputs": self._inputs}, model), data

    def for_data(self, model: Program, data: Mapping[str, Any], **options: Any) -> Amortized:
        """The guide of other data with the same parameters: of a new batch, a new dataset.

        Args:
          model: with the arguments of these data, such as `model(x_new)`.
          data: the observed choices.
          **options: `inputs`, where the guide was made with some; others as in `Amortized`.

        Raises:
          ProgramError: the guide was made with `inputs`, and none are given for these data; or what `Amortized` says.
        """
        if self._inputs is not None and options.get("inputs") is None:
            raise ProgramError(
                "an amortized guide has inputs of its own, and none are given for other data.",
                at=f"for_data of {self!r}",
                got="the model and the data alone",
                expected="the inputs of these data, which encode sees",
                fix="write for_data(model, data, inputs=...)",
            )
        return type(self)(model, data, **self.options | options)

    def init(
        self,
        key: PRNGKeyArray | None = None,
        *,
        start: Start = None,
        scale: Float[ArrayLike, ""] = 0.1,
        params: PyTree | None = None,
    ) -> PyTree:
        """The parameters of `encode` to begin with.

        Args:
          key: of no effect; nothing is drawn.
          start: no choices of the guide, which is centred where `encode` says; the words, which other parts of a
            combination take, have no effect.
          scale: of no effect; likewise.
          params: …, parameters of `encode`. None: those that the guide was made with.

        Raises:
          ProgramError: there are no parameters; `encode` does not make the family's of them; or choices are given for
            a start.
        """
        found = self._params if params is None else params
        if found is None:
            raise ProgramError(
                "an amortized guide has no parameters to begin with.",
                at=f"init of {self!r}",
                got="no parameters of encode",
                expected="those of its network, as the network's own initialization makes them",
                fix="write Amortized(model, data, encode, params), or init(params=...); in combinations init(part=...)",
            )
        check_start(start, self)
        check_scale(scale, self)
        if isinstance(start, Mapping) and start:
            raise self._no_start("choices for a start")
        self._check_params(found)
        return found

    def start(self, key: PRNGKeyArray, start: Start = None) -> dict[Address, Array]:
        """Raises: the family is centred where `encode` says."""
        raise self._no_start("a question for its start")

    @property
    def row_params(self) -> PyTree:
        """The shapes of what `encode` returns for one row, or for the data: a pytree of `jax.ShapeDtypeStruct`."""
        return self._one._shapes()

    @property
    def has_flow(self) -> bool:
        """Whether the guide of one row is a flow."""
        return isinstance(self._one, Flow)

    def _no_start(self, got: str) -> ProgramError:
        return self._wrong(
            "an amortized guide has no start of its own",
            got,
            "parameters of encode, which say where the family is",
            "pass init(params=...)",
        )

    def _wrong(self, what: str, got: Any, expected: str, fix: str) -> ProgramError:
        got = got if isinstance(got, str) else show_aval(got)
        return ProgramError(f"{what}.", at=self._at, got=got, expected=expected, fix=fix)

    # --- what the family is -------------------------------------------------------------------------------------

    def _check(self) -> None:
        self._whole = self._family_of_all()
        self.is_point = self._whole.is_point
        number = self._number_of_rows()
        self._one, self._weight = self._whole, None
        if number is None:
            if self.num_rows is not None:
                raise self._wrong(
                    "num_rows is given, and there are no rows",
                    f"num_rows={self.num_rows}",
                    "latent choices in lanes of a vmap, and an encoder that is called by row",
                    "leave num_rows out",
                )
        else:
            if getattr(self._whole, "frame", None) is not None:
                raise self._wrong(
                    "a frame of all coordinates is given for a family of one row",
                    "a frame",
                    "none",
                    "make the family without frame=",
                )
            self._one = _family_of_row(self._whole, self.latents.of_row())
            self._check_weights(number)
            if self.num_rows is not None and self.num_rows != number:
                self._weight = self.num_rows / number
        self._rows = number
        self.inputs = self._read_inputs()

    def _family_of_all(self) -> ModelGuide:
        made = self.family
        if callable(made):
            _check_family(made, self._at)
            made = made(self.model, self.data, addresses=self._addresses)
        if not isinstance(made, MeanField | Delta | JointGuide) or isinstance(made, Laplace | Pathfinder):
            raise _no_family(self._at, type(made).__name__)
        if made.addresses != self.addresses:
            got = f"a family over {show_addresses(made.addresses)}"
            raise self._wrong(
                "the family of an amortized guide is over other choices",
                got,
                show_addresses(self.addresses),
                "pass the addresses on: lambda model, data, addresses: ...",
            )
        return made

    def _number_of_rows(self) -> int | None:
        """How many rows the plate has; None where `encode` is called for all choices together."""
        if self._by_row is False:
            return None
        every: list[Latent | Discrete] = [*self.latents.real, *self.latents.discrete]
        inside = [x for x in every if _in_lanes(x)]
        lengths = sorted({x.shape[0] for x in inside})
        if len(inside) == len(every) and len(lengths) == 1:
            return lengths[0]
        if not inside and self._by_row is None:
            return None
        outside = [x.address for x in every if x not in inside]
        rest = f"those without {show_addresses(outside)}" if inside else "those in a vmap"
        raise DistributionError(
            "not all latent choices of an amortized guide stand in one plate of rows.",
            at=self._at,
            got=f"{show_addresses(outside)} in no lanes of a vmap" if outside else f"vmaps over {lengths} lanes",
            expected="latent choices in lanes of a vmap over the rows, as their outermost loop",
            fix=f"pass addresses= with {rest}, and combine with a guide of the others; or by_row=False"
            if outside
            else "make a guide for each vmap, with addresses=, and combine them; or pass by_row=False",
        )

    def _check_weights(self, number: int) -> None:
        """Raises where the model's rows count otherwise than the guide's, as far as that is known."""
        weights = self.latents.weights()
        wanted = (self.num_rows or number) / number
        for address in self.addresses:
            weight = weights.get(address, np.ones(()))
            if weight is None and self.num_rows is not None:  # traced; it is known that there is one
                continue
            if weight is not None and np.all(np.abs(weight / wanted - 1) < _SAME):
                continue
            counts = "a traced number of times" if weight is None else f"{float(weight.ravel()[0]):.6g} times"
            raise ProgramError(
                "the rows of the model have another weight than those of the guide.",
                at=self._at,
                got=f"{show_address(address)} counts {counts} in the model, {wanted:.6g} times in the guide",
                expected="for a batch of b of n rows, n / b in both: vipl.scaled in the model, num_rows in the guide",
                fix=f"pass num_rows=n, and scale every site of a row by n / {number} in the model; or neither",
            )

    def _read_inputs(self) -> PyTree:
        """What `encode` sees; raises where it has no axis of rows, or is NaN."""
        given = self.latents.given if self._inputs is None else self._inputs
        for path, x in jax.tree_util.tree_flatten_with_path(given)[0]:
            what = f"{'the data' if self._inputs is None else 'inputs'}{jax.tree_util.keystr(path)}"
            if not is_array(x) or (self._rows is not None and (np.ndim(x) == 0 or np.shape(x)[0] != self._rows)):
                raise ChoiceError(
                    "what an encoder sees is not an array with an axis of rows.",
                    at=self._at,
                    got=f"{what}, {show_aval(jnp.asarray(x) if is_array(x) else x)}",
                    expected="arrays" if self._rows is None else f"arrays whose leading axis has {self._rows} rows",
                    fix="pass inputs=, a pytree of such arrays; what all rows share may be closed over by encode",
                )
            if not isinstance(x, Tracer) and np.issubdtype(np.asarray(x).dtype, np.inexact) and np.isnan(x).any():
                raise ChoiceError(
                    "an encoder sees NaN.",
                    at=self._at,
                    got=f"{int(np.isnan(x).sum())} NaN in {what}",
                    expected="numbers alone",
                    fix="pass inputs= with other numbers in their places, and a mask beside, which encode sees too",
                )
        return jax.tree.map(jnp.asarray, given)

    # --- the guide ------------------------------------------------------------------------------------------------

    def _function(self) -> Callable[[PyTree], Any]:
        role = self._at

        def function(params: PyTree) -> Any:
            source = self._source(params, role)
            return (source if self._weight is None else scaled(source, self._weight)).inline((), role)

        return function

    def _source(self, params: PyTree, role: str) -> Source:
        if self._rows is None:
            return self._whole._gf(self.encode(params, self.inputs))
        each = jax.vmap(self.encode, (None, 0))(params, self.inputs)
        if not isinstance(self._one, JointGuide):
            return self._whole._gf(each)
        one = self._one

        @gen
        def base(each: PyTree) -> None:
            jax.vmap(lambda p: sample("coordinates", one.family(p), one.estimator))(each)

        return RowsForward(self.latents, role, base(each), one.latents)

    def _init(self, u: dict[Address, Array], scale: Float[Array, ""], key: PRNGKeyArray) -> PyTree:
        raise self._no_start("a start")

    def _check_params(self, params: PyTree) -> None:
        """Raises where `encode` does not make parameters of the family of them."""
        leaves, structure = jax.tree.flatten(params)
        wrong = [x for x in leaves if not is_array(x)]
        if wrong:
            raise self._wrong(
                "the parameters of an encoder are not a pytree of arrays",
                f"a leaf that is {show_aval(wrong[0])}",
                "arrays, and all else in encode",
                "write params, apply = vipl.interop.flax.functional(net), or equinox.partition(net, equinox.is_array)",
            )
        avals = tuple(jax.ShapeDtypeStruct(np.shape(x), jnp.result_type(x)) for x in leaves)
        if (structure, avals) in self._seen:
            return
        row = self.inputs if self._rows is None else jax.tree.map(_of_row, self.inputs)
        made = jax.eval_shape(self.encode, jax.tree.unflatten(structure, avals), row)
        self._check_outputs(made)
        self._seen.add((structure, avals))

    def _check_outputs(self, made: PyTree) -> None:
        got, wanted = shapes_by_path(made), shapes_by_path(self.row_params)
        strip = lambda shapes: {p.removeprefix("params"): x for p, x in shapes.items()}  # noqa: E731
        got, wanted = strip(got), strip(wanted)
        whose = "the data" if self._rows is None else "one row"
        if got != wanted:
            wrong = {p: x for p, x in wanted.items() if got.get(p) != x} or wanted
            raise self._wrong(
                "the outputs of an encoder are not parameters of the family",
                show_aval(made) if set(got) == {""} else differences(got, wanted),
                f"for {whose} those of {type(self._one).__name__}: "
                + ", ".join(f"{p} {list(x)}" for p, x in wrong.items()),
                "return from encode a pytree of the shapes that guide.row_params shows",
            )
        kinds = [show_aval(x) for x in jax.tree.leaves(made) if not jnp.issubdtype(x.dtype, jnp.floating)]
        if kinds:
            raise self._wrong(
                "the outputs of an encoder are not real numbers", kinds[0], "floats", "return x.astype(float)"
            )


def _in_lanes(x: Latent | Discrete) -> bool:
    """Whether the outermost loop around a choice is a `vmap`."""
    return bool(x.loops) and x.loops[0] and getattr(x, "present", None) is None


def _of_row(x: Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape[1:], x.dtype)


def _check_family(family: Callable, at: str) -> None:
    """Raises where it cannot be called with a model, data and addresses."""
    try:
        inspect.signature(family).bind(None, None, addresses=None)
    except TypeError as error:
        raise _no_family(at, f"{getattr(family, '__name__', type(family).__name__)}: {error}") from None
    except ValueError:  # of a builtin, which does not say
        return


def _no_family(at: str, got: str) -> ProgramError:
    return ProgramError(
        "the family of an amortized guide is none whose parameters a function can compute.",
        at=at,
        got=got,
        expected="MeanField, Delta, FullRank, Flow or Structured; or a function (model, data, addresses=...) -> guide",
        fix="write family=vipl.guides.FullRank, or functools.partial(vipl.guides.LowRank, rank=2)",
    )


def _family_of_row(family: ModelGuide, row: Coordinates) -> ModelGuide:
    """The same family over the choices of one row, with nothing that was computed for all rows."""
    one = copy.copy(family)
    for cls in type(one).__mro__:
        for name in [name for name, x in vars(cls).items() if isinstance(x, functools.cached_property)]:
            vars(one).pop(name, None)
    one.latents = row  # type: ignore[assignment]
    one._check()
    return one


def _check_encode(encode: Any, at: str) -> None:
    """Raises where it is not a function of parameters and a row."""
    got = type(encode).__name__
    if callable(encode):
        try:
            inspect.signature(encode).bind(None, None)
            return
        except TypeError:
            got = f"{getattr(encode, '__name__', got)}{inspect.signature(encode)}"
        except ValueError:  # of a builtin, which does not say
            return
    raise ProgramError(
        "the encoder of an amortized guide is not a function of parameters and a row.",
        at=at,
        got=got,
        expected="encode(params, row) -> the parameters of the family for the row",
        fix="write def encode(params, row): ..., with the network's parameters as its first argument",
    )
