"""Flows: exact determinants, inverses with their derivatives, and a banana that no Gaussian fits."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import optax
import pytest

import vipl
from vipl import guides, sample
from vipl.distributions._bijections import invert_triangular
from vipl.guides._flow_layers import Coupling
from vipl.posterior._ways import _has_flow


@vipl.gen
def banana():
    a = sample("a", dist.Normal(0.0, 1.0))
    sample("b", dist.Normal(a**2, 0.5))


@vipl.gen
def three():
    sample("u", dist.Normal(jnp.zeros(3), 1.0))


KEY = jax.random.key(29)
ARCHITECTURES = ["autoregressive", "block_neural", "coupling"]


def flow_of(model, data, architecture, **options):
    """A flow; a test of a coupling is skipped where flowjax is not installed."""
    if architecture == "coupling":
        pytest.importorskip("flowjax")
    return guides.Flow(model, data, architecture=architecture, **options)


def off_the_start(guide, key):
    """Parameters at which no layer is the identity."""
    leaves, structure = jax.tree.flatten(jax.jit(guide._init)(guide._zero(), jnp.ones(()), key))
    keys = jax.random.split(key, len(leaves))
    return structure.unflatten([x + 0.2 * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)])


@pytest.mark.oldest
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_draw_has_the_density_of_its_value_and_the_determinant_of_the_derivative(architecture, key):
    guide = flow_of(three(), {}, architecture, hidden=(4,), num_layers=2)
    params = off_the_start(guide, key)

    @jax.jit
    def drawn(params, key):
        trace = guide(params).simulate(key)
        u = trace.choices["u"]
        chain = dist.transforms.ComposeTransform(guide.family(params).transforms)
        v = chain.inv(u)
        _, log_det = jnp.linalg.slogdet(jax.jacfwd(chain)(v))
        exact = jax.scipy.stats.norm.logpdf(v).sum() - log_det
        return chain(v) - u, jnp.stack([trace.log_prob, guide(params).assess({"u": u}).log_prob]) - exact, log_det

    difference, of_densities, log_det = drawn(params, key)
    np.testing.assert_allclose(difference, 0.0, atol=1e-9)
    np.testing.assert_allclose(of_densities, 0.0, atol=1e-8)
    assert abs(log_det) > 0.05


def test_an_inverse_by_bisection_has_all_derivatives_and_keeps_what_is_not_finite():
    def fn(x):
        return jnp.stack([x[0] + jnp.tanh(x[0]), x[1] ** 3 + 0.1 * x[1] + x[0] ** 2])

    @jax.jit
    def all_of(x, odd):
        inverse = lambda y: invert_triangular(fn, y)  # noqa: E731
        slopes = jax.jacobian(inverse)(fn(x)) @ jax.jacobian(fn)(x)
        return inverse(fn(x)), slopes, jax.hessian(lambda x: jnp.sum(inverse(fn(x)) ** 2))(x), inverse(odd)

    x = jnp.array([0.3, -70.0])  # the bracket has to grow
    back, slopes, curvature, odd = all_of(x, jnp.array([jnp.nan, jnp.inf]))
    np.testing.assert_allclose(back, x, rtol=1e-12)
    np.testing.assert_allclose(slopes, jnp.eye(2), atol=1e-9)
    np.testing.assert_allclose(curvature, 2 * jnp.eye(2), atol=1e-6)
    assert jnp.isnan(odd[0])
    assert odd[1] == jnp.inf


def test_the_density_of_a_coupling_does_not_jump_where_its_splines_end(key):
    """A jump would be a part of the derivative that no pathwise derivative sees."""
    pytest.importorskip("flowjax")
    spline = Coupling(2, None, 3)._spline()
    leaves, structure = jax.tree.flatten(spline)
    keys = jax.random.split(key, len(leaves))
    moved = [
        x + jax.random.normal(k, x.shape) if isinstance(x, jax.Array) and x.ndim else x
        for x, k in zip(leaves, keys, strict=True)
    ]
    forward = jax.jit(jax.vmap(structure.unflatten(moved).transform_and_log_det))
    x = jnp.array([e + d for e in (-4.0, 4.0) for d in (-1e-9, 1e-9)])
    y, log_det = forward(x)
    np.testing.assert_allclose(y, x, atol=1e-8)
    np.testing.assert_allclose(log_det, 0.0, atol=1e-6)
    assert jnp.ptp(forward(jnp.array([-3.0, 0.0, 1.0, 2.0]))[1]) > 0.1  # within, it does bend


@pytest.mark.oldest
@pytest.mark.parametrize(
    ("architecture", "steps", "within"),
    [("autoregressive", 1500, 0.15), ("block_neural", 800, 0.1), ("coupling", 500, 0.03)],
)
def test_a_flow_on_a_banana(architecture, steps, within, key):
    """A diagonal Gaussian reaches -0.560659 (`test_guides.py`), and 0 is exact."""
    guide = flow_of(banana(), {}, architecture, num_layers=1)
    objective = vipl.expectation(lambda params: vipl.objectives.elbo(banana(), guide(params), {}))
    adam = optax.adam(optax.cosine_decay_schedule(0.02, steps))
    params = guide.init(key, scale=1.0)
    found = vipl.fit(objective, params, adam, key=key, num_steps=steps, num_samples=32, progress=False)
    last = np.asarray(found.values)[-100:]  # the rate is nearly zero there
    bound, error = last.mean(), last.std() / 10
    assert error < 0.02
    assert -within < bound < 5 * error


@pytest.mark.oldest
@pytest.mark.parametrize("architecture", ARCHITECTURES[1:])
def test_a_file_says_which_flow_it_is_of(architecture, tmp_path, key):
    guide = flow_of(banana(), {}, architecture, num_layers=1, hidden=(4, 4))
    before = vipl.Posterior(banana(), {}, guide, guide.init(key))
    before.save(tmp_path / "posterior.npz")
    after = vipl.load(tmp_path / "posterior.npz", banana(), {})
    assert after.guide.options == guide.options
    jax.tree.map(np.testing.assert_array_equal, before.params, after.params)


def test_infer_holds_the_density_of_no_flow():
    """Its slope in a given value has no bounded variance; of other guides it is held."""
    assert all(_has_flow(flow_of(banana(), {}, a)) for a in ARCHITECTURES)
    assert _has_flow(guides.combine({"all": guides.Flow(banana(), {})}))
    assert not _has_flow(guides.combine({"all": guides.LowRank(banana(), {}, 1)}))


@vipl.gen
def product():
    """Of a width and what is bounded by it the product is seen: log Z = -1.0850 by a sum over a grid."""
    s = sample("s", dist.Gamma(2.0, 2.0))
    sample("y", dist.Normal(s * sample("u", dist.Uniform(-1.0, s)), 0.4))


def test_a_flow_fits_a_posterior_with_moving_bounds():
    """The bounds move in the frame that all architectures share."""
    s, u = np.meshgrid(np.linspace(0.005, 9.995, 1000), np.linspace(0.0005, 0.9995, 1000), indexing="ij")
    likelihood = dist.Normal(s * ((s + 1) * u - 1), 0.4).log_prob(0.5)
    weights = np.exp(dist.Gamma(2.0, 2.0).log_prob(s) + likelihood)
    log_z = np.log(np.sum(weights) * 0.01 * 0.001)
    posterior = vipl.infer(product(), {"y": 0.5}, key=KEY, guide=guides.Flow(product(), {"y": 0.5}))
    found = posterior.evidence(KEY, 4000)
    assert log_z - 0.3 < found.elbo < log_z
    assert abs(found.estimate - log_z) < 0.05
    draws = posterior.improve(KEY, 20_000).sample(KEY, 20_000)
    np.testing.assert_allclose(np.mean(draws["s"]), np.sum(weights * s) / np.sum(weights), atol=0.04)
