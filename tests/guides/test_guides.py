"""Guides: the model's addresses, shapes and supports; exact densities; exact fits where the family allows them."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import optax
import pytest
from jax import lax

import vipl
from tests.helpers.jaxprs import sizes as of_primitive
from vipl import guides, sample
from vipl.errors import AddressError, ChoiceError, DistributionError, ProgramError
from vipl.gen._choices import flatten, nest
from vipl.guides._gaussian import Density
from vipl.guides._latents import Latents
from vipl.testing import assert_unbiased

X = jnp.arange(4.0)


@vipl.gen
def many_supports(x):
    scale = sample("scale", dist.HalfNormal(1.0))
    low = sample("low", dist.Normal(0.0, 1.0))
    sample("between", dist.Uniform(low, low + 2.0))
    sample("simplex", dist.Dirichlet(jnp.ones(3)))
    sample("matrix", dist.LKJCholesky(3, 1.0))
    sample("correlation", dist.LKJ(2, 1.0))
    base = dist.Normal(jnp.zeros(3), 1.0).to_event(1)
    sample("ordered", dist.TransformedDistribution(base, dist.transforms.OrderedTransform()))
    sample(("nested", "unit"), dist.Beta(jnp.array([1.0, 2.0]), 2.0))
    lax.scan(lambda c, _: (sample("walk", dist.Normal(c, scale)), None), 0.0, None, length=3)
    jax.vmap(lambda x: sample("effect", dist.Gamma(2.0, 1.0)) + sample("y", dist.Normal(x, scale)))(x)


@vipl.gen
def plain_supports(x):
    scale = sample("scale", dist.HalfNormal(1.0))
    sample("between", dist.Uniform(jnp.array([-1.0, 2.0]), jnp.array([3.0, 4.0])))
    sample("simplex", dist.Dirichlet(jnp.ones(3)))
    z, _ = lax.scan(lambda c, _: (sample("walk", dist.Normal(c, scale)), None), 0.0, None, length=3)
    jax.vmap(lambda x: sample("y", dist.Normal(x + z, scale)))(x)


DATA = {"y": X}
FAMILIES = {
    "mean field": guides.MeanField,
    "full rank": guides.FullRank,
    "low rank": lambda model, data: guides.LowRank(model, data, 2),
    "mixture": lambda model, data: guides.Mixture(model, data, 2),
    "flow": guides.Flow,
    "blocks": lambda model, data: guides.BlockDiagonal(model, data, [["scale", "between"], ["simplex"]]),
    "structured": guides.Structured,
}


def moved(params, key, by=0.5):
    """Parameters anywhere: all leaves shifted by random numbers."""
    leaves, structure = jax.tree.flatten(params)
    keys = jax.random.split(key, len(leaves))
    return jax.tree.unflatten(
        structure, [x + by * jax.random.normal(k, jnp.shape(x)) for x, k in zip(leaves, keys, strict=True)]
    )


@pytest.mark.parametrize(
    ("family", "program"),
    [*((family, plain_supports) for family in FAMILIES), ("mean field", many_supports)],
    ids=lambda x: getattr(x, "name", x),
)
@pytest.mark.oldest
def test_a_guide_draws_the_latent_choices_inside_their_supports_with_its_exact_density(family, program, key):
    model = program(X)
    guide = FAMILIES[family](model, DATA)
    params = moved(guide.init(key, scale=1.0), key, 0.05 if family == "flow" else 0.5)
    trace = guide(params).simulate(key)
    expected = {a: x.shape for a, x in flatten(model.simulate(key).choices, "").items() if a != ("y",)}
    assert {a: x.shape for a, x in flatten(trace.choices, "").items()} == expected
    log_p = jax.vmap(lambda k: model.assess(guide(params).simulate(k).choices | DATA).log_prob)
    assert jnp.isfinite(log_p(jax.random.split(key, 20))).all()
    np.testing.assert_allclose(guide(params).assess(trace.choices).log_prob, trace.log_prob, rtol=1e-6, atol=1e-6)


@pytest.mark.oldest
def test_coordinates_go_there_and_back_and_their_determinant_is_that_of_the_derivative(key):
    latents = Latents(many_supports(X), DATA, "a test")
    u = latents.split(jax.random.normal(key, (latents.size,)))
    choices, log_det = latents.constrain(u)
    back, same = latents.unconstrain(choices)
    np.testing.assert_allclose(latents.join(back), latents.join(u), atol=1e-8)
    np.testing.assert_allclose(same, log_det, atol=1e-8)

    # those with as many numbers as coordinates
    names = [("scale",), ("low",), ("between",), ("nested", "unit"), ("walk",), ("effect",)]

    def map_of(v):
        parts, start = dict(u), 0
        for a in names:
            n = u[a].size
            parts[a], start = v[start : start + n].reshape(u[a].shape), start + n
        choices, log_det = latents.constrain(parts)
        return jnp.concatenate([jnp.ravel(choices[a]) for a in names]), log_det

    v = jnp.concatenate([jnp.ravel(u[a]) for a in names])
    _, direct = jnp.linalg.slogdet(jax.jacobian(lambda v: map_of(v)[0])(v))
    moved_v = v + 0.3
    _, direct_moved = jnp.linalg.slogdet(jax.jacobian(lambda v: map_of(v)[0])(moved_v))
    np.testing.assert_allclose(map_of(moved_v)[1] - map_of(v)[1], direct_moved - direct, rtol=1e-6)


@pytest.mark.parametrize("program", [many_supports, plain_supports], ids=lambda p: p.name)
@pytest.mark.oldest
def test_the_density_in_coordinates_is_the_models_and_that_of_the_map(program, key):
    latents = Latents(program(X), DATA, "a test")
    u = latents.split(jax.random.normal(key, (latents.size,)))
    choices, log_det = latents.constrain(u)
    log_p = program(X).assess(nest(choices) | DATA).log_prob
    np.testing.assert_allclose(latents.log_density(u), log_p + log_det, rtol=1e-6)
    np.testing.assert_allclose(sum(latents.log_densities(u).values()), log_p, rtol=1e-6)


@vipl.gen
def gaussian(x):
    a = sample("a", dist.Normal(0.0, 2.0))
    b = sample("b", dist.Normal(a, 1.0))
    sample("y", dist.Normal(a + b * x, 0.5).to_event(1))


Y = {"y": jnp.array([0.3, 1.2, 1.1, 2.4])}


def posterior_of_gaussian():
    """Mean, covariance and log evidence, by linear algebra."""
    prior = np.array([[4.0, 4.0], [4.0, 5.0]])
    design = np.stack([np.ones(4), np.asarray(X)], 1)
    noise = 0.25 * np.eye(4)
    marginal = design @ prior @ design.T + noise
    gain = prior @ design.T @ np.linalg.inv(marginal)
    y = np.asarray(Y["y"])
    log_evidence = -0.5 * (y @ np.linalg.solve(marginal, y) + np.linalg.slogdet(2 * np.pi * marginal)[1])
    return gain @ y, prior - gain @ design @ prior, log_evidence


def elbo_of(guide, model, data):
    """The objective of a guide."""
    return vipl.expectation(lambda params: vipl.objectives.elbo(model, guide(params), data))


def test_the_bound_of_the_exact_posterior_is_the_evidence_without_noise(key):
    mean, cov, log_evidence = posterior_of_gaussian()
    guide = guides.FullRank(gaussian(X), Y)
    params = guide.of_moments(jnp.asarray(mean), jnp.linalg.cholesky(cov))
    values = [elbo_of(guide, gaussian(X), Y).estimate(k, params) for k in jax.random.split(key, 3)]
    np.testing.assert_allclose(values, log_evidence, atol=1e-9)


@pytest.mark.parametrize("family", ["mean field", "full rank"])
def test_the_bound_and_its_gradient_are_unbiased(family, key):
    """The bound of a Gaussian is known: E_q[log p] is a quadratic form."""
    mean, cov, log_evidence = posterior_of_gaussian()
    guide = FAMILIES[family](gaussian(X), Y)
    params = moved(guide.init(key, scale=0.4), key, 0.2)
    precision = jnp.linalg.inv(cov)

    def moments(params):
        if family == "mean field":
            of = lambda name: jnp.stack([params[a][name] for a in "ab"])  # noqa: E731
            return of("loc"), jnp.diag(jnp.exp(2 * of("log_scale")))
        d = guide.family(params)
        return d.mean, d.covariance_matrix

    def exact(params):
        loc, s = moments(params)
        d = loc - mean
        return log_evidence - 0.5 * (
            d @ precision @ d + jnp.trace(precision @ s) - 2 - jnp.linalg.slogdet(precision @ s)[1]
        )

    objective = elbo_of(guide, gaussian(X), Y)
    want = jax.value_and_grad(exact)(params)
    draw = lambda key: objective.value_and_grad(key, params)  # noqa: E731
    assert_unbiased(draw, want, key=key, resolution=1.0)
    with pytest.raises(AssertionError, match="z = "):
        assert_unbiased(draw, (want[0] + 2.0, want[1]), key=key, resolution=1.0)


def test_a_diagonal_gaussian_on_a_banana(key):
    """Of p(a) = N(0, 1), p(b | a) = N(a², 1/4) the best bound of a diagonal Gaussian is -0.560659, and 0 is exact."""

    @vipl.gen
    def banana():
        a = sample("a", dist.Normal(0.0, 1.0))
        sample("b", dist.Normal(a**2, 0.5))

    posterior = vipl.infer(banana(), {}, key=key, guide=guides.MeanField)
    bound = posterior.improve(key, 20_000)
    assert abs(bound.bound + 0.560659) < 5 * bound.spread / np.sqrt(20_000) + 1e-3


@vipl.gen
def flips(y):
    a = sample("a", dist.Bernoulli(0.3))
    b = jax.vmap(lambda: sample("b", dist.Categorical(jnp.array([0.5, 0.2, 0.3]))), axis_size=2)()
    sample("y", dist.Normal(a + b.sum(), 1.0))


def test_discrete_choices_are_enumerated_without_noise(key):
    guide = guides.MeanField(flips(0.0), {"y": 2.0})
    params = moved(guide.init(), key)
    objective = elbo_of(guide, flips(0.0), {"y": 2.0})
    a, b = jax.nn.sigmoid(params["a"]["logits"]), jax.nn.softmax(params["b"]["logits"], -1)
    total = 0.0
    for i in range(2):
        for j in range(3):
            for k in range(3):
                q = (a if i else 1 - a) * b[0, j] * b[1, k]
                log_p = flips(0.0).assess({"a": i, "b": jnp.array([j, k]), "y": 2.0}).log_prob
                total += q * (log_p - jnp.log(q))
    for k in jax.random.split(key, 2):
        np.testing.assert_allclose(objective.estimate(k, params), total, rtol=1e-9)


def test_sites_in_branches_keep_the_models_control_flow(key):
    @vipl.gen
    def branched():
        a = sample("a", dist.Bernoulli(0.4))
        sample("y", dist.Normal(lax.cond(a == 1, lambda: sample("z", dist.Normal(2.0, 1.0)), lambda: 0.0), 1.0))

    guide = guides.MeanField(branched(), {"y": 1.0})
    params = moved(guide.init(key), key)
    for k in jax.random.split(key, 8):
        trace = guide(params).simulate(k)
        assert (trace.choices["z"] == 0) == (trace.choices["a"] == 0)
        np.testing.assert_allclose(guide(params).assess(trace.choices).log_prob, trace.log_prob, rtol=1e-9)
    with pytest.raises(DistributionError, match="in a branch"):
        guides.FullRank(branched(), {"y": 1.0}, addresses="z")


@pytest.mark.oldest
def test_a_combination_is_the_product_of_its_parts(key):
    model, data = many_supports(X), DATA

    @vipl.gen
    def mine(params):
        sample("walk", dist.Normal(params, 0.3).expand([3]))

    rest = ["scale", "low", "between", "simplex", "matrix", "correlation", "ordered", "nested"]
    parts = {
        "real": guides.FullRank(model, data, addresses=rest),
        "effects": guides.MeanField(model, data, addresses="effect"),
        "mine": mine,
    }
    guide = guides.combine(parts)
    params = guide.init(key, mine=0.5)
    trace = guide(params).simulate(key)
    assert jnp.isfinite(model.assess(trace.choices | data).log_prob)
    each = [parts[name](params[name]) for name in parts]
    split = [{k: v for k, v in trace.choices.items() if k in (rest, ["effect"], ["walk"])[i]} for i in range(3)]
    np.testing.assert_allclose(sum(p.assess(c).log_prob for p, c in zip(each, split, strict=True)), trace.log_prob)


def test_a_combination_is_a_guide(key):
    """`isinstance`, `init`, `start`, `infer`, and what a posterior says are those of any guide."""

    @vipl.gen
    def model():
        m = sample("m", dist.Normal(0.0, 1.0))
        n = sample("n", dist.Normal(0.5, 2.0))
        sample("y", dist.Normal(jnp.stack([m, n, m]), 1.0).to_event(1))

    data = {"y": jnp.array([0.4, 1.0, 0.9])}
    parts = {"m": guides.FullRank(model(), data, addresses="m"), "n": guides.FullRank(model(), data, addresses="n")}
    guide, nested = guides.combine(parts), guides.combine({"both": guides.combine(parts)})
    for g in (guide, nested, parts["m"]):
        assert isinstance(g, guides.Guide)
    assert guide.addresses == nested.addresses == [("m",), ("n",)]
    begun = {"m": 0.7, "n": -0.3}
    for g in (guide, nested):
        assert {a: float(u) for a, u in g.start(key, begun).items()} == {("m",): 0.7, ("n",): -0.3}
        params = g.init(key, start=begun, scale=0.2)
        params = params.get("both", params)
        np.testing.assert_allclose(params["n"]["loc"], [-0.3])
        np.testing.assert_allclose(params["m"]["log_diag"], jnp.log(jnp.array([0.2])))
    options = {"optimizer": optax.adam(0.05), "num_steps": 200, "num_samples": 2}
    posterior = vipl.infer(model(), data, key=key, guide=guide, start=begun, **options)
    np.testing.assert_allclose(posterior.params["m"]["loc"][0], 1.3 / 3, atol=1e-3)  # it ends in the posterior
    np.testing.assert_allclose(posterior.params["n"]["loc"][0], (0.5 / 4 + 1.0) / 1.25, atol=1e-3)
    assert [row[0] for row in posterior.summary(key).rows] == ["m", "n"]


def test_a_guide_may_stand_in_vmap_scan_and_marginal(key):
    guide = guides.MeanField(gaussian(X), Y)
    params = guide.init(key)
    values = jax.vmap(lambda k: guide(params).simulate(k).log_prob)(jax.random.split(key, 3))
    assert len(set(np.asarray(values).tolist())) == 3
    marginal = vipl.marginal(guide(params), "a")
    np.testing.assert_allclose(
        marginal.assess({"a": 0.1}, key=key).log_prob,
        dist.Normal(params["a"]["loc"], jnp.exp(params["a"]["log_scale"])).log_prob(0.1),
    )
    many = vipl.expectation(
        lambda p: jnp.mean(jax.vmap(lambda: vipl.objectives.elbo(gaussian(X), guide(p), Y), axis_size=5)())
    )
    assert jnp.isfinite(many.estimate(key, params))


def test_starts(key):
    @vipl.gen
    def far():
        m = sample("m", dist.Normal(50.0, 0.1))
        s = sample("s", dist.LogNormal(3.0, 0.1))
        sample("y", dist.Normal(m, s))

    guide = guides.FullRank(far(), {"y": 49.0})
    at = lambda **o: guide.latents.constrain(guide.start(key, **o))[0]  # noqa: E731
    assert at(start="zero")[("m",)] == 0
    assert at(start="zero")[("s",)] == 1
    np.testing.assert_allclose(at(start="prior")[("m",)], 50.0, atol=0.05)
    np.testing.assert_allclose(at(start="prior")[("s",)], np.exp(3.0), rtol=0.05)
    np.testing.assert_allclose(at(start={"s": 7.0})[("s",)], 7.0)
    assert at(start={"s": 7.0})[("m",)] == 0
    assert all(abs(x) <= 2 for x in guide.start(key, "uniform").values())


def test_a_start_without_a_density_names_the_site(key):
    @vipl.gen
    def impossible():
        a = sample("a", dist.Normal(0.0, 1.0))
        sample("b", dist.Normal(jnp.log(-1.0 - a**2), 1.0))

    with pytest.raises(ChoiceError, match='"b" in impossible'):
        guides.MeanField(impossible(), {"b": 0.0}).init(key)


def test_frames_change_the_parameters_and_not_the_family(key):
    mean, cov, _ = posterior_of_gaussian()
    frame = (jnp.asarray(mean), jnp.linalg.cholesky(cov))
    framed = guides.FullRank(gaussian(X), Y, frame=frame)
    plain = guides.FullRank(gaussian(X), Y)
    params = {"loc": jnp.zeros(2), "log_diag": jnp.zeros(2), "lower": jnp.zeros((2, 2))}
    choices = framed(params).simulate(key).choices
    np.testing.assert_allclose(
        framed(params).assess(choices).log_prob, plain(plain.of_moments(*frame)).assess(choices).log_prob
    )


def test_delta_maximizes_the_joint_density(key):
    mean, _, _ = posterior_of_gaussian()
    guide = guides.Delta(gaussian(X), Y)
    objective = elbo_of(guide, gaussian(X), Y)
    fitted = vipl.fit(objective, guide.init(key), optax.adam(0.05), key=key, num_steps=2000, progress=False)
    np.testing.assert_allclose([fitted.params[a]["loc"] for a in "ab"], mean, atol=1e-3)


def test_guides_are_compiled_once(key):
    guide = guides.FullRank(gaussian(X), Y)
    objective = elbo_of(guide, gaussian(X), Y)
    params = guide.init(key)
    other = jax.tree.map(lambda x: x + 1, params)
    before = objective.estimate(key, params)
    with jax.no_tracing():
        after = objective.estimate(key, other)
    assert before != after


UNAPPLIED: Any = gaussian  # no program yet
WRONG = {
    "an unapplied model": (lambda: guides.MeanField(UNAPPLIED, Y), ProgramError),
    "data at another address": (lambda: guides.MeanField(gaussian(X), {"z": 1.0}), AddressError),
    "nothing latent": (lambda: guides.MeanField(gaussian(X), Y | {"a": 0.0, "b": 0.0}), ProgramError),
    "an address that is not there": (lambda: guides.FullRank(gaussian(X), Y, addresses="c"), AddressError),
    "a discrete choice in a joint density": (lambda: guides.FullRank(flips(0.0), {"y": 0.0}), DistributionError),
    "a support that depends on what is left out": (
        lambda: guides.MeanField(many_supports(X), DATA, addresses="between"),
        DistributionError,
    ),
    "an unknown start": (lambda: guides.MeanField(gaussian(X), Y).init(start="median"), ProgramError),
    "a choice in two parts": (
        lambda: guides.combine({"a": guides.MeanField(gaussian(X), Y), "b": guides.FullRank(gaussian(X), Y)}),
        AddressError,
    ),
    "a flow of one number": (lambda: guides.Flow(gaussian(X), Y, addresses="a"), DistributionError),
    "counts without an end": (
        lambda: guides.MeanField(vipl.gen(lambda: sample("n", dist.Poisson(2.0)))(), {}),
        DistributionError,
    ),
    "a sphere": (
        lambda: guides.MeanField(vipl.gen(lambda: sample("n", dist.ProjectedNormal(jnp.ones(3))))(), {}),
        DistributionError,
    ),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_a_guide_refuses(what):
    call, kind = WRONG[what]
    with pytest.raises(kind) as caught:
        call()
    assert len(str(caught.value).splitlines()) == 5
    assert "fix:" in str(caught.value)


@pytest.mark.parametrize("sizes", [(3,), (2, 20, 3), (20, 2), (2, 2, 30), (9, 8, 8)], ids=str)
def test_a_hessian_in_blocks_is_the_hessian(sizes, key):
    """Whichever part is the largest, and wherever it stands."""
    weights = jax.random.normal(key, (sum(sizes), sum(sizes)))

    def of_parts(parts):
        u = jnp.concatenate(parts)
        return jnp.sum(jnp.tanh(weights @ u) ** 2) + jnp.prod(parts[0]) * jnp.sum(jnp.sin(parts[-1]))

    density = Density(of_parts, sizes)
    u = jax.random.normal(jax.random.fold_in(key, 1), (sum(sizes),))
    gradient, hessian = jax.jit(density.derivatives)(u)
    np.testing.assert_allclose(gradient, jax.grad(density)(u), rtol=1e-10)
    np.testing.assert_allclose(hessian, jax.hessian(density)(u), rtol=1e-8, atol=1e-8)


def test_what_the_largest_part_does_not_enter_is_not_differentiated_along_it():
    """A Cholesky factor of two numbers, and 80 coordinates beside it."""
    x = jnp.linspace(0.0, 1.0, 80)

    @vipl.gen
    def process():
        scale = sample("scale", dist.LogNormal(jnp.zeros(2), 1.0))
        cov = scale[0] * jnp.exp(-((x[:, None] - x) ** 2) / scale[1]) + 0.1 * jnp.eye(80)
        f = sample("f", dist.Normal(jnp.zeros(80), 1.0))
        sample("y", dist.Normal(jnp.linalg.cholesky(cov) @ f, 1.0))

    latents = guides.FullRank(process(), {"y": jnp.sin(6 * x)}).latents

    def largest_solve(density):
        return max(of_primitive(jax.make_jaxpr(density.derivatives)(jnp.zeros(82)).jaxpr, "triangular_solve"))

    whole = Density(lambda parts: latents.density()(parts[0]), (82,))
    assert largest_solve(whole) == 82 * 80**2
    assert largest_solve(latents.density()) == 2 * 80**2


# --- integers from any value on ---------------------------------------------------------------------------------


def counted(low, high):
    """One integer, and what is seen of it."""

    @vipl.gen
    def model():
        sample("y", dist.Normal(sample("n", dist.DiscreteUniform(low, high)), 0.5))

    return model()


@pytest.mark.parametrize(("low", "high"), [(0, 1), (3, 4), (3, 6), (-2, 1), (1, 2)])
def test_integers_from_any_smallest_value_on(low, high, key):
    """The guide draws what the model does, and its best member is the exact posterior."""
    data, values = {"y": low + 0.7}, jnp.arange(low, high + 1)
    log_joint = dist.Normal(values, 0.5).log_prob(data["y"]) - jnp.log(values.size)
    guide = guides.MeanField(counted(low, high), data)
    drawn = vipl.Posterior(counted(low, high), data, guide, guide.init(key)).sample(key, 300)["n"]
    np.testing.assert_array_equal(jnp.unique(drawn), values)
    found = vipl.infer(counted(low, high), data, key=key)
    np.testing.assert_allclose(found.evidence(key, 100).elbo, jax.nn.logsumexp(log_joint), atol=1e-4)
    log_q = [found.log_prob({"n": n}) for n in range(low - 1, high + 2)]
    np.testing.assert_allclose(log_q[1:-1], jax.nn.log_softmax(log_joint), atol=0.05)
    assert log_q[0] == log_q[-1] == -jnp.inf


# --- outside the supports -----------------------------------------------------------------------------------------


@vipl.gen
def of_many_supports():
    sample("share", dist.Dirichlet(jnp.ones(3)))
    sample("rate", dist.Gamma(2.0, 1.0))
    sample("corr", dist.LKJCholesky(2, 1.0))
    sample("angle", dist.VonMises(0.0, 1.0))
    sample("between", dist.Uniform(1.0, 2.0).expand([2]).to_event(1))


INSIDE = {
    "share": jnp.array([0.2, 0.3, 0.5]),
    "rate": 1.0,
    "corr": jnp.array([[1.0, 0.0], [0.6, 0.8]]),
    "angle": 1.0,
    "between": jnp.array([1.2, 1.7]),
}
OUTSIDE = {
    "share": jnp.array([0.2, 0.3, 0.9]),
    "rate": -1.0,
    "corr": jnp.array([[1.0, 0.0], [0.6, 0.9]]),
    "angle": 4.0,
    "between": jnp.array([1.2, 2.5]),
}
OF_SUPPORTS = {
    "MeanField": guides.MeanField,
    "FullRank": guides.FullRank,
    "LowRank": lambda model, data: guides.LowRank(model, data, 2),
    "Mixture": lambda model, data: guides.Mixture(model, data, 2),
    "Flow": guides.Flow,
}


@pytest.mark.parametrize("family", OF_SUPPORTS)
def test_a_guide_has_no_density_outside_the_supports(family, key):
    """-inf there, as models have it, with derivatives that are numbers; NaN of NaN."""
    guide = OF_SUPPORTS[family](of_many_supports(), {})
    params = guide.init(key)

    def log_prob(params, choices):
        return guide(params).assess(choices).log_prob

    assert jnp.isfinite(log_prob(params, INSIDE))
    for name, value in OUTSIDE.items():
        assert log_prob(params, INSIDE | {name: value}) == -jnp.inf, name
    assert jnp.isnan(log_prob(params, INSIDE | {"rate": jnp.nan}))
    slopes = jax.grad(lambda p: jnp.where(True, 0.0, log_prob(p, INSIDE | {"rate": -1.0})))(params)
    assert all(bool(jnp.all(jnp.isfinite(x))) for x in jax.tree.leaves(slopes))


def test_rows_have_no_density_outside_the_supports(key):
    """Of an amortized guide, whose density is that of all rows together."""

    @vipl.gen
    def rows(x):
        jax.vmap(lambda x: sample("y", dist.Normal(sample("z", dist.Gamma(2.0, 1.0)) * x, 1.0)))(x)

    data = {"y": jnp.array([1.0, 2.0, 0.5])}

    def encode(p, row):
        return {"loc": p[:1] * row["y"], "log_diag": p[1:], "lower": jnp.zeros((1, 1))}

    guide = guides.Amortized(rows(jnp.ones(3)), data, encode, params=jnp.ones(2), family=guides.FullRank)
    program = guide(guide.init(key))
    assert jnp.isfinite(program.assess({"z": jnp.ones(3)}).log_prob)
    assert program.assess({"z": jnp.array([1.0, -1.0, 1.0])}).log_prob == -jnp.inf


@pytest.mark.parametrize("size", [3, 300, 30_000])
def test_draws_of_a_simplex_lie_inside_it(size, key):
    """However many numbers are summed in single precision, model and guide give them a density."""
    with jax.enable_x64(False):
        model = vipl.gen(lambda: sample("share", dist.Dirichlet(jnp.full(size, 0.5))))
        guide = guides.MeanField(model(), {})
        program = guide(guide.init())
        draws = vipl.predict(jax.random.key(1), program, 100)
        for source in (model(), program):
            log_probs = jax.vmap(lambda x, source=source: source.assess({"share": x}).log_prob)(draws["share"])
            assert bool(jnp.all(jnp.isfinite(log_probs)))
            scaled = jax.vmap(lambda x, source=source: source.assess({"share": 1.01 * x}).log_prob)(draws["share"])
            assert bool(jnp.all(scaled == -jnp.inf))


AT_THE_ENDS = {
    "ends of an interval": (dist.Uniform(0.0, 0.1), [0.0, 0.1]),
    "ends of counts": (dist.Binomial(5, 0.3), [0, 5]),
    "categories": (dist.Categorical(jnp.ones(3) / 3), [0, 2]),
    "many zeros": (dist.ZeroInflatedPoisson(0.3, 2.0), [0, 7]),
    "either of two": (
        dist.MixtureGeneral(dist.Categorical(jnp.ones(2) / 2), [dist.Uniform(0.0, 1.0), dist.Uniform(4.0, 5.0)]),
        [0.5, 4.5],
    ),
    "masked": (dist.Gamma(2.0, 1.0).expand([2]).mask(jnp.array([True, False])), [1.0, -7.0]),
    "each its own": (dist.Uniform(jnp.array([0.0, 3.0]), jnp.array([1.0, 4.0])), [0.5, 3.5]),
    "integers for reals": (dist.Normal(0.0, 1.0), [-3, 3]),
}


@pytest.mark.parametrize("name", AT_THE_ENDS)
def test_data_at_the_ends_of_supports_are_data(name):
    d, y = AT_THE_ENDS[name]

    @vipl.gen
    def model():
        sample("x", dist.Normal(0.0, 1.0))
        sample("y", d.expand([2]) if d.batch_shape == () else d)

    guides.MeanField(model(), {"y": jnp.asarray(y)})


BEYOND = {
    "ends of an interval": [0.05, 0.11],
    "ends of counts": [2, 6],
    "categories": [0, 3],
    "many zeros": [-1, 7],
    "either of two": [0.5, 5.5],
    "each its own": [0.5, 0.5],
}


@pytest.mark.parametrize("name", BEYOND)
def test_data_outside_of_supports_are_refused_by_their_number(name):
    d, wrong = AT_THE_ENDS[name][0], BEYOND[name]

    @vipl.gen
    def model():
        sample("x", dist.Normal(0.0, 1.0))
        sample("y", d.expand([2]) if d.batch_shape == () else d)

    with pytest.raises(vipl.errors.SupportError, match=r"at index \[[01]\], and 1 of 2 numbers"):
        guides.MeanField(model(), {"y": jnp.asarray(wrong)})
