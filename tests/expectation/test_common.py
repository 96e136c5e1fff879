"""Values that all lanes of an enumerated site have in common are computed once; impossible ones do no harm."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from jax.scipy.special import xlogy

import vipl
from tests.helpers.jaxprs import equations
from vipl import Enumerate, Score, sample
from vipl.estimators import Estimator, Points

LANES = 5
X = np.linspace(-1.3, 1.7, LANES)

# Which values have the probability zero, by lane: some in some lanes; 0 in all lanes.
PATTERNS = {"by lane": [[0], [2], [], [1, 2], [0]], "everywhere": [[0], [0, 1], [0], [0], [0, 2]]}


def params(n):
    """A table for lookups, weights, and numbers that are differentiated in, too."""
    rows = jnp.linspace(0.4, 1.9, n)
    return {"table": rows, "rows": jnp.outer(rows, jnp.arange(1.0, 4.0)), "scale": jnp.array(0.7), "x": jnp.asarray(X)}


def one_hot_row(p, k):
    return jax.nn.one_hot(k, p["table"].shape[0]) @ p["rows"]


PROGRAMS = {
    "lookup": lambda p, k, x: p["table"][k] * x,
    "lookups": lambda p, k, x: -0.5 * ((x - p["table"][k]) / jnp.exp(p["rows"][k, 1])) ** 2 - p["rows"][k, 1],
    "row": lambda p, k, x: jnp.sum(jnp.sin(p["rows"][k] * x)),
    "parts of a row": lambda p, k, x: jnp.sum(jnp.sin(p["rows"][k] * (k + 1))[jnp.array([2, 0])] ** 2) * x,
    "repeated": lambda p, k, x: (
        jnp.sum(jnp.broadcast_to(k, (3,)) * p["rows"][0] + p["rows"][k, jnp.array([0, 2, 1])]) * x
    ),
    "the next row": lambda p, k, x: p["table"][(k + 1) % p["table"].shape[0]] * x,
    "shifted": lambda p, k, x: jnp.append(p["table"], 3.0)[k + 1] * jnp.exp(x),
    "affine": lambda p, k, x: (p["scale"] * k + 0.5 - x) ** 2,
    "log": lambda p, k, x: x * p["scale"] * jnp.log(k),
    "inverse": lambda p, k, x: jnp.sin(x) / (p["scale"] * k),
    "root": lambda p, k, x: jnp.sqrt(k * p["scale"]) * x,
    "root by lane": lambda p, k, x: jnp.sqrt(k * p["scale"] * (x + 2.0)),
    "root and a matrix": lambda p, k, x: jnp.sum(p["rows"] @ jnp.ones(3)) * jnp.sqrt(k * (x + 2.0)),
    "matrix": lambda p, k, x: jnp.sum(jnp.tanh(p["rows"].T @ jax.nn.one_hot(k, p["table"].shape[0]) * x)),
    "softplus": lambda p, k, x: jax.nn.softplus(x * jnp.log(k) * p["scale"]),
    "xlogy": lambda p, k, x: xlogy(x + 2.0, k * p["scale"]),
    "power": lambda p, k, x: (k * p["scale"]) ** (x + 0.3),
    "both ways": lambda p, k, x: jnp.where(k > 0, jnp.log(k * p["scale"]), x) * x,
    "a cumulative sum": lambda p, k, x: jnp.cumsum(p["rows"][k] * jnp.log(k) * x)[-1],
    "a loop": lambda p, k, x: jax.lax.fori_loop(0, 2, lambda _, c: c * jnp.log(k * p["scale"] + x * x), p["scale"]),
    "compared": lambda p, k, x: jnp.maximum(jnp.log(k * p["scale"]) * x, p["scale"]),
}


def logits_of(pattern, n):
    theta = jax.random.normal(jax.random.key(1), (LANES, n))
    mask = np.zeros((LANES, n))
    for lane, values in enumerate(pattern):
        mask[lane, [v for v in values if v < n]] = -np.inf
        if not np.isfinite(mask[lane]).any():
            mask[lane, -1] = 0.0
    return theta, mask


def exactly(program, mask):
    """The sum over the lanes and over the values that are possible."""

    def total(theta, p):
        out = 0.0
        for lane in range(LANES):
            values = [v for v in range(theta.shape[1]) if np.isfinite(mask[lane, v])]
            weights = jax.nn.softmax(theta[lane, np.array(values)])
            out += sum(w * program(p, jnp.asarray(v), p["x"][lane]) for w, v in zip(weights, values, strict=True))
        return out

    return total


def by_vipl(program, mask, estimator):
    @vipl.expectation
    def total(theta, p):
        def lane(theta, mask, x):
            k = sample("k", dist.Categorical(logits=theta + mask), estimator)
            return program(p, k, x)

        return jnp.sum(jax.vmap(lane)(theta, mask, p["x"]))

    return lambda theta, p: total.estimate(jax.random.key(0), theta, p)


def in_a_vmap(program, mask, estimator):
    """Each lane is an expectation of its own."""

    @vipl.expectation
    def one(theta, mask, p, x):
        k = sample("k", dist.Categorical(logits=theta + mask), estimator)
        return program(p, k, x)

    def total(theta, p):
        def lane(theta, mask, x):
            return one.estimate(jax.random.key(0), theta, mask, p, x)

        return jnp.sum(jax.vmap(lane)(theta, mask, p["x"]))

    return total


WAYS = {"in the program": by_vipl, "around it": in_a_vmap}


@pytest.mark.parametrize(
    ("pattern", "n", "lanes"),
    [
        ("by lane", 2, "in the program"),
        ("by lane", 3, "around it"),
        ("everywhere", 3, "in the program"),
        ("everywhere", 3, "around it"),
    ],
)
@pytest.mark.parametrize("name", PROGRAMS)
def test_enumerated_lanes_are_the_sum_over_what_is_possible(name, pattern, n, lanes):
    """Law: value and first derivatives are those of Σ_l Σ_v p_lv f(v, l) over the values that are possible."""
    theta, mask = logits_of(PATTERNS[pattern], n)
    program, p = PROGRAMS[name], params(n)
    if pattern != "everywhere" and name in ("log", "inverse", "both ways", "compared", "softplus", "root", "a loop"):
        program = lambda p, k, x: PROGRAMS[name](p, k + 1, x)  # noqa: E731  # 0 is possible somewhere
    if pattern != "everywhere" and name in ("a cumulative sum", "power", "root by lane", "xlogy", "root and a matrix"):
        program = lambda p, k, x: PROGRAMS[name](p, jnp.minimum(k + 1, n - 1), x)  # noqa: E731
    got = jax.jit(jax.value_and_grad(WAYS[lanes](program, mask, Enumerate()), argnums=(0, 1)))(theta, p)
    want = jax.jit(jax.value_and_grad(exactly(program, mask), argnums=(0, 1)))(theta, p)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(want))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-10), got, want)


# f(v, l) that is no number for v = 0 and lane l alone, where that value is not possible there; elsewhere it is one.
BY_LANE = {
    "log": lambda p, k, x, bad: jnp.log(k * p["scale"] + 1.0 - bad) * x,
    "a parameter's log": lambda p, k, x, bad: jnp.log(p["scale"] * (k + 1.0 - bad)) * x,
    "an infinite row": lambda p, k, x, bad: jnp.where(bad * (k == 0), jnp.inf, p["table"][k]) * p["scale"] * x,
    "a row's log": lambda p, k, x, bad: jnp.log(p["table"][k] * (k + 1.0 - bad)) * x,
    "a quotient": lambda p, k, x, bad: p["scale"] / (k + 1.0 - bad) + x,
    "of a matrix": lambda p, k, x, bad: jnp.sum(p["rows"].T @ (jnp.log(k + 1.0 - bad) * p["table"])) * x,
    "its density": lambda p, k, x, bad: dist.Normal(k * p["scale"], jnp.sqrt(k + 1.0 - bad)).log_prob(x),
}


@pytest.mark.parametrize(("n", "lanes"), [(2, "around it"), (3, "in the program"), (3, "around it")])
@pytest.mark.parametrize("name", BY_LANE)
def test_what_is_no_number_in_one_lane_alone_does_no_harm(name, n, lanes):
    """Law: the same, up to second derivatives, where f is infinite or NaN at what is not possible in a lane."""
    theta, mask = logits_of(PATTERNS["by lane"], n)
    bad, p = jnp.asarray(~np.isfinite(mask[:, 0]), float), params(n)

    def program(p, k, x_bad):
        x, bad = x_bad
        return BY_LANE[name](p, k, x, bad)

    def with_bad(fn):
        return lambda theta, p: fn(theta, p | {"x": jnp.stack([p["x"], bad], axis=1)})

    got, want = with_bad(WAYS[lanes](program, mask, Enumerate())), with_bad(exactly(program, mask))
    for derivative in (jax.grad, jax.hessian):
        a, b = (jax.jit(derivative(f, argnums=(0, 1)))(theta, p) for f in (got, want))
        assert all(np.isfinite(x).all() for x in jax.tree.leaves(b))
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9), a, b)


@pytest.mark.parametrize("second", [Enumerate(), Score()], ids=["enumerated", "drawn"])
def test_a_site_that_reads_an_enumerated_one_is_handed_possible_values(second):
    """A logit that would be NaN in a lane where its value is not possible: the sum is exact by `Enumerate`."""
    theta, mask = logits_of(PATTERNS["by lane"], 3)
    bad = jnp.asarray(~np.isfinite(mask[:, 0]), float)

    def logit_of(a, k, bad):
        return jnp.log(a * (k + 1.0 - 1.5 * bad))

    @vipl.expectation
    def total(theta, a):
        def lane(theta, mask, bad):
            k = sample("k", dist.Categorical(logits=theta + mask), Enumerate())
            j = sample("j", dist.Bernoulli(logits=logit_of(a, k, bad)), second)
            return (k + 1.0) * (j + 0.3)

        return jnp.sum(jax.vmap(lane)(theta, mask, bad))

    def exact(theta, a):
        out = 0.0
        for lane in range(LANES):
            for v, w in enumerate(jax.nn.softmax(theta[lane] + mask[lane])):
                if np.isfinite(mask[lane, v]):
                    out += w * (v + 1.0) * (jax.nn.sigmoid(logit_of(a, v, bad[lane])) + 0.3)
        return out

    value, grad = jax.value_and_grad(total.estimate, argnums=(1, 2))(jax.random.key(0), theta, 0.8)
    want = jax.grad(exact, argnums=(0, 1))(theta, 0.8)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves((value, grad)))
    if isinstance(second, Enumerate):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10), grad, want)


@pytest.mark.parametrize("transposed", [False, True])
def test_lanes_in_lanes_and_a_vector_have_their_values_in_common(transposed):
    """Two axes of lanes, in either order, and elements of a vector site."""
    logits = jax.random.normal(jax.random.key(2), (4, 3, 2)).at[1, 2, 0].set(-jnp.inf)
    table, x = jnp.array([0.5, 2.0]), jnp.linspace(0.0, 1.0, 12).reshape(4, 3)

    def lane(logits, x, table):
        return jnp.sin(table[sample("k", dist.Categorical(logits=logits), Enumerate())] * x)

    @vipl.expectation
    def total(logits, table):
        if transposed:
            inner = jax.vmap(lane, (1, 1, None))
            return jnp.sum(jax.vmap(inner, (0, 0, None))(jnp.swapaxes(logits, 1, 2), x[:, None, :], table))
        return jnp.sum(jax.vmap(jax.vmap(lane, (0, 0, None)), (0, 0, None))(logits, x, table))

    @vipl.expectation
    def vector(logits, table):
        flips = sample("k", dist.Bernoulli(logits=logits[..., 1] - logits[..., 0]).to_event(2), Enumerate())
        return jnp.sum(jnp.sin(table[flips] * x))

    def exact(logits, table):
        return jnp.sum(jax.nn.softmax(logits) * jnp.sin(table * x[..., None]))

    possible = logits.at[1, 2].set(0.3)
    for objective in (total, vector):
        args = (logits, table) if objective is total else (possible, table)
        got = jax.value_and_grad(objective.estimate, argnums=(1, 2))(jax.random.key(0), *args)
        want = jax.value_and_grad(exact, argnums=(0, 1))(*args)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12), got, want)


@pytest.mark.parametrize(
    ("promise", "lanes", "spread"), [(False, "in the program", 2), (True, "around it", 2), (False, "around it", None)]
)
def test_no_table_is_looked_up_by_an_enumerated_value_and_none_is_spread(promise, lanes, spread):
    """Law: no gather, no scatter; what depends on the value alone is computed once for all lanes, if that is known."""
    count, n = 1000, 7
    p = {"table": jnp.linspace(0.1, 1.0, n), "theta": jnp.zeros((count, n)), "x": jnp.linspace(0.0, 1.0, count)}

    @vipl.expectation
    def lane(p, theta, x):
        k = sample("k", dist.Categorical(logits=theta), Enumerate(all_possible=promise))
        log_q = dist.CategoricalLogits(theta).log_prob(k)
        return jnp.exp(p["table"][k]) * x - log_q

    @vipl.expectation
    def total(p):
        return jnp.sum(jax.vmap(lambda theta, x: lane(p, theta, x))(p["theta"], p["x"]))

    def totals(p):
        return jnp.sum(jax.vmap(lambda theta, x: lane.estimate(jax.random.key(0), p, theta, x))(p["theta"], p["x"]))

    grad = jax.grad(lambda p: totals(p) if lanes == "around it" else total.estimate(jax.random.key(0), p))
    found = list(equations(jax.make_jaxpr(grad)(p)))
    names = {eqn.primitive.name for eqn in found}
    assert not [name for name in names if "gather" in name or "scatter" in name]
    whole = [eqn for eqn in found if eqn.primitive.name == "exp" and eqn.outvars[0].aval.size == n * count]
    assert spread is None or len(whole) == spread, whole  # the weights, and their sum


def test_an_estimator_of_points_may_say_what_is_possible():
    """The values of one's own estimator, one of them of weight zero: the program is not evaluated there."""

    class Three(Estimator):
        def points(self, law, key):
            del law, key
            weights = jnp.log(jnp.array([0.0, 0.4, 0.6]))
            return Points(jnp.array([0, 1, 2]), weights, jnp.isfinite(weights))

    @vipl.expectation
    def log(a):
        return a * jnp.log(sample("k", dist.Categorical(probs=jnp.array([0.0, 0.4, 0.6])), Three()))

    value, grad = jax.value_and_grad(log.estimate, argnums=1)(jax.random.key(0), 2.0)
    np.testing.assert_allclose(value, 2.0 * 0.6 * np.log(2.0), rtol=1e-12)
    np.testing.assert_allclose(grad, 0.6 * np.log(2.0), rtol=1e-12)


def test_what_is_possible_may_depend_on_more_than_the_lane():
    """A site outside the lanes, enumerated or drawn, or a `vmap` around, decides what is possible."""

    def logits_of(s, t):
        return jnp.where(s == 0, jnp.array([-jnp.inf, 0.0]), 0.0) + t

    def after(estimator):
        @vipl.expectation
        def two(a):
            s = sample("s", dist.Bernoulli(0.5), estimator)

            def lane(t):
                return jnp.sqrt(a * (s + sample("k", dist.Categorical(logits=logits_of(s, t)), Enumerate())))

            return jnp.sum(jax.vmap(lane)(jnp.zeros((3, 2))))

        return two

    grad = jax.grad(after(Enumerate()).estimate, argnums=1)(jax.random.key(0), 1.0)
    np.testing.assert_allclose(grad, 3 * (0.5 * 0.5 + 0.25 * (0.5 + 0.5 * np.sqrt(2.0))), rtol=1e-12)
    grad = jax.grad(lambda a: after(Score()).estimate(jax.random.key(0), a, num_samples=8))(1.0)
    assert 1.5 <= grad <= 3 * (0.5 + 0.5 * np.sqrt(2.0)) / 2 * 1.001  # between those of s = 0 and s = 1

    @vipl.expectation
    def rows(theta, a):
        def lane(t):
            return jnp.sqrt(a + sample("k", dist.Categorical(logits=t), Enumerate()))

        return jnp.sum(jax.vmap(lane)(theta))

    theta = jnp.zeros((2, 3, 2)).at[0, :, 0].set(-jnp.inf)
    slope = jax.vmap(jax.grad(rows.estimate, argnums=2), (None, 0, 0))(jax.random.key(0), theta, jnp.array([0.0, 1.0]))
    np.testing.assert_allclose(slope, [1.5, 3 * 0.25 * (1.0 + 1.0 / np.sqrt(2.0))], rtol=1e-12)


def test_a_value_that_is_held_may_be_no_number_where_a_site_alone_is_not():
    """The first value is impossible, f is NaN there, and is seen held and not held."""

    @vipl.expectation
    def both(theta):
        k = sample("k", dist.Categorical(logits=jnp.array([-jnp.inf, 0.0, 1.0])), Enumerate())
        y = theta * jnp.log(k - 0.5)
        return y + jax.lax.stop_gradient(y)

    p = jax.nn.softmax(jnp.array([0.0, 1.0]))
    want = jnp.sum(p * jnp.log(jnp.array([0.5, 1.5])))
    value, slope = both.value_and_grad(jax.random.key(0), 0.7)
    np.testing.assert_allclose([value, slope], [2 * 0.7 * want, want], rtol=1e-12)


def test_logits_may_be_of_half_precision():
    """What is impossible is told by the dtype's own smallest number."""

    @vipl.expectation
    def one(logits):
        return 1.0 * sample("k", dist.Categorical(logits=logits), Enumerate())

    value = one.estimate(jax.random.key(0), jnp.array([0.0, 1.0, -jnp.inf], jnp.bfloat16))
    np.testing.assert_allclose(value, jax.nn.sigmoid(1.0), rtol=2e-2)
