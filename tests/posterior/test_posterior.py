"""`infer` and what a posterior can be asked: exact posteriors, long NUTS runs, ArviZ, files."""

import dataclasses
import json
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import optax
import pytest

import vipl
from tests.helpers.analyses import KINDS as ANALYSES
from tests.helpers.analyses import analysis
from tests.helpers.posteriors import KINDS, problem, references
from vipl import guides, sample
from vipl.errors import AddressError, ChoiceError, ProgramError
from vipl.gen._choices import flatten
from vipl.guides._gaussian import fit_gaussian, lower_triangular
from vipl.guides._natural import MOST_SKIPPED
from vipl.guides._structured import fit_blocks
from vipl.posterior import Improved
from vipl.posterior._files import _alike, _sketches
from vipl.posterior._psis import smooth

X = jnp.linspace(-1.0, 1.0, 12)


@vipl.gen
def line(x):
    a = sample("a", dist.Normal(0.0, 2.0))
    b = sample("b", dist.Normal(0.0, 1.0))
    jax.vmap(lambda x: sample("y", dist.Normal(a + b * x, 0.5)))(x)


Y = {"y": 1.0 + 0.7 * X + 0.3 * jnp.sin(40 * X)}


def exact(x=X, y=Y["y"]):
    """Mean, covariance and log evidence of `line`."""
    design = np.stack([np.ones(len(x)), np.asarray(x)], 1)
    precision = np.diag([0.25, 1.0]) + design.T @ design / 0.25
    cov = np.linalg.inv(precision)
    mean = cov @ design.T @ np.asarray(y) / 0.25
    marginal = design @ np.diag([4.0, 1.0]) @ design.T + 0.25 * np.eye(len(x))
    y = np.asarray(y)
    return mean, cov, -0.5 * (y @ np.linalg.solve(marginal, y) + np.linalg.slogdet(2 * np.pi * marginal)[1])


@pytest.fixture(scope="module")
def posterior():
    return vipl.infer(line(X), Y, key=jax.random.key(3))


def test_a_gaussian_posterior_is_found_exactly(posterior, key):
    mean, cov, log_evidence = exact()
    scale_tril = jnp.tril(posterior.params["lower"], -1) + jnp.diag(jnp.exp(posterior.params["log_diag"]))
    np.testing.assert_allclose(posterior.params["loc"], mean, atol=1e-9)
    np.testing.assert_allclose(scale_tril @ scale_tril.T, cov, rtol=1e-6, atol=1e-12)
    improved = posterior.improve(key, 100)
    np.testing.assert_allclose(improved.bound, log_evidence, atol=1e-4)
    np.testing.assert_allclose(improved.spread, 0.0, atol=1e-4)
    assert posterior.report.converged
    assert posterior.report.method == "natural gradients"


def test_mean_field_of_a_gaussian_has_its_means_and_conditional_deviations():
    mean, cov, _ = exact(X + 1.0)
    found = vipl.infer(line(X + 1.0), Y, key=jax.random.key(3), guide=guides.MeanField).params
    np.testing.assert_allclose([found[a]["loc"] for a in "ab"], mean, atol=1e-6)
    wanted = 1 / np.sqrt(np.diagonal(np.linalg.inv(cov)))
    np.testing.assert_allclose([np.exp(found[a]["log_scale"]) for a in "ab"], wanted, rtol=1e-6)


def test_laplace_is_the_curvature_at_the_mode():
    """Of a Gamma posterior, in the logarithm: mode log(a / b), precision a."""

    @vipl.gen
    def counts():
        rate = sample("rate", dist.Gamma(2.0, 1.0))
        sample("y", dist.Poisson(rate).expand([3]).to_event(1))

    found = vipl.infer(counts(), {"y": jnp.array([3, 1, 4])}, key=jax.random.key(0), guide=guides.Laplace)
    np.testing.assert_allclose(found.params["loc"], np.log(10.0 / 4.0), rtol=1e-6)
    np.testing.assert_allclose(found.params["log_diag"], -0.5 * np.log(10.0), rtol=1e-6)
    assert found.report is not None
    assert found.report.method == "Laplace"


@pytest.mark.parametrize("guide", [guides.FullRank, guides.MeanField, guides.Laplace])
def test_data_sets_are_fitted_together_by_vmap(guide, key):
    """Inside a transformation a fit is that of each data set alone; its report is numbers, too."""
    several = jnp.stack([Y["y"], 2.0 - Y["y"]])

    def fitted(y):
        found = vipl.infer(line(X), {"y": y}, key=key, guide=guide)
        assert found.report is not None
        return found.params, found.report.converged, found.report.steps, found.sample(key, 3)

    together = jax.vmap(fitted)(several)
    alone = [fitted(y) for y in several]
    jax.tree.map(lambda x, *each: np.testing.assert_allclose(x, each, rtol=1e-6, atol=1e-6), together, *alone)
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6, atol=1e-6), jax.jit(fitted)(several[0]), alone[0]
    )


def test_the_fit_does_not_depend_on_units(key):
    """The same posterior in other units: the same steps, up to rounding."""
    scales = jnp.array([1e4, 1e-3, 1.0])
    base = jax.random.normal(key, (3, 3))
    precision = base @ base.T + jnp.eye(3)

    def density(u):
        v = u * scales
        return -0.5 * v @ precision @ v - jnp.sum(jnp.exp(0.3 * v)) + 2 * jnp.sum(v)

    plain = fit_gaussian(lambda v: density(v / scales), jnp.zeros(3), key)
    other = fit_gaussian(density, jnp.zeros(3), key)
    assert plain.num_search == other.num_search
    np.testing.assert_allclose(other.loc * scales, plain.loc, rtol=1e-6)
    np.testing.assert_allclose(other.factor * scales[:, None], plain.factor, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("fit", [fit_gaussian, lambda density, u, key: fit_blocks(density, (((2,), ()),), u, key)])
def test_a_fit_whose_steps_are_all_skipped_has_not_converged(fit, key):
    """A density that is finite everywhere, with a derivative that is NaN everywhere."""

    def density(u):
        return -jnp.sum(u**2) / 2 + jnp.sum(jnp.sqrt(u - u))

    found = fit(density, jnp.ones(2), key)
    assert found.num_average == 0
    assert found.skipped == MOST_SKIPPED
    assert found.error == jnp.inf


def test_a_factor_becomes_triangular(key):
    factor = jax.random.normal(key, (4, 4))
    lower = lower_triangular(factor)
    np.testing.assert_allclose(lower @ lower.T, factor @ factor.T, atol=1e-10)
    assert (jnp.diagonal(lower) > 0).all()
    assert (jnp.triu(lower, 1) == 0).all()


@pytest.mark.oldest
@pytest.mark.parametrize("kind", KINDS)
def test_regressions_in_raw_units_against_long_runs(kind):
    """Means within 0.1 and deviations within 10 % of the posterior's, without an option set."""
    p = problem(kind)
    found = vipl.infer(p.model, p.data, key=jax.random.key(0))
    draws = found.sample(jax.random.key(1), 20_000)
    for name, (mean, sd) in references()[kind].items():
        mean, sd, x = np.asarray(mean), np.asarray(sd), np.asarray(draws[name])
        assert np.abs((x.mean(0) - mean) / sd).max() < 0.1, name
        assert np.abs(x.std(0) / sd - 1).max() < 0.1, name


ERRORS = {  # of the means, in sds of the posterior, and of the sds, in percent
    "mixture": (0.1, 10),
    "hidden_markov": (0.1, 10),
    "garch": (0.1, 15),
    "autoregression": (0.1, 10),
    "survival": (0.1, 10),
    "item_response": (0.1, 20),
    "gaussian_process": (0.1, 20),
}
"""What a Gaussian is away from posteriors that are none."""


def farthest(draws, weights, kind):
    """The largest error of a mean, in sds, and of an sd, in percent."""
    errors = []
    for name, moments in references()[kind].items():
        mean, sd = map(np.ravel, moments)
        x = np.asarray(draws[name]).reshape(len(weights), -1)
        found = weights @ x
        errors.append((np.abs(found - mean) / sd, 100 * np.abs(np.sqrt(weights @ (x - found) ** 2) / sd - 1)))
    return [max(np.max(e) for e in each) for each in zip(*errors, strict=True)]


@pytest.mark.oldest
@pytest.mark.parametrize("kind", ANALYSES)
def test_everyday_posteriors_against_long_runs(kind):
    """The guide is close, and weighted draws are closer; or the verdict says that it is not."""
    p = analysis(kind)
    improved = vipl.infer(p.model, p.data, key=jax.random.key(0)).improve(jax.random.key(1), 4000)
    plain = farthest(improved.choices, np.full(4000, 1 / 4000), kind)
    weighted = farthest(improved.choices, np.exp(improved.weights.log_weights), kind)
    if kind == "measurement_error":
        assert plain[0] > 0.5
        assert "NOT reliable" in improved.verdict()
        return
    assert np.all(np.less(plain, ERRORS[kind])), plain
    assert improved.weights.ess < 1000 or np.all(np.less(weighted, (0.1, 15)))
    assert "Usable" in improved.verdict() or "Fine" in improved.verdict()


@vipl.gen
def two_coins(y):
    a = sample("a", dist.Bernoulli(0.3))
    m = sample("m", dist.Normal(2.0 * a, 1.0))
    sample("y", dist.Normal(m, 0.5))


@pytest.mark.oldest
@pytest.mark.parametrize(
    "guide",
    [
        guides.Flow,
        lambda model, data: guides.LowRank(model, data, 1),
        lambda model, data: guides.Mixture(model, data, 2),
        guides.BlockDiagonal,
    ],
    ids=["flow", "low rank", "mixture", "blocks"],
)
def test_guides_that_are_fitted_by_stochastic_gradients(guide, key):
    _, cov, log_evidence = exact()
    found = vipl.infer(line(X), Y, key=key, guide=guide, num_samples=4)
    improved = found.improve(key, 2000)
    assert found.report is not None
    assert found.report.method == "stochastic gradients"
    assert log_evidence - 0.02 < improved.bound < log_evidence + 5 * improved.spread / np.sqrt(2000) + 1e-6


@pytest.mark.oldest
def test_discrete_choices_get_a_guide_of_their_own(key):
    found = vipl.infer(two_coins(0.0), {"y": 1.2}, key=key)
    assert set(found.params) == {"real", "discrete"}
    weight = [0.7, 0.3]
    evidence = sum(w * np.exp(dist.Normal(2.0 * a, np.sqrt(1.25)).log_prob(1.2)) for a, w in enumerate(weight))
    improved = found.improve(key, 4000)
    assert np.log(evidence) - 0.5 < improved.bound < np.log(evidence) + 0.05
    np.testing.assert_allclose(jnp.log(jnp.mean(jnp.exp(_log_weights(found, key)))), np.log(evidence), atol=0.1)


def _log_weights(posterior, key):
    _, log_p, log_q = posterior._draw(key, 4000)
    return log_p - log_q


def test_an_optimizer_of_ones_own(key):
    found = vipl.infer(line(X), Y, key=key, optimizer=optax.adam(0.05), num_steps=50)
    assert found.report is not None
    assert found.report.steps == 50
    assert found.report.values.shape == (50,)


def test_predictions(posterior, key):
    mean, cov, _ = exact()
    new = jnp.array([-2.0, 0.0, 2.0])
    drawn = posterior.predict(key, line(new), 20_000)
    assert set(drawn) == {"y"}
    design = np.stack([np.ones(3), new], 1)
    want = design @ mean, np.sqrt(np.diagonal(design @ cov @ design.T) + 0.25)
    np.testing.assert_allclose(drawn["y"].mean(0), want[0], atol=5 * want[1].max() / np.sqrt(20_000))
    np.testing.assert_allclose(drawn["y"].std(0), want[1], rtol=0.05)
    prior = vipl.predict(key, line(new), 1000)
    assert {k: v.shape for k, v in prior.items()} == {"a": (1000,), "b": (1000,), "y": (1000, 3)}
    assert prior["a"].std() > 5 * posterior.sample(key)["a"].std()


def test_choices_stand_in_the_order_of_the_model(key):
    @vipl.gen
    def model():
        last = sample("z", dist.Normal(0.0, 1.0))
        sample(("part", "y"), dist.Normal(last, 1.0))
        sample("k", dist.Bernoulli(0.5))
        sample(("part", "x"), dist.HalfNormal(1.0))
        sample("b", dist.Normal(last, 1.0))
        sample("a", dist.Normal(last, 1.0))

    data = {"a": 0.2, "b": 0.1}
    real = guides.FullRank(model(), data, addresses=["part", "z"])
    guide = guides.combine({"k": guides.MeanField(model(), data, addresses="k"), "real": real})
    found = vipl.Posterior(model(), data, guide, guide.init(key))
    order = [("z",), ("part", "y"), ("part", "x"), ("k",)]
    improved = found.improve(key, 30)
    for choices in (found.sample(key, 2), improved.choices, improved.sample(key, 2)):
        assert list(flatten(choices, "draws")) == order
    assert [row[0] for row in found.summary(key, 30).rows] == ["z", "part/y", "part/x", "k"]
    assert list(found.predict(key, num_samples=2)) == list(found.log_likelihood(key, num_samples=2)) == ["b", "a"]
    tree = found.to_arviz(key, num_samples=2)
    assert list(tree["posterior"].data_vars) == list(tree["prior"].data_vars) == ["z", "part.y", "part.x", "k"]
    assert list(tree["posterior_predictive"].data_vars) == ["b", "a"]


def test_the_verdict_names_both_ways_of_writing_effects(key):
    guide = guides.FullRank(line(X), Y)
    verdict = vipl.Posterior(line(X), Y, guide, guide.init(key)).improve(key, 100).verdict()
    assert "NOT reliable" in verdict
    assert "non-centred (z ~ N(0, 1), effect = mean + sd z) where a group has few data" in verdict
    assert ", centred (effect ~ N(mean, sd)) where it has many" in verdict


def test_log_likelihoods_are_those_of_each_observation(posterior, key):
    held_out = {"y": jnp.array([0.0, 1.0])}
    values = posterior.log_likelihood(key, line(X[:2]), held_out, 50)["y"]
    drawn = posterior.sample(key, 50)
    mean = drawn["a"][:, None] + drawn["b"][:, None] * X[:2]
    np.testing.assert_allclose(values, dist.Normal(mean, 0.5).log_prob(held_out["y"]), rtol=1e-6)
    with pytest.raises(AddressError, match="no value"):
        posterior.log_likelihood(key, two_coins(0.0), {"y": 0.0})


def test_log_likelihoods_of_a_program_without_the_posteriors_choices(posterior, key):
    """Its data have the same density at each draw."""
    apart = vipl.gen(lambda: sample("w", dist.Normal(1.0, 2.0)))()
    found = posterior.log_likelihood(key, apart, {"w": 0.3}, num_samples=3)["w"]
    np.testing.assert_allclose(found, np.full(3, dist.Normal(1.0, 2.0).log_prob(0.3)), rtol=1e-12)


def test_an_address_may_hold_a_slash(key):
    @vipl.gen
    def odd():
        sample("y", dist.Normal(sample("a/b", dist.Normal(0.0, 1.0)), 1.0))

    found = vipl.infer(vipl.gen(lambda: sample("part/1", odd()))(), {"part/1": {"y": 1.0}}, key=key)
    assert found.log_likelihood(key, num_samples=3)["part/1"]["y"].shape == (3,)
    tree = found.to_arviz(key, num_samples=3)
    assert list(tree["posterior"].data_vars) == ["part.1.a.b"]
    assert list(tree["log_likelihood"].data_vars) == list(tree["observed_data"].data_vars) == ["part.1.y"]
    twice = vipl.gen(lambda: sample("part", odd()) or sample("part.a/b", dist.Normal(0.0, 1.0)))()
    found = vipl.infer(twice, {"part": {"y": 1.0}}, key=key)
    with pytest.raises(AddressError, match="two addresses have one name"):
        found.to_arviz(key, num_samples=3)


def test_expectations_and_densities(posterior, key):
    mean, cov, _ = exact()
    second = posterior.expectation(lambda z: {"ab": z["a"] * z["b"]}, key, 40_000)["ab"]
    np.testing.assert_allclose(second, mean[0] * mean[1] + cov[0, 1], atol=0.01)
    at = jnp.asarray(mean) + 0.1
    want = dist.MultivariateNormal(jnp.asarray(mean), jnp.asarray(cov)).log_prob(at)
    np.testing.assert_allclose(posterior.log_prob({"a": at[0], "b": at[1]}), want, rtol=1e-5)


def test_smoothed_weights_are_arvizs_of_the_weights_themselves(key):
    """ArviZ takes the negative logarithms of weights: a long tail of small weights is harmless, one of large is not."""
    e = jax.random.exponential(key, (4000,))
    light, heavy = smooth(-2.0 * e), smooth(0.8 * e)
    assert light.k_hat < 0.3
    assert 0.6 < heavy.k_hat < 1.0
    np.testing.assert_allclose(np.exp(light.log_weights).sum(), 1.0)
    assert smooth(jnp.zeros(1000)).k_hat == -np.inf
    for spread in (1e2, 1e4, 1e6):  # beside the largest all are zero, in the end in double precision too
        one = smooth(spread * e)
        assert one.k_hat > 0.7
        assert 1.0 <= one.ess < 1.5
        assert np.isfinite(one.log_weights).all()
    alone = smooth(jnp.full(1000, -1e30).at[3].set(1e30))
    assert alone.k_hat == np.inf
    np.testing.assert_allclose(alone.ess, 1.0)
    with pytest.raises(ChoiceError, match="1 infinite"):
        smooth(jnp.array([0.0, jnp.inf]))
    with pytest.raises(ChoiceError, match="not numbers"):
        smooth(jnp.array([0.0, jnp.nan]))


def test_a_point_is_not_called_fine(key):
    """It has no weights: its summary says what it is, and asks for a guide with a density."""
    point = guides.Delta(line(X), Y)
    beside = guides.combine(
        {"a": guides.FullRank(line(X), Y, addresses="a"), "b": guides.Delta(line(X), Y, addresses="b")}
    )
    for guide in (point, beside):
        said = str(vipl.Posterior(line(X), Y, guide, guide.init(key)).summary(key, 100))
        assert "A point tells where the density is high" in said
        assert "Fine" not in said
        assert "k-hat" not in said


def test_expectations_of_conditions_and_integers_are_means(key):
    """By weights, too, as `jnp.mean` has them; derivatives are those of the sum."""

    @vipl.gen
    def counted():
        level, side = (
            sample("level", dist.Normal(0.0, 1.0)),
            sample("side", dist.Categorical(jnp.array([0.2, 0.3, 0.5]))),
        )
        sample("y", dist.Normal(level + side, 1.0))

    guide = guides.MeanField(counted(), {"y": 1.0})
    found = vipl.Posterior(counted(), {"y": 1.0}, guide, guide.init(key))
    improved = found.improve(key, 500)
    weights = np.exp(improved.weights.log_weights)
    level, side = (np.asarray(improved.choices[name]) for name in ("level", "side"))
    got = improved.expectation(lambda z: {"p": z["level"] > 0, "k": z["side"], "x": jnp.float32(z["level"]), "c": 2})
    assert got["x"].dtype == jnp.float32
    assert got["k"].dtype == jnp.mean(improved.choices["side"]).dtype
    want = {"p": weights @ (level > 0), "k": weights @ side, "x": weights @ level, "c": 2.0}
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), got, want)
    assert 0.1 < got["p"] < 0.9
    slope = jax.grad(lambda t: improved.expectation(lambda z: t * z["level"]))(1.0)
    np.testing.assert_allclose(slope, weights @ level, rtol=1e-12)
    plain = found.expectation(lambda z: z["side"], key, 500)
    np.testing.assert_allclose(plain, np.mean(np.asarray(found.sample(key, 500)["side"])), rtol=1e-12)


@pytest.mark.oldest
def test_weighting_corrects_a_guide_that_is_too_wide(key):
    mean, cov, _ = exact()
    guide = guides.FullRank(line(X), Y)
    params = guide.of_moments(jnp.asarray(mean) + 0.1, 1.5 * jnp.linalg.cholesky(cov))
    improved = vipl.Posterior(line(X), Y, guide, params).improve(key, 8000)
    assert improved.weights.k_hat < 0.5
    np.testing.assert_allclose(improved.expectation(lambda z: z["a"]), mean[0], atol=0.02)
    again = improved.sample(key, 8000)
    np.testing.assert_allclose(again["a"].std(), np.sqrt(cov[0, 0]), rtol=0.1)
    assert "Usable" in improved.verdict()


def gaussian_with(scale, shift=0.0):
    """The posterior of `line` with its deviations and means wrong by these."""
    mean, cov, log_z = exact()
    factor = np.linalg.cholesky(cov)
    guide = guides.FullRank(line(X), Y)
    params = guide.of_moments(jnp.asarray(mean + factor @ np.full(2, shift)), scale * jnp.asarray(factor))
    return vipl.Posterior(line(X), Y, guide, params), log_z


@pytest.mark.parametrize("scale", [0.7, 0.95, 1.0, 1.1, 1.5, 3.0, 10.0])
def test_the_verdict_sees_a_wrong_scale(scale, key):
    """Weights of a guide that is too wide are bounded, so that k-hat and ESS do not see it; its own draws are wrong.

    KL(q || p) = n (s² - 1 - log s²) / 2 for n coordinates whose deviations are s times as large.
    """
    found, log_z = gaussian_with(scale)
    improved = found.improve(key, 8000)
    divergence = scale**2 - 1 - np.log(scale**2)
    np.testing.assert_allclose(improved.weights.log_mean, log_z, atol=0.2)
    np.testing.assert_allclose(improved.divergence, divergence, atol=0.03, rtol=0.1)
    assert ("Fine" in improved.verdict()) == (0.9 < scale < 1.2)
    assert ("by weights alone" in improved.verdict()) == (scale > 1 and divergence > 0.5)


@pytest.mark.parametrize("number", [50, 300, 8000])
def test_the_verdict_sees_a_mean_that_is_wrong(number, key):
    """A third of a deviation in each of two numbers is not fine, by however few draws; a thirtieth is."""
    near, far = (gaussian_with(1.0, by)[0].improve(key, number) for by in (1 / 30, 1 / 3))
    assert far.weights.k_hat < 0.6
    assert "Fine" in near.verdict()
    assert "Fine" not in far.verdict()


@vipl.gen
def some_are_impossible():
    k = sample("k", dist.Categorical(jnp.array([0.0, 0.5, 0.5])))
    sample("y", dist.Normal(k, 1.0))


def test_the_verdict_sees_draws_that_are_impossible(key):
    """A guide that draws what has density zero has a bound of -inf; weights leave these draws out."""
    guide = guides.MeanField(some_are_impossible(), {"y": 1.0})
    improved = vipl.Posterior(some_are_impossible(), {"y": 1.0}, guide, guide.init(key)).improve(key, 1000)
    zeros = int((np.asarray(improved.choices["k"]) == 0).sum())
    assert improved.impossible == zeros > 0
    assert "bound -inf; " in improved.verdict()
    assert f"{zeros} draws are impossible in the model" in improved.verdict()
    assert "Usable by weights alone" in improved.verdict()
    heavy = improved.weights._replace(k_hat=1.2)
    assert "NOT reliable" in dataclasses.replace(improved, weights=heavy).verdict()
    p = jax.nn.softmax(dist.Normal(jnp.arange(1.0, 3.0), 1.0).log_prob(1.0))[0]
    np.testing.assert_allclose(improved.expectation(lambda z: z["k"] == 1), p, atol=0.1)


def test_steps_of_an_optimizer_of_ones_own_have_no_stopping_rule(key, tmp_path):
    """So nobody can say whether they have converged."""
    found = vipl.infer(line(X), Y, key=key, guide=guides.MeanField, optimizer=optax.adam(1e-6), num_steps=2)
    assert found.report is not None
    assert found.report.converged is None
    assert "2 steps" in str(found.summary(key, 100))
    assert "no stopping rule" in str(found.summary(key, 100))
    found.save(tmp_path / "fit")
    read = vipl.load(tmp_path / "fit", line(X), Y).report
    assert read is not None
    assert read.converged is None


def test_a_bad_guide_is_called_so(key):
    guide = guides.FullRank(line(X), Y)
    mean, cov, _ = exact()
    narrow = guide.of_moments(jnp.asarray(mean), 0.3 * jnp.linalg.cholesky(cov))
    text = str(vipl.Posterior(line(X), Y, guide, narrow).summary())
    assert "NOT reliable" in text


def test_a_light_tail_of_a_good_guide_is_told_from_a_bad_guide(key):
    """Weights that are nearly equal, and a few that are large: k-hat alone does not tell the two apart."""
    bulk = 0.02 * jax.random.normal(key, (4000,))
    good = smooth(bulk.at[:20].set(jnp.linspace(0.5, 2.5, 20)))
    bad = smooth(4.0 * bulk / 0.02)
    for weights, said in ((good, "Usable but for tails"), (bad, "NOT reliable")):
        assert weights.k_hat > weights.limit
        assert said in Improved({}, weights, jnp.zeros(()), jnp.ones(())).verdict()


@pytest.mark.parametrize(("shape", "said"), [(0.35, "Fine"), (0.6, "Usable with care")])
def test_tails_that_are_a_little_too_light_are_named(shape, said):
    """Weights of a generalized Pareto distribution; above a shape of 1/2 their variance is infinite."""
    at = (jnp.arange(4000) + 0.5) / 4000
    weights = smooth(np.asarray(jnp.log(1 + 0.4 * ((1 - at) ** -shape - 1) / shape)))
    assert weights.k_hat < weights.limit
    assert said in Improved({}, weights, jnp.asarray(weights.log_mean), jnp.ones(())).verdict()


def test_a_fit_that_differs_far_out_alone_is_fine(key):
    """Largest weights with a long tail, all within a factor of 1.2."""
    raw = 0.001 * jax.random.normal(key, (4000,))
    weights = smooth(raw.at[:20].set(0.2 * jnp.linspace(0.1, 1.0, 20) ** 8))
    assert weights.k_hat > weights.limit
    assert "Fine but for far tails" in Improved({}, weights, jnp.zeros(()), jnp.ones(())).verdict()


@pytest.mark.parametrize(
    "setting",
    [
        ("jax_numpy_rank_promotion", "raise"),
        ("jax_numpy_dtype_promotion", "strict"),
        ("jax_transfer_guard", "disallow"),
    ],
    ids=lambda s: s[1],
)
def test_settings_that_forbid_promotion_and_transfers_are_of_the_users_own_code(setting, key):
    name, value = setting
    before = getattr(jax.config, name)
    x, y = jnp.ones(12), jnp.asarray(Y["y"], float)

    @vipl.gen
    def model(x):
        a, s = sample("a", dist.Normal(0.0, 2.0)), sample("s", dist.HalfNormal(1.0))
        sample("y", dist.Normal(a * x, s * x).to_event(1))

    try:
        jax.config.update(name, value)
        found = vipl.infer(model(x), {"y": y}, key=key)
        assert found.report is not None
        assert found.report.converged
        assert "k-hat" in str(found.summary())
        assert found.predict(key, num_samples=3)["y"].shape == (3, 12)
        assert found.improve(key, 50).sample(key, 7)["a"].shape == (7,)
        assert vipl.diagnostics.calibrate(key, model(x), "y", num_datasets=4).ranks["a"].shape == (4,)
        guide = vipl.guides.MeanField(model(x), {"y": y})
        assert guide(guide.init(key)).simulate(key).choices.keys() == {"a", "s"}
        bound = vipl.expectation(lambda params: vipl.objectives.elbo(model(x), guide(params), {"y": y}))
        vipl.fit(bound, guide.init(key), optax.adam(0.1), key=key, num_steps=3, progress=False)
    finally:
        jax.config.update(name, before)


def test_dimensions_by_a_word_and_by_an_address_with_a_slash(key):
    @vipl.gen
    def model():
        b = sample("b", dist.Normal(0.0, 1.0))
        sample("obs/y", dist.Normal(b, 1.0).expand([4]))
        sample("w", dist.Normal(b, 1.0).expand([3, 2]))

    found = vipl.infer(model(), {"obs/y": jnp.zeros(4), "w": jnp.zeros((3, 2))}, key=key)
    tree = found.to_arviz(key, num_samples=5, dims={"obs/y": "row", "w": "side"}, prior=False)
    assert tree["observed_data"]["obs.y"].dims == ("row",)
    assert tree["observed_data"]["w"].dims[0] == "side"


def test_a_model_may_take_lengths_and_have_random_keys(key):
    @vipl.gen
    def network(n):
        w = sample("w", dist.Normal(0.0, 1.0))
        keep = jax.random.bernoulli(vipl.random_key("dropout"), 0.9, (n,))
        vipl.deterministic("mean", w * keep)
        sample("y", dist.Normal(w * keep, jnp.ones(n)))

    found = vipl.infer(network(5), {"y": jnp.ones(5)}, key=key, optimizer=optax.adam(0.05), num_steps=20)
    assert found.predict(key, num_samples=7)["y"].shape == (7, 5)
    assert found.log_likelihood(key, num_samples=7)["y"].shape == (7, 5)
    assert jnp.isfinite(found.improve(key, 50).bound)


def test_a_summary_has_a_row_for_each_number(posterior):
    @vipl.gen
    def wide():
        sample(("part", "w"), dist.Normal(jnp.zeros((2, 2)), 1.0))

    table = vipl.infer(wide(), {}, key=jax.random.key(0)).summary()
    assert [row[0] for row in table.rows] == [f"part/w[{i}, {j}]" for i in range(2) for j in range(2)]
    assert "<table>" in posterior.summary()._repr_html_()
    mean, cov, _ = exact()
    row = posterior.summary(num_samples=20_000).rows[0]
    np.testing.assert_allclose([float(row[1]), float(row[2])], [mean[0], np.sqrt(cov[0, 0])], rtol=0.02)


def test_arviz_reads_it(posterior, key):
    import arviz_stats

    tree = posterior.to_arviz(key, dims={"y": ["row"]}, coords={"row": np.arange(12)}, constant_data={"x": X})
    groups = {"posterior", "posterior_predictive", "prior", "prior_predictive", "log_likelihood", "sample_stats"}
    assert groups | {"observed_data", "constant_data"} == set(tree.children)
    assert tree["log_likelihood"]["y"].shape == (1, 1000, 12)
    assert tree["posterior_predictive"]["y"].dims == ("chain", "draw", "row")
    mean, _, _ = exact()
    stats: Any = arviz_stats  # its names are made when it is imported
    summary = stats.summary(tree, round_to="none")
    np.testing.assert_allclose(summary["mean"], mean, atol=0.05)
    assert np.isfinite(stats.loo(tree).elpd)


@vipl.gen
def _part(a):
    vipl.deterministic("twice", 2 * a)
    return sample("b", dist.Normal(a, 1.0))


def test_recorded_values_stand_beside_the_choices(key):
    """By address, with the axes of loops, at the same draws; of the prior at those of the prior."""

    @vipl.gen
    def recording():
        a = sample("a", dist.Normal(0.0, 1.0))
        mean = vipl.deterministic("mean", a + sample("part", _part(a)) * X)
        sample("y", dist.Normal(mean, 1.0))
        jax.vmap(lambda i: vipl.deterministic("lane", i * a))(jnp.arange(2.0))

    guide = guides.FullRank(recording(), Y)
    found = vipl.Posterior(recording(), Y, guide, guide.init(key))
    drawn, recorded = found.sample(key, 6), found.deterministics(key, num_samples=6)
    assert list(recorded) == ["part", "mean", "lane"]
    np.testing.assert_allclose(recorded["part"]["twice"], 2 * drawn["a"], rtol=1e-12)
    np.testing.assert_allclose(recorded["mean"], drawn["a"][:, None] + drawn["part"]["b"][:, None] * X, rtol=1e-12)
    np.testing.assert_allclose(recorded["lane"], drawn["a"][:, None] * np.arange(2.0), rtol=1e-12)
    tree = found.to_arviz(key, num_samples=5, dims={"mean": ["row"]})
    for group in ("posterior", "prior"):
        its = tree[group]
        assert list(its.data_vars) == ["a", "part.b", "part.twice", "mean", "lane"]
        assert its["mean"].dims == ("chain", "draw", "row")
        np.testing.assert_allclose(its["part.twice"], 2 * its["a"], rtol=1e-12)
    assert list(tree["prior_predictive"].data_vars) == ["y"]
    less = found.to_arviz(key, num_samples=5, deterministics=False)
    assert list(less["posterior"].data_vars) == list(less["prior"].data_vars) == ["a", "part.b"]
    bare = vipl.Posterior(line(X), Y, guides.Delta(line(X), Y), guides.Delta(line(X), Y).init(key))
    assert bare.deterministics(key, num_samples=3) == {}


def test_recorded_values_of_other_programs_are_those_of_their_predictions(key):
    """What the posterior does not have is drawn, as by `predict` with the same key."""

    @vipl.gen
    def curve(x):
        b = sample("b", dist.Normal(0.0, 1.0))
        noise = sample("noise", dist.Normal(jnp.zeros(len(x)), 0.1))
        mean = vipl.deterministic("mean", b * x + noise)
        sample("y", dist.Normal(mean, 1.0))

    guide = guides.FullRank(line(X), Y)
    found = vipl.Posterior(line(X), Y, guide, guide.init(key))
    new = curve(jnp.array([1.0, 5.0, 7.0]))
    predicted, recorded = found.predict(key, new, 9), found.deterministics(key, new, 9)
    slopes = (recorded["mean"] - predicted["noise"]) / jnp.array([1.0, 5.0, 7.0])
    np.testing.assert_allclose(slopes, slopes[:, :1] * jnp.ones(3), rtol=1e-9)
    np.testing.assert_allclose(slopes[:, 0], found.sample(jax.random.split(key)[0], 9)["b"], rtol=1e-9)


def test_names_that_no_dimension_has_are_kept(key):
    """A default name that `dims` have replaced; constant data along themselves, which are a coordinate."""
    two = vipl.gen(lambda: sample("v_dim_0", dist.Normal(0.0, 1.0)) + sample("v", dist.Normal(jnp.zeros(2), 1.0)))()
    guide = guides.MeanField(two, {})
    found, school = vipl.Posterior(two, {}, guide, guide.init(key)), np.array([3.0, 4.0])
    tree = found.to_arviz(
        key, num_samples=5, dims={"v": ["school"], "school": ["school"]}, constant_data={"school": school}
    )
    assert list(tree["posterior"].data_vars) == ["v_dim_0", "v"]
    np.testing.assert_array_equal(tree["constant_data"].coords["school"], school)
    with pytest.raises(AddressError, match="the name of a dimension"):
        found.to_arviz(key, num_samples=5, dims={"v": [None]})


def test_dimensions_of_constant_data_are_named(posterior, key):
    tree = posterior.to_arviz(
        key, num_samples=5, prior=False, constant_data={"x": X}, dims={"x": ["row"], "y": ["row"]}
    )
    assert tree["constant_data"]["x"].dims == tree["observed_data"]["y"].dims == ("row",)


def test_leaving_out_a_nearly_certain_row_has_a_number():
    """log p(y = 1) is about -exp(-30): exponentials of such numbers are all 1 in float32."""
    import arviz_stats

    @vipl.gen
    def model(x):
        shift = sample("shift", dist.Normal(0.0, 1.0))
        sample("y", dist.Bernoulli(logits=shift + x))

    with jax.enable_x64(False):
        data = {"y": jnp.array([1, 0, 1, 1])}
        posterior = vipl.infer(model(jnp.array([0.3, -0.4, 20.0, 30.0])), data, key=jax.random.key(0))
        tree = posterior.to_arviz(num_samples=500, prior=False)
    stats: Any = arviz_stats  # its names are made when it is imported
    elpd = np.asarray(stats.loo(tree, pointwise=True).elpd_i)
    assert np.isfinite(elpd).all()
    assert -1e-8 < elpd[2] < elpd[3] < 0


def test_arviz_plots_it(posterior, key):
    import arviz_plots
    import matplotlib
    import matplotlib.pyplot

    matplotlib.use("Agg")
    tree = posterior.to_arviz(key, num_samples=200)
    arviz_plots.plot_dist(tree, backend="matplotlib")
    arviz_plots.plot_ppc_dist(tree, backend="matplotlib")
    axes = posterior.plot_fit()
    assert axes.get_xlabel() == "step"
    matplotlib.pyplot.close("all")


SAVED = {
    "full rank": lambda m, d: guides.FullRank(m, d),
    "framed flow": lambda m, d: guides.Flow(m, d, hidden=(8,), frame=(jnp.ones(2), 2 * jnp.eye(2))),
    "combination": lambda m, d: guides.combine(
        {"a": guides.MeanField(m, d, addresses="a"), "b": guides.LowRank(m, d, 1, addresses=["b"])}
    ),
}


@pytest.mark.parametrize("kind", SAVED)
def test_a_file_gives_the_same_posterior(kind, tmp_path, key):
    guide = SAVED[kind](line(X), Y)
    before = vipl.Posterior(line(X), Y, guide, guide.init(key))
    before.save(tmp_path / "posterior.npz")
    after = vipl.load(tmp_path / "posterior.npz", line(X), Y)
    for one, other in zip(*(jax.tree.leaves(p.sample(key, 5)) for p in (before, after)), strict=True):
        np.testing.assert_array_equal(one, other)
    with np.load(tmp_path / "posterior.npz", allow_pickle=False) as file:
        assert json.loads(file["said"].tobytes())["model"] == "line"


def test_a_file_keeps_the_bounds_of_its_choices(tmp_path, key):
    """Other ones are refused, also in the middle of many; rounding, and how NumPy prints, are nothing to it."""

    def between(high):
        bounds = np.asarray([np.zeros(9), high], jnp.zeros(()).dtype)
        return vipl.gen(lambda: sample("u", dist.Uniform(*bounds)))()

    path, high = tmp_path / "posterior.npz", np.linspace(5.3, 10.1, 9)
    guide = guides.MeanField(between(high), {})
    vipl.Posterior(between(high), {}, guide, guide.init(key)).save(path)
    with np.printoptions(precision=2):
        vipl.load(path, between(high), {})
    with jax.enable_x64(False):
        again = vipl.load(path, between(high), {})
        assert again.sample(jax.random.key(0), 2)["u"].dtype == jnp.float32
    other = high.copy()
    other[4] += 0.01
    with pytest.raises(ProgramError, match="does not hold this posterior"):
        vipl.load(path, between(other), {})


def test_files_of_other_posteriors_are_refused(posterior, tmp_path):
    path = tmp_path / "posterior.npz"
    posterior.save(path)
    report = vipl.load(path, line(X), Y).report
    assert report is not None
    assert (report.method, report.steps, report.note) == (
        "natural gradients",
        posterior.report.steps,
        posterior.report.note,
    )
    np.testing.assert_array_equal(report.values, posterior.report.values)
    with pytest.raises(ProgramError, match="two_coins"):
        vipl.load(path, two_coins(0.0), {"y": 0.0})
    whole = pathlib.Path(path).read_bytes()
    for part in (b"nothing", b"", whole[:300], whole[:-100]):
        pathlib.Path(path).write_bytes(part)
        with pytest.raises(ProgramError, match="a part of a file, or one of another kind"):
            vipl.load(path, line(X), Y)
    with pytest.raises(FileNotFoundError):
        vipl.load(tmp_path / "other", line(X), Y)
    guide = guides.MeanField(two_coins(0.0), {"y": 0.0}, discrete=vipl.Score())
    with pytest.raises(ProgramError, match="MeanField with discrete=Score"):
        vipl.Posterior(two_coins(0.0), {"y": 0.0}, guide, guide.init()).save(path)


def test_a_posterior_is_a_part_of_other_programs(posterior, key):
    @vipl.gen
    def study():
        z = sample("old", posterior.program)
        sample("new", dist.Normal(z["a"], 1.0))

    trace = study().simulate(key)
    assert set(flatten(trace.choices, "")) == {("old", "a"), ("old", "b"), ("new",)}
    np.testing.assert_allclose(study().assess(trace.choices).log_prob, trace.log_prob, rtol=1e-6)


def test_what_infer_refuses(key):
    unapplied: Any = line  # no program yet
    no_guide: Any = lambda m, d: 3  # noqa: E731
    calls = {
        "not a generative function with its arguments": lambda: vipl.infer(unapplied, Y, key=key),
        "guide of infer is not a guide": lambda: vipl.infer(line(X), Y, key=key, guide=no_guide),
        "an address that": lambda: vipl.infer(line(X), {"z": 1.0}, key=key),
        "none of the posterior's choices": lambda: vipl.infer(line(X), Y, key=key).predict(
            key, vipl.gen(lambda: sample("other", dist.Normal(0.0, 1.0)))()
        ),
    }
    for message, call in calls.items():
        with pytest.raises((ProgramError, AddressError), match=message):
            call()


def test_a_file_is_of_the_data_that_were_fitted(key, tmp_path):
    """To single precision, in which a file may be read; other numbers of the same shape are refused."""
    found = gaussian_with(1.0)[0]
    found.save(tmp_path / "fit")
    single = {"y": np.asarray(Y["y"], np.float32)}
    assert vipl.load(tmp_path / "fit", line(X), single).data is single
    vipl.load(tmp_path / "fit", line(X), {"y": np.nextafter(np.asarray(Y["y"]), 9.0)})
    swapped, one = np.array(Y["y"]), np.array(Y["y"])
    swapped[[0, 1]], one[3] = swapped[[1, 0]], one[3] + 0.001
    for other in (-Y["y"], 2.0 * Y["y"], swapped, one, jnp.full_like(Y["y"], jnp.nan)):
        with pytest.raises(ProgramError, match="other data at y"):
            vipl.load(tmp_path / "fit", line(X), {"y": other})


def test_sketches_are_of_the_numbers():
    """Kinds of numbers and the sign of zero do not count; what is missing, and where, does."""
    same = [np.array([True, False]), np.array([1, 0]), np.array([1.0, -0.0]), jnp.array([1.0, 0.0])]
    sketches = [_sketches({"y": y})["y"] for y in same]
    assert all(_alike(x, sketches[0]) for x in sketches)
    others = [[0, 1], [1, 1], [2, 0], [1.0, np.nan], [np.nan, 1.0], [1.0, np.inf], [1.0, -np.inf], [1.0, 1e-4]]
    others = [_sketches({"y": np.array(y)})["y"] for y in others]
    assert not any(_alike(x, sketches[0]) for x in others)
    assert not any(_alike(x, y) for k, x in enumerate(others) for y in others[:k])
    tiny = [_sketches({"y": np.array([1e-9, y])})["y"] for y in (1e-9, 2e-9)]
    assert not _alike(*tiny)
    assert _alike(*[_sketches({"y": np.zeros(0)})["y"]] * 2)


def test_an_event_has_one_density_and_its_axes_keep_their_names(key):
    """ArviZ leaves the axes of an event out of the log likelihoods, where they are named too."""

    @vipl.gen
    def pairs():
        a = sample("a", dist.Normal(0.0, 1.0))
        jax.vmap(lambda: sample("y", dist.MultivariateNormal(a * jnp.ones(2), jnp.eye(2))), axis_size=3)()

    found = vipl.infer(pairs(), {"y": jnp.ones((3, 2))}, key=key)
    tree = found.to_arviz(key, num_samples=30, dims={"y": ["row", "side"]}, coords={"side": ["left", "right"]})
    assert tree["posterior_predictive"]["y"].dims == ("chain", "draw", "row", "side")
    assert tree["log_likelihood"]["y"].dims == ("chain", "draw", "row")
    assert tree["observed_data"]["y"].dims == ("row", "side")


def test_a_guide_of_a_program_without_data_stands_in_a_posterior_and_is_not_fitted(key):
    """Made for the parameters alone, it has no density with the data, which a fit would need."""
    prior = vipl.gen(lambda: (sample("a", dist.Normal(0.0, 2.0)), sample("b", dist.Normal(0.0, 1.0))))()
    guide = guides.FullRank(prior, {})
    mean, cov, _ = exact()
    params = guide.of_moments(jnp.asarray(mean), jnp.linalg.cholesky(cov))
    assert "Fine" in vipl.Posterior(line(X), Y, guide, params).improve(key, 1000).verdict()
    with pytest.raises(ProgramError, match="made with other data"):
        vipl.infer(line(X), Y, key=key, guide=guide)


def test_a_file_is_of_the_model_that_was_fitted(key, tmp_path):
    """Another prior, or other covariates, have other densities at the draws in the file."""

    @vipl.gen
    def model(scale, x):
        a = sample("a", dist.Normal(0.0, scale))
        sample("y", dist.Normal(a * x, 1.0))

    x, data = jnp.array([1.0, 2.0]), {"y": jnp.array([2.0, 3.0])}
    vipl.infer(model(1.0, x), data, key=key).save(tmp_path / "fit")
    loaded = vipl.load(tmp_path / "fit", model(1.0, x), data)
    with jax.enable_x64(False):
        vipl.load(tmp_path / "fit", model(1.0, x.astype(jnp.float32)), data)
    for other in (model(1.5, x), model(1.0, 1.1 * x)):
        with pytest.raises(ProgramError, match="log density"):
            vipl.load(tmp_path / "fit", other, data)
    assert loaded.sample(key, 2)["a"].shape == (2,)


def test_a_file_of_double_precision_is_read_in_single(key, tmp_path):
    """Covariates of thousands round; a prior beside 200,000 data is known again all the same."""

    @vipl.gen
    def line(x):
        a, b = sample("a", dist.Normal(0.0, 10.0)), sample("b", dist.Normal(0.0, 1e3))
        sample("y", dist.Normal(b + a * x, 0.05))

    x = np.linspace(1990.0, 2020.0, 400)
    y = 0.5 * x + 0.05 * np.random.default_rng(0).normal(size=400)
    vipl.infer(line(x), {"y": y}, key=key, guide=guides.FullRank).save(tmp_path / "line")
    with jax.enable_x64(False):
        vipl.load(tmp_path / "line", line(jnp.asarray(x, jnp.float32)), {"y": jnp.asarray(y, jnp.float32)})

    @vipl.gen
    def many(scale):
        sample("y", dist.Normal(sample("a", dist.Normal(0.0, scale)), 1.0).expand([200_000]))

    data = {"y": np.random.default_rng(1).normal(size=200_000)}
    vipl.infer(many(1.0), data, key=key).save(tmp_path / "many")
    with pytest.raises(ProgramError, match="log density .* of 'a'"):
        vipl.load(tmp_path / "many", many(3.0), data)


# --- branches, and elements that are no data -----------------------------------------------------------------------


@vipl.gen
def in_branches(far, near):
    k = sample("k", dist.Bernoulli(0.4))
    m = jax.lax.cond(k == 1, lambda: sample("a", dist.Normal(far, 1.0)), lambda: sample("b", dist.Normal(near, 1.0)))
    sample("y", dist.Normal(m, 1.0).expand([3]))


def of_branches(far, near, y):
    """P(k = 1), and the log evidence."""
    of = lambda mean: dist.MultivariateNormal(mean * jnp.ones(3), jnp.eye(3) + 1.0).log_prob(y)  # noqa: E731
    logs = jnp.stack([of(near) + jnp.log(0.6), of(far) + jnp.log(0.4)])
    return float(jax.nn.softmax(logs)[1]), float(jax.nn.logsumexp(logs))


@pytest.mark.parametrize("start", [None, {"a": 19.0, "b": 19.0}, {"a": 19.0}], ids=str)
def test_a_branch_far_from_zero_is_not_lost(start, key):
    """A fit begins at the prior in branches, and where a start says, whichever branch is taken there."""
    y = jnp.array([18.9, 18.4, 18.8])
    share, log_evidence = of_branches(20.0, 18.0, y)
    posterior = vipl.infer(in_branches(20.0, 18.0), {"y": y}, key=key, start=start)
    np.testing.assert_allclose(posterior.sample(key, 4000)["k"].mean(), share, atol=0.04)
    np.testing.assert_allclose(posterior.improve(key, 4000).bound, log_evidence, atol=0.01)


def test_starts_of_positive_choices_in_branches(key):
    """In coordinates; of an address in two branches, by the support of the branch that is taken at the start."""

    @vipl.gen
    def model():
        k = sample("k", dist.Bernoulli(0.4))
        yes = lambda: sample("s", dist.Gamma(2.0, 1.0)) + sample("both", dist.Normal(0.0, 1.0))  # noqa: E731
        no = lambda: sample("t", dist.LogNormal(3.0, 1.0)) + sample("both", dist.Normal(5.0, 1.0))  # noqa: E731
        sample("y", dist.Normal(jax.lax.cond(k == 1, yes, no), 1.0))

    guide = guides.MeanField(model(), {"y": 20.0})
    loc = {a: float(x["loc"]) for a, x in guide.init(key, start={"s": 4.0, "t": 9.0, "both": 1.5}).items() if a != "k"}
    np.testing.assert_allclose([loc["s"], loc["t"], loc["both"]], [np.log(4.0), np.log(9.0), 1.5], rtol=1e-6)
    loc = {a: float(x["loc"]) for a, x in guide.init(key).items() if a != "k"}
    np.testing.assert_allclose([loc["s"], loc["t"]], [np.log(1.68), 3.0], atol=0.3)  # medians of the priors
    with pytest.raises(ChoiceError, match="outside the support"):
        guide.init(key, start={"s": -1.0})


def test_a_branch_beside_a_scan_with_holes(key):
    """The prior's median is of the draws that take the branch; which steps are missing is known."""

    @vipl.gen
    def model():
        k = sample("k", dist.Bernoulli(0.4))
        m = jax.lax.cond(k == 1, lambda: sample("a", dist.Normal(9.0, 1.0)), lambda: 0.0)
        sample("level", level(4))
        sample("x", dist.Normal(m, 1.0))

    program, data = vipl.partly_observed(model(), {"x": 8.0, "level": {"y": np.array([1.0, np.nan, np.nan, 0.9])}})
    params = guides.MeanField(program, data).init(key)
    np.testing.assert_allclose(params["a"]["loc"], 9.0, atol=0.5)
    assert params["level"]["y_missing"]["loc"].shape == (2,)
    np.testing.assert_allclose(vipl.infer(program, data, key=key).sample(key, 500)["a"].mean(), 8.5, atol=0.3)


def test_what_a_draw_does_not_have_is_not_counted(key):
    """Rows and variables are of the draws that take the branch; a branch that none takes is named."""
    model, y = in_branches(2.0, -2.0), jnp.array([-0.3, -0.8, -1.1])
    share, _ = of_branches(2.0, -2.0, y)
    posterior = vipl.infer(model, {"y": y}, key=key)
    table = posterior.summary(key)
    mean, sd = (float(x) for x in next(row for row in table.rows if row[0] == "a")[1:3])
    np.testing.assert_allclose([mean, sd], [(2.0 + float(y.sum())) / 4, 0.5], atol=0.15)
    assert '"a" in ' in table.foot[0]
    tree = posterior.to_arviz(key, num_samples=2000, prior=False)
    a, k = tree["posterior"]["a"].values, tree["posterior"]["k"].values
    np.testing.assert_array_equal(np.isnan(a), k == 0)
    np.testing.assert_allclose(k.mean(), share, atol=0.05)
    posterior.params["k"]["logits"] = jnp.array(-40.0)
    assert 'No draw takes the branch of "a"' in posterior.summary(key).foot[0]


@vipl.gen
def level(n):
    def step(z, _):
        z = sample("z", dist.Normal(z, 0.4))
        return z, sample("y", dist.Normal(z, 0.5))

    jax.lax.scan(step, 0.0, None, length=n)


def test_elements_in_a_scan_that_are_no_data_are_no_observations(key):
    """Where data have holes the tree has the observed elements, and the missing ones, as vectors."""

    y = np.array([1.0, 0.6, np.nan, np.nan, 1.3, 0.9])
    program, data = vipl.partly_observed(level(6), {"y": y})
    tree = vipl.infer(program, data, key=key).to_arviz(key, num_samples=200)
    np.testing.assert_allclose(tree["observed_data"]["y"].values, y[~np.isnan(y)])
    for group, name, number in [
        ("posterior", "y_missing", 2),
        ("log_likelihood", "y", 4),
        ("posterior_predictive", "y", 4),
    ]:
        values = tree[group][name].values
        assert values.shape == (1, 200, number)
        assert np.all(values.std(1) > 0)
    assert tree["posterior"]["z"].shape == (1, 200, 6)
    assert tree["prior_predictive"]["y"].shape == (1, 200, 4)
    assert tree["prior"]["y_missing"].shape == (1, 200, 2)
    assert tree["posterior"]["y_missing_dim_0"].values.tolist() == [2, 3]


def test_dimensions_of_data_with_holes_keep_their_coordinates(key):
    program, data = vipl.partly_observed(level(4), {"y": np.array([1.0, np.nan, 1.3, 0.9])})
    posterior = vipl.infer(program, data, key=key)
    years = [2001, 2002, 2003, 2004]
    tree = posterior.to_arviz(key, num_samples=9, dims={"y": ["t"], "z": ["t"]}, coords={"t": years}, prior=False)
    assert tree["posterior"]["z"].dims == ("chain", "draw", "t")
    assert tree["observed_data"]["y"].dims == ("y_dim_0",)
    assert tree["log_likelihood"]["y_dim_0"].values.tolist() == [2001, 2003, 2004]


def test_observed_choices_in_branches_have_a_density_where_they_are_taken(key):
    @vipl.gen
    def lanes():
        def one(x):
            k = sample("k", dist.Bernoulli(0.3))
            yes = lambda: sample("u", dist.Normal(1.0, 1.0))  # noqa: E731
            sample("y", dist.Normal(jax.lax.cond(k == 1, yes, lambda: 0.0) + x, 1.0))

        jax.vmap(one)(jnp.arange(3.0))

    data = {"u": jnp.array([1.0, 0.5, 0.2]), "y": jnp.array([1.0, 2.0, 2.5])}
    tree = vipl.infer(lanes(), data, key=key).to_arviz(key, num_samples=100)
    for group, name in [("log_likelihood", "posterior"), ("prior_predictive", "prior")]:
        np.testing.assert_array_equal(np.isnan(tree[group]["u"].values), tree[name]["k"].values == 0)
    np.testing.assert_allclose(tree["observed_data"]["u"].values, data["u"])


def test_a_point_where_there_is_no_mode_has_not_converged(key):
    """A density that rises without end as the deviation falls to the data; a mode, or a kink, has converged."""

    @vipl.gen
    def without_end():
        s = sample("s", dist.HalfNormal(1.0))
        z = sample("z", dist.Normal(jnp.zeros(5), 1.0))
        sample("y", dist.Normal(z, s))

    y = jnp.array([1.0, -1.0, 0.5, 2.0, 0.0])
    with pytest.warns(RuntimeWarning, match="the point is no mode"):
        posterior = vipl.infer(without_end(), {"y": y}, key=key, guide=guides.Delta)
    assert posterior.report is not None
    assert posterior.report.converged is False
    kinks = vipl.gen(lambda: sample("y", dist.Normal(sample("a", dist.Laplace(0.0, 1.0).expand([3])), 1.0)))
    lasso = vipl.infer(kinks(), {"y": jnp.array([0.2, 3.0, -0.1])}, key=key, guide=guides.Delta)
    assert lasso.report is not None
    assert lasso.report.converged
    good = vipl.infer(line(X), Y, key=key, guide=guides.Delta)
    assert good.report is not None
    assert good.report.converged
    np.testing.assert_allclose([good.sample(key, 1)[a][0] for a in "ab"], exact()[0], atol=0.02)


def test_a_guide_that_is_far_off_and_too_light_is_not_called_better_than_one_that_is_near():
    """Weights with a Pareto tail of shape 0.6, at a small and at a large divergence: both are told to take care."""
    at = (jnp.arange(4000) + 0.5) / 4000
    light = smooth(np.asarray(jnp.log((1 - at) ** -0.6)))
    assert 0.5 <= light.k_hat < light.limit
    assert light.ess < 2000
    for bound in (light.log_mean - 0.1, light.log_mean - 2.0):
        said = Improved({}, light, jnp.asarray(bound), jnp.ones(())).verdict()
        assert "deviations may still be too small" in said
        assert ("by weights alone" in said) == (bound < light.log_mean - 1)
