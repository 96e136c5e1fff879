"""The primitive `sample`, and the primitive `lanes` that keeps a part of a program unmapped.

`sample_p` binds one site. Its operands are the arrays of the site's source and of its estimator; its one
parameter is a `Site`, which says everything else. Three nets hold (see `vipl._jax` and `vipl.ir.staging_rules`):
the primitive carries a JAX effect, so that no pass drops or hides a site; binding it under a derivative
raises; meeting it outside every program raises.

`lanes_p` is a `vmap` that waits. `jax.vmap` of a site, or of a loop or `cond` that holds one, keeps the equation as
it is and puts the lanes around it (`defer_lanes`); an interpreter maps the *interpreted* equation. So a site is
always seen in one lane, the lanes stand where the user's `vmap` stood, outside the loops that it maps, and a `cond`
with a mapped predicate does not become "run both branches, select", which would count the sites of both.

Not here: densities, keys, control flow.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

import jax
import jax.numpy as jnp

from vipl import _jax
from vipl._jax import AxisData, Jaxpr, Params, ShapedArray
from vipl._types import Array
from vipl.errors import ControlFlowError, ProgramError, show_address
from vipl.ir.frames import user_frame
from vipl.ir.partition import Integers, Skeleton


@dataclass(frozen=True)
class Lane:
    """One `vmap` around an equation.

    Attributes:
      size: how many lanes.
      name: the axis name, or None.
      mesh_axes: the names of the axes of a mesh over which the user has said that they are spread, or None.
      mapped: for every operand, whether its leading axis runs over the lanes.
    """

    size: int
    name: Hashable | None
    mesh_axes: Hashable | None
    mapped: tuple[bool, ...]

    @property
    def names(self) -> dict[str, Any]:
        """The keyword arguments of `jax.vmap` that name its axes."""
        named = {"axis_name": self.name, "spmd_axis_name": self.mesh_axes}
        return {k: v for k, v in named.items() if v is not None}


@dataclass(frozen=True)
class Site:
    """Everything about a site but its arrays.

    Attributes:
      address: the path, outermost part first.
      distribution: that (or factor), as a skeleton; None for a value of a composite.
      estimator: the gradient estimator, as a skeleton; None where the user named none.
      num_distribution: how many operands belong to the source; the others are the estimator's.
      shape: the value's shape.
      dtype: the value's dtype.
      support: a hashable description of where the density is not zero, or None; only checks read it.
      where: function, file and line of the user's call.
      makes_float: whether the distribution draws integers, and the site makes floats of them.
      weighs: whether the site also gives the log density of its own draw, as a second value.
      log_shape: the shape of that second value: (), the sum, or the batch shape.
      is_exact: whether its density is exact; only that of a value of a composite may be an estimate.
      finite: the values that one element of a composite's value can take; None: not known, or the source says it.
      constraint: () -> NumPyro's constraint of a composite's value, or None; None: not known, or the source says it.
      scaled: whether the last operand is a weight, f[], that its log density counts with; of a composite, likewise.
      present: of a site in a branch, bool[*inner loops]: which passes of the loops around it meet it; None: not known.
    """

    address: tuple[str, ...]
    distribution: Any
    estimator: Skeleton | None
    num_distribution: int
    shape: tuple[int, ...]
    dtype: jnp.dtype
    support: Any
    where: str
    makes_float: bool = False
    weighs: bool = False
    is_exact: bool = True
    finite: tuple[int | float, ...] | None = None
    scaled: bool = False
    log_shape: tuple[int, ...] = ()
    present: Integers | None = None
    constraint: Callable[[], Any] | None = field(default=None, compare=False)

    def at(self) -> str:
        """The site as messages write it."""
        return f"{show_address(self.address)} in {self.where}"


def split_weight(site: Site, operands: Sequence[Any]) -> tuple[list[Any], Any]:
    """The operands of a site or composite, and the weight that its log density counts with; None where it has none."""
    return (list(operands[:-1]), operands[-1]) if site.scaled else (list(operands), None)


class SampleEffect(_jax.Effect):
    """The JAX effect of `sample`: shows in every jaxpr that holds a site."""

    def __repr__(self) -> str:
        return (
            "vipl.sample (it runs by objective.estimate(key, ...), program.simulate(key), or vipl.seed(fn)(key, ...); "
            "where JAX keeps a function whole, draw outside it, and pass the drawn value)"
        )

    __str__ = __repr__


sample_effect = SampleEffect()

Batched = tuple[Sequence[Array], Sequence[int]]
"""Results of a batching rule, and the axes of the lanes in them."""

Path = tuple[int, ...]
"""The position of a site in a program: the numbers of the equations (and branches) that lead to it."""


def _site_of(params: Params) -> Site | None:
    """The site of an equation, or the first one of the `vmap` or `cond` that it is."""
    if "composite" in params or "site" in params:
        return params["composite"].sites[0] if "composite" in params else params["site"]
    held = [x for value in params.values() for x in (value if isinstance(value, tuple) else (value,))]
    inside = (eqn for jaxpr in held if _jax.is_jaxpr(jaxpr) for eqn in _jax.parts(jaxpr).eqns)
    return next(filter(None, (_site_of(eqn.params) for eqn in inside)), None)


def refuse_derivative(params: Params) -> ControlFlowError:
    """The second net."""
    site = _site_of(params)
    return ControlFlowError(
        "a derivative is taken around a site, which would lose or repeat its draws.",
        at=site.at() if site else "a `cond` that holds a site",
        got="`sample` under jax.grad, jvp, vjp or linearize inside a program",
        expected="derivatives of `vipl.expectation(...).estimate`, or of code without sites",
        fix="write the program as @vipl.expectation and differentiate its `estimate`",
    )


def outside(*_: object, **params: Any) -> NoReturn:
    """The third net."""
    site = _site_of(params)
    if site is not None and site.distribution is not None and not site.is_exact:
        raise ProgramError(
            "a random key is asked for outside every program, where no other key is given.",
            at=site.at(),
            got="`random_key` without a key, in `assess` or `generate` say",
            expected="a key of the call, or a call inside a program",
            fix="pass a key: program.simulate(key), or program.assess(choices, key=key)",
        )
    raise ProgramError(
        "a site is met outside every program, where nothing gives it a key.",
        at=site.at() if site else "a `cond` that holds a site",
        got="`sample`, `pick`, `simulate()` or `particles()`, called as ordinary Python and without a key",
        expected="a call inside a program, or a key",
        fix="pass a key: program.simulate(key), normalize(...).particles(key), objective.estimate(key, ...), or "
        "vipl.seed(fn)(key, ...) for any other function",
    )


def _sample_abstract(*_: ShapedArray, site: Site) -> list[ShapedArray]:
    value = _jax.drawn_aval(site.shape, site.dtype)
    return [value, _jax.drawn_aval(site.log_shape, jnp.result_type(float))] if site.weighs else [value]


def _sample_batch(axis_data: AxisData, values: Sequence[Array], dims: Sequence[int | None], *, site: Site) -> Batched:
    return defer_lanes(lambda *xs: sample_p.bind(*xs, site=site), axis_data, values, dims)


sample_p = _jax.define_effectful_primitive(
    "sample",
    effect=sample_effect,
    abstract=_sample_abstract,
    batch=_sample_batch,
    impl=outside,
    refuse_derivative=refuse_derivative,
)


def bind_site(operands: Sequence[Array], site: Site) -> Any:
    """Binds a site; its value, or the pair of its value and the log density of it where the site `weighs`."""
    outs = sample_p.bind(*operands, site=site)
    return tuple(outs) if site.weighs else outs[0]


def _lanes_abstract(*_: ShapedArray, jaxpr: Jaxpr, lane: Lane) -> list[ShapedArray]:
    outs = [v.aval for v in _jax.parts(jaxpr).outvars]
    return [_jax.with_axis(aval, lane.size) for aval in outs]


def explicit_inside() -> ProgramError:
    """The error of a program that meets explicit axes of a mesh other than in its arguments."""
    return ProgramError(
        "a program uses explicit axes of a mesh, and inside a program all axes are Auto.",
        at=f"the program that is called in {user_frame()}",
        got="an array over explicit axes that the program closes over, or a placement over them",
        expected="such arrays as arguments, whose axes the program takes for Auto, and no placements",
        fix="pass the array as an argument, or make the mesh with axis_types=(jax.sharding.AxisType.Auto,) * n",
    )


def defer_lanes(bind: Callable, axis_data: AxisData, values: Sequence[Array], dims: Sequence[int | None]) -> Batched:
    """Binds `lanes_p`: the equation that `bind` binds, unmapped, with the lanes beside it."""
    avals = [_jax.without_axis(_jax.typeof(x), d) for x, d in zip(values, dims, strict=True)]
    jaxpr = jax.make_jaxpr(bind)(*avals)
    if _jax.is_explicit(axis_data):
        raise explicit_inside()
    lane = Lane(*_jax.axis_of(axis_data), tuple(d is not None for d in dims))
    outs = lanes_p.bind(*[_jax.move_to_front(x, d) for x, d in zip(values, dims, strict=True)], jaxpr=jaxpr, lane=lane)
    return outs, [0] * len(outs)


def _lanes_batch(axis_data: AxisData, values: Sequence[Array], dims: Sequence[int | None], **params: Any) -> Batched:
    return defer_lanes(functools.partial(lanes_p.bind, **params), axis_data, values, dims)


lanes_p = _jax.define_effectful_primitive(
    "sample_lanes",
    effect=sample_effect,
    abstract=_lanes_abstract,
    batch=_lanes_batch,
    impl=outside,
    refuse_derivative=refuse_derivative,
)
