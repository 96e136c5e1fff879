"""What happens at a site, split into noise and the rest, so that the noise of many sites is drawn in one call.

A *site program* is a JAX function `fn(key, *operands)` of one lane: it draws, and says what else an interpreter
needs (weights, alternatives). Its jaxpr is split by what depends on the key alone:

    fn(key, *operands) = rest(noise(bits(key)), *operands).

The noise of all sites with the same noise program is drawn under one `vmap`, outside every `scan`, bit for bit what
each would have drawn alone. `bits` are random bits, and keys that end in anything else: a sampler that mixes key and
parameters throughout (a rejection sampler) has its key as bits and as noise.

A site in loops draws the bits of all passes from one key. That is one hash for each number, as in
`jax.random.normal(key, (steps,))`; a key for each pass would be another. With JAX's default generator the bits of the
first passes of the outermost loop do not depend on how many there are.

A site that draws one number alone has a key for it alone. With JAX's default generator this key, fold_in(key, i), is
itself number i of the stream of the key that it was made of, and serves as the number: one hash again.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from vipl import _jax
from vipl._jax import Atom, Eqn, Literal, ShapedArray, Tracer, Var
from vipl._types import Array, PRNGKeyArray, Shaped
from vipl.errors import ProgramError, ViplError, show_aval
from vipl.ir.dataflow import backward, evaluate, plain, read
from vipl.ir.fence import FEW, fence_of
from vipl.ir.keys import fold_loop, fold_tag, is_key, site_digest
from vipl.ir.levels import DRAWN, FIXED, KEY, OTHER, by_level, read_by
from vipl.ir.primitives import Path
from vipl.ir.sites import Loop, SiteInfo
from vipl.ir.stage import stage
from vipl.ir.traits import RANDOM_BITS, Move, traits_of


class SiteProgram(NamedTuple):
    """A site's program, split.

    Attributes:
      bits: (key, loops) -> list of arrays: those of all passes of loops, which are the leading axes.
      noise: bits -> list of arrays, in one lane.
      rest: (noise, operands) -> the site program's result.
      signature: equal for two sites that can draw their noise together.
      shape: the result's structure, with shapes and dtypes.
      fixed: of the same structure: what depends neither on the key nor on operands, as a NumPy array; else None.
    """

    bits: Callable[[PRNGKeyArray, Sequence[Loop]], list[Array]]
    noise: Callable[[list[Array]], list[Array]]
    rest: Callable[[list[Array], Sequence[Array]], Any]
    signature: Hashable
    shape: Any
    fixed: Any


@functools.lru_cache(maxsize=4096)
def _split_program(build: Callable, config: Hashable, avals: tuple[ShapedArray, ...], mode: Hashable) -> SiteProgram:
    del mode  # part of the cache key only
    fn = build(config)
    key = _jax.drawn_aval((), jax.eval_shape(lambda: jax.random.key(0)).dtype)
    jaxpr, shape = stage(fn, key, *avals)
    constvars, consts, invars, eqns, outvars = _jax.parts(jaxpr)
    _check_closed([c for c in consts if isinstance(c, _jax.Tracer)])
    treedef = jax.tree.structure(shape)
    parts = by_level(eqns, dict.fromkeys(constvars, FIXED) | {invars[0]: KEY} | dict.fromkeys(invars[1:], OTHER))
    made, residuals = parts.made, [v for v in read_by(parts.other, outvars) if parts.levels[v] in (KEY, DRAWN)]
    base = dict(zip(constvars, consts, strict=True))
    ends = parts.ends(read_by(parts.drawn, residuals))
    alone = len(made) == len(ends) == 1 and made[0].primitive.name == RANDOM_BITS and not ends[0].aval.shape

    def bits(key, loops):
        if alone and not loops and _is_hash(key):
            return [_as_number(key, ends[0].aval.dtype)]
        env = evaluate(parts.constant, base | {invars[0]: key}, plain)
        env = evaluate(made, env, functools.partial(_for_passes, loops))
        return [_in_front(_folded(x, loops), len(loops)) if is_key(x) else x for x in read(env, ends)]

    def noise(bits):
        env = base | dict(zip(ends, bits, strict=True))
        return read(evaluate([*parts.constant, *parts.drawn], env, plain), residuals)

    def rest(noise, operands):
        env = base | dict(zip(residuals, noise, strict=True)) | dict(zip(invars[1:], operands, strict=True))
        return jax.tree.unflatten(treedef, read(evaluate([*parts.constant, *parts.other], env, plain), outvars))

    fixed = jax.tree.unflatten(treedef, _constants(parts.constant, base, parts.levels, outvars))
    text = str(jax.make_jaxpr(lambda key: noise(bits(key, ())))(key))
    return SiteProgram(bits, noise, rest, text if not consts else (text, object()), shape, fixed)


def _check_closed(traced: list[Tracer]) -> None:
    if traced:
        raise ProgramError(
            "a function that a site holds closes over a value that is computed in the program.",
            at="",
            got=f"a closure over {', '.join(map(show_aval, traced))}",
            expected="values as fields of the estimator, parameters of the distribution, or a part of the function",
            fix="write jax.tree_util.Partial(fn, value) for a function that closes over it, such as the network of a "
            "flow; for a baseline pass the value itself, Score(baseline=value)",
        )


def _constants(
    eqns: Sequence[Eqn], env: dict[Var, Array], levels: dict[Var, int], outs: Sequence[Atom]
) -> list[np.ndarray | None]:
    """The results of a program that are constant; None for the others, and what means something only in its place."""

    def constant(v):
        if not isinstance(v, Literal) and levels[v] != FIXED:
            return None
        behind = backward(eqns, [v]).eqns(eqns)
        if any(traits_of(eqn).move is Move.STAYS for eqn in behind):  # `pvary` of a `shard_map`, say
            return None
        with jax.ensure_compile_time_eval():
            return np.asarray(read(evaluate(behind, env, plain), [v])[0])

    return [constant(v) for v in outs]


def _for_passes(loops: Sequence[Loop], number: int, eqn: Eqn, values: list[Array]) -> list[Array]:
    """Evaluates an equation for all passes of loops, from the same key: bits get leading axes."""
    if not loops or eqn.primitive.name != RANDOM_BITS:
        return plain(number, eqn, values)
    (keys,), (out,) = values, eqn.outvars
    shape = (*(loop.size for loop in loops), *eqn.params["shape"])
    draw = functools.partial(jax.random.bits, shape=shape, dtype=out.aval.dtype)
    for _ in range(keys.ndim):
        draw = jax.vmap(draw, out_axes=len(loops))
    return [draw(keys)]


def _is_hash(key: PRNGKeyArray) -> bool:
    """Whether a key is what the default generator makes of another key and a number."""
    return str(jax.random.key_impl(key)) == "threefry2x32" and _jax.stream_of_hashes()


def _as_number(key: PRNGKeyArray, dtype: DTypeLike) -> Shaped[Array, ""]:
    """The bits of a key as one number, as the generator makes numbers of its hashes."""
    first, second = jax.random.key_data(key)
    if jnp.dtype(dtype).itemsize == 8:
        return (first.astype(dtype) << 32) | second.astype(dtype)
    return (first ^ second).astype(dtype)


def _folded(keys: PRNGKeyArray, loops: Sequence[Loop]) -> PRNGKeyArray:
    """Keys of all passes of loops, as the last axes."""
    return functools.reduce(fold_loop, loops, keys)


def _in_front(x: PRNGKeyArray, axes: int) -> PRNGKeyArray:
    """Keys with the last axes in front; JAX's checker of key reuse takes a transposed key for a used one."""
    return jax.random.clone(jnp.moveaxis(x, range(x.ndim - axes, x.ndim), range(axes)))


def site_program(build: Callable, config: Hashable, avals: Sequence[ShapedArray], at: str) -> SiteProgram:
    """Splits the site program `build(config)` for operands of the given abstract values; cached.

    Args:
      build: a module-level function; with `config` it decides the program.
      config: hashable.
      avals: the operands in one lane.
      at: the site, for errors that know no place.
    """
    try:
        return _split_program(build, config, tuple(avals), _jax.numeric_mode())
    except ViplError as error:
        raise error.located(at) if not error.at else error from None


def draw_noise(
    key: PRNGKeyArray,
    found: Sequence[SiteInfo],
    programs: dict[Path, SiteProgram],
    around: Sequence[Loop] = (),
    *,
    once: bool = False,
) -> dict[Path, list[Array]]:
    """What each site of a program is handed: its noise, with one leading axis for each loop around it.

    Loops `around` the program come first. `once`: it is computed once, whatever reads it (`vipl.ir.fence`), as is that
    which more than a few sites share: each would compute all of it.

    A site inside a `while` loop is handed its key instead, with the axes of the loops outside that `while`.
    Sites with the same noise program and loops draw in one call.
    """
    groups: dict[tuple[Any, tuple[Loop, ...]], list[SiteInfo]] = {}
    for info in found:
        kind = programs[info.path].signature if info.outside_while is None else "key"
        groups.setdefault((kind, (*around, *info.known_loops)), []).append(info)
    if not groups:
        return {}
    hashes = jnp.asarray([site_digest(p) for members in groups.values() for p in members], dtype=jnp.uint32)
    every = jax.vmap(jax.random.fold_in, (None, 0))(key, hashes)  # the keys of all sites in one call
    out: dict[Path, list[Array]] = {}
    start = 0
    for (kind, loops), members in groups.items():
        keys = every[start : start + len(members)] if len(members) > 1 else every[start]
        start += len(members)
        noise = [_folded(keys, loops)] if kind == "key" else _noise(programs[members[0].path], keys, loops)
        noise = [fence_of(key)(x) for x in noise] if once or len(members) > FEW else noise
        for i, info in enumerate(members):
            out[info.path] = [_own(x[i] if len(members) > 1 else x) for x in noise]
    return out


def _own(x: Array) -> Array:
    """A site's part of what its group was given; a key of it is a key of its own."""
    return jax.random.clone(x) if is_key(x) else x


def draw_noise_in_while(
    keys: Mapping[Path, list[PRNGKeyArray]], found: Sequence[SiteInfo], programs: dict[Path, SiteProgram], count: Array
) -> dict[Path, list[Array]]:
    """What the sites in one pass of a `while` loop are handed, from their keys before it."""
    out: dict[Path, list[Array]] = {}
    for info in found:
        passed, loops = fold_tag(keys[info.path][0], "while", count), info.known_loops
        inner = info.outside_while is not None
        out[info.path] = [_folded(passed, loops)] if inner else _noise(programs[info.path], passed, loops)
    return out


def _noise(program: SiteProgram, keys: PRNGKeyArray, loops: Sequence[Loop]) -> list[Array]:
    """Noise of keys, with one axis for each loop added; a vmap over one key or lane compiles to more than the call."""
    many, lanes = keys.size != 1, (*keys.shape, *(loop.size for loop in loops))
    bits = (
        jax.vmap(lambda key: program.bits(key, loops))(keys.reshape(-1))
        if many
        else program.bits(keys.reshape(()), loops)
    )
    if not bits:  # a site that draws nothing
        return []
    shapes = [x.shape[len(loops) + many :] for x in bits]
    if math.prod(lanes) == 1:
        noise = program.noise([x.reshape(shape) for x, shape in zip(bits, shapes, strict=True)])
        return [x.reshape(*lanes, *x.shape) for x in noise]
    flat = [x.reshape(math.prod(lanes), *shape) for x, shape in zip(bits, shapes, strict=True)]
    return [x.reshape(*lanes, *x.shape[1:]) for x in jax.vmap(lambda *bits: program.noise(list(bits)))(*flat)]
