"""What a site reaches, and along which axis its lanes run, against what changes when its value does."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from jax import lax

import vipl
from vipl import sample
from vipl.analysis.dependence import find_dependence
from vipl.analysis.index import Indexed, values_of
from vipl.analysis.window import Window
from vipl.ir.sites import list_sites
from vipl.ir.stage import stage_program

KEY = jax.random.key(71)
N = 4


class Rows(NamedTuple):
    """An axis along which element i depends on lane lanes[i], or on the lanes lanes[i]."""

    axis: int
    lanes: tuple[int | tuple[int, ...], ...]


# A function of values drawn in N lanes, f[N, 2], and the axis along which the lanes run in what it returns.
ROW = jnp.arange(1.0, 3.0)
GROUP = jnp.array([0, 3, 3, 1, 1, 1])
PAIRS, TWO = jnp.array([1, 0, 2, 1]), jnp.array([1, 0, 1])  # the groups of four lanes, and those of three groups
PAIRED, OF_TWO = ((1,), (0, 3), (2,)), ((0, 3), (1, 2))
LOGITS = jnp.zeros(N)
MIXES = jnp.arange(16.0).reshape(N, N) + 1.0
FUNCTIONS = {
    "elementwise": (lambda x: jnp.exp(x) * 2.0 + jnp.where(x > 0, x, -x), 0),
    "row": (lambda x: x + ROW, 0),
    "sum over events": (lambda x: x.sum(1), 0),
    "sum over lanes": (lambda x: x.sum(0), None),
    "transpose": (lambda x: x.T, 1),
    "new axis": (lambda x: x[:, None, :], 0),
    "broadcast before": (lambda x: jnp.broadcast_to(x, (3, N, 2)), 1),
    "reshape of events": (lambda x: jnp.reshape(x, (N, 2, 1)), 0),
    "reshape that mixes": (lambda x: jnp.reshape(x, (2, N)), None),
    "all pairs": (lambda x: x[:, None] * x[None, :], None),
    "reversed": (lambda x: x[::-1], None),
    "with its reverse": (lambda x: x + x[::-1], None),
    "rolled": (lambda x: jnp.roll(x, 1, 0), Window(0, -1, 3)),
    "shifted": (lambda x: jnp.concatenate([x[:1] * 0.0, x[:-1]]), Window(0, -1, 0)),
    "the one before": (lambda x: jnp.pad(x, ((1, 0), (0, 0)))[:-1], Window(0, -1, -1)),
    "the one after": (lambda x: jnp.pad(x[1:], ((0, 1), (0, 0))), Window(0, 1, 1)),
    "the first ones": (lambda x: x[:2], Window(0, 0, 0)),
    "with the one before": (lambda x: x[1:] * x[:-1], Window(0, 0, 1)),
    "differences twice": (lambda x: jnp.diff(x, 2, 0), Window(0, 0, 2)),
    "every other": (lambda x: x[::2], None),
    "padded between": (lambda x: lax.pad(x, 0.0, ((0, 0, 1), (0, 0, 0))), None),
    "cumulative": (lambda x: jnp.cumsum(x, 0), Window(0, None, 0)),
    "cumulative from the end": (lambda x: lax.cumsum(x, 0, reverse=True), Window(0, 0, None)),
    "cumulative maximum of those before": (lambda x: lax.cummax(x, 0)[:-1], Window(0, None, 0)),
    "cumulative both ways": (lambda x: jnp.cumsum(lax.cumsum(x, 0, reverse=True), 0), None),
    "cumulative, with the events in front": (lambda x: jnp.cumprod(x.T, 1), Window(1, None, 0)),
    "cumulative, then mapped": (lambda x: jax.vmap(lambda r: jnp.sin(r) + r[0])(jnp.cumsum(x, 0)), Window(0, None, 0)),
    "cumulative of groups": (lambda x: jnp.cumsum(x[GROUP], 0), None),
    "groups of a cumulative": (lambda x: jnp.cumsum(x, 0)[GROUP], None),
    "cumulative events": (lambda x: jnp.cumsum(x, 1), 0),
    "sorted events": (lambda x: jnp.sort(x, 1), 0),
    "sorted": (lambda x: jnp.sort(x, 0), None),
    "softmax of events": (lambda x: jax.nn.log_softmax(x, axis=1), 0),
    "matrix from the right": (lambda x: x @ jnp.ones((2, 3)), 0),
    "matrix from the left": (lambda x: MIXES @ x, None),
    "batched product": (lambda x: jnp.einsum("ni,nj->nij", x, x), 0),
    "product over lanes": (lambda x: jnp.einsum("ni,nj->ij", x, x), None),
    "batched product, free axis of the right": (
        lambda x: jnp.einsum("bai,bni->ban", jnp.arange(30.0).reshape(3, 5, 2), jnp.broadcast_to(x, (3, N, 2))),
        2,
    ),
    "events looked up": (lambda x: x.T[jnp.array([1, 0])], 1),
    "free axis of the right": (lambda x: jnp.einsum("ai,ni->an", jnp.ones((3, 2)), x), 1),
    "slice of events": (lambda x: x[:, :1], 0),
    "slice of lanes": (lambda x: x[1:], Window(0, 1, 1)),
    "joined along events": (lambda x: jnp.concatenate([x, 2 * x], 1), 0),
    "joined along lanes": (lambda x: jnp.concatenate([x, x], 0), Window(0, -4, 0)),
    "stacked in front": (lambda x: jnp.stack([x, 2 * x]), 1),
    "stacked behind": (lambda x: jnp.stack([x, 2 * x], -1), 0),
    "unpacked events": (lambda x: sum(jnp.unstack(x, axis=1)), 0),
    "unpacked lanes": (lambda x: jnp.unstack(x)[1], None),
    "tiled events": (lambda x: jnp.tile(x, (1, 3)), 0),
    "tiled lanes": (lambda x: jnp.tile(x, (2, 1)), None),
    "padded events": (lambda x: jnp.pad(x, ((0, 0), (1, 0))), 0),
    "looked up": (lambda x: jnp.array([1.0, 5.0])[(x[:, 0] > 0).astype(int)], 0),
    "rows looked up": (lambda x: MIXES[(x[:, 0] > 0).astype(int)], 0),
    "taken along events": (lambda x: jnp.take_along_axis(x, (x[:, :1] > 0).astype(int), 1), 0),
    "other lanes looked up": (lambda x: x[jnp.array([1, 0, 3, 2])], Rows(0, (1, 0, 3, 2))),
    "groups looked up": (lambda x: x[GROUP], Rows(0, (0, 3, 3, 1, 1, 1))),
    "groups from the end": (lambda x: x[GROUP - N], Rows(0, (0, 3, 3, 1, 1, 1))),
    "groups of a mapped index": (lambda x: jax.vmap(lambda g: x[g] * 2.0)(GROUP), Rows(0, (0, 3, 3, 1, 1, 1))),
    "groups of the second axis": (lambda x: x.T[:, GROUP], Rows(1, (0, 3, 3, 1, 1, 1))),
    "pairs looked up": (lambda x: x[GROUP, jnp.zeros(6, int)], Rows(0, (0, 3, 3, 1, 1, 1))),
    "columns looked up with others": (
        lambda x: jnp.broadcast_to(x.T[:, None], (2, 2, N))[jnp.zeros(6, int), jnp.ones(6, int), GROUP],
        Rows(0, (0, 3, 3, 1, 1, 1)),
    ),
    "a table looked up": (lambda x: x[GROUP.reshape(2, 3)], None),
    "groups of a drawn index": (lambda x: x[(GROUP + (x[0, 0] > 0)) % N], None),
    "groups of a drawn number": (lambda x: x[(GROUP + sample("k", dist.Categorical(logits=LOGITS))) % N], None),
    "groups with the lanes": (lambda x: x + x[jnp.array([1, 0, 3, 2])], None),
    "two groups": (lambda x: x[GROUP] + x[GROUP[::-1]], None),
    "sums by group": (lambda x: jax.ops.segment_sum(x[GROUP] * 2.0, GROUP, N), 0),
    "sums by group, added in place": (lambda x: jnp.zeros((N, 2)).at[GROUP].add(x[GROUP]), 0),
    "sums by group from the end": (lambda x: jnp.zeros((N, 2)).at[GROUP - N].add(x[GROUP - N]), 0),
    "sums by another group": (lambda x: jax.ops.segment_sum(x[GROUP], GROUP[::-1], N), None),
    "more sums than lanes": (lambda x: jax.ops.segment_sum(x[GROUP], GROUP, N + 2)[:, 0], None),
    "fewer sums than lanes": (lambda x: jax.ops.segment_sum(x[GROUP], GROUP, 1), None),
    "fewer sums than groups": (
        lambda x: jax.ops.segment_sum(jax.ops.segment_sum(x, PAIRS, 3)[TWO], TWO, 2),
        None,
    ),
    "sums of lanes": (lambda x: jax.ops.segment_sum(x, PAIRS, 3), Rows(0, PAIRED)),
    "sums of lanes, added in place": (lambda x: jnp.ones((3, 2)).at[PAIRS].add(x), Rows(0, PAIRED)),
    "sums of lanes, from the end": (lambda x: jnp.ones((3, 2)).at[PAIRS - 3].add(x), Rows(0, PAIRED)),
    "sums of lanes, some dropped": (lambda x: jax.ops.segment_sum(x, PAIRS - 1, 3), Rows(0, ((0, 3), (2,), ()))),
    "sums of lanes, clipped": (lambda x: jax.ops.segment_sum(x, PAIRS, 2, mode="clip"), None),
    "maxima of lanes": (lambda x: jax.ops.segment_max(x, PAIRS, 3), Rows(0, PAIRED)),
    "products of lanes": (lambda x: jax.ops.segment_prod(x, PAIRS, 3) + 1.0, Rows(0, PAIRED)),
    "lanes set by index": (lambda x: jnp.zeros((3, 2)).at[PAIRS].set(x), Rows(0, PAIRED)),
    "sums of the second axis": (lambda x: jnp.zeros((2, 3)).at[:, PAIRS].add(x.T), Rows(1, PAIRED)),
    "sums of a mapped axis": (
        lambda x: jax.vmap(lambda col: jax.ops.segment_sum(col, PAIRS, 3), in_axes=1)(x),
        Rows(1, PAIRED),
    ),
    "sums of sums": (lambda x: jax.ops.segment_sum(jax.ops.segment_sum(x, PAIRS, 3), TWO, 2), Rows(0, OF_TWO)),
    "sums of lanes, looked up": (
        lambda x: jax.ops.segment_sum(x, PAIRS, 3)[PAIRS] * 2.0,
        Rows(0, ((0, 3), (1,), (2,), (0, 3))),
    ),
    "sums of lanes, looked up and put together": (
        lambda x: jax.ops.segment_sum(jax.ops.segment_sum(x, PAIRS, 3)[TWO], TWO, 3),
        Rows(0, PAIRED),
    ),
    "sums of lanes with the lanes": (lambda x: x[:3] + jax.ops.segment_sum(x, PAIRS, 3), None),
    "rows of rows": (lambda x: x[GROUP][PAIRS], Rows(0, (3, 0, 3, 3))),
    "rows of rows, put together": (
        lambda x: jax.ops.segment_sum(x[GROUP][PAIRS], PAIRS, 6),
        Rows(0, (0, 3, 3, 1, 1, 1)),
    ),
    "events set in place": (lambda x: x.at[:, 0].set(1.0), 0),
    "lanes set in place": (lambda x: jnp.zeros((N, 3)).at[:, 1:].set(x), 0),
    "events added by index": (lambda x: jnp.zeros((N, 3)).at[:, jnp.array([2, 0])].add(x), 0),
    "events set by what is drawn": (lambda x: x.at[:, (x[0, 0] > 0).astype(int)].set(1.0), None),
    "sums by group, clipped": (
        lambda x: jax.ops.segment_sum(x[GROUP - 1], GROUP - 1, N, mode="clip"),
        None,
    ),
    "one lane": (lambda x: x[2], None),
    "updated events": (lambda x: lax.dynamic_update_slice(x, x[:, 1:], (0, 0)), 0),
    "vmap": (lambda x: jax.vmap(lambda row: row.sum() * row)(x), 0),
    "scan over events": (lambda x: lax.scan(lambda c, col: (c + col, c * col), jnp.zeros(N), x.T), (0, 1)),
    "scan over lanes": (lambda x: lax.scan(lambda c, row: (c + row, 2 * row), jnp.zeros(2), x), (None, 0)),
    "scan that adds up": (
        lambda x: lax.scan(lambda c, row: (c + row, c * row), jnp.zeros(2), x),
        (None, Window(0, None, 0)),
    ),
    "scan of those before": (
        lambda x: lax.scan(lambda c, row: (c + row, 2 * c), jnp.zeros(2), x),
        (None, Window(0, None, -1)),
    ),
    "scan from the end": (
        lambda x: lax.scan(lambda c, row: (c + row, c * row), jnp.zeros(2), x, reverse=True),
        (None, Window(0, 0, None)),
    ),
    "scan of the one before": (
        lambda x: lax.scan(lambda c, row: (row, c * row), jnp.zeros(2), x),
        (None, Window(0, -1, 0)),
    ),
    "scan of the two before": (
        lambda x: lax.scan(lambda c, row: ((row, c[0]), c[1]), (jnp.zeros(2), jnp.zeros(2)), x)[1],
        Window(0, -2, -2),
    ),
    "scan from the end of what is before": (
        lambda x: lax.scan(lambda c, row: (c + row, c), jnp.zeros(2), jnp.cumsum(x, 0), reverse=True)[1],
        None,
    ),
    "scan of what comes after": (
        lambda x: lax.scan(lambda c, row: (row, c * row), jnp.zeros(2), lax.cumsum(x, 0, reverse=True))[1],
        Window(0, -1, None),
    ),
    "scan of shifted ones": (
        lambda x: lax.scan(lambda c, row: (c + row, c + row), jnp.zeros(2), x[1:])[1],
        Window(0, None, 1),
    ),
    "scan with another inside": (
        lambda x: lax.scan(lambda c, row: (c, lax.scan(lambda d, e: (d + e, d * e), 0.0, row)[1]), 0.0, x)[1],
        0,
    ),
    "scan by steps of the counter": (lambda x: lax.scan(lambda i, _: (i + 1, x[i]), 0, None, N)[1], None),
    "scan of a mapped scan": (
        lambda x: jax.vmap(lambda r: lax.scan(lambda c, e: (c + e, c + e), 0.0, r)[1], in_axes=1)(x),
        Window(1, None, 0),
    ),
    "scan of what draws": (
        lambda x: lax.scan(lambda c, row: (sample("c", dist.Normal(c + row.sum(), 1.0)), c), 0.0, x)[1],
        Window(0, None, -1),
    ),
    "scan that mixes": (lambda x: lax.scan(lambda c, _: (c[::-1], c), x, None, 2), (None, None)),
    "scan that mixes later": (
        lambda x: lax.scan(lambda c, _: ((c[1], c[0].sum() + c[1]), c[1]), (x, jnp.zeros_like(x)), None, 3)[1],
        None,
    ),
    "cond": (lambda x: lax.cond(True, lambda: 2 * x, lambda: x + 1), 0),
    "cond of the lanes' sum": (lambda x: lax.cond(x.sum() > 0, lambda: x, lambda: 2 * x), None),
    "mapped cond": (lambda x: jax.vmap(lambda r: lax.cond(r[0] > 0, lambda: r, lambda: -r))(x), 0),
    "while": (lambda x: lax.while_loop(lambda c: c.sum() < 9, lambda c: c + 1, x), None),
    "jit": (lambda x: jax.jit(lambda y: y * y)(x), 0),
    "checkpoint": (lambda x: jax.checkpoint(jnp.sin)(x), 0),
    "relu": (jax.nn.relu, 0),
    "logsumexp": (lambda x: jax.nn.logsumexp(x, axis=1), 0),
    "logsumexp of lanes": (lambda x: jax.nn.logsumexp(x, axis=0), None),
    "cholesky": (lambda x: jax.vmap(lambda r: jnp.linalg.cholesky(jnp.eye(2) + jnp.outer(r, r)))(x), 0),
    "convolution": (lambda x: lax.conv(x[:, None], jnp.ones((3, 1, 2)), (1,), "SAME"), 0),
    "density": (lambda x: dist.Normal(x, 2.0).to_event(1).log_prob(jnp.ones(2)), 0),
    "psum": (lambda x: jax.vmap(lambda r: lax.psum(r, "i"), axis_name="i")(x), None),
    "drawn from": (lambda x: jax.vmap(lambda r: sample("next", dist.Normal(r.sum(), 1.0)))(x), 0),
    "drawn from all": (lambda x: jax.vmap(lambda _: sample("next", dist.Normal(x.sum(), 1.0)))(jnp.arange(N)), None),
    "drawn at once": (lambda x: sample("next", dist.Normal(x, 1.0).to_event(2)), None),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_value_in_one_lane_changes_nothing_outside_its_axis(name):
    fn, axes = FUNCTIONS[name]

    def program():
        return fn(jax.vmap(lambda _: sample("x", dist.Normal(0.0, 1.0).expand([2]).to_event(1)))(jnp.arange(N)))

    jaxpr = stage_program(program, (), {}).jaxpr
    site = list_sites(jaxpr)[0]
    env = find_dependence(jaxpr, {site.path: 1}).values
    assert env is not None
    results: Any = jaxpr.jaxpr.outvars
    claims = [_named(jaxpr, env[v].get(site.path)) for v in results]
    assert claims == list(axes if type(axes) is tuple else (axes,))

    x = jax.random.normal(KEY, (N, 2))
    run = lambda x: jax.tree.leaves(vipl.seed(lambda: fn(x))(KEY))  # noqa: E731
    before = run(x)
    for lane in range(N):
        for old, new, claim in zip(before, run(x.at[lane].set(-3.0 * x[lane] - 0.1)), claims, strict=True):
            changed = np.asarray(old != new)
            if isinstance(claim, Rows):
                own = [i for i, lanes in enumerate(claim.lanes) if lane in np.atleast_1d(lanes)]
                assert not np.delete(changed, own, claim.axis).any()
            elif isinstance(claim, Window):
                ends = -np.inf if claim.first is None else claim.first, np.inf if claim.last is None else claim.last
                near = [i for i in range(changed.shape[claim.axis]) if i + ends[0] <= lane <= i + ends[1]]
                assert not np.delete(changed, near, claim.axis).any()
            elif claim is not None:
                assert not np.delete(changed, lane, claim).any()


def _named(jaxpr, axes):
    (axis,) = axes
    if not isinstance(axis, Indexed):
        return axis
    values = values_of(jaxpr, [column.index for column in axis.columns])
    looked_up = [values[index][:, column] for (index, column), _ in axis.takes]
    if not axis.sums:
        return Rows(axis.axis, tuple(functools.reduce(lambda rows, i: rows[i], looked_up).tolist()))
    sets: list[tuple[int, ...]] = [(j,) for j in range(N)]
    for (index, column), size in axis.sums:
        groups = values[index][:, column].tolist()
        sets = [sum((own for own, g in zip(sets, groups, strict=True) if g == k), ()) for k in range(size)]
    for rows in looked_up:
        sets = [sets[i] for i in rows]
    return Rows(axis.axis, tuple(tuple(sorted(own)) for own in sets))


def test_a_site_does_not_reach_what_is_not_computed_from_it():
    def program():
        x = sample("x", dist.Normal(0.0, 1.0))
        y = sample("y", dist.Normal(0.0, 1.0))
        return x * x, y, x + y

    jaxpr = stage_program(program, (), {}).jaxpr
    x, y = (p.path for p in list_sites(jaxpr))
    env = find_dependence(jaxpr, {x: 0, y: 0}).values
    assert env is not None
    results: Any = jaxpr.jaxpr.outvars
    assert [set(env[v]) for v in results] == [{x}, {y}, {x, y}]
