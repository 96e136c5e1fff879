"""Laws of expectation, with exact answers, and the measured failures of other systems as cases."""

import ast
import graphlib
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from jax import lax

import vipl
from vipl import Enumerate, LeaveOneOut, MeasureValued, Reparam, Score, sample
from vipl.testing import assert_unbiased

KEY = jax.random.key(11)
FLIPS = [Score(), Score(0.4), Enumerate(), MeasureValued(), None]


def gradient(objective, theta, **options):
    return lambda key: objective.value_and_grad(key, theta, **options)[1]


@pytest.mark.parametrize("estimator", FLIPS)
@pytest.mark.parametrize("how", ["scan", "vmap", "unrolled"])
def test_square_of_a_sum_of_flips(estimator, how):
    def flip(p):
        return sample("b", dist.Bernoulli(p), estimator)

    @vipl.expectation
    def objective(p):
        if how == "scan":
            total = lax.scan(lambda c, _: (c + flip(p), None), 0, None, length=3)[0]
        elif how == "vmap":
            total = jax.vmap(lambda: flip(p), axis_size=3)().sum()
        else:
            total = sum(flip(p) for _ in range(3))
        return 1.0 * total**2

    assert_unbiased(gradient(objective, 0.3), 6.6, key=KEY, resolution=0.2)


@pytest.mark.parametrize("estimator", [Reparam(), Score()])
def test_square_of_a_sum_of_normals_in_scan(estimator):
    @vipl.expectation
    def objective(m):
        return (
            lax.scan(lambda c, _: (c + sample("x", dist.Normal(m, 1.0), estimator), None), 0.0, None, length=3)[0] ** 2
        )

    assert_unbiased(gradient(objective, 1 / 3), 6.0, key=KEY, resolution=0.3)


def test_leave_one_out_is_unbiased_and_lowers_the_variance():
    @vipl.expectation
    def objective(m):
        return 5.0 + sample("x", dist.Normal(m, 1.0), Score(LeaveOneOut())) ** 2

    check = assert_unbiased(gradient(objective, 0.7, num_samples=8), 1.4, key=KEY, resolution=0.05, num=200_000)
    plain = objective.with_estimators({"x": Score()})
    other = assert_unbiased(gradient(plain, 0.7, num_samples=8), 1.4, key=KEY, resolution=0.2, num=200_000)
    assert check.se < 0.6 * other.se


def test_consecutive_sites_are_independent():
    objective = vipl.expectation(lambda m: (sample("x", dist.Normal(m, 1.0)) - sample("y", dist.Normal(m, 1.0))) ** 2)
    assert_unbiased(lambda key: objective.estimate(key, 0.0), 2.0, key=KEY, resolution=0.05)


def test_components_of_a_vector_site_are_independent():
    def product(m):
        x = sample("x", dist.Normal(m, 1.0))
        return x[0] * x[1]

    objective = vipl.expectation(product)
    assert_unbiased(lambda key: objective.estimate(key, jnp.array([0.5, -0.4])), -0.2, key=KEY, resolution=0.05)


def test_second_derivative_of_a_product_of_flips():
    @vipl.expectation
    def objective(p):
        return 1.0 * sample("a", dist.Bernoulli(p)) * sample("b", dist.Bernoulli(p)) * sample("c", dist.Bernoulli(p))

    assert_unbiased(lambda key: jax.hessian(objective.estimate, argnums=1)(key, 0.5), 3.0, key=KEY, resolution=0.2)


def elbo_of(guide, model):
    @vipl.expectation
    def elbo(phi):
        q = guide(phi).simulate()
        return model().assess(q.choices).log_prob - q.log_prob

    return elbo


def test_elbo_with_a_bernoulli_latent_and_no_estimator_named():
    model = vipl.gen(lambda: sample("b", dist.Bernoulli(0.8)))
    guide = vipl.gen(lambda phi: sample("b", dist.Bernoulli(logits=phi)))

    def exact(phi):
        q = jax.nn.sigmoid(phi)
        return q * jnp.log(0.8 / q) + (1 - q) * jnp.log(0.2 / (1 - q))

    elbo = elbo_of(guide, model)
    assert_unbiased(gradient(elbo, -0.5), jax.grad(exact)(-0.5), key=KEY, resolution=0.02)


def test_elbo_with_a_mixture_guide_and_no_estimator_named():
    model = vipl.gen(lambda: sample("x", dist.Normal(0.3, 1.2)))

    def mixture(phi):
        return dist.MixtureSameFamily(
            dist.Categorical(logits=jnp.stack([phi, jnp.zeros_like(phi)])),
            dist.Normal(jnp.array([-1.0, 1.5]), jnp.array([0.6, 0.8])),
        )

    nodes, weights = np.polynomial.legendre.leggauss(400)
    x, w = 12 * jnp.asarray(nodes), 12 * jnp.asarray(weights)

    def exact(phi):
        log_q = mixture(phi).log_prob(x)
        return jnp.sum(w * jnp.exp(log_q) * (dist.Normal(0.3, 1.2).log_prob(x) - log_q))

    phi = jnp.array(0.4)
    elbo = elbo_of(vipl.gen(lambda phi: sample("x", mixture(phi))), model)
    assert_unbiased(gradient(elbo, phi), jax.jit(jax.grad(exact))(phi), key=KEY, resolution=0.02)


def test_enumerated_values_in_a_branch_that_an_alternative_takes():
    """As many alternatives as the enumerated site has values; both sites are summed over, so that there is no noise."""

    @vipl.expectation
    def objective(t):
        a = sample("a", dist.Categorical(logits=jnp.stack([t, 0.0 * t, 0.5 + 0.0 * t])), MeasureValued())
        return lax.cond(a == 1, lambda: 10.0 * sample("b", dist.Bernoulli(0.3), Enumerate()), lambda: 1.0 * a) ** 2

    exact = lambda t: jax.nn.softmax(jnp.stack([t, 0.0, 0.5])) @ jnp.array([0.0, 30.0, 4.0])  # noqa: E731
    for seed in range(10):
        _, slope = objective.value_and_grad(jax.random.key(seed), 0.4)
        np.testing.assert_allclose(slope, jax.grad(exact)(0.4), rtol=1e-12)


def test_adding_a_site_leaves_other_draws_bit_identical():
    def few():
        return {"a": sample("a", dist.Normal(0.0, 1.0)), "g": sample("g", dist.Gamma(2.0, 1.0))}

    def more():
        sample("new", dist.Normal(0.0, 1.0))
        out = few()
        sample("later", dist.Gamma(2.0, 1.0))
        return out

    assert vipl.seed(few)(KEY) == vipl.seed(more)(KEY)


class FromTable(dist.Distribution):
    """A draw by a function that is not an array."""

    support: Any = dist.constraints.real
    pytree_aux_fields = ("draw",)

    def __init__(self, draw):
        self.draw = draw
        super().__init__((), ())

    def sample(self, key, sample_shape=()):
        return self.draw(key)

    def log_prob(self, value):
        return jnp.zeros(())


def test_samplers_of_equal_code_over_different_tables():
    """Their noise is drawn in one call only where their tables are the same."""

    def of(table):
        return FromTable(lambda key: jnp.asarray(table)[jax.random.randint(key, (), 0, 3)])

    low, high = of(np.array([1.0, 2.0, 3.0])), of(np.array([10.0, 20.0, 30.0]))
    both = vipl.seed(lambda: (sample("a", low), sample("b", high), sample("c", low)))
    for seed in range(5):
        a, b, c = both(jax.random.key(seed))
        assert a in (1.0, 2.0, 3.0)
        assert b in (10.0, 20.0, 30.0)
        assert c in (1.0, 2.0, 3.0)


def test_a_program_simulated_twice_draws_twice():
    guide = vipl.gen(lambda: sample("x", dist.Normal(0.0, 1.0)))
    x, y = vipl.seed(lambda: (guide().simulate().retval, guide().simulate().retval))(KEY)
    assert x != y


def test_generate_estimates_the_marginal():
    @vipl.gen
    def model():
        z = sample("z", dist.Normal(0.0, 1.0))
        sample("y", dist.Normal(z, 0.5))

    exact = jnp.exp(dist.Normal(0.0, jnp.sqrt(1.25)).log_prob(0.7))
    draw = lambda key: jnp.exp(model().generate({"y": 0.7}, key=key)[1])  # noqa: E731
    assert_unbiased(draw, exact, key=KEY, resolution=0.02)


def test_masks_change_densities_not_what_is_drawn():
    objective = vipl.expectation(lambda m: sample("x", dist.Normal(m, 1.0).mask(False), Score()) ** 2)
    assert_unbiased(gradient(objective, 0.7), 1.4, key=KEY, resolution=0.1)


@pytest.mark.parametrize("order", [(0, 1), (1, 0), (0, 0)])
def test_no_second_derivative_passes_measure_valued(order):
    """Mixed ones included: they would silently be zero."""
    objective = vipl.expectation(lambda t, u: sample("b", dist.Bernoulli(logits=t), MeasureValued()) * u**2)
    inner, outer = order
    first = lambda *a: jax.grad(objective.estimate, argnums=1 + inner)(KEY, *a)  # noqa: E731
    with pytest.raises(vipl.errors.EstimatorError, match="second derivative"):
        jax.grad(first, argnums=outer)(0.3, 2.0)


@pytest.mark.parametrize("loop", ["scan", "map", "cond", "checkpoint"])
@pytest.mark.parametrize("order", [jax.hessian, lambda f: jax.grad(jax.grad(f)), lambda f: jax.jacfwd(jax.jacfwd(f))])
def test_no_second_derivative_passes_measure_valued_in_a_loop_of_the_user(loop, order):
    """JAX 0.10 forgets custom derivative rules inside `scan` after a reverse-mode derivative: silently 1.99 here."""
    objective = vipl.expectation(lambda t: sample("b", dist.Bernoulli(logits=t), MeasureValued()) * t**2)
    keys = jax.random.split(KEY, 3)

    def total(t):
        if loop == "scan":
            return lax.scan(lambda c, k: (c + objective.estimate(k, t), None), 0.0, keys)[0]
        if loop == "map":
            return lax.map(lambda k: objective.estimate(k, t), keys).sum()
        if loop == "cond":
            return lax.cond(t > 0, lambda: objective.estimate(KEY, t), lambda: 0.0)
        return jax.checkpoint(lambda t: objective.estimate(KEY, t))(t)

    assert jnp.isfinite(jax.grad(total)(0.3))
    with pytest.raises(vipl.errors.EstimatorError, match="second derivative"):
        order(total)(0.3)


@pytest.mark.parametrize(
    "make",
    [
        lambda t: dist.Uniform(0.0, t),
        lambda t: dist.Pareto(t, 3.0),
        dist.Delta,
        lambda t: dist.MixtureGeneral(
            dist.Categorical(jnp.ones(2) / 2),
            [dist.Uniform(0.0, t), dist.Normal(t, 1.0)],
            support=dist.constraints.real,
        ),
        lambda t: dist.MixtureGeneral(
            dist.Categorical(jnp.ones(2) / 2), [dist.Delta(t), dist.Normal(t, 1.0)], support=dist.constraints.real
        ),
        lambda t: dist.TransformedDistribution(dist.Poisson(2.0), dist.transforms.AffineTransform(0.0, t)),
        lambda t: dist.TransformedDistribution(
            dist.Normal(0.0, 1.0), [dist.transforms.SigmoidTransform(), dist.transforms.AffineTransform(0.0, t)]
        ),
    ],
)
def test_score_refuses_derivatives_in_the_support(make):
    """The score has no boundary term: d/dt E[x] under Uniform(0, t) would be -0.5 instead of 0.5."""
    objective = vipl.expectation(lambda t: sample("x", make(t), Score()))
    with pytest.raises(vipl.errors.EstimatorError, match="a derivative is taken in a parameter"):
        objective.value_and_grad(KEY, 1.3)


def test_impossible_categories_are_not_looked_at():
    """d/dt of the entropy of (sigmoid(t), 1 - sigmoid(t), 0) = - t p (1 - p); log 0 of the third is never taken."""
    guide = vipl.gen(lambda t: sample("x", dist.Categorical(logits=jnp.stack([t, 0 * t, 0 * t - jnp.inf]))))
    p = jax.nn.sigmoid(0.8)
    for estimator in (Score(), Enumerate(), MeasureValued()):
        entropy = vipl.expectation(lambda t: -guide(t).simulate().log_prob).with_estimators({"x": estimator})
        assert_unbiased(gradient(entropy, 0.8), -0.8 * p * (1 - p), key=KEY, resolution=0.02)


def test_nan_stays_nan_under_enumerate():
    objective = vipl.expectation(
        lambda t: 1.0 + sample("x", dist.Categorical(logits=jnp.stack([t, 0.0 * t])), Enumerate())
    )
    assert jnp.isnan(objective.estimate(KEY, jnp.nan))


SHIFT = dist.transforms.AffineTransform(3.0, 2.0)
FIRST = jnp.array([True, False])
WALK = dist.GaussianRandomWalk(1.0, 2)


@pytest.mark.parametrize(
    ("d", "inside", "outside"),
    [
        (dist.HalfNormal(1.0), 0.5, -0.5),
        (dist.Uniform(0.0, 1.0), 0.3, 1.2),
        (dist.Delta(1.5), 1.5, 1.6),
        (dist.TransformedDistribution(dist.Exponential(1.0), SHIFT), 4.0, 2.0),
        (dist.HalfNormal(1.0).expand([2]), [1.0, 2.0], [1.0, -2.0]),
        (dist.HalfNormal(jnp.ones(2)).mask(FIRST).to_event(1), [1.0, -2.0], [-1.0, 2.0]),
        (dist.Dirichlet(jnp.ones(2)), [0.4, 0.6], [0.4, 0.7]),
        (dist.Bernoulli(0.3), 1, 2),
        (dist.Bernoulli(logits=0.3), 1, 2),
        (dist.Bernoulli(logits=jnp.zeros(2)).to_event(1), [0, 1], [0, -1]),
        (dist.Bernoulli(logits=jnp.zeros(2)).mask(FIRST).to_event(1), [0, -1], [-1, 0]),
        (dist.Poisson(2.0), 0, -1),
    ],
)
def test_values_outside_the_support_have_density_zero(d, inside, outside):
    assess = lambda x: vipl.gen(lambda: sample("x", d))().assess({"x": jnp.asarray(x)}).log_prob  # noqa: E731
    # Two ways of compiling: one of the values is 0 but for rounding.
    np.testing.assert_allclose(assess(inside), jnp.sum(d.log_prob(jnp.asarray(inside))), rtol=1e-12, atol=1e-14)
    assert assess(outside) == -jnp.inf


AFFINE = dist.transforms.AffineTransform
HALVES = dist.Categorical(jnp.ones(2) / 2)
SHIFTED_GAMMAS = lambda t: dist.MixtureSameFamily(HALVES, dist.Gamma(jnp.array([2.0, 3.0]), t))  # noqa: E731


@pytest.mark.parametrize(
    ("make", "outside"),
    [
        (lambda t: dist.TransformedDistribution(dist.Gamma(2.0, t), AFFINE(t, 1.0)), 1.0),
        (lambda t: dist.TransformedDistribution(dist.LogNormal(t, 1.0), AFFINE(t, 1.0)), 1.0),
        (lambda t: dist.TransformedDistribution(dist.LogNormal(0.0, 1.0), AFFINE(t, -1.0)), 2.0),
        (lambda t: dist.TransformedDistribution(dist.Beta(2.0, t), AFFINE(t, 2.0)), 4.0),
        (lambda t: dist.TransformedDistribution(dist.Weibull(2.0, t), AFFINE(t, 1.0)), 1.0),
        (lambda t: dist.TransformedDistribution(dist.InverseGamma(2.0, t), AFFINE(t, 1.0)), 1.0),
        (
            lambda t: dist.TransformedDistribution(dist.Gamma(2.0 * jnp.ones(2), t), AFFINE(t, 1.0)).to_event(1),
            [2.0, 1],
        ),
        (
            lambda t: dist.TransformedDistribution(
                dist.Normal(t, 1.0), [dist.transforms.ExpTransform(), AFFINE(t, 1.0)]
            ),
            1,
        ),
        (lambda t: dist.LogNormal(t, 1.0), -1.0),
        (lambda t: dist.LogNormal(t * jnp.ones(2), 1.0).mask(FIRST), [-1.0, -1.0]),
        (lambda t: dist.Weibull(1.5, t), -1.0),
        (lambda t: dist.Pareto(t, 1.5), 0.1),
        (lambda t: dist.Kumaraswamy(1.5, t), 1.5),
        (lambda t: dist.Gamma(t, 1.0).expand([2]).to_event(1), [1.0, -1.0]),
        (lambda t: dist.Dirichlet(jnp.stack([t, t, t])), [0.5, 0.7, -0.2]),
        (lambda t: dist.LogUniform(t, 2.0 * t), -1.0),
        (lambda t: dist.NegativeBinomial2(1.0, t), -1),
        (lambda t: dist.TruncatedNormal(t, 1.0, low=0.0), -1.0),
        (lambda t: dist.ZeroInflatedDistribution(dist.NegativeBinomial2(1.0, t), gate=0.3), -1),
        (lambda t: dist.LKJCholesky(2, t), [[1.0, 0.0], [0.6, 1.8]]),
        (lambda t: dist.MixtureSameFamily(HALVES, dist.LogNormal(jnp.stack([t, 2.0 * t]), 1.0)), -1.0),
        (lambda t: dist.MixtureSameFamily(HALVES, dist.Dirichlet(jnp.stack([jnp.stack([t, t])] * 2))), [0.5, -0.2]),
        (lambda t: dist.TransformedDistribution(SHIFTED_GAMMAS(t), AFFINE(t, 1.0)), 0.3),
        (lambda t: dist.MixtureGeneral(HALVES, [dist.LogNormal(t, 1.0), dist.Gamma(t, 1.0)]), -1.0),
    ],
)
def test_outside_the_support_derivatives_are_numbers(make, outside):
    """Those of the -inf, in parameters and in the value: a particle there has no weight, and NaN is not nothing."""

    def log_prob(t, x):
        return vipl.gen(lambda: sample("x", make(t)))().assess({"x": x}).log_prob

    x = jnp.asarray(outside)
    numbers = (0, 1) if jnp.issubdtype(x.dtype, jnp.floating) else 0
    value, slopes = jax.jit(jax.value_and_grad(log_prob, numbers))(1.7, x)
    assert value == -jnp.inf
    assert all(bool(jnp.all(jnp.isfinite(slope))) for slope in jax.tree.leaves(slopes)), slopes


def test_particles_outside_a_shifted_support_have_no_say():
    """The derivative of an evidence by importance sampling; a third of the draws cannot have made y."""

    @vipl.gen
    def model(m):
        z = sample("z", dist.Normal(m, 1.0))
        sample("y", dist.TransformedDistribution(dist.Gamma(2.0, 1.0), AFFINE(z, 1.0)))

    guide = vipl.gen(lambda: sample("z", dist.Normal(0.0, 1.0)))

    def evidence(m):
        trace = guide().simulate()
        return jnp.exp(model(m).assess({**trace.choices, "y": 0.5}).log_prob - trace.log_prob)

    def exact(m):
        z = jnp.linspace(-12.0, 0.5, 100_001)
        return jnp.trapezoid(jnp.exp(dist.Normal(m, 1.0).log_prob(z)) * (0.5 - z) * jnp.exp(z - 0.5), z)

    expected = jax.grad(exact)(0.3)
    assert_unbiased(gradient(vipl.expectation(evidence), 0.3), expected, key=KEY, resolution=0.01)


MIXED = dist.MixtureGeneral(dist.Categorical(jnp.ones(2) / 2), [dist.Normal(0.0, 1.0), dist.Normal(1.0, 1.0)])


@pytest.mark.filterwarnings("ignore:Out-of-support values")
@pytest.mark.parametrize(
    "d", [dist.Normal(0.0, 1.0), dist.Uniform(0.0, 1.0), dist.Delta(1.5), WALK, MIXED], ids=lambda d: type(d).__name__
)
def test_the_density_of_nan_is_nan(d):
    model = vipl.gen(lambda: sample("x", d))
    assert jnp.isnan(model().assess({"x": jnp.full(d.shape(), jnp.nan)}).log_prob)
    assert model().assess({"x": jnp.ones(d.shape())}).log_prob > -jnp.inf or isinstance(d, dist.Delta)


def test_the_density_of_a_flip_by_its_logit():
    """Value, first and second derivative; at 0 and at infinity, too."""

    def density(phi, x):
        return vipl.gen(lambda: sample("x", dist.Bernoulli(logits=phi)))().assess({"x": x}).log_prob

    phi = jnp.array([-jnp.inf, -40.0, -1.0, 0.0, 1.0, 40.0, jnp.inf])
    p, q = jax.nn.sigmoid(phi), jax.nn.sigmoid(-phi)
    for x in (0, 1):
        for f, expected in [
            (density, jax.nn.log_sigmoid(phi if x else -phi)),
            (jax.grad(density), q if x else -p),
            (jax.hessian(density), -p * q),
        ]:
            np.testing.assert_allclose(jax.jit(jax.vmap(f, (0, None)))(phi, x), expected, rtol=1e-13, atol=1e-16)


def test_what_a_mask_takes_out_may_be_nan():
    d = dist.HalfNormal(jnp.ones(2)).mask(FIRST).to_event(1)
    model = vipl.gen(lambda: sample("x", d))
    expected = dist.HalfNormal(1.0).log_prob(0.4)
    np.testing.assert_allclose(model().assess({"x": jnp.array([0.4, jnp.nan])}).log_prob, expected, rtol=1e-12)


def test_a_distribution_that_loses_its_support_as_a_pytree():
    model = vipl.gen(lambda: sample("x", dist.Levy(0.0, 1.0)))
    np.testing.assert_allclose(model().assess({"x": 2.0}).log_prob, dist.Levy(0.0, 1.0).log_prob(2.0), rtol=1e-12)


def test_shared_addresses_of_branches_are_all_checked():
    guide = vipl.gen(lambda: sample("x", dist.Normal(-5.0, 0.1)))

    @vipl.gen
    def model(c):
        lax.cond(c, lambda: sample("x", dist.HalfNormal(1.0)), lambda: sample("x", dist.Normal(0.0, 1.0)))

    objective = vipl.expectation(lambda c: model(c).assess(guide().simulate().choices).log_prob)
    assert objective.estimate(KEY, True) == -jnp.inf
    assert jnp.isfinite(objective.estimate(KEY, False))


def test_python_booleans_and_integers_do_not_share_a_compiled_program():
    program = vipl.gen(lambda n: sample("x", dist.Delta(1.0 if n is True else 2.0)))
    assert program(True).simulate(KEY).retval == 1.0
    assert program(1).simulate(KEY).retval == 2.0


def test_with_estimators_changes_only_the_estimator():
    objective = vipl.expectation(lambda m: sample("x", dist.Normal(m, 1.0)) ** 2)
    other = objective.with_estimators({"x": Score()})
    assert objective.estimate(KEY, 0.3) == other.estimate(KEY, 0.3)
    assert objective.value_and_grad(KEY, 0.3)[1] != other.value_and_grad(KEY, 0.3)[1]


def test_an_eager_estimate_is_staged_once():
    count = []

    @vipl.expectation
    def objective(m):
        count.append(1)
        return sample("x", dist.Normal(m, 1.0)) ** 2

    for seed in range(3):
        objective.estimate(jax.random.key(seed), 0.1 * seed)
    assert len(count) == 1


def test_program_size_is_linear_in_measure_valued_sites():
    def size(n):
        objective = vipl.expectation(
            lambda p: 1.0 * sum(sample(f"b{i}", dist.Bernoulli(p), MeasureValued()) for i in range(n)) ** 2
        )
        return len(str(jax.make_jaxpr(objective.estimate)(KEY, 0.3)).splitlines())

    ten, twenty, forty = size(10), size(20), size(40)
    assert forty - twenty <= 2.2 * (twenty - ten)


@pytest.mark.parametrize("num_samples", [1, 2])
def test_keys_are_used_once(num_samples):
    """Under JAX's checker of key reuse: plain, in lanes, in loops, in a branch, and in a loop in lanes."""

    def sites(m):
        x = sample("x", dist.Normal(m, 1.0), Score())
        return sample("y", dist.Normal(x, 1.0)) + sample("b", dist.Bernoulli(0.4), MeasureValued())

    def loop(m):
        return lax.scan(lambda c, _: (c + sites(m), None), 0.0, None, length=3)[0]

    @vipl.expectation
    def objective(m):
        gammas = sample("g", dist.Gamma(2.0, 1.0)) + sample("h", dist.Gamma(2.0, 1.0))
        lanes = jax.vmap(sites)(m + jnp.arange(3.0)).sum() + jax.vmap(loop)(m + jnp.arange(2.0)).sum()
        return gammas + sites(m) + loop(m) + lanes + lax.cond(m > 0, sites, loop, m)

    with jax.debug_key_reuse(True):
        assert jnp.isfinite(jax.jit(objective.estimate, static_argnames="num_samples")(
            jax.random.key(5), 0.3, num_samples=num_samples))  # fmt: skip
        reuse = vipl.gen(lambda: sample("x", Reused()))
        with pytest.raises(jax.errors.KeyReuseError):
            reuse().simulate(jax.random.key(5))


class Reused(dist.Normal):
    """Draws with one key twice, which the checker sees."""

    def sample(self, key, sample_shape=()):
        return super().sample(key, sample_shape) + super().sample(key, sample_shape)


ROOMS = [
    {"_checks", "_jax", "_settings", "_types", "errors", "distributions"},
    {"ir"},
    {"passes", "analysis", "cache"},
    {"interpret"},
    {"gen"},
    {"estimators"},
    {"expectation"},
    {"inference"},
    {"objectives", "guides"},
    {"fit", "testing"},
    {"interop", "posterior"},
    {"diagnostics"},
    {"demo", "zoo"},
]
PACKAGE = Path(vipl.__file__).parent


def test_files_import_only_from_rooms_below_and_only_jax_names_internals():
    level = {name: i for i, room in enumerate(ROOMS) for name in room}
    files = [f for f in PACKAGE.rglob("*.py") if f.parent != PACKAGE or f.stem in level]
    assert len(files) > 20
    for file in files:
        room = file.relative_to(PACKAGE).parts[0].removesuffix(".py")
        for node in ast.walk(ast.parse(file.read_text())):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [a.name for a in node.names] if isinstance(node, ast.Import) else []
            for name in names:
                assert room == "_jax" or not name.startswith(("jax._src", "jax.extend", "jax.interpreters")), file
                parts = name.split(".")
                if parts[0] == "vipl" and len(parts) > 1 and room not in ("demo", "zoo"):
                    assert level[parts[1]] <= level[room], f"{file} imports {name}"


def imported(file, modules):
    """The modules that a file imports, also inside functions."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (a.name for a in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            inside = [f"{node.module}.{a.name}" for a in node.names]
            yield from (name if name in modules else node.module for name in inside)


@pytest.mark.parametrize("package", ["vipl", "benchmarks"])
def test_no_modules_import_each_other(package):
    root = PACKAGE.parent
    files = {".".join(f.relative_to(root).with_suffix("").parts): f for f in (root / package).rglob("*.py")}
    modules = {name.removesuffix(".__init__"): file for name, file in files.items()}
    assert len(modules) > 5
    graph = {name: {x for x in imported(file, modules) if x in modules} - {name} for name, file in modules.items()}
    graphlib.TopologicalSorter(graph).prepare()  # raises where there is a circle, and says which
