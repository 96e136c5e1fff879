"""Every family of NumPyro against its formula: log density and derivatives, at ordinary and extreme points.

Invariant. All inputs t are numbers of float32; the exact f, its gradient g and its Hessian H are those at these
numbers. Evaluated in float32 or in float64, with that precision's eps,

    |error of f|   <= C eps (1 + |f|   + Σ_j |t_j g_j|)
    |error of g_i| <= C eps (1 + |g_i| + Σ_j |t_j H_ij|)

with the same C for all: what rounding of the inputs would do, and no more. What is tested is the density of a site, as
`assess` of a program with one site gives it. The table is `tests.helpers.families`.
"""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

import vipl
from tests.helpers.families import FAMILIES, LEFT_OUT, NOT_EXACT
from tests.helpers.formulas import mp
from vipl import sample
from vipl.distributions._stable import stabilize

C = 64


def flat(point):
    """The numbers of a point, and whether each has a derivative."""
    leaves = [x for part in point for x in (part if isinstance(part, list) else [part])]
    return [mp.mpf(float(np.float32(x))) for x in leaves], [isinstance(x, float) for x in leaves]


def like(point, numbers):
    it = iter(numbers)
    return [[next(it) for _ in part] if isinstance(part, list) else next(it) for part in point]


def exact(formula, point) -> tuple[Any, Any, Any, Any]:
    """A log density, its gradient, and what rounding of the inputs does to each; by central differences."""
    with mp.workdps(60):
        t, free = flat(point)
        indices = [i for i, yes in enumerate(free) if yes]

        def f(*steps):
            moved = list(t)
            for i, h in steps:
                moved[i] += h
            return mp.re(formula(*like(point, moved)))

        h = [mp.mpf(10) ** -15 * (abs(x) or 1) for x in t]
        value = f()
        if not mp.isfinite(value):
            return float(value), None, None, None
        up, down = {i: f((i, h[i])) for i in indices}, {i: f((i, -h[i])) for i in indices}
        g = {i: (up[i] - down[i]) / (2 * h[i]) for i in indices}
        hess = {(i, i): (up[i] - 2 * value + down[i]) / h[i] ** 2 for i in indices}
        for i, j in itertools.combinations(indices, 2):
            four = [f((i, a * h[i]), (j, b * h[j])) * a * b for a in (1, -1) for b in (1, -1)]
            hess[i, j] = hess[j, i] = sum(four) / (4 * h[i] * h[j])
        value_room = 1 + abs(value) + sum(abs(t[i] * g[i]) for i in indices)
        room = [1 + abs(g[i]) + sum(abs(t[j] * hess[i, j]) for j in indices) for i in indices]
        return value, [g[i] for i in indices], value_room, room


def evaluate(make, points, dtype, at=lambda x: x):
    """Log densities and gradients of a site at points, all in one precision."""

    @vipl.gen
    def program(*parameters):
        sample("x", make(*parameters))

    with jax.enable_x64(dtype == np.float64):

        def log_prob(*point):
            return program(*point[1:]).assess({"x": at(point[0])}).log_prob

        def array(part):
            floating = isinstance(part[0] if isinstance(part, list) else part, float)
            return np.asarray(np.asarray(part, np.float32), dtype) if floating else np.asarray(part)

        kinds = {}
        for n, point in enumerate(points):
            arrays = [array(part) for part in point]
            kinds.setdefault(tuple(a.dtype.kind for a in arrays), []).append((n, arrays))
        found: list[Any] = [None] * len(points)
        for kind, group in kinds.items():
            floats = tuple(i for i, k in enumerate(kind) if k == "f")
            stacked = [jnp.stack(xs) for xs in zip(*(arrays for _, arrays in group), strict=True)]
            both = jax.value_and_grad(log_prob, argnums=floats) if floats else lambda *p: (log_prob(*p), ())
            values, gradients = jax.jit(jax.vmap(both))(*stacked)
            assert values.dtype == dtype
            for k, (n, _) in enumerate(group):
                parts = [np.ravel(g[k]).astype(float) for g in gradients]
                found[n] = float(values[k]), np.concatenate([np.zeros(0), *parts])
        return found


def errors(entry):
    """Pairs (point, dtype, errors in units of what the invariant allows with C = 1): value first, then derivatives."""
    make, formula, points, *at = entry
    truth = [exact(formula, p) for p in points]
    for dtype in (np.float32, np.float64):
        eps = float(np.finfo(dtype).eps)
        for point, (value, g, value_room, room), (got, slopes) in zip(
            points, truth, evaluate(make, points, dtype, *at), strict=True
        ):
            if g is None:
                yield point, dtype, [0.0 if got == value else np.inf]
                continue
            pairs = [(got, value, value_room), *zip(slopes.tolist(), g, room, strict=True)]
            off = [abs(a - b) / (eps * r) if np.isfinite(a) else mp.inf for a, b, r in pairs]
            yield point, dtype, [float(x) for x in off]


def test_every_family_of_numpyro_is_in_the_table_or_left_out_for_a_reason():
    classes = {n for n, c in vars(dist).items() if isinstance(c, type) and issubclass(c, dist.Distribution)}
    named = {name.split(",")[0] for name in FAMILIES}
    assert not named & set(LEFT_OUT)
    assert classes == named | set(LEFT_OUT)


@pytest.mark.parametrize("name", FAMILIES)
def test_log_densities_and_their_derivatives_are_exact_but_for_rounding(name):
    wrong = [
        f"{np.dtype(d).name} {p}: {[round(e, 1) for e in off]}"
        for p, d, off in errors(FAMILIES[name])
        if not max(off) <= C
    ]
    assert not wrong, "errors, in units of eps (1 + |f| + condition):\n" + "\n".join(wrong)


@pytest.mark.parametrize("name", NOT_EXACT)
def test_a_point_that_is_named_as_not_exact_is_not(name):
    """A point whose density has become exact goes into the table."""
    make, formula, _, *at = FAMILIES[name]
    assert any(max(off) > C for _, _, off in errors((make, formula, [NOT_EXACT[name][0]], *at)))


@pytest.mark.parametrize("name", ["Gamma", "Chi2", "InverseGamma", "Beta", "BetaProportion", "Dirichlet"])
def test_the_log_density_of_a_draw_is_that_of_its_value(name):
    """A draw's log density is computed on the way that made the draw, here of large concentrations in float32."""
    make, formula, points, *_ = FAMILIES[name]
    parameters = points[-1][1:]

    @vipl.gen
    def program():
        sample("x", make(*(jnp.asarray(p, np.float32) for p in parameters)))

    with jax.enable_x64(False):
        traces = jax.jit(jax.vmap(program().simulate))(jax.random.split(jax.random.key(0), 5))
    for x, got in zip(np.asarray(traces.choices["x"]).tolist(), np.asarray(traces.log_prob, float), strict=True):
        value, _, room, _ = exact(formula, (x, *parameters))
        assert abs(got - value) <= C * np.finfo(np.float32).eps * room


def test_an_impossible_category_is_not_drawn_by_a_multinomial():
    """Where the uniform number is 0, which it is once in 2^23 draws."""
    p = jnp.array([0.0, 0.25, 0.75], np.float32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax.random, "uniform", lambda key, shape, *a, **k: jnp.zeros(shape, np.float32))
        drawn = stabilize(dist.MultinomialProbs(p, 5)).sample(jax.random.key(0), (2,))
    assert drawn.tolist() == [[0, 5, 0]] * 2
