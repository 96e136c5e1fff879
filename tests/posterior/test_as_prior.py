"""A posterior is the prior of the next data: its choices have coordinates as those of sites have."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

import vipl
from vipl import guides, sample

X = jnp.linspace(-1.0, 1.0, 20)
Y = 1 + 2 * X + 0.3 * jnp.sin(7 * X)


@vipl.gen
def line(x):
    w = sample("w", dist.MultivariateNormal(jnp.zeros(2), jnp.array([[4.0, 1.0], [1.0, 4.0]])))
    sample("y", dist.Normal(w[0] + w[1] * x, 0.5).to_event(1))


def after(posterior):
    """The line with a posterior of it as its prior."""

    @vipl.gen
    def next_line(x):
        w = sample("before", posterior.program)["w"]
        sample("y", dist.Normal(w[0] + w[1] * x, 0.5).to_event(1))

    return next_line


FAMILIES = {
    "FullRank": guides.FullRank,
    "Structured": guides.Structured,
    "Laplace": guides.Laplace,
}


@pytest.mark.parametrize("family", FAMILIES)
def test_half_and_half_is_the_whole(family, key):
    """Exact for Gaussians: a fit of the second half, with the first one's as its prior, is that of all rows."""
    first = vipl.infer(line(X[::2]), {"y": Y[::2]}, key=key, guide=FAMILIES[family], progress=False)
    both = vipl.infer(after(first)(X[1::2]), {"y": Y[1::2]}, key=key)
    whole = vipl.infer(line(X), {"y": Y}, key=key)
    np.testing.assert_allclose(both.params["loc"], whole.params["loc"], atol=1e-6)
    np.testing.assert_allclose(np.exp(both.params["log_diag"]), np.exp(whole.params["log_diag"]), rtol=1e-6)


def test_a_prior_of_a_prior_of_a_prior(key):
    parts = [(X[k::3], {"y": Y[k::3]}) for k in range(3)]
    found = vipl.infer(line(parts[0][0]), parts[0][1], key=key)
    for x, y in parts[1:]:
        program = after(found) if found.model.name == "line" else after_next(found)
        found = vipl.infer(program(x), y, key=key)
    whole = vipl.infer(line(X), {"y": Y}, key=key)
    np.testing.assert_allclose(found.params["loc"], whole.params["loc"], atol=1e-6)


def after_next(posterior):
    @vipl.gen
    def third(x):
        w = sample("earlier", posterior.program)["before"]["w"]
        sample("y", dist.Normal(w[0] + w[1] * x, 0.5).to_event(1))

    return third


@vipl.gen
def many_supports():
    sample("share", dist.Dirichlet(jnp.ones(3)))
    sample("between", dist.Uniform(jnp.array([-1.0, 2.0]), jnp.array([1.0, 5.0])).to_event(1))
    sample("size", dist.Gamma(2.0, 1.0).expand([2]))
    sample("factor", dist.LKJCholesky(3, 2.0))
    sample("y", dist.Normal(0.0, 1.0))


@pytest.mark.parametrize("family", [guides.MeanField, guides.FullRank])
def test_a_choice_keeps_its_support(family, key):
    """The density of the coordinates is that of the choices with the Jacobian; draws lie in the supports."""
    base = guides.FullRank(many_supports(), {"y": 0.0})
    params = jax.tree.map(lambda x: x + 0.1 * jnp.arange(x.size).reshape(x.shape) / x.size, base.init(key))

    @vipl.gen
    def outer():
        sample("all", base(params))
        sample("z", dist.Normal(0.0, 1.0))

    guide = family(outer(), {"z": 0.3})
    drawn = guide(guide.init(key)).simulate(key).choices["all"]
    assert drawn["share"].sum() == pytest.approx(1.0)

    @jax.jit
    def there_and_back(drawn):
        u, log_det = guide.latents.unconstrain({("all", a): x for a, x in drawn.items()})
        log_p = base(params).assess(drawn).log_prob + dist.Normal(0.0, 1.0).log_prob(0.3)
        return guide.latents.log_density(u), log_p + log_det, guide.latents.constrain(u), log_det

    log_density, wanted, (back, same), log_det = there_and_back(drawn)
    assert wanted > -1e3
    np.testing.assert_allclose(log_density, wanted, rtol=1e-9)
    jax.tree.map(np.testing.assert_allclose, {a[1]: x for a, x in back.items()}, dict(drawn))
    np.testing.assert_allclose(same, log_det, rtol=1e-9)


def test_lines_in_a_vmap_have_the_posterior_of_all_lines_as_prior(key):
    first = vipl.infer(line(X[::2]), {"y": Y[::2]}, key=key)

    @vipl.gen
    def lines(x):
        def one(x):
            w = sample("w", first.program)["w"]
            sample("y", dist.Normal(w[0] + w[1] * x, 0.5).to_event(1))

        jax.vmap(one)(x)

    data = {"y": jnp.stack([Y[1::2], Y[1::2] + 0.1])}
    found = vipl.infer(lines(jnp.stack([X[1::2], X[1::2]])), data, key=key)
    alone = vipl.infer(after(first)(X[1::2]), {"y": Y[1::2]}, key=key)
    np.testing.assert_allclose(found.params["loc"][:2], alone.params["loc"], atol=1e-6)


@vipl.gen
def moving():
    high = sample("high", dist.Gamma(2.0, 1.0))
    sample("below", dist.Uniform(0.0, high))
    sample("y", dist.Normal(0.0, 1.0))


REFUSED = {
    "a point": guides.Delta(line(X), {"y": Y}),
    "a support that moves": guides.FullRank(moving(), {"y": 0.0}),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_coordinates_is_refused(name, key):
    guide = REFUSED[name]

    @vipl.gen
    def outer():
        sample("all", guide(guide.init(key)))
        sample("z", dist.Normal(0.0, 1.0))

    with pytest.raises(vipl.errors.DistributionError, match="no guide can be made for a latent site"):
        guides.MeanField(outer(), {"z": 0.3})


def test_the_value_of_a_combination_is_its_choices(key):
    """That of the default guide of a model with a discrete choice."""

    @vipl.gen
    def first():
        w = sample("w", dist.Normal(0.0, 1.0))
        k = sample("k", dist.Bernoulli(0.3))
        sample("y", dist.Normal(w + k, 1.0))

    found = vipl.infer(first(), {"y": 1.0}, key=key)

    @vipl.gen
    def after_it():
        before = sample("before", found.program)
        sample("z", dist.Normal(before["w"] + 2 * before["k"], 1.0))

    trace = after_it().simulate(key)
    assert trace.choices["before"].keys() == {"w", "k"}
    updated = vipl.infer(after_it(), {"z": 1.0}, key=key)
    assert updated.sample(key, 5)["before"]["k"].shape == (5,)


def test_a_posterior_with_an_estimated_density_is_a_prior_whose_density_is_random(key):
    semi = guides.SemiImplicit(line(X), {"y": Y})
    program = after(vipl.Posterior(line(X), {"y": Y}, semi, semi.init(key)))
    guide = guides.FullRank(program(X[:3]), {"y": Y[:3]})
    assert guide.latents.is_random
    assert jnp.isfinite(guide.latents.log_density({("before", "w"): jnp.ones(2)}))
