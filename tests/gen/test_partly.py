"""`partly_observed`: sites of which some elements are data and the others latent choices."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from jax import lax

import vipl
from vipl import Enumerate, Reparam, Score, guides, partly_observed, sample, scaled
from vipl.distributions._elements import Inseparable, separate, take
from vipl.testing import assert_unbiased

KEY = jax.random.key(0)
NAN = float("nan")
HALF = np.array([0.4, NAN, 1.2, NAN, 0.7])
RNG = np.random.default_rng(3)


def assert_equal(got, expected, rtol=1e-9, atol=1e-12):
    np.testing.assert_allclose(got, expected, rtol=rtol, atol=atol)


# --- programs ---------------------------------------------------------------------------------------------------------


@vipl.gen
def vector():
    """Elements with parameters of their own, in one event."""
    m = sample("m", dist.Normal(0.3, 1.0))
    y = sample("y", dist.Normal(m, jnp.arange(1.0, 6.0)).to_event(1), Reparam())
    sample("after", dist.Normal(y @ jnp.arange(5.0), 2.0))
    return y


@vipl.gen
def lanes():
    """Two axes of lanes, one of a batch, and parameters that have some of these."""
    s = jnp.array([1.0, 2.0])

    def row(a):
        return jax.vmap(lambda b: sample("y", dist.Gamma(a + b, jnp.array([1.0, 2.0, 3.0]))))(s)

    y = jax.vmap(row)(jnp.arange(1.0, 5.0))
    sample("after", dist.Normal(y.sum(), 1.0))
    return y


@vipl.gen
def chain():
    """An autoregression."""
    s = sample("s", dist.Normal(0.0, 1.0))

    def step(x, _):
        x = sample("y", dist.Normal(0.5 * x + s, 1.0))
        return x, x

    return lax.scan(step, 0.3, None, length=5)[1]


@vipl.gen
def panel():
    """Several autoregressions of positive vectors."""

    def series(m):
        def step(x, _):
            x = sample("y", dist.Gamma(m + x, jnp.array([1.0, 2.0])))
            return x.sum() / 4, x

        return lax.scan(step, 0.3, None, length=4)[1]

    return jax.vmap(series)(jnp.array([1.0, 2.0, 3.0]))


@vipl.gen
def rows():
    """Vectors with a joint density."""
    m = sample("m", dist.Normal(jnp.zeros(2), 1.0).to_event(1))
    return sample("y", dist.MultivariateNormal(m, jnp.array([[2.0, 0.3], [0.3, 1.0]])).expand([4]))


@vipl.gen
def weighed():
    """A site with a weight, below an address, beside a record and a random key."""
    noise = jax.random.normal(vipl.random_key("noise"))
    y = sample(("data", "y"), scaled(dist.Normal(jnp.arange(3.0), 1.5), 2.5))
    vipl.deterministic("sum", y.sum() + noise)
    return y


@vipl.gen
def branch(on=True):
    """A site of one address in two branches."""
    one = lambda: sample("y", dist.Normal(jnp.zeros(3), 1.0))  # noqa: E731
    two = lambda: sample("y", dist.Laplace(jnp.ones(3), 2.0))  # noqa: E731
    return lax.cond(jnp.asarray(on), one, two)


PROGRAMS = [vector, lanes, chain, panel, rows, weighed, branch]


def at_y(choices):
    return choices["data"]["y"] if "data" in choices else choices["y"]


def without_y(choices):
    return {a: x for a, x in choices.items() if a not in ("data", "y")}


def with_y(name, observed, missing):
    both = {"y": observed, "y_missing": missing}
    return {"data": both} if name == "weighed" else both


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda p: p.name)
def test_the_density_is_that_of_the_program_at_the_joined_values(program):
    whole = program()
    trace = whole.simulate(KEY)
    full = np.asarray(at_y(trace.choices))
    mask = RNG.random(full.shape[:1] if program is rows else full.shape) < 0.6
    mask.flat[:2] = [True, False]
    data = {"y": full} if program is not weighed else {"data": {"y": full}}
    split, data = partly_observed(whole, data, mask)
    drawn, log_w = split.generate(data, key=KEY)
    observed, missing = at_y(data), (drawn.choices.get("data") or drawn.choices)["y_missing"]
    in_place = observed.shape == full.shape
    assert in_place == (program in (chain, panel, branch))
    if not in_place:
        assert observed.shape == (mask.sum(), *full.shape[mask.ndim :])
        assert missing.shape == ((~mask).sum(), *full.shape[mask.ndim :])
    joined = np.array(full)
    joined[~mask] = missing[~mask] if in_place else missing
    assert_equal(drawn.retval, joined)  # what comes after the site sees both
    others = without_y(drawn.choices)
    others.pop("y_missing", None)

    def density(p, choices):
        return lambda latent: p.assess(choices(latent), key=KEY).log_prob

    ours = density(split, lambda y: others | with_y(program.name, observed, y))
    exact = density(whole, lambda y: others | ({"data": {"y": y}} if program is weighed else {"y": y}))
    value, slope = jax.value_and_grad(ours)(missing)
    expected, slopes = jax.value_and_grad(exact)(jnp.asarray(joined))
    assert_equal(value, expected, rtol=1e-12)
    assert_equal(slope[~mask] if in_place else slope, slopes[~mask], rtol=1e-10)
    assert_equal(drawn.log_prob, value, rtol=1e-12)
    # what is drawn does not count in the log weight, but where a weight makes it count (w - 1) times
    weights = {"weighed": 2.5}
    by_site = split.assess(others | with_y(program.name, observed, missing), key=KEY).log_probs
    of = by_site.get("data", by_site)
    assert of["y"].size + of["y_missing"].size == (2 if in_place else 1) * mask.size
    w = weights.get(program.name, 1.0)
    rest = 0.0 if program is not weighed else jnp.sum(of["y_missing"]) * (w - 1) / w
    assert_equal(log_w, jnp.sum(of["y"]) + rest, rtol=1e-10)


FAMILIES = {
    "Normal": dist.Normal(jnp.arange(6.0).reshape(2, 3), jnp.array([1.0, 2.0, 3.0])),
    "an axis of one": dist.Normal(jnp.array([[0.3], [1.2]]), jnp.array([1.0, 2.0, 3.0])).to_event(2),
    "expanded": dist.Gamma(jnp.array([1.5, 2.5, 3.5]), 2.0).expand([2, 3]),
    "expanded events": dist.Exponential(jnp.array([1.0, 2.0, 3.0])).to_event(1).expand([2]).to_event(1),
    "LogNormal": dist.LogNormal(jnp.array([[0.3], [1.2]]), jnp.array([1.0, 2.0, 3.0])),
    "StudentT": dist.StudentT(jnp.array([3.0, 4.0, 5.0]), jnp.zeros((2, 1)), 1.5),
    "masked": dist.Normal(jnp.arange(3.0), 1.0).expand([2, 3]).mask(jnp.array([True, False, True])),
    "truncated": dist.TruncatedNormal(jnp.arange(6.0).reshape(2, 3), 1.0, low=jnp.arange(3.0), high=7.0),
    "Uniform": dist.Uniform(jnp.array([[-1.0], [0.5]]), jnp.array([5.0, 6.0, 7.0])),
    "affine": dist.TransformedDistribution(
        dist.Normal(jnp.zeros((2, 3)), 1.0), dist.transforms.AffineTransform(jnp.arange(3.0), jnp.array([[2.0], [3.0]]))
    ),
    "chain of maps": dist.TransformedDistribution(
        dist.Normal(jnp.zeros((2, 3)), 1.0),
        [dist.transforms.ExpTransform(), dist.transforms.AffineTransform(jnp.arange(3.0), 2.0)],
    ),
    "mixture": dist.MixtureSameFamily(
        dist.Categorical(jnp.array([[0.2, 0.8], [0.5, 0.5], [0.6, 0.4]])),
        dist.Normal(jnp.arange(6.0).reshape(3, 2), 1.0),
    ).expand([2, 3]),
    "mixture of families": dist.MixtureGeneral(
        dist.Categorical(jnp.array([0.2, 0.8])),
        [dist.Normal(jnp.arange(6.0).reshape(2, 3), 1.0), dist.Laplace(jnp.zeros((2, 3)), 2.0)],
    ),
    "Bernoulli": dist.Bernoulli(logits=jnp.arange(6.0).reshape(2, 3) / 3),
    "Binomial": dist.Binomial(np.array([4, 5, 6]), probs=jnp.array([[0.2], [0.7]])),
    "Poisson": dist.Poisson(jnp.arange(1.0, 7.0).reshape(2, 3)),
    "negative binomial": dist.NegativeBinomial2(jnp.arange(1.0, 4.0), jnp.array([[0.5], [2.0]])),
    "zeros and more": dist.ZeroInflatedPoisson(jnp.array([0.1, 0.2, 0.3]), jnp.array([[1.5], [2.5]])),
    "beta binomial": dist.BetaBinomial(1.5, jnp.array([[0.5], [2.0]]), np.array([4, 5, 6])),
    "Categorical": dist.Categorical(logits=jnp.arange(24.0).reshape(2, 3, 4) / 7),
    "ordered": dist.OrderedLogistic(jnp.arange(6.0).reshape(2, 3), jnp.array([0.5, 1.5, 3.0])),
    "Dirichlet": dist.Dirichlet(jnp.arange(1.0, 7.0).reshape(3, 2)).expand([2, 3]),
    "Multinomial": dist.Multinomial(7, jnp.array([[0.2, 0.8], [0.5, 0.5], [0.6, 0.4]])).expand([2, 3]),
    "vectors": dist.MultivariateNormal(jnp.arange(12.0).reshape(2, 3, 2), jnp.array([[2.0, 0.3], [0.3, 1.0]])),
}  # fmt: skip


@pytest.mark.parametrize("name", FAMILIES)
def test_elements_of_a_batch_have_their_own_densities_and_supports(name):
    d = FAMILIES[name]
    base, shape = separate(d)
    assert shape == (2, 3)
    index = (np.array([0, 1, 1, 0]), np.array([2, 0, 2, 1]))

    @jax.jit
    def densities(x):
        some = take(d, index)
        assert (some.batch_shape, some.event_shape, type(some)) == ((4,), base.event_shape, type(base))
        i, j = map(jnp.asarray, index)
        one = jax.vmap(lambda i, j, x: take(d, (i, j)).log_prob(x))(i, j, x[index])
        whole = base.expand(shape) if base.batch_shape != shape else base
        return some.log_prob(x[index]), one, whole.log_prob(x)[index], some.support(x[index]), some.sample(KEY)

    with jax.numpy_rank_promotion("allow"):
        at_once, one_by_one, exact, inside, drawn = densities(jax.jit(d.sample)(KEY))
    assert_equal(at_once, exact, rtol=1e-12)
    assert_equal(one_by_one, exact, rtol=1e-12)
    assert jnp.all(inside)
    assert drawn.shape == (4, *base.event_shape)


def test_elements_that_cannot_be_told_apart_are_refused():
    with pytest.raises(Inseparable):
        take(dist.LowRankMultivariateNormal(jnp.zeros((3, 2)), jnp.ones((3, 2, 1)), jnp.ones(2)), (np.array([0, 2]),))
    with pytest.raises(Inseparable):
        take(dist.LKJCholesky(3, jnp.array([0.5, 1.5])), (np.array([0]),))


# --- posteriors -------------------------------------------------------------------------------------------------------


def conditional(precision, shift, known):
    """Mean and covariance of a Gaussian's other coordinates given some: by linear algebra."""
    free = [k for k in range(len(shift)) if k not in known]
    covariance = np.linalg.inv(precision[np.ix_(free, free)])
    return covariance @ (shift[free] - precision[np.ix_(free, list(known))] @ list(known.values())), covariance


def test_the_posterior_of_an_autoregression_with_gaps_is_exact():
    program, data = partly_observed(chain(), {"y": [NAN, 0.4, NAN, NAN, 1.2]})
    posterior = vipl.infer(program, data, key=KEY)
    m = np.concatenate([-np.ones((5, 1)), np.eye(5) - 0.5 * np.eye(5, k=-1)], 1)
    prior = np.diag([1.0, 0, 0, 0, 0, 0])
    mean, covariance = conditional(m.T @ m + prior, m.T @ [0.15, 0, 0, 0, 0], {2: 0.4, 5: 1.2})
    assert isinstance(posterior.guide, guides.FullRank)
    assert posterior.guide.latents.size == 4  # the elements that are there, and s
    params = posterior.params
    assert_equal(params["loc"], mean, atol=1e-7)
    scale = jnp.tril(params["lower"], -1) + jnp.diag(jnp.exp(params["log_diag"]))
    assert_equal(scale @ scale.T, covariance, atol=1e-6)
    drawn = posterior.sample(KEY, 7)["y_missing"]
    assert drawn.shape == (7, 5)
    assert not drawn[:, [1, 4]].any()
    labels = [row[0] for row in posterior.summary(num_samples=200).rows]
    assert labels == ["s", "y_missing[0]", "y_missing[2]", "y_missing[3]"]
    diagonal = guides.MeanField(program, data)
    u = diagonal.init(KEY, start={"y_missing": jnp.array([0.1, 0.0, 0.2, 0.3, 0.0]), "s": 0.5})
    assert_equal(u["y_missing"]["loc"], [0.1, 0.2, 0.3])
    trace = diagonal(u).simulate(KEY)
    assert_equal(diagonal(u).assess(trace.choices).log_prob, trace.log_prob)
    value = dist.Normal(jnp.array([0.5, 0.1, 0.2, 0.3]), 0.1).log_prob(
        jnp.append(trace.choices["s"], trace.choices["y_missing"][jnp.array([0, 2, 3])])
    )
    assert_equal(trace.log_prob, value.sum(), rtol=1e-10)


@vipl.gen
def regression(n):
    """A predictor and a response, both with holes."""
    w = sample("w", dist.Normal(0.0, 1.0))
    x = jax.vmap(lambda: sample("x", dist.Normal(0.3, 1.2)), axis_size=n)()
    jax.vmap(lambda x: sample("y", dist.Normal(0.7 * x + w, 0.5)))(x)


def test_a_regression_with_holes_in_predictors_and_responses_is_exact():
    x, y = np.array([0.4, NAN, 1.1, NAN]), np.array([1.0, 0.2, NAN, NAN])
    program, data = partly_observed(regression(4), {"x": x, "y": y})
    posterior = vipl.infer(program, data, key=KEY)
    assert [z.address for z in posterior.guide.latents.real] == [("w",), ("x_missing",), ("y_missing",)]
    residuals = np.zeros((9, 9))  # of w, x and y in their scales
    residuals[0, 0] = 1.0
    for k in range(4):
        residuals[1 + k, 1 + k] = 1 / 1.2
        residuals[5 + k, [0, 1 + k, 5 + k]] = np.array([-1.0, -0.7, 1.0]) / 0.5
    target = np.array([0.0, *[0.3 / 1.2] * 4, *[0.0] * 4])
    precision, shift = residuals.T @ residuals, residuals.T @ target
    mean, covariance = conditional(precision, shift, {1: 0.4, 3: 1.1, 5: 1.0, 6: 0.2})
    assert_equal(posterior.params["loc"], mean, atol=1e-7)
    scale = jnp.tril(posterior.params["lower"], -1) + jnp.diag(jnp.exp(posterior.params["log_diag"]))
    assert_equal(scale @ scale.T, covariance, atol=1e-6)
    pointwise = posterior.log_likelihood(num_samples=3)
    assert {a: v.shape for a, v in pointwise.items()} == {"x": (3, 2), "y": (3, 2)}
    assert {a: v.shape for a, v in posterior.predict(KEY, num_samples=3).items()} == {"x": (3, 2), "y": (3, 2)}


@pytest.mark.oldest
def test_missing_counts_and_flips_are_discrete_choices():
    @vipl.gen
    def model():
        p = jax.vmap(lambda a: sample("y", dist.Bernoulli(probs=a)))(jnp.array([0.2, 0.9, 0.4]))
        k = sample("k", dist.Binomial(np.array([4, 5]), probs=0.3))
        sample("z", dist.Normal(p.sum() + k.sum(), 1.0))

    program, data = partly_observed(model(), {"y": [NAN, 1.0, NAN], "k": np.array([NAN, 3.0]), "z": 4.2})
    assert data["k"].dtype == jnp.int64  # floats only because of NaN
    flips, counts = np.meshgrid(np.arange(4), np.arange(5), indexing="ij")
    a, b = flips // 2, flips % 2
    prior = np.where(a, 0.2, 0.8) * np.where(b, 0.4, 0.6) * np.exp(dist.Binomial(4, probs=0.3).log_prob(counts))
    log_joint = np.log(0.9) + dist.Binomial(5, probs=0.3).log_prob(3)
    likelihood = np.exp(dist.Normal(a + b + 1 + counts + 3, 1.0).log_prob(4.2) + log_joint)
    exact = vipl.normalize(program, data, vipl.inference.Enumeration())
    assert_equal(exact.marginals("k_missing").probs[0], (prior * likelihood).sum(0) / (prior * likelihood).sum())
    guide = guides.MeanField(program, data)
    params = guide.init(KEY)

    @vipl.expectation
    def elbo(params):
        return vipl.objectives.elbo(program, guide(params), data)

    weights = np.full((4, 5), 1 / 20)
    bound = (weights * (np.log(prior * likelihood) - np.log(weights))).sum()
    assert_equal(elbo.estimate(KEY, params), bound, rtol=1e-10)  # summed, not drawn


def test_an_expectation_over_missing_elements_is_unbiased():
    scale = jnp.array([0.5, 1.0, 1.5])

    def objective(factor):
        @vipl.gen
        def model(m):
            y = sample("y", dist.Normal(m * scale, scale), Score())
            z = sample("z", dist.Bernoulli(logits=y), Enumerate())
            return y, z

        program = lambda m: partly_observed(model(m), {"y": np.array([0.3, NAN, NAN])})  # noqa: E731

        @vipl.expectation
        def value(m):
            split, data = program(m)
            trace, log_w = split.generate(data)
            y, z = trace.retval
            return jnp.sum(y**2) + factor * z.sum() + log_w

        return lambda key: value.value_and_grad(key, 0.7, num_samples=4)

    nodes, w = np.polynomial.hermite_e.hermegauss(80)

    def mean(m):
        y = m * scale[1:] + scale[1:] * nodes[:, None]
        per = (y**2 + jax.nn.sigmoid(y)) * (w / np.sqrt(2 * np.pi))[:, None]
        log_w = dist.Normal(m * scale[0], scale[0]).log_prob(0.3)
        return per.sum() + 0.3**2 + jax.nn.sigmoid(0.3) + log_w

    exact = jax.value_and_grad(mean)(0.7)
    assert_unbiased(objective(1.0), exact, key=KEY, resolution=0.2)
    with pytest.raises(AssertionError, match="z = "):
        assert_unbiased(objective(0.9), exact, key=KEY, resolution=0.2)


def test_masks_data_and_programs_are_taken_as_they_are():
    program = vector()
    y = np.array([0.1, 0.2, 0.3, 0.4, 0.5])
    assert partly_observed(program, {"y": y}) == (program, {"y": y})
    assert partly_observed(program, {"y": y}, np.ones(5, bool))[0] is program
    split = [partly_observed(program, {"y": y}, np.arange(5) != k)[0] for k in (1, 3)]
    densities = [p.simulate(KEY) for p in split]
    assert densities[0].log_prob != densities[1].log_prob  # a compiled program is not another mask's
    named, data = partly_observed(program, {"y": y, "after": 1.0}, {"y": np.arange(5) < 3}, suffix="_unseen")
    assert set(named.simulate(KEY).choices) == {"m", "y", "y_unseen", "after"}
    assert_equal(data["y"], y[:3])
    twice, data = partly_observed(named, {"y_unseen": np.array([NAN, 1.0])})
    assert set(twice.simulate(KEY).choices) == {"m", "y", "y_unseen", "y_unseen_missing", "after"}

    @jax.jit
    def traced(y):
        split, data = partly_observed(program, {"y": y}, np.arange(5) < 2)
        return split.assess(data | {"m": 0.1, "y_missing": y[2:], "after": 1.0}).log_prob

    assert_equal(traced(y), program.assess({"m": 0.1, "y": y, "after": 1.0}).log_prob)
    whole = scaled(named, 2.0)
    at = {"m": 0.1, "y": y[:3], "y_unseen": y[3:], "after": 1.0}
    assert_equal(whole.assess(at).log_prob, 2 * named.assess(at).log_prob)
    assert named.with_estimators({"y_unseen": Score()}).simulate(KEY).choices["y_unseen"].shape == (2,)
    kept = vipl.marginal(vector(), ("y", "after"), vipl.inference.Importance(2))
    beside, data = partly_observed(vipl.gen(lambda: (sample("post", kept), sample("y", program)))(), {"y": {"y": HALF}})
    drawn = beside.simulate(KEY).choices
    assert set(drawn["post"]) == {"y", "after"}
    assert drawn["y"]["y_missing"].shape == (2,)
    inner = vipl.gen(lambda: sample("inside", named)[0])()
    assert inner.simulate(KEY).choices["inside"]["y_unseen"].shape == (2,)


def test_a_density_that_knows_what_is_missing_may_be_given_nan():
    @vipl.gen
    def model():
        m = sample("m", dist.Normal(0.0, 1.0))
        sample("y", dist.Normal(m, 1.0).expand([3]).mask(jnp.array([True, False, True])))

    posterior = vipl.infer(model(), {"y": jnp.array([0.3, NAN, 0.9])}, key=KEY)
    assert_equal(posterior.params["loc"], [0.4], atol=1e-6)


def test_the_mask_of_a_masked_array_says_what_is_missing():
    """As NaN, or a mask beside, says it; for counts, too."""

    @vipl.gen
    def model():
        sample("y", dist.Normal(jnp.zeros(3), 1.0))
        sample("k", dist.Poisson(jnp.ones(3)))

    y = np.ma.masked_array([0.3, 1000.0, 1.1], mask=[False, True, False])
    k = np.ma.masked_array([2, 0, -1], mask=[False, False, True])
    program, data = vipl.partly_observed(model(), {"y": y, "k": k})
    np.testing.assert_array_equal(data["y"], [0.3, 1.1])
    np.testing.assert_array_equal(data["k"], [2, 0])
    assert data["k"].dtype == jnp.int64
    assert program.simulate(jax.random.key(0)).choices["y_missing"].shape == (1,)
    whole = np.ma.masked_array([0.3, 0.4, 1.1])
    assert model().assess({"y": whole, "k": jnp.ones(3)}).log_prob < 0.0  # nothing is masked
