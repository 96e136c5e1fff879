"""Amortized: exact where a linear encoder is, unbiased over minibatches, one set of parameters for any rows."""

import functools
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import optax
import pytest
from flax import linen, nnx

import vipl
from vipl import guides, objectives, sample
from vipl.errors import DistributionError, ProgramError
from vipl.interop.flax import functional
from vipl.testing import assert_unbiased

W = jnp.array([[1.0, 0.3], [-0.5, 0.8], [0.2, -1.1]])
MU, NOISE = jnp.array([0.1, -0.4, 0.7]), 0.6


@vipl.gen
def components(num_rows):
    """Probabilistic principal components (Tipping and Bishop, 1999)."""

    def row():
        z = sample("z", dist.Normal(jnp.zeros(2), 1.0).to_event(1))
        sample("y", dist.Normal(W @ z + MU, NOISE).to_event(1))

    jax.vmap(row, axis_size=num_rows)()


def linear(params, row):
    """The exact posterior is linear in the row, and its covariance is that of all rows."""
    return {"loc": params["a"] @ row["y"] + params["b"], "log_diag": params["log_diag"], "lower": params["lower"]}


def exact_components():
    """The encoder of the exact posterior, by linear algebra."""
    cov = jnp.linalg.inv(jnp.eye(2) + W.T @ W / NOISE**2)
    a, tril = cov @ W.T / NOISE**2, jnp.linalg.cholesky(cov)
    return {"a": a, "b": -a @ MU, "log_diag": jnp.log(jnp.diagonal(tril)), "lower": jnp.tril(tril, -1)}


def log_evidence(y):
    return dist.MultivariateNormal(MU, W @ W.T + NOISE**2 * jnp.eye(3)).log_prob(y).sum()


def elbo_of(guide, model, data):
    return vipl.expectation(lambda params: objectives.elbo(model, guide(params), data))


ROWS = jnp.array([[0.3, -0.2, 1.5], [1.0, 0.0, -0.7], [-0.4, -2.0, 0.1], [0.9, 0.8, 0.7]])


def test_a_linear_encoder_is_the_exact_posterior_of_principal_components(key):
    params = exact_components()
    guide = guides.Amortized(components(4), {"y": ROWS}, linear, params, family=guides.FullRank)
    values = jax.vmap(lambda k: elbo_of(guide, components(4), {"y": ROWS}).estimate(k, params))(
        jax.random.split(key, 2)
    )
    np.testing.assert_allclose(values, log_evidence(ROWS), atol=1e-9)
    # the same parameters at rows that were not there
    new = ROWS[:3] * 2.0
    other = guide.for_data(components(3), {"y": new})
    value = elbo_of(other, components(3), {"y": new}).estimate(key, params)
    np.testing.assert_allclose(value, log_evidence(new), atol=1e-9)


@pytest.mark.oldest
def test_infer_learns_the_exact_encoder(key):
    y = jax.vmap(lambda k: dist.MultivariateNormal(MU, W @ W.T + NOISE**2 * jnp.eye(3)).sample(k))(
        jax.random.split(key, 20)
    )
    params = jax.tree.map(jnp.zeros_like, exact_components())
    guide = guides.Amortized(components(20), {"y": y}, linear, params, family=guides.FullRank)
    options = {"optimizer": optax.adam(optax.cosine_decay_schedule(0.05, 600)), "num_steps": 600, "num_samples": 4}
    posterior = vipl.infer(components(20), {"y": y}, key=key, guide=guide, **options)
    bound = posterior.improve(key, 200)
    np.testing.assert_allclose(bound.bound, log_evidence(y), atol=1e-4)
    assert bound.spread < 1e-3
    with pytest.raises(ProgramError, match="cannot be written"):
        posterior.save("/dev/null")


@vipl.gen
def hierarchy(num_rows, weight):
    mu = sample("mu", dist.Normal(0.0, 1.5))

    def row():
        z = sample("z", vipl.scaled(dist.Normal(mu, 0.8), weight))
        sample("y", vipl.scaled(dist.Normal(z, 0.5), weight))

    jax.vmap(row, axis_size=num_rows)()


def affine(params, row):
    return {"z": {"loc": params["a"] * row["y"] + params["b"], "log_scale": params["s"]}}


ALL = jnp.array([0.5, -1.0, 2.0, 0.1, 1.4, 0.8])
HIERARCHY = {
    "all": {"mu": {"loc": jnp.array(0.3), "log_scale": jnp.array(-0.4)}},
    "row": {"a": jnp.array(0.5), "b": jnp.array(0.2), "s": jnp.array(-0.3)},
}


def bound_of_hierarchy(params):
    """The bound of all rows: expectations of quadratic forms, and entropies."""
    m, log_s = params["all"]["mu"]["loc"], params["all"]["mu"]["log_scale"]
    loc, log_t = params["row"]["a"] * ALL + params["row"]["b"], params["row"]["s"]
    v, t = jnp.exp(2 * log_s), jnp.exp(2 * log_t)

    def expected(square, sd):
        return -0.5 * square / sd**2 - jnp.log(sd) - 0.5 * jnp.log(2 * jnp.pi)

    entropy = lambda log_scale: log_scale + 0.5 * jnp.log(2 * jnp.pi * jnp.e)  # noqa: E731
    of_rows = expected((loc - m) ** 2 + t + v, 0.8) + expected((ALL - loc) ** 2 + t, 0.5) + entropy(log_t)
    return expected(m**2 + v, 1.5) + entropy(log_s) + of_rows.sum()


@pytest.mark.oldest
def test_minibatches_are_unbiased_for_the_bound_of_all_rows(key):
    def parts(model, data, num_rows):
        local = guides.Amortized(model, data, affine, HIERARCHY["row"], addresses="z", num_rows=num_rows)
        return guides.combine({"all": guides.MeanField(model, data, addresses="mu"), "row": local})

    guide = parts(hierarchy(6, 1.0), {"y": ALL}, 6)

    @vipl.expectation
    def bound(params, y):
        model = hierarchy(2, 3.0)
        return objectives.elbo(model, guide.for_data(model, {"y": y})(params), {"y": y})

    @vipl.expectation
    def forgotten(params, y):
        model = hierarchy(2, 1.0)
        return objectives.elbo(model, parts(model, {"y": y}, None)(params), {"y": y})

    def draw(key, objective):
        key_rows, key = jax.random.split(key)
        y = jax.random.choice(key_rows, ALL, (2,), replace=False)
        return objective.value_and_grad(key, HIERARCHY, y)

    want = jax.value_and_grad(bound_of_hierarchy)(HIERARCHY)
    options = {"key": key, "resolution": 3.0, "num": 40_000}
    assert_unbiased(functools.partial(draw, objective=bound), want, **options)
    with pytest.raises(AssertionError, match="z = "):
        assert_unbiased(functools.partial(draw, objective=forgotten), want, **options)


def test_the_rows_of_guide_and_model_count_alike(key):
    """The weight is that of the batch, whatever its size."""
    guide = guides.Amortized(hierarchy(3, 2.0), {"y": ALL[:3]}, affine, addresses="z", num_rows=6)

    @jax.jit
    def both(key, y):
        rows = y.shape[0]
        trace = guide.for_data(hierarchy(rows, 6 / rows), {"y": y})(HIERARCHY["row"]).simulate(key)
        loc = HIERARCHY["row"]["a"] * y + HIERARCHY["row"]["b"]
        log_q = dist.Normal(loc, jnp.exp(-0.3)).log_prob(trace.choices["z"]).sum()
        return trace.log_prob, 6 / rows * log_q

    for rows in (2, 6):
        np.testing.assert_allclose(*both(key, ALL[:rows]), rtol=1e-9)


@vipl.gen
def one_row(x):
    """A positive, a bounded and a discrete choice, the last in lanes."""
    s = sample("s", dist.HalfNormal(1.0))
    u = sample("u", dist.Uniform(jnp.array([-1.0, 2.0]), jnp.array([1.0, 3.0])).to_event(1))
    b = jax.vmap(lambda: sample("b", dist.Categorical(jnp.array([0.2, 0.3, 0.5]))), axis_size=2)()
    sample("y", dist.Normal(x * u.sum() + b.sum(), s))


@vipl.gen
def mixed(x):
    jax.vmap(one_row.fn)(x)


X, MIXED = jnp.array([0.5, -0.3, 1.2]), {"y": jnp.array([0.4, 1.0, 2.0])}


def constant(shapes):
    """An encoder that makes any shapes, other numbers for other rows."""
    return lambda params, row: jax.tree.map(lambda a: jnp.tanh(params * row["y"]) * jnp.ones(a.shape), shapes)


def test_all_supports_and_discrete_choices_of_the_mean_field(key):
    shapes = guides.Amortized(mixed(X), MIXED, constant(None)).row_params
    assert shapes["b"]["logits"].shape == (2, 3)
    guide = guides.Amortized(mixed(X), MIXED, constant(shapes), jnp.array(0.3))
    program = guide(guide.init())
    trace = program.simulate(key)
    assert {a: x.shape for a, x in trace.choices.items()} == {"s": (3,), "u": (3, 2), "b": (3, 2)}

    @jax.jit
    def others(choices):
        params = jax.vmap(lambda y: constant(shapes)(0.3, {"y": y}))(MIXED["y"])
        same = guides.MeanField(mixed(X), MIXED)(params)
        return same.assess(choices).log_prob, mixed(X).assess(choices | MIXED).log_prob

    log_q, log_p = others(trace.choices)
    np.testing.assert_allclose(trace.log_prob, log_q, rtol=1e-9)
    assert jnp.isfinite(log_p)


FAMILIES = {
    "Delta": guides.Delta,
    "FullRank": guides.FullRank,
    "LowRank": functools.partial(guides.LowRank, rank=1),
    "Mixture": functools.partial(guides.Mixture, num_components=2),
    "Structured": guides.Structured,
}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_row_has_the_density_of_its_family(family, key):
    """The sum over rows of that of the family, made for each row by itself."""
    options = {"family": FAMILIES[family], "addresses": ["s", "u"]}
    encode = constant(guides.Amortized(mixed(X), MIXED, constant(None), **options).row_params)
    guide = guides.Amortized(mixed(X), MIXED, encode, 0.3, **options)

    @jax.jit
    def three(key):
        trace = guide(0.3).simulate(key)

        def alone(x, y, row):
            made = FAMILIES[family](one_row(x), {"y": y}, addresses=["s", "u"])
            return made(encode(0.3, {"y": y})).assess(row).log_prob

        total = jax.vmap(alone)(X, MIXED["y"], trace.choices).sum()
        return trace.log_prob, guide(0.3).assess(trace.choices).log_prob, total

    drawn, given, total = three(key)
    np.testing.assert_allclose([drawn, given], total, rtol=1e-8)


def test_an_amortized_point_is_a_point(key):
    """Its summary does not call it fine, whether it is fitted or not."""

    @vipl.gen
    def lanes(x):
        jax.vmap(lambda x: sample("y", dist.Normal(sample("z", dist.Normal(x, 1.0)), 1.0)))(x)

    shapes = guides.Amortized(lanes(X), MIXED, constant(None), family=guides.Delta).row_params
    guide = guides.Amortized(lanes(X), MIXED, constant(shapes), 0.3, family=guides.Delta)
    assert "A point tells" in str(vipl.Posterior(lanes(X), MIXED, guide, 0.3).summary(key, 50))


def test_a_flow_of_a_row(key):
    """At networks of zeros it is a Gaussian; its draws have a density beside, as they have no inverse."""
    options = {"family": guides.Flow, "addresses": ["s", "u"]}
    zeros = jax.tree.map(
        lambda a: jnp.zeros(a.shape), guides.Amortized(mixed(X), MIXED, constant(None), **options).row_params
    )
    encode = lambda params, row: zeros | {"loc": params * row["y"] * jnp.ones(3)}  # noqa: E731
    trace = guides.Amortized(mixed(X), MIXED, encode, 0.3, **options)(0.3).simulate(key)

    def gaussian(params, row):
        loc = params * row["y"] * jnp.ones(3)
        return {"loc": loc, "log_diag": jnp.zeros(3), "lower": jnp.zeros((3, 3))}

    same = guides.Amortized(mixed(X), MIXED, gaussian, 0.3, addresses=["s", "u"], family=guides.FullRank)
    np.testing.assert_allclose(trace.log_prob, same(0.3).assess(trace.choices).log_prob, rtol=1e-8)


@dataclass(frozen=True)
class Net:
    """A module that is a pytree, as those of equinox are."""

    weight: jax.Array

    def __call__(self, x):
        return self.weight * x


jax.tree_util.register_dataclass(Net, data_fields=["weight"], meta_fields=[])


def networks():
    """(parameters, function of these and an input of three numbers) by library."""
    module, apply = functional(nnx.Linear(3, 4, rngs=nnx.Rngs(0)))
    layer = linen.Dense(4)
    return {
        "nnx": (module, lambda params, y: apply(params)(y)),
        "linen": (layer.init(jax.random.key(0), jnp.zeros(3)), layer.apply),
        "a pytree that is a function": (Net(jnp.array(0.5)), lambda net, y: net(jnp.append(y, 1.0))),
    }


@pytest.mark.parametrize("library", networks())
def test_networks_of_any_library(library, key):
    params, apply = networks()[library]

    def encode(params, y):
        loc, log_scale = jnp.split(apply(params, y), 2)
        return {"z": {"loc": loc, "log_scale": log_scale}}

    guide = guides.Amortized(components(4), {"y": ROWS}, encode, params, inputs=ROWS)
    value, grad = elbo_of(guide, components(4), {"y": ROWS}).value_and_grad(key, guide.init())
    assert jnp.isfinite(value)
    assert jax.tree.structure(grad) == jax.tree.structure(params)
    with pytest.raises(ProgramError, match="inputs of its own"):
        guide.for_data(components(2), {"y": ROWS[:2]})
    other = guide.for_data(components(2), {"y": ROWS[:2]}, inputs=ROWS[:2])
    a, b = (g(params).assess({"z": z}).log_prob for g, z in ((guide, jnp.zeros((4, 2))), (other, jnp.zeros((2, 2)))))
    assert np.isfinite([a, b]).all()
    assert a != b


@vipl.gen
def noisy(num):
    m = sample("m", dist.Normal(0.0, 1.0))
    sample("y", dist.Normal(m, 1.0).expand([num]).to_event(1))


def of_mean(params, data):
    """The exact posterior at 3 / 4 and log sd -log(4) / 2, of three data."""
    return {"m": {"loc": params["a"] * data["y"].mean(), "log_scale": params["s"]}}


def test_whole_datasets_in_lanes_and_in_the_sleep_phase(key):
    exact = {"a": jnp.array(0.75), "s": jnp.array(-0.5 * jnp.log(4.0))}
    guide = guides.Amortized(noisy(3), {"y": jnp.zeros(3)}, of_mean, exact)
    assert guide.row_params["m"]["loc"].shape == ()

    def bound(y):
        data = {"y": y}
        return objectives.elbo(noisy(3), guide.for_data(noisy(3), data)(exact), data)

    many = vipl.expectation(lambda ys: jnp.sum(jax.vmap(bound)(ys)))
    log_p = dist.MultivariateNormal(jnp.zeros(3), jnp.eye(3) + 1.0).log_prob(ROWS).sum()
    np.testing.assert_allclose(many.estimate(key, ROWS), log_p, atol=1e-9)

    @vipl.expectation
    def sleep(params):
        return objectives.sleep(noisy(3), lambda data: guide.for_data(noisy(3), data)(params), "y")

    begun = {"a": 0.0, "s": 0.0}
    options = {"num_steps": 800, "num_samples": 100, "progress": False}
    fitted = vipl.fit(sleep, begun, optax.adam(optax.cosine_decay_schedule(0.02, 800)), key=key, **options)
    np.testing.assert_allclose(fitted.params["a"], exact["a"], atol=0.01)
    np.testing.assert_allclose(fitted.params["s"], exact["s"], atol=0.01)


@pytest.mark.oldest
def test_an_encoder_may_have_dropout(key):
    """Noise that is no choice: another in each row and draw."""

    def encode(params, row):
        kept = jax.random.bernoulli(vipl.random_key("dropout"), 0.5, (3,))
        return {"z": {"loc": params * (kept * row["y"])[:2], "log_scale": jnp.full(2, -20.0)}}

    guide = guides.Amortized(components(4), {"y": jnp.ones((4, 3))}, encode, jnp.array(2.0))
    z = jax.vmap(lambda k: guide(2.0).simulate(k).choices["z"])(jax.random.split(key, 8))
    assert set(np.round(np.asarray(z), 3).ravel().tolist()) == {0.0, 2.0}
    assert np.any(z[:, 0] != z[:, 1])
    assert jnp.isfinite(elbo_of(guide, components(4), {"y": jnp.ones((4, 3))}).estimate(key, 2.0))


@pytest.mark.oldest
def test_amortized_programs_are_compiled_once(key):
    guide = guides.Amortized(components(4), {"y": ROWS}, linear, exact_components(), family=guides.FullRank)
    objective = elbo_of(guide, components(4), {"y": ROWS})
    other = jax.tree.map(lambda x: x + 0.1, guide.init())
    before = objective.estimate(key, guide.init())
    with jax.no_tracing():
        after = objective.estimate(key, other)
    assert before != after


@pytest.mark.oldest
def test_global_choices_take_a_guide_of_their_own(key):
    model, data = hierarchy(6, 1.0), {"y": ALL}
    with pytest.raises(DistributionError, match='"mu" in no lanes'):
        guides.Amortized(model, data, affine)
    together = guides.Amortized(model, data, affine, by_row=False)
    assert together.row_params["z"]["loc"].shape == (6,)
    guide = guides.combine(
        {
            "all": guides.FullRank(model, data, addresses="mu"),
            "row": guides.Amortized(model, data, affine, HIERARCHY["row"], addresses="z"),
        }
    )
    options = {"optimizer": optax.adam(0.02), "num_steps": 300, "num_samples": 4}
    posterior = vipl.infer(model, data, key=key, guide=guide, start={"mu": 0.5}, **options)
    assert set(posterior.sample(key, 10)) == {"mu", "z"}
    exact = dist.MultivariateNormal(jnp.zeros(6), 1.5**2 + (0.8**2 + 0.5**2) * jnp.eye(6)).log_prob(ALL)
    assert 0 < exact - posterior.improve(key, 2000).bound < 1.0
