"""Estimators one by one: known figures, variances, cost, and what marks the biased ones."""

import inspect
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from jax import lax

import vipl
from vipl import (
    ARM,
    CoupledAlternative,
    DisARM,
    Enumerate,
    GumbelSoftmax,
    ImplicitReparam,
    LocalEnumerate,
    MeasureValued,
    ReinMax,
    RejectionReparam,
    Relax,
    Reparam,
    Score,
    StraightThrough,
    sample,
)
from vipl.testing import assert_unbiased

KEY = jax.random.key(41)


def gradients(objective, theta, num, **options):
    keys = jax.random.split(KEY, num)
    return jax.jit(jax.vmap(lambda key: objective.value_and_grad(key, theta, **options)[1]))(keys)


class Uncoupled(vipl.estimators.Estimator):
    """A user's measure-valued derivative in the location of a Normal, its two sides drawn apart."""

    def points(self, law, key):
        draw_key, *keys = jax.random.split(key, 3)
        steps = [law.dist.scale * jnp.sqrt(2.0 * jax.random.exponential(k)) for k in keys]
        change = law.dist.loc - lax.stop_gradient(law.dist.loc)
        weight = change / (law.dist.scale * jnp.sqrt(2.0 * jnp.pi))
        others = vipl.estimators.Alternatives(
            law.dist.loc + jnp.stack([steps[0], -steps[1]]), jnp.stack([weight, -weight])
        )
        return vipl.estimators.Draw(lax.stop_gradient(law.sample(draw_key)), alternatives=others)


class BothValues(vipl.estimators.Estimator):
    """A user's sum over a flip's values; neither these nor an even flip's weights depend on anything."""

    even: bool = False

    def points(self, law, key):
        values = jnp.array([0, 1])
        return vipl.estimators.Points(
            values, jnp.full(2, jnp.log(0.5)) if self.even else jax.vmap(law.log_prob)(values)
        )


@pytest.mark.parametrize("estimator", [BothValues(), BothValues(even=True)])
def test_points_that_depend_on_nothing_in_a_scan(estimator):
    """E[Π (1 + x_t)] over two even flips: (3/2)^2; by the law's own weights also its derivative, 2 (3/2) / 4."""

    def program(logit):
        step = lambda c, _: (c * (1.0 + sample("x", dist.Bernoulli(logits=logit), estimator)), None)  # noqa: E731
        return lax.scan(step, 1.0, None, length=2)[0]

    value, slope = vipl.expectation(program).value_and_grad(KEY, 0.0)
    np.testing.assert_allclose(value, 2.25, rtol=1e-12)
    np.testing.assert_allclose(slope, 0.0 if estimator.even else 0.75, rtol=1e-12)


@pytest.mark.parametrize("estimator", [MeasureValued(), LocalEnumerate(), CoupledAlternative(), DisARM(), ARM()])
def test_the_value_is_that_at_the_draw_whatever_the_alternatives_are(estimator):
    """Alternatives have weight 0 in value, also where the objective is infinite at one of them, or at the draw."""
    program = lambda logit: jnp.where(sample("x", dist.Bernoulli(logits=logit)) == 1, -jnp.inf, 1.0)  # noqa: E731
    objective = vipl.expectation(program).with_estimators({"x": estimator})
    values = jax.vmap(lambda key: objective.estimate(key, -1.0))(jax.random.split(KEY, 2000))
    assert set(np.unique(values)) == {-np.inf, 1.0}
    np.testing.assert_allclose(np.mean(values == 1.0), jax.nn.sigmoid(1.0), atol=5 * 0.45 / 2000**0.5)


def test_variances_at_one_site():
    """d/dm E[x²], x ~ Normal(m, 1), m = 1: reparametrized 4, score 30, score with the best baseline 14."""
    objective = vipl.expectation(lambda m: sample("x", dist.Normal(m, 1.0)) ** 2)
    for estimator, variance in [(Reparam(), 4.0), (ImplicitReparam(), 4.0), (Score(), 30.0), (Score(4.0), 14.0)]:
        draws = gradients(objective.with_estimators({"x": estimator}), 1.0, 1_000_000)
        np.testing.assert_allclose(draws.mean(), 2.0, atol=5 * np.sqrt(variance / 1e6))
        np.testing.assert_allclose(draws.var(), variance, rtol=0.03)
    draws = gradients(objective.with_estimators({"x": MeasureValued()}), 1.0, 1_000_000)
    np.testing.assert_allclose(draws.mean(), 2.0, atol=0.01)
    # (x⁺² - x⁻²) / sqrt(2π) with x± = 1 ± R, one R for both: 4 R / sqrt(2π), of variance 16 Var(R) / 2π = 1.093
    np.testing.assert_allclose(draws.var(), 16 * (2 - np.pi / 2) / (2 * np.pi), rtol=0.03)
    # with two: ((1 + R)² - (1 - R')²) / sqrt(2π), of variance (8 Var(R) + 2 Var(R²)) / 2π = 1.820
    draws = gradients(objective.with_estimators({"x": Uncoupled()}), 1.0, 1_000_000)
    np.testing.assert_allclose(draws.mean(), 2.0, atol=0.01)
    np.testing.assert_allclose(draws.var(), (8 * (2 - np.pi / 2) + 8) / (2 * np.pi), rtol=0.03)


@pytest.mark.parametrize("estimator", [RejectionReparam(), RejectionReparam(3), Reparam(), ImplicitReparam(), Score()])
def test_the_shape_of_a_gamma(estimator):
    """d/da E[log z] under Gamma(a, 1) at a = 2 is the trigamma function: 0.644934."""
    objective = vipl.expectation(lambda a: jnp.log(sample("z", dist.Gamma(a, 1.0), estimator)))
    check = assert_unbiased(lambda key: objective.value_and_grad(key, 2.0)[1], 0.644934, key=KEY, resolution=0.03)
    if isinstance(estimator, RejectionReparam):
        score = gradients(objective.with_estimators({"z": Score()}), 2.0, 100_000)
        assert check.se * np.sqrt(1e5) < 2.0 * score.std()


def test_local_enumeration_is_measure_valued_for_a_coin():
    objective = vipl.expectation(lambda p: (sample("b", dist.Bernoulli(p)) - 0.45) ** 2)
    local = objective.with_estimators({"b": LocalEnumerate()}).value_and_grad(KEY, 0.3)[1]
    np.testing.assert_allclose(local, objective.with_estimators({"b": MeasureValued()}).value_and_grad(KEY, 0.3)[1])
    np.testing.assert_allclose(local, 0.55**2 - 0.45**2, rtol=1e-12)  # no noise: all values are seen


@pytest.mark.parametrize(
    ("estimator", "derivative"),
    [
        (StraightThrough(), 0.112),
        (ReinMax(), 0.016),
        (GumbelSoftmax(1.0), 0.0507),
        (GumbelSoftmax(0.5), 0.0501),
        (GumbelSoftmax(0.2), 0.0341),
        (GumbelSoftmax(0.1), 0.0255),
        (GumbelSoftmax(0.05), 0.0208),
        (Score(), 0.016),
        (LocalEnumerate(), 0.016),
        (DisARM(), 0.016),
        (ARM(), 0.016),
        (Relax(lambda z: (jax.nn.sigmoid(2.0 * z) - 0.45) ** 2), 0.016),
    ],
    ids=lambda x: type(x).__name__ if isinstance(x, vipl.estimators.Estimator) else str(x),
)
def test_a_coin_under_biased_and_unbiased_estimators(estimator, derivative):
    """f(b) = (b - 0.45)², p = 0.8, derivative in the logit: exactly 0.016; biased devices have their own figures."""
    objective = vipl.expectation(lambda phi: (sample("b", dist.Bernoulli(logits=phi), estimator) - 0.45) ** 2)
    phi = jnp.log(4.0)
    assert_unbiased(
        lambda key: objective.value_and_grad(key, phi)[1], derivative, key=KEY, resolution=0.01, num=400_000,
        z_max=7.0,  # the figures have 4 decimals
    )  # fmt: skip


def test_the_one_hot_relaxations():
    """Three categories: straight-through is exact for a linear f, ReinMax for a quadratic one."""
    slopes, curve = jnp.array([0.3, -1.0, 0.7]), jnp.array([0.5, 1.2, -0.4])
    phi = jnp.array([0.2, -0.3, 0.5])

    def check(estimator, f):
        exact = jax.grad(lambda phi: jax.nn.softmax(phi) @ jax.vmap(f)(jnp.eye(3)))(phi)
        objective = vipl.expectation(lambda phi: f(sample("b", dist.Multinomial(1, logits=phi), estimator)))
        assert_unbiased(lambda key: objective.value_and_grad(key, phi)[1], exact, key=KEY, resolution=0.05)

    check(StraightThrough(), lambda b: slopes @ b)
    check(ReinMax(), lambda b: slopes @ b + curve @ b**2)
    relaxed = vipl.expectation(lambda phi: sample("b", dist.Multinomial(1, logits=phi), GumbelSoftmax(0.3)).sum())
    np.testing.assert_allclose(relaxed.estimate(KEY, phi), 1.0, rtol=1e-12)


def test_biased_estimators_say_so():
    """As a word of its own, which "unbiased" is not; and the others say that they are not, or are exact."""
    every = [e for e in vars(vipl).values() if inspect.isclass(e) and issubclass(e, vipl.estimators.Estimator)]
    biased = [e for e in every if issubclass(e, vipl.Biased)]
    assert {e.__name__ for e in biased} == {"Biased", "GumbelSoftmax", "StraightThrough", "ReinMax"}
    said = {e for e in every if re.search(r"\bbiased\b", (e.__doc__ or "").lower())}
    assert said == set(biased)
    others = {e for e in every if re.search(r"\bunbiased for|\bexact for", (e.__doc__ or "").lower())}
    assert others == set(every) - set(biased) - {vipl.estimators.Estimator}


def test_a_relaxed_site_is_a_float_and_another_estimator_keeps_it_one():
    objective = vipl.expectation(lambda phi: sample("b", dist.Bernoulli(logits=phi), StraightThrough()) ** 2)
    for estimator in (Score(), Enumerate(), MeasureValued()):
        exact = jax.nn.sigmoid(0.3) * jax.nn.sigmoid(-0.3)
        other = objective.with_estimators({"b": estimator})
        assert_unbiased(lambda key: other.value_and_grad(key, 0.3)[1], exact, key=KEY, resolution=0.02)  # noqa: B023


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("estimator", [StraightThrough(), ReinMax(), GumbelSoftmax(0.5)], ids=str)
def test_a_relaxed_site_of_logits_of_another_width(estimator, dtype):
    """The site is a float of the default width; the mean derivative is that of logits in double precision."""
    kinds = {
        "flip": lambda phi: dist.Bernoulli(logits=phi),
        "one-hot": lambda phi: dist.Multinomial(1, logits=jnp.stack([phi, 0 * phi])),
    }
    for kind, law in kinds.items():
        objective = vipl.expectation(lambda phi: jnp.sum(jnp.sin(sample("b", law(phi), estimator))))  # noqa: B023
        means = []
        for phi in (jnp.float64(0.25), dtype(0.25)):
            value, derivative = jax.vmap(lambda k: objective.value_and_grad(k, phi))(jax.random.split(KEY, 4000))  # noqa: B023
            assert (value.dtype, derivative.dtype) == (jnp.float64, phi.dtype)
            means.append([np.mean(value), np.mean(derivative, dtype=np.float64)])
        np.testing.assert_allclose(means[0], means[1], atol=0.03, err_msg=kind)


def chain(estimator, length):
    """A chain of flips, each of a probability that depends on the last; a quadratic of their sum."""

    @vipl.expectation
    def objective(theta):
        def step(carry, _):
            b, total = carry
            b = sample("b", dist.Bernoulli(logits=theta[0] + theta[1] * b), estimator)
            return (b, total + b), None

        (_, total), _ = lax.scan(step, (0, 0), None, length=length)
        return (total - 0.4 * length) ** 2 / length

    return objective


def chain_exact(theta, length):
    """By dynamic programming over (last flip, sum)."""
    state = jnp.zeros((2, length + 1)).at[0, 0].set(1.0)
    for _ in range(length):
        one = jax.nn.sigmoid(theta[0] + theta[1] * jnp.arange(2.0))
        heads = (state * one[:, None]).sum(0)
        tails = (state * (1 - one)[:, None]).sum(0)
        state = jnp.stack([tails, jnp.roll(heads, 1)])
    return state.sum(0) @ (jnp.arange(length + 1) - 0.4 * length) ** 2 / length


@pytest.mark.parametrize("estimator", [CoupledAlternative(), MeasureValued(), Score(), DisARM()])
def test_a_chain_of_flips(estimator):
    theta = jnp.array([-0.5, 0.8])
    exact = jax.jit(jax.grad(chain_exact), static_argnums=1)(theta, 6)
    objective = chain(estimator, 6)
    assert_unbiased(lambda key: objective.value_and_grad(key, theta)[1], exact, key=KEY, resolution=0.1)


def test_pruned_flips_run_the_program_twice_whatever_the_length():
    """Operations grow with the length as the program's do; less noise than Score, more than with all alternatives."""

    def flops(estimator, length):
        objective = chain(estimator, length)
        step = jax.jit(jax.grad(lambda theta, key: objective.estimate(key, theta)))
        cost: Any = step.lower(jnp.zeros(2), KEY).compile().cost_analysis()
        return cost["flops"]

    theta = jnp.array([-0.5, 0.8])
    spread = {
        e: gradients(chain(e, 50), theta, 4_000).std(0).sum() for e in (CoupledAlternative(), Score(), MeasureValued())
    }
    assert spread[MeasureValued()] < spread[CoupledAlternative()] < spread[Score()]
    assert flops(CoupledAlternative(), 40) / flops(CoupledAlternative(), 20) < 2.1


def test_measure_valued_in_each_element_of_a_vector():
    """E[x0² + 3 x1 + x0 x1], x ~ Normal(m, 1): derivatives 2 m0 + m1 and 3 + m0."""

    def f(m):
        x = sample("x", dist.Normal(m, 1.0).to_event(1), MeasureValued())
        return x[0] ** 2 + 3.0 * x[1] + x[0] * x[1]

    m = jnp.array([0.7, -1.2])
    exact = jnp.array([2 * 0.7 - 1.2, 3 + 0.7])
    draw = lambda key: vipl.expectation(f).value_and_grad(key, m)[1]  # noqa: E731
    assert_unbiased(draw, exact, key=KEY, resolution=0.1)


def test_measure_valued_refuses_the_concentration_of_a_weibull():
    """The term of the scale alone would be a silent zero."""
    objective = vipl.expectation(lambda t: sample("x", dist.Weibull(t[0], t[1]), MeasureValued()))
    with pytest.raises(vipl.errors.EstimatorError, match="a derivative is taken in a parameter"):
        objective.value_and_grad(KEY, jnp.array([1.3, 1.7]))


def test_the_values_of_a_vector_of_categoricals_of_which_some_are_impossible():
    """log is taken of possible values only; a sum over the four possible pairs is the exact answer."""

    def f(t, x, y):
        return t * jnp.log(2.0 - x) * 3.0 + t**2 * jnp.log(jnp.abs(y - 1.0)) * x + x * y

    @vipl.expectation
    def objective(t):
        logits = jnp.stack([jnp.stack([t, 0.2, -jnp.inf]), jnp.stack([0.1, -jnp.inf, t])])  # 2, and 1: impossible
        return f(t, *sample("z", dist.CategoricalLogits(logits).to_event(1), Enumerate()))

    def exact(t):
        p, q = jax.nn.sigmoid(t - 0.2), jax.nn.sigmoid(0.1 - t)
        return sum(a * b * f(t, x, y) for x, a in [(0.0, p), (1.0, 1 - p)] for y, b in [(0.0, q), (2.0, 1 - q)])

    got = (*objective.value_and_grad(KEY, 0.7), jax.hessian(objective.estimate, argnums=1)(KEY, 0.7))
    expected = exact(0.7), jax.grad(exact)(0.7), jax.hessian(exact)(0.7)
    np.testing.assert_allclose(got, expected, rtol=1e-12)


@pytest.mark.parametrize("estimator", [Enumerate(), LocalEnumerate(), MeasureValued()], ids=repr)
@pytest.mark.parametrize("shape", [(), (2,)])
def test_a_value_whose_probability_is_too_small_for_a_number_is_not_evaluated(estimator, shape):
    """At a logit of 800 the probability of 0 is e^-800: the log of 0, and its derivative, count nothing."""

    @vipl.expectation
    def objective(t):
        z = sample("z", dist.Bernoulli(logits=jnp.full(shape, 800.0 + t)).to_event(len(shape)), estimator)
        return jnp.sum(t * jnp.log(1.0 * z) + 1.5 * t * z)

    size = 1.0 if not shape else 2.0
    np.testing.assert_allclose(objective.value_and_grad(KEY, 0.7), (1.05 * size, 1.5 * size), rtol=1e-12)


def test_a_standardization_of_a_vector_that_is_not_diagonal():
    """T(x) = L⁻¹ (x - m): the implicit derivative is that of m + L ε, first and second."""

    def standardize(d, x):
        return jax.scipy.linalg.solve_triangular(d.scale_tril, x - d.loc, lower=True)

    def f(t, estimator):
        scale = jnp.exp(t[1]) * jnp.eye(3) + t[2] * jnp.array([[0.0, 0, 0], [1.0, 0, 0], [0.4, -0.7, 0]])
        x = sample("x", dist.MultivariateNormal(jnp.array([1.0, -0.5, 0.2]) * t[0], scale_tril=scale), estimator)
        return jnp.sin(x[0]) * x[1] + x[1] * x[2] ** 2

    def derivatives(estimator):
        objective = vipl.expectation(lambda t: f(t, estimator)).estimate
        return [d(objective, argnums=1)(KEY, jnp.array([0.7, -0.2, 0.8])) for d in (jax.grad, jax.hessian)]

    for ours, exact in zip(derivatives(ImplicitReparam(standardize)), derivatives(Reparam()), strict=True):
        np.testing.assert_allclose(ours, exact, rtol=1e-9)


@pytest.mark.parametrize(
    ("estimator", "num_samples"), [(Score(lambda d: 2.5 + 0.0 * d.loc), 1), (Score(vipl.LeaveOneOut()), 4)]
)
def test_a_baseline_that_is_the_objective_leaves_no_noise(estimator, num_samples):
    """The objective is 2.5 whatever is drawn, as the baseline is: its gradient is 0 at every draw."""
    objective = vipl.expectation(lambda m: 2.5 * jnp.exp(0.0 * sample("x", dist.Normal(m, 1.0), estimator)))
    for seed in range(5):
        value, slope = objective.value_and_grad(jax.random.key(seed), 0.3, num_samples=num_samples)
        assert (value, slope) == (2.5, 0.0)


def test_antithetic_pairs_at_negative_logits():
    """∂_φi E[b · a + b0 b1] = σ'(φi) (a_i + σ(φ_j)), at φ = (-1.5, -0.4); a tenth of the slope is seen."""
    phi, a = jnp.array([-1.5, -0.4]), jnp.array([0.7, -1.3])

    def f(phi):
        b = 1.0 * sample("b", dist.Bernoulli(logits=phi).to_event(1), DisARM())
        return b @ a + b[0] * b[1]

    p = jax.nn.sigmoid(phi)
    exact = p * (1 - p) * (a + p[::-1])
    for estimator in (DisARM(), ARM()):
        objective = vipl.expectation(f).with_estimators({"b": estimator})
        draw = lambda key: objective.value_and_grad(key, phi)[1]  # noqa: B023, E731
        assert_unbiased(draw, exact, key=KEY, resolution=0.1 * float(jnp.abs(exact).min()))


def test_measure_valued_of_laplace():
    """By quadrature over the noise, which is free of the parameters."""
    eps, dx = jnp.linspace(-40.0, 40.0, 200_001, retstep=True)
    weight = 0.5 * jnp.exp(-jnp.abs(eps)) * dx
    f = lambda x: jnp.sin(1.3 * x + 0.4)  # noqa: E731
    exact = jax.jit(jax.grad(lambda t: weight @ f(t[0] + jnp.exp(t[1]) * eps)))(jnp.array([0.3, -0.4]))
    for estimator in (MeasureValued(), ImplicitReparam(), Reparam()):
        objective = vipl.expectation(lambda t: f(sample("x", dist.Laplace(t[0], jnp.exp(t[1])), estimator)))  # noqa: B023
        draw = lambda key: objective.value_and_grad(key, jnp.array([0.3, -0.4]))[1]  # noqa: B023, E731
        assert_unbiased(draw, exact, key=KEY, resolution=0.03)


@pytest.mark.oldest
def test_a_mixture_of_vectors_is_reparametrized():
    """Learnable weights and locations, two dimensions; the continuation is smooth. Hessians too."""

    def mixture(t):
        loc = jnp.array([[-1.0, 0.5], [1.2, -0.3]]) * t[1]
        return dist.MixtureSameFamily(
            dist.Categorical(logits=jnp.stack([t[0], 0.0 * t[0]])), dist.Normal(loc, 0.7).to_event(1)
        )

    grid = jnp.linspace(-6.0, 6.0, 201)
    x = jnp.stack(jnp.meshgrid(grid, grid, indexing="ij"), axis=-1)
    f = lambda x: jnp.sin(x[..., 0]) * jnp.cos(0.7 * x[..., 1] + 0.2)  # noqa: E731
    exact = lambda t: jnp.sum(jnp.exp(mixture(t).log_prob(x)) * f(x)) * (grid[1] - grid[0]) ** 2  # noqa: E731
    t = jnp.array([0.4, 0.9])
    objective = vipl.expectation(lambda t: f(sample("x", mixture(t), ImplicitReparam())))

    def draw(key):
        return objective.value_and_grad(key, t)[1], jax.hessian(objective.estimate, argnums=1)(key, t)

    expected = jax.jit(lambda t: (jax.grad(exact)(t), jax.hessian(exact)(t)))(t)
    assert_unbiased(draw, expected, key=KEY, resolution=(0.02, 0.05))


def test_a_learned_and_a_running_baseline():
    """Arrays of the program are baselines: a mean carried by the user's loop, a function of upstream values."""

    @vipl.expectation(has_aux=True)
    def objective(m, mean, weights):
        z = sample("z", dist.Normal(m, 1.0))
        f = (sample("x", dist.Normal(z, 1.0), Score(mean + weights[0] + weights[1] * z**2)) + 2.0) ** 2
        return f, f

    def spread(mean, weights):
        keys = jax.random.split(KEY, 50_000)
        draws = jax.vmap(lambda key: objective.value_and_grad(key, 0.5, mean, weights)[1])(keys)
        np.testing.assert_allclose(draws.mean(), 5.0, atol=5 * draws.std() / np.sqrt(50_000))
        return draws.std()

    mean = 0.0
    for key in jax.random.split(KEY, 300):
        mean = 0.97 * mean + 0.03 * objective.estimate(key, 0.5, mean, jnp.zeros(2))[1]
    assert spread(mean, jnp.zeros(2)) < spread(0.0, jnp.zeros(2))
    assert spread(0.0, jnp.array([5.0, 1.5])) < spread(mean, jnp.zeros(2))


@pytest.mark.parametrize(
    "make",
    [
        lambda phi: dist.Bernoulli(logits=phi),
        lambda phi: dist.Binomial(3, logits=phi),
        lambda phi: dist.Bernoulli(logits=phi * jnp.ones(2)).to_event(1),
        lambda phi: dist.Bernoulli(logits=phi).expand([2]).mask(True),  # pyright: ignore[reportArgumentType]
    ],
)
@pytest.mark.parametrize("estimator", [Enumerate(), Score(), MeasureValued(), LocalEnumerate()])
def test_logits_of_zero(make, estimator):
    """NumPyro's log density has a kink there, where training begins: a slope came out as 2 instead of 1/4."""
    objective = vipl.expectation(lambda phi: 3.0 + jnp.sum(1.0 * sample("x", make(phi), estimator)))
    n = jnp.sum(jnp.asarray(make(0.3).mean)) / jax.nn.sigmoid(0.3)

    def draw(key):
        return jax.grad(objective.estimate, argnums=1)(key, 0.0)

    assert_unbiased(draw, 0.25 * n, key=KEY, resolution=0.1)
    log_prob = lambda phi: vipl.gen(lambda: sample("x", make(phi)))().simulate(KEY).log_prob  # noqa: E731
    x = vipl.gen(lambda: sample("x", make(0.7)))().simulate(KEY).choices["x"]
    np.testing.assert_allclose(log_prob(0.7), jnp.sum(make(0.7).log_prob(x)), rtol=1e-12)


def test_infinite_logits():
    model = vipl.gen(lambda logit: sample("x", dist.Bernoulli(logits=logit)))
    for logit, log_probs in [(jnp.inf, (-jnp.inf, 0.0)), (-jnp.inf, (0.0, -jnp.inf))]:
        assert tuple(float(model(logit).assess({"x": x}, key=KEY).log_prob) for x in (0, 1)) == log_probs


def test_second_derivatives_of_relax():
    """A control of its own size; for a Categorical, too."""
    coin = vipl.expectation(
        lambda t: jnp.exp(1.0 * sample("b", dist.Bernoulli(logits=t), Relax(lambda z: jnp.sum(3 * jnp.tanh(z)))))
    )
    values = jnp.array([1.0, -2.0, 3.0])
    die = vipl.expectation(
        lambda t: values[
            sample(
                "b",
                dist.Categorical(logits=t * jnp.array([0.1, 0.5, -0.3])),
                Relax(lambda z: jnp.sum(jnp.tanh(z) * values)),
            )
        ]
    )
    for objective, t in ((coin, 0.4), (die, 1.4)):
        exact = jax.jit(jax.hessian(objective.with_estimators({"b": Enumerate()}).estimate, argnums=1))(KEY, t)
        draw = lambda key: jax.hessian(objective.estimate, argnums=1)(key, t)  # noqa: B023, E731
        assert_unbiased(draw, exact, key=KEY, resolution=0.03)


def of_a_loop_of_no_steps(make, m):
    def step(carry, _):
        return carry + jnp.sum(sample("z", make(m))), carry

    return lax.scan(step, m, None, length=0)[0] ** 2


def of_no_lanes(make, m):
    return jnp.sum(jax.vmap(lambda r: sample("z", make(m)) * r)(jnp.zeros(0))) + m**2


def of_no_numbers(make, m):
    return jnp.sum(sample("z", make(m * jnp.ones(0)).to_event(1))) + m**2


def flip(logits):
    return dist.Bernoulli(logits=logits)


def normal(loc):
    return dist.Normal(loc, 1.0)


def gamma(log_rate):
    return dist.Gamma(2.0, jnp.exp(log_rate))


@pytest.mark.parametrize("program", [of_a_loop_of_no_steps, of_no_lanes, of_no_numbers])
@pytest.mark.parametrize(
    ("make", "estimator"),
    [
        (flip, e)
        for e in (Score(), Enumerate(), LocalEnumerate(), MeasureValued(), ARM(), DisARM(), CoupledAlternative())
    ]
    + [(normal, e) for e in (Reparam(), Score(vipl.LeaveOneOut()), MeasureValued(), ImplicitReparam())]
    + [(gamma, RejectionReparam())],
    ids=lambda x: x.__name__ if inspect.isfunction(x) else type(x).__name__,
)
def test_a_site_that_is_never_visited_changes_nothing(program, make, estimator):
    """f = m²: value and gradient are exact."""
    objective = vipl.expectation(lambda m: program(make, m)).with_estimators({"z": estimator})
    got = objective.value_and_grad(KEY, 0.7, num_samples=2)
    np.testing.assert_allclose(got, (0.49, 1.4), rtol=1e-12)


OF_FLIPS = (Score(), Enumerate(), LocalEnumerate(), MeasureValued(), CoupledAlternative(), ARM(), DisARM())


@pytest.mark.parametrize("estimator", OF_FLIPS, ids=lambda e: type(e).__name__)
def test_a_site_without_elements_beside_another(estimator, key):
    """It counts nothing: alone in a vector, in lanes and in a loop the derivative is that of the other site."""

    @vipl.expectation
    def objective(p, xs):
        flip = lambda address, logits: sample(address, dist.Bernoulli(logits=logits), estimator)  # noqa: E731
        vector = jnp.sum(sample("vector", dist.Bernoulli(logits=p * xs), estimator))
        lanes = jnp.sum(jax.vmap(lambda x: flip("lane", p * x))(xs))
        carry, _ = lax.scan(lambda c, x: (c + x * flip("step", p * x), None), 1.0, xs)
        return carry * flip("b", p) + vector + lanes

    def draw(key, by):
        return by * objective.value_and_grad(key, 0.3, jnp.zeros(0))[1]

    want = jax.grad(jax.nn.sigmoid)(0.3)
    assert_unbiased(draw, want, key=key, resolution=0.05, args=(1.0,))
    with pytest.raises(AssertionError, match="z = "):
        assert_unbiased(draw, want, key=key, resolution=0.05, args=(1.3,))
