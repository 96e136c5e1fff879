"""Gaussians with a block for each pass of a loop: draws, densities and precisions in time linear in the passes.

The coordinates of a program are put into blocks: one for what stands in no loop, and one for each pass of a loop. A
block is conditioned on the blocks around it and, in a `scan`, on the pass before:

    d = F c + A d_before + L e,   e ~ N(0, I),   u = loc + d,

with c the blocks around it, from the outside in, and L lower triangular. In a `vmap` A = 0. All that is inside one pass
of a `scan`, inner loops included, is one block; loops of a `vmap` nest. Loops of one kind and length, inside the same
pass, are one loop; so are a `scan` and a `vmap` of one length without loops inside.

Law: the precision of u is nonzero inside blocks, between a block and those around it, and between neighbouring passes
of a `scan`, and nowhere else. Eliminating the last pass first, and inner blocks before outer ones, adds no others: the
Gaussians of this form are exactly those with such a precision, which is why `factorize` is exact.

Values are trees that follow the blocks: {"own": [..., d], "loops": {name: the same, with a first axis of passes}}.

Reference: Tan and Nott (2018), "Gaussian variational approximation with sparse precision matrices", section 3; Rue and
Held (2005), "Gaussian Markov random fields", section 2.4.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax import lax
from jax.scipy.linalg import cho_solve, solve_triangular
from numpyro.distributions import constraints

from vipl._types import Array, Float, Int, PRNGKeyArray, PyTree
from vipl.guides._coordinates import Latent
from vipl.guides._gaussian import lower_triangular

Layout = tuple[tuple[tuple[int, ...], tuple[bool, ...]], ...]
"""Of each choice the shape of its coordinates, and of each loop around it whether it is a `vmap`."""


class Block(NamedTuple):
    """The coordinates of a loop, one block for each pass.

    Attributes:
      is_scan: whether passes are conditioned on the one before.
      index: i[*passes, d], where they stand in the vector of all; the passes of all loops around it first.
      context: how many coordinates the blocks around it have.
      loops: the loops inside, by name.
    """

    is_scan: bool
    index: np.ndarray
    context: int
    loops: dict[str, Block]

    @property
    def size(self) -> int:
        """d, how many coordinates one pass has."""
        return self.index.shape[-1]


def layout_of(latents: Sequence[Latent]) -> Layout:
    """The layout of some choices, whose coordinates stand one after the other."""
    return tuple((x.coordinates, x.passes) for x in latents)


@functools.lru_cache(maxsize=256)
def blocks_of(layout: Layout) -> Block:
    """The blocks of a layout; the outermost one is that of no loop."""
    members, start = [], 0
    for shape, loops in layout:
        size = int(np.prod(shape, dtype=int))
        members.append((loops, np.arange(start, start + size).reshape(shape)))
        start += size
    return _block(members, 0, 0, False)


_Members = list[tuple[tuple[bool, ...], np.ndarray]]


def _block(members: _Members, depth: int, context: int, is_scan: bool) -> Block:
    """The block of some choices inside `depth` loops, of which they have the indices."""
    own = [x for loops, x in members if is_scan or len(loops) == depth]
    passes = members[0][1].shape[:depth]
    index = np.concatenate([np.zeros((*passes, 0), int), *(x.reshape(*passes, -1) for x in own)], -1)
    inside: dict[tuple[bool, int], _Members] = {}
    for loops, x in members:
        if not is_scan and len(loops) > depth:
            inside.setdefault((loops[depth], x.shape[depth]), []).append((loops, x))
    for length in [length for is_lane, length in inside if not is_lane]:
        if all(len(loops) == depth + 1 for loops, _ in inside.get((True, length), [])):
            inside[False, length] += inside.pop((True, length), [])
    context += index.shape[-1]
    loops = {
        f"{'vmap' if is_lane else 'scan'} of {length}": _block(those, depth + 1, context, not is_lane)
        for (is_lane, length), those in inside.items()
    }
    return Block(is_scan, index, context - index.shape[-1], loops)


# --- vectors and trees ----------------------------------------------------------------------------------------


def to_tree(block: Block, u: Float[Array, " n"]) -> PyTree:
    """The coordinates of each block."""
    return {"own": u[block.index], "loops": {name: to_tree(b, u) for name, b in block.loops.items()}}


def to_vector(block: Block, tree: PyTree, n: int) -> Float[Array, " n"]:
    """The vector of all coordinates; inverts `to_tree`."""

    def put(u: Array, block: Block, tree: PyTree) -> Array:
        u = u.at[block.index].set(tree["own"])
        for name, b in block.loops.items():
            u = put(u, b, tree["loops"][name])
        return u

    return put(jnp.zeros(n, tree["own"].dtype), block, tree)


def identity(block: Block, scale: Float[Array, ""]) -> PyTree:
    """The factors of independent coordinates of one standard deviation."""
    *passes, d = block.index.shape
    c, dtype = block.context, scale.dtype
    out: dict[str, Any] = {
        "log_diag": jnp.full((*passes, d), jnp.log(scale)),
        "lower": jnp.zeros((*passes, d, d), dtype),
        "context": jnp.zeros((*passes, d, c), dtype),
    }
    if block.is_scan:
        out["previous"] = jnp.zeros((*passes, d, d), dtype)
    return out | {"loops": {name: identity(b, scale) for name, b in block.loops.items()}}


def _scale(factors: PyTree) -> Array:
    """L of one pass."""
    return jnp.tril(factors["lower"], -1) + jnp.diag(jnp.exp(factors["log_diag"]))


def log_det(factors: PyTree) -> Float[Array, ""]:
    """The sum of all log diagonals of L."""
    return jnp.sum(factors["log_diag"]) + sum(map(log_det, factors["loops"].values()), jnp.zeros(()))


# --- draws and their noise ------------------------------------------------------------------------------------


def deviate(block: Block, factors: PyTree, noise: PyTree, context: Array | None = None) -> PyTree:
    """The d of e, as trees."""
    c = jnp.zeros(0, noise["own"].dtype) if context is None else context
    own = factors["context"] @ c + _scale(factors) @ noise["own"]
    inside = jnp.concatenate([c, own])

    def step(before: Array, x: tuple[PyTree, PyTree]) -> tuple[Array, Array]:
        p, e = x
        now = p["context"] @ inside + p["previous"] @ before + _scale(p) @ e
        return now, now

    loops = {}
    for name, b in block.loops.items():
        p, e = factors["loops"][name], noise["loops"][name]
        if b.is_scan:
            zero = jnp.zeros(b.size, own.dtype)
            loops[name] = {"own": lax.scan(step, zero, (_without_loops(p), e["own"]))[1], "loops": {}}
        else:
            loops[name] = jax.vmap(functools.partial(deviate, b, context=inside))(p, e)
    return {"own": own, "loops": loops}


def noise_of(block: Block, factors: PyTree, d: PyTree, context: Array | None = None) -> PyTree:
    """The e of d, as trees; inverts `deviate`. All passes at once."""
    c = jnp.zeros(0, d["own"].dtype) if context is None else context
    inside = jnp.concatenate([c, d["own"]])
    own = solve_triangular(_scale(factors), d["own"] - factors["context"] @ c, lower=True)

    def one(p: PyTree, now: Array, before: Array) -> Array:
        return solve_triangular(_scale(p), now - p["context"] @ inside - p["previous"] @ before, lower=True)

    loops = {}
    for name, b in block.loops.items():
        p, x = factors["loops"][name], d["loops"][name]
        if b.is_scan:
            before = jnp.concatenate([jnp.zeros_like(x["own"][:1]), x["own"][:-1]])
            loops[name] = {"own": jax.vmap(one)(_without_loops(p), x["own"], before), "loops": {}}
        else:
            loops[name] = jax.vmap(functools.partial(noise_of, b, context=inside))(p, x)
    return {"own": own, "loops": loops}


def _without_loops(factors: PyTree) -> PyTree:
    return {k: v for k, v in factors.items() if k != "loops"}


def variances(block: Block, factors: PyTree, covariance: Array | None = None) -> PyTree:
    """The variance of each coordinate; `covariance` is that of the blocks around."""
    around = jnp.zeros((0, 0), factors["log_diag"].dtype) if covariance is None else covariance
    inside = _joint(around, factors["context"], _scale(factors))
    own = jnp.diagonal(inside)[block.context :]

    def step(before: Array, p: PyTree) -> tuple[Array, Array]:
        now = _joint(before, jnp.concatenate([p["context"], p["previous"]], 1), _scale(p))
        k = len(inside)
        keep = np.r_[:k, len(before) : len(now)]
        return now[keep][:, keep], jnp.diagonal(now)[len(before) :]

    loops = {}
    for name, b in block.loops.items():
        p = factors["loops"][name]
        if b.is_scan:
            first = jnp.zeros((len(inside) + b.size,) * 2, own.dtype).at[: len(inside), : len(inside)].set(inside)
            loops[name] = {"own": lax.scan(step, first, _without_loops(p))[1], "loops": {}}
        else:
            loops[name] = jax.vmap(functools.partial(variances, b, covariance=inside))(p)
    return {"own": own, "loops": loops}


def _joint(covariance: Array, weights: Array, scale: Array) -> Array:
    """The covariance of c and W c + L e."""
    cross = weights @ covariance
    return jnp.block([[covariance, cross.T], [cross, cross @ weights.T + scale @ scale.T]])


# --- precisions -----------------------------------------------------------------------------------------------


def unit_precision(block: Block, dtype: Any) -> PyTree:
    """The precision of independent coordinates of variance one."""
    *passes, d = block.index.shape
    out: dict[str, Any] = {
        "own": jnp.broadcast_to(jnp.eye(d, dtype=dtype), (*passes, d, d)),
        "context": jnp.zeros((*passes, d, block.context), dtype),
    }
    if block.is_scan:
        out["previous"] = jnp.zeros((*passes, d, d), dtype)
    return out | {"loops": {name: unit_precision(b, dtype) for name, b in block.loops.items()}}


def quadratic(block: Block, precision: PyTree, v: PyTree, context: Array | None = None) -> Float[Array, ""]:
    """vᵀ Λ v / 2."""
    c = jnp.zeros(0, v["own"].dtype) if context is None else context

    def one(p: PyTree, own: Array, before: Array, c: Array) -> Array:
        cross = p["context"] @ c + (p["previous"] @ before if "previous" in p else 0.0)
        return own @ (p["own"] @ own / 2 + cross)

    total, inside = one(_without_loops(precision), v["own"], c, c), jnp.concatenate([c, v["own"]])
    for name, b in block.loops.items():
        p, x = precision["loops"][name], v["loops"][name]
        if b.is_scan:
            before = jnp.concatenate([jnp.zeros_like(x["own"][:1]), x["own"][:-1]])
            total += jnp.sum(jax.vmap(one, in_axes=(0, 0, 0, None))(_without_loops(p), x["own"], before, inside))
        else:
            total += jnp.sum(jax.vmap(functools.partial(quadratic, b, context=inside))(p, x))
    return total


def factorize(block: Block, precision: PyTree) -> PyTree:
    """The factors of the Gaussian of a precision, of which the part named in the module is given; NaN if it has none.

    Args:
      block: the blocks.
      precision: {"own": [..., d, d], "context": [..., d, c], "previous": [..., d, d], "loops": {...}}: the entries of a
        pass with itself, with the blocks around it, and with the pass before.
    """
    return _eliminate(block, precision)[0]


def _eliminate(block: Block, precision: PyTree) -> tuple[PyTree, Array]:
    """The factors of a pass and of the loops inside, and what is added to the precision of the blocks around."""
    c = block.context
    added = jnp.zeros((c + block.size,) * 2, precision["own"].dtype)
    loops = {}
    for name, b in block.loops.items():
        p = precision["loops"][name]
        if b.is_scan:
            loops[name], more = _eliminate_steps(b, p)
        else:
            loops[name], each = jax.vmap(functools.partial(_eliminate, b))(p)
            more = jnp.sum(each, 0)
        added += more
    factors, fill = _conditional(precision["own"] + added[c:, c:], precision["context"] + added[c:, :c])
    return factors | {"loops": loops}, added[:c, :c] + fill


def _eliminate_steps(block: Block, precision: PyTree) -> tuple[PyTree, Array]:
    """The last step first: it adds to the precision of the step before and of the blocks around."""
    c, d = block.context, block.size

    def step(carry: tuple[Array, Array], p: PyTree) -> tuple[tuple[Array, Array], PyTree]:
        own, around = carry
        weights = jnp.concatenate([p["context"] + own[:, :c], p["previous"]], 1)
        factors, fill = _conditional(p["own"] + own[:, c:], weights)
        factors["previous"] = factors["context"][:, c:]
        factors["context"] = factors["context"][:, :c]
        return (fill[c:, :], around + fill[:c, :c]), factors

    first = jnp.zeros((d, c + d), precision["own"].dtype), jnp.zeros((c, c), precision["own"].dtype)
    (_, around), factors = lax.scan(step, first, _without_loops(precision), reverse=True)
    return factors | {"loops": {}}, around


def _conditional(own: Array, cross: Array) -> tuple[dict[str, Array], Array]:
    """The factors of d given c of a precision [[., crossᵀ], [cross, own]], and the Schur complement's part."""
    chol = jnp.linalg.cholesky(own, symmetrize_input=False)
    weights = cho_solve((chol, True), cross)
    scale = lower_triangular(solve_triangular(chol, jnp.eye(len(own), dtype=own.dtype), lower=True).T)
    factors = {"log_diag": jnp.log(jnp.diagonal(scale)), "lower": jnp.tril(scale, -1), "context": -weights}
    return factors, -cross.T @ weights


def probes(block: Block) -> Int[np.ndarray, " n"]:
    """i[n], which of the probing vectors a coordinate is in.

    Two coordinates share one only if no entry of the precision, in the rows that `curvature` reads, has both: those of
    different passes, and in a `scan` of passes three apart.

    Reference: Curtis, Powell and Reid (1974), "On the estimation of sparse Jacobian matrices".
    """
    places: list[tuple[np.ndarray, np.ndarray]] = []

    def visit(block: Block, first: int) -> int:
        d, period = block.size, min(3, block.index.shape[-2]) if block.is_scan else 1
        phase = np.arange(block.index.shape[-2]) % period if block.is_scan else 0
        numbers = first + np.arange(d) + d * np.reshape(phase, (-1, 1) if block.is_scan else ())
        places.append((block.index, np.broadcast_to(numbers, block.index.shape)))
        first += d * period
        for b in block.loops.values():
            first = visit(b, first)
        return first

    visit(block, 0)
    out = np.zeros(sum(index.size for index, _ in places), int)
    for index, numbers in places:
        out[index] = numbers
    return out


def curvature(
    block: Block, probe: np.ndarray, products: Float[Array, "k n"], signs: Float[Array, " n"], around: Any = None
) -> PyTree:
    """The precision of a Gaussian whose log density has a Hessian H of which products are known, as trees.

    Args:
      block: the blocks.
      probe: of `probes`.
      products: f[k, n], H v_k, with v_k the signs of the coordinates whose probe is k.
      signs: 1 or -1.
      around: i[*passes, c], the coordinates of the blocks around.
    """
    *passes, _ = block.index.shape
    around = np.zeros((0,), int) if around is None else around

    def entries(rows: np.ndarray, columns: np.ndarray) -> Array:
        return -products[probe[columns][..., None, :], rows[..., :, None]] * signs[columns][..., None, :]

    outside = np.broadcast_to(around, (*passes, around.shape[-1]))
    own = entries(block.index, block.index)
    out: dict[str, Any] = {"own": (own + jnp.swapaxes(own, -1, -2)) / 2, "context": entries(block.index, outside)}
    if block.is_scan:
        before = np.concatenate([block.index[..., :1, :], block.index[..., :-1, :]], -2)
        out["previous"] = entries(block.index, before).at[..., 0, :, :].set(0.0)
    inside = np.concatenate([outside, block.index], -1)
    loops = {name: curvature(b, probe, products, signs, inside[..., None, :]) for name, b in block.loops.items()}
    return out | {"loops": loops}


# --- the distribution -----------------------------------------------------------------------------------------


class BlockGaussian(dist.Distribution):
    """A Gaussian of the module's form over vectors.

    Args:
      loc: f[n].
      factors: F, A and L of each block.
      layout: which makes the blocks.
    """

    arg_constraints = {"loc": constraints.real_vector}
    pytree_data_fields = ("loc", "factors")
    pytree_aux_fields = ("layout",)
    support = constraints.real_vector  # type: ignore[assignment]
    reparametrized_params = ["loc"]  # which NumPyro compares with arg_constraints; draws are smooth in factors, too

    def __init__(self, loc: Float[Array, " n"], factors: PyTree, layout: Layout, *, validate_args: bool | None = None):
        """Keeps the parameters."""
        self.loc, self.factors, self.layout = loc, factors, layout
        super().__init__((), (loc.shape[-1],), validate_args=validate_args)

    def sample(self, key: PRNGKeyArray, sample_shape: tuple[int, ...] = ()) -> Float[Array, "*sample n"]:
        """[*sample_shape, n], loc + d."""
        return self.of_noise(jax.random.normal(key, (*sample_shape, *self.event_shape), self.loc.dtype))

    def of_noise(self, e: Float[Array, "*sample n"]) -> Float[Array, "*sample n"]:
        """[..., n], loc + d of noise."""
        if e.ndim > 1:
            return jax.vmap(self.of_noise)(e)
        block = blocks_of(self.layout)
        return self.loc + to_vector(block, deviate(block, self.factors, to_tree(block, e)), len(e))

    def log_prob(self, value: Float[Array, "*batch n"]) -> Float[Array, "*batch"]:
        """f[...], the log density."""
        if value.ndim > 1:
            return jax.vmap(self.log_prob)(value)
        block = blocks_of(self.layout)
        e = to_vector(block, noise_of(block, self.factors, to_tree(block, value - self.loc)), value.shape[0])
        return -0.5 * (e @ e) - log_det(self.factors) - 0.5 * e.size * jnp.log(2 * jnp.pi)

    @property
    def mean(self) -> Float[Array, " n"]:
        """f[n], loc."""
        return self.loc

    @property
    def variance(self) -> Float[Array, " n"]:
        """f[n], of each coordinate."""
        block = blocks_of(self.layout)
        return to_vector(block, variances(block, self.factors), self.loc.shape[-1])
