"""What happens at a site, split into noise and the rest, so that the noise of many sites is drawn in one call.

A *site program* is a JAX function `fn(key, *operands)` of one lane: it draws, and says what else an interpreter
needs (weights, alternatives). Its jaxpr is split by what depends on the key alone:

    fn(key, *operands) = rest(noise(key), *operands).

`noise` of all sites with the same noise program is drawn under one `vmap` over their keys, outside every
`scan`, bit for bit what each would have drawn alone. A sampler that mixes key and parameters throughout (a
rejection sampler) has its key as its noise.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from vipl import _compat
from vipl._errors import ProgramError, show_aval
from vipl.core._interpret import Path, evaluate, plain, read, walk
from vipl.core._keys import fold_loop, fold_tag, place_digest
from vipl.core._places import Place


class SiteProgram(NamedTuple):
    """A site's program, split.

    Attributes:
      noise: key -> list of arrays.
      rest: (noise, operands) -> the site program's result.
      signature: equal for two sites that can draw their noise together.
      shape: the result's structure, with shapes and dtypes.
    """

    noise: Callable[[Any], list[Any]]
    rest: Callable[[list[Any], Sequence[Any]], Any]
    signature: Any
    shape: Any


@functools.lru_cache(maxsize=4096)
def _split(build: Callable, config: Any, avals: tuple[Any, ...], mode: Any) -> SiteProgram:
    del mode  # part of the cache key only
    fn = build(config)
    key = jax.eval_shape(lambda: jax.random.key(0))
    jaxpr, shape = jax.make_jaxpr(fn, return_shape=True)(key, *avals)
    flat = jax.make_jaxpr(lambda *args: walk(jaxpr, args, _inline))(key, *avals)
    constvars, consts, invars, eqns, outvars = _compat.parts(flat)
    if any(isinstance(c, _compat.Tracer) for c in consts):
        raise ProgramError(
            "a function that a site holds closes over a value that is computed in the program.",
            at="",
            got=f"a closure over {', '.join(show_aval(c) for c in consts if isinstance(c, _compat.Tracer))}",
            expected="values as fields of the estimator, or parameters of the distribution",
            mend="pass the value itself, e.g. Score(baseline=value), not a function that closes over it",
        )
    treedef = jax.tree.structure(shape)

    # 0: a constant.  1: depends on the key, not on operands.  2: depends on operands.
    level = dict.fromkeys(constvars, 0) | {invars[0]: 1} | dict.fromkeys(invars[1:], 2)
    for eqn in eqns:
        here = max((level.get(v, 0) for v in eqn.invars if not isinstance(v, _compat.Literal)), default=0)
        level.update(dict.fromkeys(eqn.outvars, here))
    constant = [e for e in eqns if level[e.outvars[0]] == 0]
    drawn = [e for e in eqns if level[e.outvars[0]] == 1]
    other = [e for e in eqns if level[e.outvars[0]] == 2]
    needed = [v for e in other for v in e.invars] + list(outvars)
    residuals = list(dict.fromkeys(v for v in needed if not isinstance(v, _compat.Literal) and level.get(v) == 1))
    base = dict(zip(constvars, consts, strict=True))

    def noise(key):
        return read(evaluate([*constant, *drawn], base | {invars[0]: key}, plain), residuals)

    def rest(noise, operands):
        env = base | dict(zip(residuals, noise, strict=True)) | dict(zip(invars[1:], operands, strict=True))
        return jax.tree.unflatten(treedef, read(evaluate([*constant, *other], env, plain), outvars))

    text = str(jax.make_jaxpr(noise)(key))
    return SiteProgram(noise, rest, text if not consts else (text, object()), shape)


def _inline(_: int, eqn: Any, values: list[Any]) -> Sequence[Any]:
    if eqn.primitive is _compat.jit_p:
        return walk(eqn.params["jaxpr"], values, _inline)
    return plain(_, eqn, values)


def site_program(build: Callable, config: Any, avals: Sequence[Any]) -> SiteProgram:
    """Splits the site program `build(config)` for operands of the given abstract values; cached.

    Args:
      build: a module-level function; with `config` it decides the program.
      config: hashable.
      avals: the operands in one lane.
    """
    return _split(build, config, tuple(avals), _compat.numeric_mode())


def handed(key: Any, found: Sequence[Place], programs: dict[Path, SiteProgram]) -> dict[Path, Any]:
    """What each site of a program is handed: its noise, with one leading axis for each loop around it.

    A site inside a `while` loop is handed its key instead, with the axes of the loops outside that `while`.
    Sites with the same noise program and loops draw in one call.
    """
    groups: dict[Any, list[Place]] = {}
    for place in found:
        kind = programs[place.path].signature if place.outside_while is None else "key"
        groups.setdefault((kind, place.known_loops), []).append(place)
    out: dict[Path, Any] = {}
    for (kind, loops), members in groups.items():
        hashes = jnp.asarray([place_digest(p) for p in members], dtype=jnp.uint32)
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, hashes)
        for loop in loops:
            keys = fold_loop(keys, loop)
        noise = [keys] if kind == "key" else _noise(programs[members[0].path], keys)
        for i, place in enumerate(members):
            out[place.path] = [_own(x[i]) for x in noise]
    return out


def _own(x: Any) -> Any:
    """A site's part of what its group was given; a key of it is a key of its own."""
    return jax.random.clone(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x


def handed_in_while(
    keys: dict[Path, Any], found: Sequence[Place], programs: dict[Path, SiteProgram], count: Any
) -> dict[Path, Any]:
    """What the sites in one pass of a `while` loop are handed, from their keys before it."""
    out: dict[Path, Any] = {}
    for place in found:
        passed = fold_tag(keys[place.path][0], "while", count)
        for loop in place.known_loops:
            passed = fold_loop(passed, loop)
        program = programs[place.path]
        out[place.path] = [passed] if place.outside_while is not None else _noise(program, passed)
    return out


def _noise(program: SiteProgram, keys: Any) -> list[Any]:
    if keys.size == 1:  # a vmap over one key compiles to more than the plain call
        return [x.reshape(keys.shape + x.shape) for x in program.noise(keys.reshape(()))]
    flat = jax.vmap(program.noise)(keys.reshape(-1))
    return [x.reshape(keys.shape + x.shape[1:]) for x in flat]
