"""`stop_gradient` in a program: the choice of estimator never changes the expected derivative; and held programs.

Exact answers are sums over all values, or quadrature, in which the probabilities of what is held are taken at a copy of
the parameter that is not differentiated.
"""

from typing import Any

import jax
import jax.experimental
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import optax
import pytest
from jax import lax

import vipl
from tests.helpers.cases import Scaled, tanh
from vipl import (
    ARM,
    CoupledAlternative,
    DisARM,
    Enumerate,
    GumbelSoftmax,
    ImplicitReparam,
    LeaveOneOut,
    LocalEnumerate,
    MeasureValued,
    RejectionReparam,
    Relax,
    Reparam,
    Score,
    StraightThrough,
    sample,
)
from vipl.analysis.stop_gradients import any_meant
from vipl.errors import EstimatorError
from vipl.expectation.plan import make_plan
from vipl.inference import Enumeration
from vipl.ir.stage import stage_program
from vipl.testing import assert_unbiased

KEY = jax.random.key(131)
sg = lax.stop_gradient
THETA = jnp.array([0.4, -0.7])


def flip(logit, x):
    """The probability of a flip's value, f[...]."""
    return jnp.exp(dist.Bernoulli(logits=logit).log_prob(x))


def h(x):
    return 1.0 + 0.8 * jnp.sin(2.0 * jnp.asarray(x, float) + 0.3)


# --- flips, every estimator ------------------------------------------------------------------------------------

FLIPS = {
    "Score": Score(),
    "Score of a number": Score(0.8),
    "Score of a function": Score(lambda d: 1.1),
    "Score of the others": Score(LeaveOneOut()),
    "Enumerate": Enumerate(),
    "MeasureValued": MeasureValued(),
    "LocalEnumerate": LocalEnumerate(),
    "CoupledAlternative": CoupledAlternative(),
    "DisARM": DisARM(),
    "ARM": ARM(),
    "Relax": Relax(tanh),
}


def drawn(t, e, hold_a=False):
    """Two flips, of which the second depends on the first, held or not."""
    a = sample("a", dist.Bernoulli(logits=t[0]), e)
    b = sample("b", dist.Bernoulli(logits=t[1] + 0.9 * (sg(a) if hold_a else a)), e)
    return a, b


@vipl.gen
def guide(t, e):
    return drawn(t, e)


@vipl.gen
def model():
    a = sample("a", dist.Bernoulli(0.3))
    b = sample("b", dist.Bernoulli(0.6))
    sample("y", dist.Normal(a + 0.5 * b, 1.0))


def defect(t, z):
    return guide(t, None).assess(z).log_prob - model().assess(z | {"y": 0.7}).log_prob


def balance(t, e):
    return defect(t, sg(guide(t, e).simulate().choices)) ** 2


def held_trace(t, e):
    q = sg(guide(t, e).simulate())
    return q.log_prob * guide(t, None).assess(q.choices).log_prob + t[0] * q.retval[1]


def in_a_jit(t, e):
    a, b = drawn(t, e)
    term = jax.jit(lambda a, t: t[1] * h(a) + h(sg(a)) * t[0])
    return term(a, t) + h(b)


def in_a_scan(t, e):
    a, b = drawn(t, e)
    step = lambda c, k: (c * t[0] + h(sg(a) + k) * h(sg(b)), None)  # noqa: E731
    return lax.scan(step, 0.0, jnp.arange(3.0))[0] + h(a + b)


def in_a_cond(t, e):
    a, b = drawn(t, e)
    return lax.cond(sg(a) > 0, lambda b: t[0] * h(b), lambda b: t[1] * h(2.0 * b), b) + h(a)


def in_a_where(t, e):
    a, b = drawn(t, e)
    return jnp.where(sg(b) == 1, t[0] * h(sg(a)), t[1]) + jnp.where(a == 1, t[1], 2.0)


def in_a_loop(t, e):
    a, b = drawn(t, e)
    free = lax.while_loop(lambda c: c[1] < 3, lambda c: (c[0] * h(sg(a)), c[1] + 1), (1.0, 0))[0]
    return free + h(a) * h(b)


def masked(t, e):
    a, b = drawn(t, e)
    terms = jnp.stack([h(a) - h(sg(b)), jnp.log(h(a) - h(a)) / 0.0])
    return jnp.where(jnp.array([True, False]), terms, 0.0).sum()


# name -> program; and f(t, a, b, kept) = the terms, each with what it holds: a pair (a held?, b held?)
PROGRAMS = {
    "held": (lambda t, e: t[0] * h(sum(sg(drawn(t, e)))), lambda t, a, b: {(1, 1): t[0] * h(a + b)}),
    "not held": (lambda t, e: t[0] * h(sum(drawn(t, e))), lambda t, a, b: {(0, 0): t[0] * h(a + b)}),
    "a sum": (
        lambda t, e: (lambda a, b: t[1] * h(a) - 2.0 * h(sg(a + 2 * b)) + h(b) * h(a) / 3.0)(*drawn(t, e)),
        lambda t, a, b: {(0, 0): t[1] * h(a) + h(b) * h(a) / 3.0, (1, 1): -2.0 * h(a + 2 * b)},
    ),
    "balance": (balance, lambda t, a, b: {(1, 1): defect(t, {"a": a, "b": b}) ** 2}),
    "a whole trace": (
        held_trace,
        lambda t, a, b: {
            (1, 1): (lambda q: sg(q) * q)(guide(t, None).assess({"a": a, "b": b}).log_prob) + t[0] * b
        },
    ),
    "a parameter": (
        lambda t, e: (lambda a, b: t[1] * h(a) + t[0] * h(b))(*drawn(t, e, hold_a=True)),
        lambda t, a, b: {(0, 1): t[1] * h(a), (1, 0): t[0] * h(b)},
    ),
    "in a jit": (in_a_jit, lambda t, a, b: {(0, 0): t[1] * h(a) + h(b), (1, 1): h(a) * t[0]}),
    "in a scan": (
        in_a_scan,
        lambda t, a, b: {
            (0, 0): h(a + b),
            (1, 1): h(b) * (h(a) * t[0] ** 2 + h(a + 1) * t[0] + h(a + 2)),
        },
    ),
    "in a while": (in_a_loop, lambda t, a, b: {(0, 0): h(a) * h(b), (1, 1): h(a) ** 3}),
    "in a where": (
        in_a_where,
        lambda t, a, b: {
            (1, 1): jnp.where(b == 1, t[0] * h(a), t[1]), (0, 0): jnp.where(a == 1, t[1], 2.0),
        },
    ),
    "masked": (masked, lambda t, a, b: {(0, 0): h(a), (1, 1): -h(b)}),
}  # fmt: skip


def expected(terms, t):
    """Σ over values of each term, the probabilities of what it holds held."""
    fixed, total = sg(t), 0.0
    for a in (0, 1):
        for b in (0, 1):
            for (a_held, b_held), term in terms(t, a, b).items():
                p = flip((fixed if a_held else t)[0], a) * flip((fixed if b_held else t)[1] + 0.9 * a, b)
                total += p * term
    return total


def gradient(program, estimator, num_samples=1):
    """One draw of value and gradient, `(key, t, scale)`; with a scale other than 1 the estimator is broken."""
    objective = vipl.expectation(lambda t, scale: program(t, Scaled(estimator, scale)))

    def draw(key, t, scale):
        estimate = lambda t: objective.estimate(key, t, scale, num_samples=num_samples)  # noqa: E731
        value, grad = jax.value_and_grad(estimate)(t)
        return {"value": value, "grad": grad}

    return draw


GOOD, BROKEN = jnp.ones(()), jnp.array(0.5)

PAIRS = [
    *((case, "Score") for case in PROGRAMS),
    *((case, "MeasureValued") for case in ("held", "a parameter", "in a scan")),
    *(("a sum", name) for name in FLIPS if name not in ("Score", "Enumerate")),
    ("a parameter", "CoupledAlternative"),
]


def exactly(terms, t):
    value, grad = jax.value_and_grad(lambda t: expected(terms, t))(t)
    return {"value": value, "grad": grad}


@pytest.mark.parametrize("case", PROGRAMS)
def test_an_enumerated_site_that_is_held_is_averaged_without_derivative(case):
    program, terms = PROGRAMS[case]
    found, exact = gradient(program, Enumerate())(KEY, THETA, GOOD), exactly(terms, THETA)
    np.testing.assert_allclose(found["value"], exact["value"], rtol=1e-9)
    np.testing.assert_allclose(found["grad"], exact["grad"], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("case", "name"), PAIRS, ids=[" - ".join(p) for p in PAIRS])
def test_what_is_held_has_no_derivative_of_its_law(case, name):
    program, terms = PROGRAMS[case]
    draw = gradient(program, FLIPS[name], 2 if name == "Score of the others" else 1)
    assert_unbiased(draw, exactly(terms, THETA), key=KEY, resolution=0.09, args=(THETA, GOOD))


@pytest.mark.parametrize("name", ["Score", "MeasureValued"])
def test_a_broken_estimator_is_caught_where_a_part_is_held(name):
    program, terms = PROGRAMS["a sum"]
    draw = gradient(program, FLIPS[name])
    with pytest.raises(AssertionError, match="z = "):
        assert_unbiased(draw, exactly(terms, THETA), key=KEY, resolution=0.09, args=(THETA, BROKEN))


def test_what_was_the_gradient_before_is_caught():
    """The law of the draws counted although they were held: trajectory balance had the gradient of its value."""
    _, terms = PROGRAMS["balance"]
    counted = lambda t, a, b: {(0, 0): terms(t, a, b)[1, 1]}  # noqa: E731
    with pytest.raises(AssertionError, match="z = "):
        assert_unbiased(
            gradient(balance, Score()), exactly(counted, THETA), key=KEY, resolution=0.09, args=(THETA, GOOD)
        )


def test_the_balance_of_one_flip_has_the_gradient_at_fixed_draws():
    @vipl.gen
    def flipped(phi):
        sample("z", dist.Bernoulli(logits=phi), Enumerate())

    @vipl.gen
    def coin():
        z = sample("z", dist.Bernoulli(0.3))
        sample("y", dist.Normal(z, 1.0))

    def squared(phi, z):
        return (flipped(phi).assess(z).log_prob - coin().assess(z | {"y": 0.7}).log_prob) ** 2

    by_hand = vipl.expectation(lambda phi: squared(phi, sg(flipped(phi).simulate().choices)))
    ours = vipl.expectation(lambda phi: vipl.objectives.trajectory_balance(coin(), flipped(phi), {"y": 0.7}, 0.0))
    exact = sum(flip(sg(0.4), z) * jax.grad(squared)(0.4, {"z": jnp.array(z)}) for z in (0, 1))
    for objective in (by_hand, ours):
        np.testing.assert_allclose(jax.grad(objective.estimate, argnums=1)(KEY, 0.4), exact, rtol=1e-9)


# --- numbers, pathwise estimators among others -----------------------------------------------------------------

NODES, WEIGHTS = np.polynomial.hermite_e.hermegauss(60)


def gauss(f):
    """E[f(ε)] of a standard normal ε."""
    return jnp.sum(jnp.asarray(WEIGHTS) * jax.vmap(f)(jnp.asarray(NODES))) / np.sqrt(2.0 * np.pi)


def two_normals(t, e):
    """A part that is held, a part that is not, and a law that depends on what is held."""
    a = sample("a", dist.Normal(t[0], 1.0), e)
    b = sample("b", dist.Normal(t[1] * sg(a), 1.0), e)
    return sg(a**2) * t[1] + jnp.sin(a) + t[0] * jnp.sin(b)


def two_normals_exactly(t):
    fixed = sg(t)

    def one(x):
        a, a_held = t[0] + x, fixed[0] + x
        return a_held**2 * t[1] + jnp.sin(a) + t[0] * gauss(lambda y: jnp.sin(t[1] * a_held + y))

    return gauss(one)


@pytest.mark.parametrize(
    "estimator", [Reparam(), Score(), Score(0.3), MeasureValued(), ImplicitReparam()],
    ids=["Reparam", "Score", "Score of a number", "MeasureValued", "ImplicitReparam"],
)  # fmt: skip
def test_pathwise_estimators_agree_with_the_others(estimator):
    value, grad = jax.value_and_grad(two_normals_exactly)(THETA)
    draw = gradient(two_normals, estimator)
    assert_unbiased(draw, {"value": value, "grad": grad}, key=KEY, resolution=0.15, args=(THETA, GOOD))


@pytest.mark.parametrize("estimator", [Reparam(), RejectionReparam(), Score()], ids=["Reparam", "Rejection", "Score"])
def test_a_gamma_that_is_held(estimator):
    """E[x] = a and E[log x] = digamma(a)."""

    def program(a, e):
        x = sample("x", dist.Gamma(a, 1.0), e)
        return sg(x) * a + jnp.log(x)

    exact = {"value": 4.0 + jax.scipy.special.digamma(2.0), "grad": 2.0 + jax.scipy.special.polygamma(1, 2.0)}
    assert_unbiased(gradient(program, estimator), exact, key=KEY, resolution=0.15, args=(jnp.array(2.0), GOOD))


@pytest.mark.parametrize("estimator", [StraightThrough(), GumbelSoftmax(0.5)], ids=["StraightThrough", "GumbelSoftmax"])
def test_a_relaxed_flip_that_is_held_has_no_derivative(estimator):
    objective = vipl.expectation(lambda t: t * h(sg(sample("x", dist.Bernoulli(logits=t), estimator))) + 0.0 * t)
    value, grad = jax.value_and_grad(objective.estimate, argnums=1)(KEY, 0.4)
    np.testing.assert_allclose(grad * 0.4, value, rtol=1e-12)


def test_a_users_own_straight_through():
    """Its derivative is that of p alone: E[2 z p'], z held."""

    def program(t, e):
        z, p = sample("z", dist.Bernoulli(logits=t), e), jax.nn.sigmoid(t)
        return (p + sg(z - p)) ** 2

    p = jax.nn.sigmoid(0.4)
    exact = {"value": p, "grad": 2 * p * p * (1 - p)}
    np.testing.assert_allclose(gradient(program, Enumerate())(KEY, 0.4, GOOD)["grad"], exact["grad"], rtol=1e-9)
    assert_unbiased(gradient(program, Score()), exact, key=KEY, resolution=0.02, args=(jnp.array(0.4), GOOD))


def test_a_users_own_score_function_at_held_draws():
    """The box exp(l - sg l), and a mean of the other lanes as baseline: both are right where the draws are held."""

    def program(t, e):
        z = sg(jax.vmap(lambda _: sample("z", dist.Bernoulli(logits=t), e))(jnp.arange(3)))
        log_q = dist.Bernoulli(logits=t).log_prob(z)
        others = (jnp.sum(h(z)) - h(z)) / 2.0
        score = jnp.sum((h(z) - others) * log_q)
        return jnp.sum(h(z) * jnp.exp(log_q - sg(log_q))) + score - sg(score)

    value, grad = jax.value_and_grad(lambda t: 3 * sum(flip(t, z) * h(z) for z in (0, 1)))(0.4)
    exact = {"value": value, "grad": 2 * grad}
    np.testing.assert_allclose(gradient(program, Enumerate())(KEY, 0.4, GOOD)["grad"], 2 * grad, rtol=1e-9)
    assert_unbiased(gradient(program, Score()), exact, key=KEY, resolution=0.2, args=(jnp.array(0.4), GOOD))


# --- loops, branches, lanes: a sum is taken apart wherever it stands ---------------------------------------------


def term(t, e) -> Any:
    x = sample("x", dist.Bernoulli(logits=t), e)
    return h(x) - t * h(sg(2 * x))


SUMS = {
    "carried": lambda t, e: lax.scan(lambda c, _: (c + term(t, e), None), 0.0, None, 3)[0],
    "carried, less": lambda t, e: -lax.scan(lambda c, _: (c - term(t, e), None), 0.0, None, 3)[0],
    "stacked": lambda t, e: lax.scan(lambda c, _: (c, term(t, e)), 0.0, None, 3)[1].sum(),
    "written out": lambda t, e: lax.scan(lambda c, _: (c + term(t, e), None), 0.0, None, 3, unroll=True)[0],
    "in lanes": lambda t, e: jax.vmap(lambda _: term(t, e))(jnp.arange(3)).sum(),
    "a loop in lanes": lambda t, e: jax.vmap(lambda _: lax.scan(lambda c, _: (c + term(t, e), None), 0.0, None, 1)[0])(
        jnp.arange(3)
    ).sum(),
    "a loop in a loop": lambda t, e: lax.scan(
        lambda c, _: (c + lax.scan(lambda c, _: (c + term(t, e), None), 0.0, None, 1)[0], None), 0.0, None, 3
    )[0],
    "in a branch": lambda t, e: 3.0 * lax.cond(t > 0, lambda: term(t, e), lambda: 1.0),
    "in a mapped branch": lambda t, e: jax.vmap(lambda k: lax.cond(k > 0, lambda: term(t, e), lambda: 0.0))(
        jnp.arange(4)
    ).sum(),
    "in a checkpoint": lambda t, e: (
        3.0 * jax.checkpoint(lambda x: h(x) - t * h(sg(2 * x)))(sample("x", dist.Bernoulli(logits=t), e))
    ),
    "in a compiled loop": lambda t, e: jax.jit(
        lambda t: lax.scan(lambda c, _: (c + term(t, e), None), 0.0, None, 3)[0]
    )(t),
}


@pytest.mark.parametrize("name", SUMS)
def test_sums_are_taken_apart_wherever_they_stand(name):
    t = jnp.array(0.4)
    value, grad = jax.value_and_grad(
        lambda t: 3 * sum(flip(t, x) * h(x) - t * sg(flip(t, x)) * h(2 * x) for x in (0, 1))
    )(t)  # fmt: skip
    one = gradient(SUMS[name], Enumerate())(KEY, t, GOOD)
    np.testing.assert_allclose([one["value"], one["grad"]], [value, grad], rtol=1e-9)
    if name in ("carried", "a loop in lanes", "in a branch"):
        exact = {"value": value, "grad": grad}
        assert_unbiased(gradient(SUMS[name], Score()), exact, key=KEY, resolution=0.25, args=(t, GOOD))


def test_steps_that_are_written_out_are_told_apart_where_a_state_is_held():
    """Each flip's law depends on the one before, held; with data of integers beside them."""
    counts = jnp.array([1, 2, 3])

    @vipl.gen
    def chain(t, unroll):
        def step(before, _):
            x = sample("x", dist.Bernoulli(logits=t + sg(before)), Enumerate())
            return 1.0 * x, x

        return lax.scan(step, 0.0, None, 3, unroll=unroll)[1]

    def program(t, unroll):
        return t * (1.0 * chain(t, unroll).simulate().retval) @ (1.0 * counts)

    def exact(t):
        total = 0.0
        for xs in np.ndindex(2, 2, 2):
            for k, x in enumerate(xs):
                laws = [flip((t if i == k else sg(t)) + (xs[i - 1] if i else 0), xs[i]) for i in range(3)]
                total += laws[0] * laws[1] * laws[2] * t * x * (k + 1.0)
        return total

    found = jax.value_and_grad(vipl.expectation(lambda t: program(t, True)).estimate, argnums=1)(KEY, 0.3)
    np.testing.assert_allclose(found, jax.value_and_grad(exact)(0.3), rtol=1e-9)
    with pytest.raises(EstimatorError, match="unroll=True"):
        jax.grad(vipl.expectation(lambda t: program(t, 1)).estimate, argnums=1)(KEY, 0.3)


# --- what is no stop of the user's -------------------------------------------------------------------------------


@jax.custom_jvp
def doubled(x):
    return 2.0 * sg(x)


doubled.defjvp(lambda primals, tangents: (doubled(*primals), 2.0 * tangents[0]))

QUIET = {
    "logsumexp": lambda x: jax.nn.logsumexp(jnp.stack([x, 0.3])),
    "softmax": lambda x: jax.nn.softmax(jnp.stack([x, 0.3]))[0],
    "log_softmax in lanes": lambda x: jax.vmap(jax.nn.log_softmax)(jnp.stack([x, 0.3])[None])[0, 1],
    "scipy": lambda x: jax.scipy.special.logsumexp(jnp.stack([x, 2 * x])),
    "a mixture": lambda x: dist.MixtureSameFamily(
        dist.Categorical(logits=jnp.stack([x, 0.2])), dist.Normal(jnp.array([0.0, 1.0]), 1.0)
    ).log_prob(0.3),
    "optax": lambda x: optax.losses.softmax_cross_entropy(jnp.stack([x, 1.0])[None], jnp.ones((1, 2))).sum(),
    "a function with a rule": doubled,
    "a comparison": lambda x: jnp.where(x > 0.5, 2.0, 1.0),
    "a cast": lambda x: x.astype(int) * 2.0,
    "a grad": lambda x: jax.grad(lambda u: jax.nn.logsumexp(jnp.stack([u, 0.3])))(x),
}


@pytest.mark.parametrize("name", QUIET)
def test_librarys_own_stops_are_none(name):
    fn = QUIET[name]

    def program(t, e):
        return fn(sample("x", dist.Bernoulli(logits=t), e).astype(float)) ** 2

    assert not any_meant(stage_program(program, (0.4, Enumerate()), {}).jaxpr)
    exact = jax.value_and_grad(lambda t: sum(flip(t, x) * fn(jnp.array(float(x))) ** 2 for x in (0, 1)))(0.4)
    found = jax.value_and_grad(vipl.expectation(lambda t: program(t, Enumerate())).estimate, argnums=1)(KEY, 0.4)
    np.testing.assert_allclose(found, exact, rtol=1e-9)


WAYS = {
    "plain": sg,
    "a tree": lambda x: sg({"a": (x, [x])})["a"][1][0],
    "mapped over a tree": lambda x: jax.tree.map(sg, {"a": x})["a"],
    "mapped": lambda x: jax.vmap(sg)(x[None])[0],
    "mapped by a function": lambda x: jax.vmap(lambda y: sg(y) * 1.0)(x[None])[0],
    "a loop": lambda x: lax.map(sg, x[None])[0],
    "compiled": lambda x: jax.jit(sg)(x),
    "checkpoint": lambda x: jax.checkpoint(lambda y: sg(y) * 1.0)(x),
    "a branch": lambda x: lax.cond(x.ndim == 0, sg, sg, x),
    "inside a derivative": lambda x: jax.grad(lambda u: sg(x) * u)(1.0),
    "under a derivative": lambda x: jax.grad(lambda u: sg(u) * u)(x),
}


@pytest.mark.parametrize("name", WAYS)
def test_every_way_to_stop_is_seen(name):
    for estimator in (Score(), Enumerate(), MeasureValued()):
        objective = vipl.expectation(
            lambda t, e=estimator: t * WAYS[name](sample("x", dist.Bernoulli(logits=t), e).astype(float))
        )  # fmt: skip
        value, grad = jax.value_and_grad(objective.estimate, argnums=1)(jax.random.key(1), 0.4)
        np.testing.assert_allclose(grad * 0.4, value, rtol=1e-12)


def test_a_program_that_holds_data_alone_is_the_same_bit_for_bit():
    def results(hold):
        def objective(t, y):
            a = sample("a", dist.Bernoulli(logits=t + hold(y)), Score(h(hold(y))))
            b = sample("b", dist.Normal(a + t, 1.0), Score(jnp.sin(1.0 * a)))
            return h(a) * t + jnp.sin(b) * hold(y)

        run = lambda key: jax.value_and_grad(vipl.expectation(objective).estimate, argnums=1)(key, 0.3, 0.5)  # noqa: E731
        return jax.vmap(run)(jax.random.split(KEY, 20))

    np.testing.assert_array_equal(results(sg), results(lambda x: x))


# --- both ways: an error where it matters ------------------------------------------------------------------------


def both_ways(t, e):
    z = sample("z", dist.Bernoulli(logits=t[0]), e)
    weight = h(sg(z))
    other = h(2 * z) + t[1]
    return weight * other


@pytest.mark.parametrize("estimator", [Score(), Score(0.5), Enumerate(), MeasureValued(), CoupledAlternative()])
def test_both_ways_is_an_error_when_the_law_is_differentiated_and_only_then(estimator):
    objective = vipl.expectation(lambda t: both_ways(t, estimator))
    with pytest.raises(EstimatorError, match="held in both_ways .* not held in both_ways") as raised:
        jax.grad(objective.estimate, argnums=1)(KEY, THETA)
    lines = {int(part.split(":")[1].split(")")[0]) for part in raised.value.got.split(".py")[1:]}
    first = both_ways.__code__.co_firstlineno
    assert lines == {first + 2, first + 3}

    if not isinstance(estimator, (Score, Enumerate)):
        return
    exact = sum(flip(THETA[0], z) * h(z) * (h(2 * z) + THETA[1]) for z in (0, 1))
    slope = sum(flip(THETA[0], z) * h(z) for z in (0, 1))

    def draw(key, t):
        value, grad = jax.value_and_grad(lambda b: objective.estimate(key, (t[0], b)))(t[1])
        return {"value": value, "grad": grad}

    assert_unbiased(draw, {"value": exact, "grad": slope}, key=KEY, resolution=0.1, args=(THETA,))


def test_both_ways_is_no_error_for_a_pathwise_estimator():
    """E[x sg(x)] at Normal(m, 1): the derivative is E[sg(x)] = m."""
    objective = vipl.expectation(lambda m: (lambda x: x * sg(x))(sample("x", dist.Normal(m, 1.0))))
    exact = {"value": 1.25, "grad": 0.5}

    def draw(key):
        value, grad = jax.value_and_grad(objective.estimate, argnums=1)(key, 0.5)
        return {"value": value, "grad": grad}

    assert_unbiased(draw, exact, key=KEY, resolution=0.05)


def test_a_live_value_of_a_law_that_depends_on_another_is_followed_through_it():
    """b depends on a; a cost that holds b and not a, or a and not b, sees a both ways."""

    def program(hold_a, hold_b):
        def objective(t):
            a = sample("a", dist.Bernoulli(logits=t), Enumerate())
            b = sample("b", dist.Bernoulli(logits=t + a), Enumerate())
            return hold_a(h(a)) * hold_b(h(b))

        return vipl.expectation(objective)

    free = lambda x: x  # noqa: E731
    for holds in ((sg, free), (free, sg)):
        with pytest.raises(EstimatorError, match='"a" in objective'):
            jax.grad(program(*holds).estimate, argnums=1)(KEY, 0.4)
    assert jax.grad(program(sg, sg).estimate, argnums=1)(KEY, 0.4) == 0.0


def test_values_that_pass_where_they_are_not_seen_are_refused():
    def objective(t, e, hold):
        x = sample("x", dist.Bernoulli(logits=t), e) * 1.0
        jax.experimental.io_callback(lambda: None, None, ordered=True)
        return h(x) + hold(h(2 * x))

    for hold, fails in ((sg, True), (lambda x: x, False)):
        grad = jax.grad(vipl.expectation(lambda t, e: objective(t, e, hold)).estimate, argnums=1)  # noqa: B023
        if fails:
            with pytest.raises(EstimatorError, match="what cannot be followed"):
                grad(KEY, 0.4, Score())
        else:
            assert np.isfinite(grad(KEY, 0.4, Score()))


def test_costs_that_are_merged_do_not_mix_what_is_held():
    """More costs than are kept apart where a site has alternatives: ten flips, each in a term, one of them held too."""

    def program(t):
        estimators = [MeasureValued(), *[Score()] * 9]
        xs = [sample(f"x{k}", dist.Bernoulli(logits=t), e) for k, e in enumerate(estimators)]
        return sum(h(x) * (k + 1.0) for k, x in enumerate(xs)) - 2.0 * h(sg(xs[3]))

    plan = make_plan(stage_program(program, (0.4,), {}))
    (held,) = [p.path for p in plan.found if p.site.address == ("x3",)]
    assert sorted((held in c.held, len(c.reach)) for c in plan.costs.costs if c.reach) == [(False, 10), (True, 1)]
    assert not any(c.mixed for c in plan.costs.costs)


def test_a_nan_of_the_programs_own_stays():
    def objective(t):
        x = sample("x", dist.Bernoulli(logits=t), Enumerate())
        return jnp.where(jnp.array([True, False]), jnp.stack([h(x) - h(sg(x)), 0.0]), 1.0).sum() * jnp.log(t - 1.0)

    assert np.isnan(vipl.expectation(objective).estimate(KEY, 0.4))


# --- held programs -----------------------------------------------------------------------------------------------


def closed_over(m):
    """A guide with parameters in its arguments, its closure, and a helper's closure."""
    helper = lambda z: sample("b", dist.Bernoulli(logits=z + m))  # noqa: E731

    @vipl.gen
    def around(s):
        z = sample("z", dist.Normal(m, s))
        return z + helper(z)

    return around(jnp.exp(m))


@vipl.gen
def observed(z_scale):
    z = sample("z", dist.Normal(0.0, z_scale))
    b = sample("b", dist.Bernoulli(0.3))
    sample("y", dist.Normal(z + b, 1.0))


CHOICES = {"z": 0.7, "b": 1}

HELD = {
    "assess": lambda hold, m: hold(closed_over(m)).assess(CHOICES).log_prob,
    "assess with a key": lambda hold, m: hold(closed_over(m)).assess(CHOICES, key=KEY).log_prob,
    "simulate": lambda hold, m: vipl.seed(lambda: hold(closed_over(m)).simulate().log_prob)(KEY),
    "generate": lambda hold, m: vipl.seed(lambda: hold(closed_over(m)).generate({"z": 0.3})[1])(KEY),
    "sample": lambda hold, m: vipl.seed(lambda: sample("u", hold(closed_over(m))))(KEY),
    "in lanes": lambda hold, m: vipl.seed(
        lambda: jax.vmap(lambda x: sample("u", hold(closed_over(x * m))))(jnp.arange(3.0)).sum()
    )(KEY),
    "in a scan": lambda hold, m: vipl.seed(
        lambda: lax.scan(lambda c, _: (c + sample("u", hold(closed_over(m))), None), 0.0, None, 3)[0]
    )(KEY),
    "a marginal": lambda hold, m: vipl.seed(
        lambda: hold(vipl.marginal(closed_over(m), "z")).assess({"z": 0.3}).log_prob
    )(KEY),
    "an exact marginal": lambda hold, m: vipl.seed(
        lambda: hold(vipl.marginal(closed_over(m), "z", Enumeration())).simulate().log_prob
    )(KEY),
    "a marginal of it": lambda hold, m: vipl.seed(
        lambda: vipl.marginal(hold(closed_over(m)), "z", Enumeration()).assess({"z": 0.3}).log_prob
    )(KEY),
    "particles": lambda hold, m: vipl.seed(
        lambda: (
            hold(vipl.normalize(observed(jnp.exp(m)), {"y": m}, vipl.inference.Importance(3)))
            .particles()
            .log_normalizer
        )
    )(KEY),
    "a posterior": lambda hold, m: vipl.seed(
        lambda: hold(vipl.normalize(observed(jnp.exp(m)), {"y": m}, vipl.inference.Importance(3))).simulate().log_prob
    )(KEY),
    "twice": lambda hold, m: hold(hold(closed_over(m))).assess(CHOICES).log_prob,
    "inside another": lambda hold, m: (
        vipl.gen(lambda: sample("u", hold(closed_over(m))))().assess({"u": CHOICES}).log_prob
    ),
    "a distribution": lambda hold, m: hold(dist.Normal(m, jnp.exp(m))).log_prob(0.3),
    "with estimators": lambda hold, m: vipl.expectation(
        lambda m: sample("u", hold(closed_over(m)).with_estimators({"b": Enumerate()}))
    ).estimate(KEY, m),
    "an objective": lambda hold, m: vipl.expectation(
        lambda m: vipl.objectives.elbo(observed(1.5), hold(closed_over(m)), {"y": 0.2})
    ).estimate(KEY, m),
}


@pytest.mark.parametrize("name", HELD)
def test_a_held_program_has_no_derivative_and_is_otherwise_the_same(name):
    value, grad = jax.value_and_grad(lambda m: HELD[name](vipl.detach, m))(0.6)
    assert grad == 0.0
    # The one is compiled, the other is not; they may add in another order.
    assert jnp.allclose(value, HELD[name](lambda x: x, 0.6), rtol=1e-13)


def test_what_is_held_by_stop_gradient_is_the_arguments_alone():
    fn = lambda hold, m: hold(closed_over(m)).assess(CHOICES).log_prob  # noqa: E731
    assert jax.grad(lambda m: fn(sg, m))(0.6) != 0.0


def test_choices_that_are_given_to_a_held_program_keep_their_derivative():
    both = [
        jax.grad(lambda z, p=p: p.assess({"z": z, "b": 1}).log_prob)(0.7)
        for p in (closed_over(0.6), vipl.detach(closed_over(0.6)))
    ]
    assert both[0] == both[1] != 0.0


def test_an_elbo_with_a_held_guide_learns_the_model_alone():
    """EM: the derivative in the model's parameters, none in the guide's, for every estimator of the guide."""

    @vipl.gen
    def flipped(phi, e):
        sample("b", dist.Bernoulli(logits=phi), e)

    @vipl.gen
    def coin(theta):
        b = sample("b", dist.Bernoulli(logits=theta))
        sample("y", dist.Normal(b, 1.0))

    def program(t, e):
        return vipl.objectives.elbo(coin(t[0]), vipl.detach(flipped(t[1], e)), {"y": 0.2})

    def exactly(t):
        log_joint = lambda b: dist.Bernoulli(logits=t[0]).log_prob(b) + dist.Normal(b, 1.0).log_prob(0.2)  # noqa: E731
        return sum(sg(flip(t[1], b)) * (log_joint(b) - sg(jnp.log(flip(t[1], b)))) for b in (0, 1))

    value, grad = jax.value_and_grad(exactly)(THETA)
    assert grad[1] == 0.0
    exact = {"value": value, "grad": grad}
    np.testing.assert_allclose(gradient(program, Enumerate())(KEY, THETA, GOOD)["grad"], grad, rtol=1e-9)
    assert_unbiased(gradient(program, Score()), exact, key=KEY, resolution=0.05, args=(THETA, GOOD))


def test_a_value_that_a_held_program_closes_over_is_held():
    """The law of b does not count in what only the held guide sees of it; in a sum it does."""

    def program(t, e):
        b = sample("b", dist.Bernoulli(logits=t), e)
        inner = vipl.gen(lambda: sample("z", dist.Normal(1.0 * b, 1.0)))
        return vipl.detach(inner()).assess({"z": 0.3}).log_prob * t + h(b)

    log_p = lambda b: dist.Normal(b, 1.0).log_prob(0.3)  # noqa: E731
    value, grad = jax.value_and_grad(lambda t: sum(sg(flip(t, b)) * t * log_p(b) + flip(t, b) * h(b) for b in (0, 1)))(
        0.4
    )  # fmt: skip
    for e in (Enumerate(), MeasureValued()):
        exact = {"value": value, "grad": grad}
        assert_unbiased(gradient(program, e), exact, key=KEY, resolution=0.05, args=(jnp.array(0.4), GOOD))
