"""The one module that names JAX internals and JAX versions (0.10 to 0.12).

Invariant: everything else in the package uses JAX's public interface, or a name defined here.
A test walks the package and keeps this.
"""

from __future__ import annotations

import functools
import pathlib
import re
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import AbstractContextManager
from types import CodeType
from typing import TYPE_CHECKING, Any, NamedTuple, TypeGuard, TypeVar

import jax
import jax.core
import jax.numpy as jnp
from jax._src import config as _config
from jax._src import core as _core
from jax._src import effects as _effects
from jax._src import linear_util as _linear_util
from jax._src import source_info_util as _source_info
from jax._src import tree_util as _tree_util
from jax._src.interpreters import ad as _ad
from jax._src.interpreters import partial_eval as _partial_eval
from jax._src.interpreters.batching import AxisData as AxisData
from jax.extend import core as _extend_core
from jax.extend.core import primitives as _primitives
from jax.interpreters import batching as _batching
from jax.interpreters import mlir as _mlir
from jax.typing import DTypeLike

from vipl._types import Array, ArrayLike

Primitive = _extend_core.Primitive
ClosedJaxpr = _extend_core.ClosedJaxpr  # pyright: ignore[reportPrivateImportUsage] - of JAX 0.12
Tracer = jax.core.Tracer
ShapedArray = jax.core.ShapedArray

if TYPE_CHECKING:  # JAX's classes; JAX does not say that the abstract values in them are those of arrays

    class Var(_extend_core.Var):
        aval: ShapedArray

    class Literal:
        val: Any
        aval: ShapedArray

    class Eqn(_extend_core.JaxprEqn):
        invars: list[Var | Literal]
        outvars: list[Var]

else:
    Var = _extend_core.Var
    Literal = _extend_core.Literal
    Eqn = _extend_core.JaxprEqn

Jaxpr = _extend_core.Jaxpr | ClosedJaxpr
Atom = Var | Literal

T = TypeVar("T")

Params = dict[str, Any]
"""The parameters of an equation."""

Trace = _core.Trace
Effect = _effects.Effect

jit_p = _primitives.jit_p
scan_p = _primitives.scan_p
cond_p = _primitives.cond_p
while_p = _primitives.while_p
remat_p = _primitives.remat_p
custom_jvp_call_p = _primitives.custom_jvp_call_p
custom_vjp_call_p = _primitives.custom_vjp_call_p

_DERIVATIVE_TRACES = (_ad.JVPTrace, _ad.LinearizeTrace)


class JaxprParts(NamedTuple):
    """A jaxpr with its constants, whatever class this JAX gives it."""

    constvars: Sequence[Var]
    consts: Sequence[Array]
    invars: Sequence[Var]
    eqns: Sequence[Eqn]
    outvars: Sequence[Atom]


def is_jaxpr(x: object) -> TypeGuard[Jaxpr]:
    """Says whether `x` is a jaxpr, closed or open."""
    return hasattr(x, "eqns") and (hasattr(x, "invars") or hasattr(x, "jaxpr"))


def is_closed(jaxpr: Jaxpr) -> TypeGuard[ClosedJaxpr]:
    """Says whether a jaxpr can hold constants."""
    return hasattr(jaxpr, "consts")


def parts(jaxpr: Any) -> JaxprParts:
    """Splits a closed or open jaxpr into its parts."""
    if is_closed(jaxpr):
        inner: Any = jaxpr.jaxpr
        consts = list(jaxpr.consts)
        return JaxprParts(inner.constvars[: len(consts)], consts, inner.invars, inner.eqns, inner.outvars)
    return JaxprParts(jaxpr.constvars, (), jaxpr.invars, jaxpr.eqns, jaxpr.outvars)


def with_consts(jaxpr: ClosedJaxpr, consts: Sequence[Array]) -> ClosedJaxpr:
    """The same closed jaxpr with other values for its constants."""
    return jaxpr.replace(consts=list(consts))


def with_parts(
    jaxpr: Any, constvars: Sequence[Var], consts: Sequence[Array], eqns: Sequence[Eqn], outvars: Sequence[Atom]
) -> Any:
    """A jaxpr of the same kind and inputs; one that is open has no constants."""
    if not is_closed(jaxpr):
        return jaxpr.replace(eqns=list(eqns), outvars=list(outvars))
    inner = jaxpr.jaxpr.replace(constvars=list(constvars), eqns=list(eqns), outvars=list(outvars))
    return jaxpr.replace(jaxpr=inner, consts=list(consts))


def with_ends(eqn: Any, operands: Sequence[Atom], results: Sequence[Var], params: Params) -> Eqn:
    """The same equation of other operands, with other variables for its results, and other parameters."""
    return eqn.replace(invars=operands, outvars=results, params=params)


def new_variable(v: Var) -> Var:
    """Another variable of the same type."""
    return _core.Var(v.aval)  # type: ignore[return-value]


class ScanParts(NamedTuple):
    """What a `scan` equation holds: its body and how its operands are split."""

    jaxpr: Jaxpr
    num_consts: int
    num_carry: int
    options: Params  # keyword arguments of `lax.scan`

    def operands(self, values: list[T]) -> tuple[list[T], list[T], list[T]]:
        """Constants, carry and xs among the operands."""
        start = self.num_consts + self.num_carry
        return values[: self.num_consts], values[self.num_consts : start], values[start:]


def scan_parts(params: Params) -> ScanParts:
    """Reads the parameters of a `scan` equation (their form changed in JAX 0.12)."""
    if "ft_in" in params:
        consts, carry, _ = params["ft_in"].unpack()
        num_consts, num_carry = len(list(consts)), len(list(carry))
    else:
        num_consts, num_carry = params["num_consts"], params["num_carry"]
    options = {k: params[k] for k in ("reverse", "length", "unroll", "_split_transpose") if k in params}
    return ScanParts(params["jaxpr"], num_consts, num_carry, options)


def define_effectful_primitive(
    name: str,
    *,
    effect: Effect,
    abstract: Callable[..., Sequence[ShapedArray]],
    batch: Callable[..., tuple[Sequence[Array], Sequence[int]]],
    impl: Callable,
    refuse_derivative: Callable[[Params], Exception],
) -> Primitive:
    """Makes a primitive of several results that carries `effect` and that no derivative may pass.

    Args:
      name: the primitive's name.
      effect: a JAX effect; it is allowed inside control flow.
      abstract: avals and parameters -> abstract values, without the effect.
      batch: `(axis_data, values, dims, **params) -> values, dims`; called under every `vmap`,
        also when nothing is mapped.
      impl: called when the primitive is met outside every program.
      refuse_derivative: `params -> exception`, raised when the primitive is bound under `jvp` or `linearize`.
    """
    _effects.control_flow_allowed_effects.add_type(type(effect))

    class EffectfulPrimitive(Primitive):
        def bind_with_trace(self, trace, *rest):
            if isinstance(trace, _DERIVATIVE_TRACES):
                raise refuse_derivative(rest[-1])
            return super().bind_with_trace(trace, *rest)

    primitive = EffectfulPrimitive(name)
    primitive.multiple_results = True
    primitive.def_impl(impl)
    primitive.def_effectful_abstract_eval(lambda *a, **p: (abstract(*a, **p), {effect}))
    _batching.fancy_primitive_batchers[primitive] = batch
    return primitive


def define_guard_primitive(name: str, refuse: Callable[..., Exception]) -> Primitive:
    """Makes a primitive `(value, *parameters) -> value` of which every derivative raises `refuse(**params)`.

    It is a primitive, not a function with a custom rule: JAX 0.10 forgets such rules inside `scan` once it has taken a
    reverse-mode derivative, and a second one would pass.
    """
    primitive = Primitive(name)

    def jvp(primals, tangents, **params):
        raise refuse(**params)

    primitive.def_impl(lambda value, *_, **__: value)
    primitive.def_abstract_eval(lambda value, *_, **__: value)
    _batching.primitive_batchers[primitive] = lambda values, dims, **params: (
        primitive.bind(*values, **params),
        dims[0],
    )
    _ad.primitive_jvps[primitive] = jvp
    _mlir.register_lowering(primitive, lambda _, value, *__, **___: [value])
    return primitive


def define_alarm_primitive(name: str, error: Callable[..., Exception]) -> Primitive:
    """Makes a primitive `(value, flag, **params) -> value`; where the flag is true, `error(**params)` is raised.

    In compiled code the host raises it, and is called only then. Derivatives pass through the value. Under `vmap` one
    lane's flag is enough.
    """
    primitive = Primitive(name)

    def fail(**params):
        raise error(**params)

    def lowered(value, flag, **params):
        def ring(value):
            shape = jax.ShapeDtypeStruct(value.shape, value.dtype)
            return jax.pure_callback(lambda _: fail(**params), shape, value)

        return jax.lax.cond(flag, ring, lambda value: value, value)

    def batched(values, dims, **params):
        (value, flag), (dim, flag_dim) = values, dims
        flag = flag if flag_dim is None else jnp.any(flag, axis=flag_dim)
        return primitive.bind(value, flag, **params), dim

    def jvp(primals, tangents, **params):
        return primitive.bind(*primals, **params), tangents[0]

    def impl(value, flag, **params):
        if flag:
            fail(**params)
        return value

    primitive.def_impl(impl)
    primitive.def_abstract_eval(lambda value, *_, **__: value)
    _batching.primitive_batchers[primitive] = batched
    _ad.primitive_jvps[primitive] = jvp
    _mlir.register_lowering(primitive, _mlir.lower_fun(lowered, multiple_results=False))
    return primitive


def define_mark_primitive(name: str) -> Primitive:
    """Makes a primitive `(value, **params) -> value` that only carries its parameters; axes of `vmap` come first."""
    primitive = Primitive(name)

    def batched(values, dims, **params):
        return primitive.bind(move_to_front(*values, *dims), **params), 0

    def jvp(primals, tangents, **params):
        return primitive.bind(*primals, **params), tangents[0]

    primitive.def_impl(lambda value, **_: value)
    primitive.def_abstract_eval(lambda value, **_: value)
    _batching.primitive_batchers[primitive] = batched
    _ad.primitive_jvps[primitive] = jvp
    _mlir.register_lowering(primitive, lambda _, value, **__: [value])
    return primitive


class Producer(NamedTuple):
    """The equation that a value of a program that is being staged comes from.

    Attributes:
      primitive: of the equation.
      params: its parameters.
      operands: values of the program.
      outs: the shapes and dtypes of its results.
      number: which of them the value is.
    """

    primitive: Primitive
    params: Params
    operands: Sequence[Tracer]
    outs: Sequence[ShapedArray]
    number: int


def producer(x: Tracer) -> Producer | None:
    """The equation that a tracer is a result of; None where it is an argument of what is being staged."""
    eqn = getattr(x, "parent", None)
    if eqn is None:
        return None
    number = next(i for i, v in enumerate(eqn.outvars) if v is x.val)
    return Producer(eqn.primitive, eqn.params, eqn.in_tracers, [v.aval for v in eqn.outvars], number)


def closed_over(x: Any) -> ArrayLike:
    """The number or outer tracer that a tracer stands for in an inner program; else the tracer itself."""
    return x.full_lower()


def beneath(x: Any) -> tuple[Array, int | None] | None:
    """The tracer in a tracer of `vmap`, with the axis of the lanes, or of a derivative; None for others."""
    if hasattr(x, "batch_dim"):
        return x.val, x.batch_dim if isinstance(x.batch_dim, int) else None
    return (x.primal, None) if hasattr(x, "primal") else None


def define_row_primitive(name: str) -> Primitive:
    """Makes a primitive `(table, number, axis=...) -> table[number]` that looks nothing up where all are wanted.

    `number` is mapped by a `vmap` of that axis name, along which it is 0, 1, 2, ... for all rows: then the result is
    the table itself. It has to be mapped before the program is differentiated or compiled. Other axes that it gets, as
    the operands of a mapped `cond` do, are repetitions: [n, *repeated, ...], i[*repeated] -> [*repeated, ...].
    """
    primitive = Primitive(name)

    def batched(axis_data, values, dims, *, axis):
        (table, number), (dim, along) = values, dims
        size, mapped, _ = axis_of(axis_data)
        if along is None and dim is None:
            return primitive.bind(table, number, axis=axis), None
        if along is None:
            return primitive.bind(jnp.moveaxis(table, dim, 1 + number.ndim), number, axis=axis), number.ndim
        tables = jnp.broadcast_to(table, (size, *table.shape)) if dim is None else jnp.moveaxis(table, dim, 0)
        if mapped != axis:
            return primitive.bind(jnp.moveaxis(tables, 0, 1), move_to_front(number, along), axis=axis), 0
        return (table if dim is None else jax.vmap(lambda rows, k: rows[k])(tables, jnp.arange(size))), 0

    def abstract(table, number, *, axis):
        return without_axis(table, 0)

    primitive.def_abstract_eval(abstract)
    _batching.fancy_primitive_batchers[primitive] = batched
    return primitive


def define_stack_primitive(name: str) -> Primitive:
    """Makes a primitive `(*rows) -> [n, ...]`, as `jnp.stack`, whose rows stay in front of the lanes of a `vmap`.

    What `jnp.stack` makes of rows f[] in lanes is f[lanes, n], whose short axis comes last, where no loop over it is
    quick; this makes f[n, lanes].
    """
    primitive = Primitive(name)

    def stack(*rows):
        return jnp.stack(rows)

    def batched(axis_data, rows, dims):
        if all(d is None for d in dims):
            return primitive.bind(*rows), None
        size = axis_of(axis_data)[0]
        lanes = [
            jnp.broadcast_to(x, (size, *jnp.shape(x))) if d is None else move_to_front(x, d)
            for x, d in zip(rows, dims, strict=True)
        ]
        return primitive.bind(*lanes), 1

    def transpose(cotangent, *rows):
        if isinstance(cotangent, _ad.Zero):  # type: ignore[attr-defined]
            return [None] * len(rows)
        return [cotangent[i] if _ad.is_undefined_primal(x) else None for i, x in enumerate(rows)]

    def jvp(primals, tangents):
        return primitive.bind(*primals), primitive.bind(*map(_ad.instantiate_zeros, tangents))

    primitive.def_impl(stack)
    primitive.def_abstract_eval(lambda row, *others: with_axis(row, 1 + len(others)))
    _batching.fancy_primitive_batchers[primitive] = batched
    _ad.primitive_jvps[primitive] = jvp
    _ad.primitive_transposes[primitive] = transpose
    _mlir.register_lowering(primitive, _mlir.lower_fun(stack, multiple_results=False))
    return primitive


def wrap_batching(primitive: Primitive, wrapper: Callable) -> None:
    """Puts `wrapper(original, axis_data, values, dims, **params)` before a primitive's batching rule."""
    original = _batching.fancy_primitive_batchers[primitive]

    def rule(axis_data, values, dims, **params):
        return wrapper(original, axis_data, values, dims, **params)

    _batching.fancy_primitive_batchers[primitive] = rule


def move_to_front(x: Array, dim: int | None) -> Array:
    """Moves a batch dimension to the front."""
    return x if dim is None or dim == 0 else jnp.moveaxis(x, dim, 0)


def rebind(eqn: Eqn, values: Sequence[ArrayLike]) -> list[Array]:
    """Evaluates one equation as JAX's own evaluator does: same parameters, context, source line."""
    params = eqn.primitive.get_bind_params(eqn.params)
    out = in_place_of(eqn, lambda: eqn.primitive.bind(*values, **params))
    return list(out) if eqn.primitive.multiple_results else [out]


def in_place_of(eqn: Eqn, bind: Callable[[], T]) -> T:
    """What `bind` makes under the settings and at the source line of an equation."""
    with eqn_context(eqn), eqn.ctx.manager:
        return bind()


def eqn_context(eqn: Eqn) -> AbstractContextManager[object]:
    """The source line of an equation, for messages and profiles of what is bound in its place."""
    stack = _source_info.current_name_stack() + eqn.source_info.name_stack
    return _source_info.user_context(eqn.source_info.traceback, name_stack=stack)


def frames_of(eqn: Eqn) -> Iterator[tuple[CodeType, Callable[[], int]]]:
    """Code and line of the frames in which an equation was made, innermost first; none where JAX did not keep them."""
    traceback = eqn.source_info.traceback
    for code, last in zip(*traceback.raw_frames(), strict=True) if traceback else ():
        yield code, functools.partial(_line, code, last)


def _line(code: CodeType, last: int) -> int:
    return _source_info.raw_frame_to_frame(code, last).start_line


def named_function(eqn: Eqn) -> tuple[str, ClosedJaxpr] | None:
    """Of an equation that applies a function with its own derivative: "name at file:line", and the program."""
    if eqn.primitive.name != "custom_jvp_call":
        return None
    program = eqn.params["call_jaxpr"]
    return program.jaxpr.debug_info.func_src_info or "", program


def is_plain_jit(eqn: Eqn) -> bool:
    """Says whether an equation is a `jit` that says nothing about devices or the compiler."""
    if eqn.primitive is not jit_p:
        return False
    p = eqn.params
    placed = [*p["in_shardings"], *p["out_shardings"], *p["in_layouts"], *p["out_layouts"]]
    return not any(p["donated_invars"]) and not p["compiler_options_kvs"] and not any(map(_is_said, placed))


def _is_said(placement: object) -> bool:
    return placement is not None and type(placement).__name__ != "UnspecifiedValue"


def context_of(eqn: Eqn) -> Hashable:
    """Under which settings an equation was made; the same object for the same settings."""
    return eqn.ctx


def remat_options(params: Params) -> Params:
    """The keyword arguments of `jax.checkpoint` behind a `remat` equation."""
    return {"prevent_cse": params["prevent_cse"], "policy": params["policy"]}


def axis_of(axis_data: AxisData) -> tuple[int, Hashable | None, Hashable | None]:
    """Size, name and mesh axes of the axis that a batching rule is called with; None where there is none."""
    name = axis_data.name
    named = isinstance(name, str) or (isinstance(name, tuple) and bool(name))
    return axis_data.size, name if named else None, axis_data.spmd_name


def without_axis(aval: ShapedArray, dim: int | None) -> ShapedArray:
    """The abstract value of one lane of what is mapped along `dim`; None: of what is not."""
    return aval if dim is None else _core.mapped_aval(aval.shape[dim], dim, aval)  # type: ignore[return-value]


def with_axis(aval: ShapedArray, size: int) -> ShapedArray:
    """The abstract value of all lanes of what has `aval` in one."""
    return _core.unmapped_aval(size, 0, aval)  # type: ignore[return-value]


def struct_of(x: ArrayLike) -> jax.ShapeDtypeStruct:
    """The type of an array, with what it says of devices."""
    aval = typeof(x)
    spread = {} if aval.sharding.mesh.empty else {"sharding": aval.sharding}
    differs = {"manual_axis_type": aval.mat} if aval.mat.varying else {}
    return jax.ShapeDtypeStruct(aval.shape, aval.dtype, weak_type=aval.weak_type, **spread, **differs)


def varying(x: ArrayLike) -> frozenset[str]:
    """The axes of a `shard_map` along which an array differs, as its type says."""
    return typeof(x).mat.varying


def mesh_of(x: ArrayLike) -> jax.sharding.AbstractMesh:
    """The mesh of devices that the type of an array names; an empty one where it names none."""
    return typeof(x).sharding.mesh


def is_explicit(axis_data: AxisData) -> bool:
    """Whether the lanes of the axis that a batching rule is called with are spread over explicit axes of a mesh."""
    return axis_data.explicit_mesh_axis is not None


def drawn_aval(shape: tuple[int, ...], dtype: DTypeLike) -> ShapedArray:
    """The abstract value of what is drawn, in a program that may differ along axes of a `shard_map`."""
    varying = axes_that_vary()
    if not varying:
        return ShapedArray(shape, dtype)
    mesh = jax.sharding.get_abstract_mesh()
    spread = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*[None] * len(shape)))
    return ShapedArray(shape, dtype, sharding=spread, manual_axis_type=_core.ManualAxisType(varying=varying))


def numeric_mode() -> tuple[Hashable, ...]:
    """What, besides the avals, decides the jaxpr of a draw: for cache keys."""
    return (
        _config.enable_x64.value,
        _config.default_prng_impl.value,
        _config.threefry_partitionable.value,
        str(_config.numpy_dtype_promotion.value),
        str(_config.numpy_rank_promotion.value),
        jax.sharding.get_abstract_mesh(),
        axes_that_vary(),
        generation(),
    )


def double_precision() -> bool:
    """Says whether `jax_enable_x64` is in force."""
    return bool(_config.enable_x64.value)


def equations_around(tracer: Any) -> tuple[Sequence[Eqn], set[Var]]:
    """The equations of the program that a traced value is in, as far as they are known, and its variable there."""
    while isinstance(getattr(tracer, "val", None), Tracer):  # in one lane of a `vmap`
        tracer = tracer.val
    try:
        return tracer._trace.frame.get_eqns(), {tracer.val}
    except (AttributeError, TypeError):  # of another kind of trace
        return [], set()


def stream_of_hashes() -> bool:
    """Says whether number i of a stream of random bits is the hash of the key and i."""
    return bool(_config.threefry_partitionable.value)


def jit_disabled() -> bool:
    """Says whether `jax.disable_jit` is in force."""
    return bool(_config.disable_jit.value)


_axes_that_vary = jax.make_user_context(frozenset())


def vary_along(axes: frozenset[str]) -> AbstractContextManager[object]:
    """A context in which all of a program is known to differ along axes of a `shard_map`."""
    return _axes_that_vary(axes)


def axes_that_vary() -> frozenset[str]:
    """The axes of a `shard_map` along which all of the program differs that is traced now."""
    return _axes_that_vary.value


_generation = jax.make_user_context(0)


def in_generation(number: int) -> AbstractContextManager[object]:
    """A context in which JAX uses no trace that it has kept from another generation."""
    return _generation(number)


def generation() -> int:
    """The generation in force."""
    return _generation.value


_by_site = jax.make_user_context(False)


def by_site(wanted: bool) -> Any:
    """A context in which programs hand out the log densities of their sites, or do not; no trace serves in both."""
    return _by_site(wanted)


def wants_by_site() -> bool:
    """Whether programs hand out the log densities of their sites."""
    return _by_site.value


def staging() -> bool:
    """Says whether what is called now becomes part of a jaxpr."""
    trace = _core.trace_ctx.trace
    while trace is not None:
        if isinstance(trace, _partial_eval.DynamicJaxprTrace):
            return True
        trace = getattr(trace, "parent_trace", None)
    return False


def transforming() -> bool:
    """Says whether a transformation of JAX surrounds what is called now: it is traced, differentiated or mapped."""
    return not isinstance(_core.trace_ctx.trace, _core.EvalTrace)


def derivative_rule(x: Any) -> object:
    """The function behind a derivative rule in an equation's parameters, with what JAX adds to it; else None."""
    if isinstance(x, _linear_util.WrappedFun):
        return x.f, [(fn, [p for p in params if not callable(p)]) for fn, params in x.transforms]
    if getattr(x, "__qualname__", "") == "_memoize.<locals>.memoized":
        return x.__closure__[x.__code__.co_freevars.index("fn")].cell_contents
    return None


def is_node_class(cls: type) -> bool:
    """Says whether JAX takes objects of a class for pytrees."""
    return cls in _tree_util._registry


def typeof(x: Any) -> ShapedArray:
    """The abstract value of `x`."""
    return jax.typeof(x)


def bodies(eqn: Eqn) -> list[Jaxpr]:
    """The programs inside an equation."""
    each = [x for value in eqn.params.values() for x in (value if isinstance(value, tuple) else (value,))]
    return [x for x in each if is_jaxpr(x)]


def map_bodies(eqn: Eqn, fn: Callable[[Jaxpr], Jaxpr]) -> Params:
    """The parameters of an equation, with `fn` of each program in them, which may stand in a tuple."""
    return {name: _mapped(value, fn) for name, value in eqn.params.items()}


def _mapped(value: Any, fn: Callable[[Jaxpr], Jaxpr]) -> Any:
    if isinstance(value, tuple) and any(map(is_jaxpr, value)):
        each = [_mapped(x, fn) for x in value]
        return type(value)(*each) if hasattr(value, "_fields") else tuple(each)
    return fn(value) if is_jaxpr(value) else value


def is_ordered(effect: object) -> bool:
    """Says whether an effect has an order that no `vmap` can keep, as that of an ordered callback has."""
    return type(effect).__name__ == "OrderedIOEffect"


def source_line(eqn: Eqn) -> str:
    """Function, file and line of the user's call that made an equation; empty where JAX does not know it."""
    found = re.fullmatch(r"(.*?):(\d+)(?::\d+)? \((.*)\)", _source_info.summarize(eqn.source_info))
    return f"{found[3].split('.')[-1]} ({pathlib.Path(found[1]).name}:{found[2]})" if found else ""


def stops_gradient(eqn: Eqn) -> bool:
    """Says whether an equation is `stop_gradient`."""
    return eqn.primitive is _primitives.stop_gradient_p
