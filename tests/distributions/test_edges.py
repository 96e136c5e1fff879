"""Draws at the edge of a support: their densities are those of the numbers before they were rounded.

All in float32 where it says so: the parameters are, and so are the draws; sums are in double precision.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from jax import lax
from numpyro.distributions import transforms as tf
from numpyro.distributions.flows import BlockNeuralAutoregressiveTransform, InverseAutoregressiveTransform
from scipy import special, stats

import vipl
from vipl import ImplicitReparam, MeasureValued, RejectionReparam, Reparam, Score, objectives, sample
from vipl.distributions import _draws as points
from vipl.distributions._stable import stabilize
from vipl.distributions._truncated import log_normal_mass
from vipl.testing import assert_unbiased

KEY = jax.random.key(83)
f32 = jnp.float32


def log_q(make, estimator=None, value=lambda trace: trace.log_prob):
    """`(key, t) -> (E[...], its derivative)`, one draw each."""

    @vipl.gen
    def guide(t):
        sample("x", make(t), estimator)

    @vipl.expectation
    def objective(t):
        return value(guide(t).simulate())

    return jax.value_and_grad(objective.estimate, argnums=1)


def entropy_of(frozen, t):
    """E[log q], and its derivative, by scipy and a difference quotient (error 1e-7 of the value)."""
    h = 1e-4 * t
    return -frozen(t).entropy(), -(frozen(t + h).entropy() - frozen(t - h).entropy()) / (2 * h)


# make(t), the exact E[log q] and its derivative, resolutions
EDGES = {
    "beta": (lambda t: dist.Beta(f32(2.0), t), 0.1, entropy_of(lambda t: stats.beta(2, t), 0.1), (0.3, 4.0)),
    "beta, both": (lambda t: dist.Beta(t, 0.5 * t), 0.1, entropy_of(lambda t: stats.beta(t, t / 2), 0.1), (0.7, 9.0)),
    "dirichlet": (
        lambda t: dist.Dirichlet(jnp.stack([t, 45 * t, 15 * t])), 0.02,
        entropy_of(lambda t: stats.dirichlet(np.array([t, 45 * t, 15 * t])), 0.02), (2.0, 120.0),
    ),
    "gamma": (
        lambda t: dist.Gamma(t, f32(1.7)), 0.02,
        entropy_of(lambda t: stats.gamma(t, scale=1 / 1.7), 0.02), (2, 120.0),
    ),
    "inverse gamma": (
        lambda t: dist.InverseGamma(t, f32(1.7)), 0.02,
        entropy_of(lambda t: stats.invgamma(t, scale=1.7), 0.02), (2, 120.0),
    ),
}  # fmt: skip


@pytest.mark.parametrize("estimator", [Reparam(), Score()], ids=["reparam", "score"])
@pytest.mark.parametrize("name", EDGES)
@pytest.mark.oldest
def test_the_density_of_a_draw_in_float32_is_that_before_rounding(name, estimator):
    make, at, exact, resolution = EDGES[name]
    one = log_q(lambda t: make(t.astype(f32)), estimator)
    factor = 4.0 if isinstance(estimator, Score) else 1.0
    assert_unbiased(one, exact, key=KEY, resolution=(resolution[0], factor * resolution[1]), args=(at,))


def test_a_density_of_the_rounded_draw_is_caught():
    """The broken twin: the density at the value, as it is handed on."""

    @vipl.gen
    def guide(t):
        sample("x", dist.Beta(f32(2.0), t.astype(f32)))

    @vipl.expectation
    def recomputed(t):
        return guide(t).assess(guide(t).simulate().choices).log_prob

    _, _, exact, resolution = EDGES["beta"]
    one = jax.value_and_grad(recomputed.estimate, argnums=1)
    with pytest.raises(AssertionError, match="z = "):
        assert_unbiased(one, exact, key=KEY, resolution=resolution, args=(0.1,))


@pytest.mark.parametrize("estimator", [MeasureValued(), Score(), Reparam()], ids=["measure", "score", "reparam"])
def test_estimators_of_several_draws_at_the_edge_agree(estimator):
    """E[Σ log q + x] of three Gamma(0.05, t) in float32: 3 (log t + c) + 0.15 / t."""
    t = 1.3
    exact = 3 * (-stats.gamma(0.05, scale=1 / t).entropy() + 0.05 / t)
    slope = 3 * (1 / t - 0.05 / t**2)
    make = lambda t: dist.Gamma(f32(0.05), t.astype(f32) * jnp.ones(3, f32)).to_event(1)  # noqa: E731
    one = log_q(make, estimator, lambda trace: trace.log_prob + jnp.sum(trace.choices["x"]))
    assert_unbiased(one, (exact, slope), key=KEY, resolution=(1.5, 4.0), args=(t,))


INSIDE = {
    "gamma": lambda: dist.Gamma(f32(0.01)),
    "beta": lambda: dist.Beta(f32(0.01), f32(0.01)),
    "dirichlet": lambda: dist.Dirichlet(jnp.array([0.01, 0.3, 0.01], f32)),
    "inverse gamma": lambda: dist.InverseGamma(f32(0.01), f32(1.0)),
    "chi2": lambda: dist.Chi2(f32(0.02)),
    "expanded": lambda: dist.Gamma(jnp.full((2, 1), 0.01, f32)).expand((4, 2, 3)).to_event(2),
    "log normal": lambda: dist.LogNormal(f32(-90.0), f32(8.0)),
    "overflow": lambda: dist.LogNormal(f32(90.0), f32(8.0)),
    "softplus": lambda: dist.TransformedDistribution(dist.Normal(f32(-60.0), f32(20.0)), tf.SoftplusTransform()),
    "sigmoid": lambda: dist.TransformedDistribution(dist.Normal(f32(14.0), f32(9.0)), tf.SigmoidTransform()),
    "interval": lambda: dist.TransformedDistribution(
        dist.Normal(f32(-20.0), f32(30.0)), tf.biject_to(dist.constraints.interval(-2.0, 3.0))
    ),
    "shifted": lambda: dist.TransformedDistribution(
        dist.Normal(f32(-20.0), f32(9.0)), [tf.ExpTransform(), tf.AffineTransform(f32(1.0), f32(-2.0))]
    ),
}


@pytest.mark.parametrize("name", INSIDE)
def test_draws_in_float32_lie_inside_and_their_densities_are_finite(name):
    @vipl.gen
    def guide():
        sample("x", INSIDE[name]())

    with jax.enable_x64(False):
        traces = jax.jit(jax.vmap(lambda key: guide().simulate(key)))(jax.random.split(jax.random.key(83), 3000))
        values = jax.jit(jax.vmap(lambda x: guide().assess(x).log_prob))(traces.choices)
        transformed = isinstance(points.innermost(INSIDE[name]()), dist.TransformedDistribution)
    x = np.asarray(traces.choices["x"])
    assert x.dtype == np.float32
    assert np.isfinite(x).all()
    assert np.isfinite(traces.log_prob).all()
    bounds = {"sigmoid": (0, 1), "beta": (0, 1), "interval": (-2, 3), "shifted": (-np.inf, 1)}
    low, high = bounds.get(name, (0, np.inf))
    assert (x > low).all()
    assert (x < high).all()
    if not transformed:  # the density of the value alone is as good as the value has digits, but finite
        assert np.isfinite(values).all()


TRANSFORMED = {
    "exp": (-90.0, 8.0, tf.ExpTransform(), lambda y: y),
    "softplus": (-60.0, 20.0, tf.SoftplusTransform(), lambda y: -np.logaddexp(0, -y)),
    "sigmoid": (14.0, 9.0, tf.SigmoidTransform(), lambda y: -np.logaddexp(0, -y) - np.logaddexp(0, y)),
    "interval": (
        -20.0, 30.0, tf.biject_to(dist.constraints.interval(-2.0, 3.0)),
        lambda y: -np.logaddexp(0, -y) - np.logaddexp(0, y) + np.log(5.0),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", TRANSFORMED)
def test_the_density_of_a_transformed_draw_in_float32_is_that_of_what_was_transformed(name):
    """log N(y) - log |dx/dy| in double precision, from the y that was drawn."""
    loc, scale, transform, log_slope = TRANSFORMED[name]
    with jax.enable_x64(False):
        d = dist.TransformedDistribution(dist.Normal(loc, scale), transform)
        drawn = jax.vmap(functools.partial(points.draw, d))(jax.random.split(jax.random.key(83), 3000))
        got = jax.vmap(functools.partial(points.log_density, d))(drawn)
    y = np.asarray(drawn.coordinates.base.value, float)
    assert drawn.value.dtype == got.dtype == np.float32
    np.testing.assert_allclose(got, stats.norm.logpdf(y, loc, scale) - log_slope(y), rtol=1e-5, atol=1e-4)


def test_a_uniform_draw_is_never_a_bound():
    """Bits of zero make the least number: it is moved inside. NaN stays NaN; the derivative is that of the draw."""
    x = jnp.array([0.0, 1.0, 0.3, jnp.nan, -jnp.inf], f32)
    got = points.inside(x, 0.0, 1.0)
    assert 0 < got[0] < 1e-37
    assert 1 - 1e-7 < got[1] < 1
    assert got[2] == x[2]
    assert jnp.isnan(got[3])
    assert got[4] > 0
    assert 2.0 < points.inside(f32(2.0), 2.0, jnp.inf) < 2.001
    np.testing.assert_array_equal(jax.vmap(jax.grad(lambda x: points.inside(x, 0.0, 1.0)))(x), jnp.ones(5))


@pytest.mark.oldest
def test_ordinary_draws_have_the_densities_of_their_values():
    """In double precision, at ordinary parameters, both ways agree: through control flow, lanes and masks."""

    @vipl.gen
    def program(t):
        u = sample("u", dist.Beta(t, 1.4))
        jax.vmap(lambda a: sample("v", dist.Gamma(a, 1.1).mask(a < 2)))(jnp.array([0.7, 1.9, 2.5]))

        def step(c, _):
            x = sample(
                "w",
                dist.TransformedDistribution(dist.Normal(c, t), [tf.SigmoidTransform(), tf.AffineTransform(t, 2.0)]),
            )
            return x, None

        c, _ = lax.scan(step, u, None, length=3)
        wide = lambda: sample("z", dist.InverseGamma(t + 2, 1.0))  # noqa: E731
        lax.cond(c > 1.5, wide, lambda: sample("z", dist.LogNormal(t, 1.0)))
        sample("d", dist.Dirichlet(jnp.array([t, 1.0, 2.0])).expand((2,)).to_event(1))
        sample("e", dist.Gamma(jnp.array([[1.1], [2.2]])).expand((2, 3)))

    run = jax.jit(lambda key: program(1.3).simulate(key))
    for i in range(3):
        trace = run(jax.random.fold_in(KEY, i))
        np.testing.assert_allclose(trace.log_prob, program(1.3).assess(trace.choices).log_prob, rtol=1e-9)


PARAMETERS = {
    "affine": lambda t: [tf.AffineTransform(t, 1.0 + t**2), tf.ExpTransform()],
    "affine last": lambda t: [tf.AffineTransform(0.2, 1.1), tf.AffineTransform(t, jnp.exp(t))],
    "power": lambda t: [tf.ExpTransform(), tf.PowerTransform(1.0 + t), tf.AffineTransform(0.0, 2.0)],
    "cholesky": lambda t: [tf.LowerCholeskyAffine(jnp.array([0.1, 0.2]) * t, jnp.array([[1.0, 0.0], [0.3, 2.0]]) * t)],
}  # fmt: skip


@pytest.mark.parametrize("name", PARAMETERS)
def test_a_score_is_taken_at_the_value_whatever_the_transforms_hold(name):
    """Score's ∇ log q at fixed x, from coordinates that move so that x stands, against the transforms' inverses."""
    d = lambda t: dist.TransformedDistribution(dist.Normal(jnp.zeros(2), 1.0).to_event(1), PARAMETERS[name](t))  # noqa: E731
    point = points.draw(d(0.4), KEY)

    def by_coordinates(t):
        return points.log_density(d(t), points.standing(d(t), points.draw(d(t), KEY)))

    np.testing.assert_allclose(
        jax.value_and_grad(by_coordinates)(0.4),
        jax.value_and_grad(lambda t: d(t).log_prob(point.value))(0.4),
        rtol=1e-8,
    )
    moving = jax.grad(lambda t: points.log_density(d(t), points.draw(d(t), KEY)))(0.4)
    exact = jax.grad(lambda t: d(t).log_prob(points.draw(d(t), KEY).value))(0.4)
    np.testing.assert_allclose(moving, exact, rtol=1e-7)


def test_the_derivative_of_a_tiny_gamma_draw_is_that_of_its_quantile():
    """d log x / dα at fixed u, where F(x) = x^α / Γ(α + 1): log x = (log u + log Γ(α + 1)) / α; in float32."""
    draw = lambda key, a: points.log_gamma_draw(key, a, ())  # noqa: E731
    keys = jax.random.split(KEY, 500)
    y, slope = jax.vmap(jax.value_and_grad(draw, argnums=1), (0, None))(keys, f32(0.01))
    exact = (special.digamma(1.01) - np.asarray(y, float)) / 0.01
    small = np.asarray(y) < -12
    assert small.sum() > 300  # the error of the expansion is x, of float32 1e-6
    np.testing.assert_allclose(slope[small], exact[small], rtol=3e-5)


# --- flows ------------------------------------------------------------------------------------------------------


def net(p, x):
    """A monotone, triangular map with the logarithms of its diagonal."""
    h = jnp.einsum("ij,...j->...i", jnp.tril(p["a"], -1), x)
    y = jnp.exp(p["b"]) * x + jnp.tanh(x) + jnp.tanh(h)
    return y, jnp.log(jnp.exp(p["b"]) + 1 - jnp.tanh(x) ** 2)


def shift_and_scale(p, x):
    return jnp.einsum("ij,...j->...i", jnp.tril(p["a"], -1), x), p["b"] + 0.0 * x


NET = {"a": jnp.arange(4.0).reshape(2, 2) / 3, "b": jnp.array([0.1, -0.3])}
FLOWS = {
    "block": lambda p: BlockNeuralAutoregressiveTransform(functools.partial(net, p)),
    "block, Partial": lambda p: BlockNeuralAutoregressiveTransform(jax.tree_util.Partial(net, p)),
    "inverse": lambda p: InverseAutoregressiveTransform(functools.partial(shift_and_scale, p)),
    "composed": lambda p: tf.ComposeTransform([
        InverseAutoregressiveTransform(functools.partial(shift_and_scale, p)),
        BlockNeuralAutoregressiveTransform(functools.partial(net, p)),
    ]),
}  # fmt: skip


@pytest.mark.parametrize("estimator", [None, Score()], ids=["default", "score"])
@pytest.mark.parametrize("name", FLOWS)
def test_a_flow_stands_at_a_site_of_a_guide(name, estimator):
    """Its density is that of the base over the Jacobian; derivatives by quadrature over the base."""
    base = dist.Normal(jnp.zeros(2), 1.0).to_event(1)
    make = lambda p: dist.TransformedDistribution(base, [FLOWS[name](p), tf.SigmoidTransform()])  # noqa: E731

    def cost(trace):
        x = trace.choices["x"]
        return trace.log_prob + jnp.sin(3 * x[0]) * x[1]

    def exact(p):
        forward = lambda z: jax.nn.sigmoid(FLOWS[name](p)(z))  # noqa: E731
        nodes, weights = (jnp.asarray(v) for v in np.polynomial.hermite_e.hermegauss(40))
        grid = jnp.stack(jnp.meshgrid(nodes, nodes, indexing="ij"), -1).reshape(-1, 2)
        w = jnp.outer(weights, weights).reshape(-1) / (2 * jnp.pi)

        def at(z):
            x = forward(z)
            log_det = jnp.linalg.slogdet(jax.jacfwd(forward)(z))[1]
            return base.log_prob(z) - log_det + jnp.sin(3 * x[0]) * x[1]

        return jnp.sum(w * jax.vmap(at)(grid))

    expected = jax.jit(jax.value_and_grad(exact))(NET)
    resolution = 0.25 if estimator else 0.1
    assert_unbiased(log_q(make, estimator, cost), expected, key=KEY, resolution=resolution, args=(NET,))


def test_transforms_without_functions_stay_what_they_are():
    parts = [tf.ExpTransform(), tf.AffineTransform(1.0, 2.0, tf.ExpTransform().codomain), tf.SigmoidTransform()]
    d = dist.TransformedDistribution(dist.Normal(0.0, 1.0), [*parts, tf.ComposeTransform(parts[:1])])
    assert stabilize(d) is d


def test_a_flow_without_an_inverse_cannot_be_given_a_value():
    @vipl.gen
    def guide(p):
        sample("x", dist.TransformedDistribution(dist.Normal(jnp.zeros(2), 1.0).to_event(1), FLOWS["block"](p)))

    trace = guide(NET).simulate(KEY)
    with pytest.raises(vipl.errors.DistributionError, match="by a transform that has no inverse"):
        guide(NET).assess(trace.choices)
    with pytest.raises(vipl.errors.DistributionError, match="by a transform that has no inverse"):
        guide(NET).generate(trace.choices, key=KEY)


def test_a_flow_whose_function_closes_over_parameters_says_what_to_write():
    @vipl.gen
    def guide(p):
        flow = InverseAutoregressiveTransform(lambda x: shift_and_scale(p, x))
        sample("x", dist.TransformedDistribution(dist.Normal(jnp.zeros(2), 1.0).to_event(1), flow))

    with pytest.raises(vipl.errors.ProgramError, match=r"jax\.tree_util\.Partial\(fn, value\)"):
        jax.jit(lambda p: guide(p).simulate(KEY).log_prob)(NET)


# --- probabilities of 0 and 1 --------------------------------------------------------------------------------------


BY_PROBS = {
    "bernoulli": (lambda p: dist.Bernoulli(probs=p), 0, lambda a: -np.logaddexp(0, a)),
    "binomial": (
        lambda p: dist.Binomial(5, probs=p), 2,
        lambda a: np.log(10) - 2 * np.logaddexp(0, -a) - 3 * np.logaddexp(0, a),
    ),
    "geometric": (lambda p: dist.Geometric(probs=p), 3, lambda a: -np.logaddexp(0, -a) - 3 * np.logaddexp(0, a)),
    "multinomial": (
        lambda p: dist.Multinomial(3, probs=jnp.stack([p, 1 - p, 0 * p])), np.array([1, 2, 0]),
        lambda a: np.log(3) - np.logaddexp(0, -a) - 2 * np.logaddexp(0, a),
    ),
    "categorical": (lambda p: dist.Categorical(probs=jnp.stack([p, 1 - p])), 1, lambda a: -np.logaddexp(0, a)),
}  # fmt: skip


@pytest.mark.parametrize("name", BY_PROBS)
def test_densities_by_probs_are_not_clipped(name):
    """At a logit of 20 and -20 in double precision, of 12 and -60 in float32: as far as the probability has digits."""
    make, x, exact = BY_PROBS[name]

    @vipl.gen
    def program(logit):
        sample("x", make(jax.nn.sigmoid(logit)))

    one = jax.jit(jax.value_and_grad(lambda logit: program(logit).assess({"x": x}).log_prob))
    for dtype, logits, rtol in ((jnp.float64, (20.0, -20.0), 1e-6), (f32, (8.0, -60.0), 1e-3)):
        for a in logits:  # 1 - p has 53 - 29 bits at 20, and 24 - 12 at 8; next to 1 it has an absolute error only
            slope = (exact(a + 1e-4) - exact(a - 1e-4)) / 2e-4
            np.testing.assert_allclose(one(dtype(a)), (exact(a), slope), rtol=rtol, atol=1e-20)


@pytest.mark.parametrize("name", BY_PROBS)
def test_an_impossible_value_has_density_zero(name):
    make, x, _ = BY_PROBS[name]

    @vipl.gen
    def program(p):
        sample("x", make(p))

    value, slope = jax.value_and_grad(lambda p: program(p).assess({"x": x}).log_prob)(1.0)
    assert value == -jnp.inf
    assert not jnp.isnan(slope)


def test_an_impossible_category_is_not_drawn():
    """Where the uniform number is 0, and where rounding leaves no value: draws of all 2^k multiples."""
    p = jnp.array([0.0, 0.875, 0.0, 0.125, 0.0], f32)
    d = stabilize(dist.CategoricalProbs(p))
    draws = jax.jit(jax.vmap(d.sample))(jax.random.split(KEY, 200_000))
    counts = np.bincount(draws, minlength=5)
    assert counts[0] == counts[2] == counts[4] == 0
    assert abs(counts[3] - 25_000) < 5 * 148
    for u in (0.0, 1 - 1e-7):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(jax.random, "uniform", lambda *a, u=u, **k: jnp.full((1,), u, f32))
            assert int(d.sample(KEY)) == (1 if u == 0 else 3)


@pytest.mark.parametrize("estimator", [vipl.DisARM(), vipl.ARM(), vipl.LocalEnumerate(), Score()], ids=str)
@pytest.mark.parametrize("by", ["probs", "logits"])
def test_a_flip_that_rounds_to_certainty_has_a_finite_derivative(by, estimator):
    def make(a):
        return dist.Bernoulli(probs=jax.nn.sigmoid(a)) if by == "probs" else dist.Bernoulli(logits=a)

    one = log_q(lambda a: make(a).to_event(1), estimator, lambda trace: jnp.sum((trace.choices["x"] - 0.3) ** 2))
    value, slope = jax.jit(one)(KEY, jnp.array([40.0, -120.0, jnp.inf, -jnp.inf, 25.0], f32))
    assert abs(value - 5 * 0.29) < 0.3
    np.testing.assert_allclose(slope, 0.0, atol=1e-6)  # the derivatives are below 1e-10


# --- families -------------------------------------------------------------------------------------------------------


def test_truncated_normal_with_an_infinite_bound():
    one = lambda low, high: jax.value_and_grad(  # noqa: E731
        lambda m: stabilize(dist.TruncatedNormal(m, 1.3, low=low, high=high)).log_prob(0.5)
    )
    ends = [
        stabilize(dist.LeftTruncatedDistribution(dist.Normal(m, 1.3), 0.0)).log_prob(0.5)
        for m in (0.3 - 1e-5, 0.3 + 1e-5)
    ]
    half = (np.mean(ends), (ends[1] - ends[0]) / 2e-5)
    np.testing.assert_allclose(one(0.0, jnp.inf)(0.3), half, rtol=1e-6)
    np.testing.assert_allclose(half[0], stats.truncnorm.logpdf(0.5, -0.3 / 1.3, np.inf, 0.3, 1.3), rtol=1e-9)
    everywhere = (float(stats.norm.logpdf(0.5, 0.3, 1.3)), 0.2 / 1.69)
    np.testing.assert_allclose(one(-jnp.inf, jnp.inf)(0.3), everywhere, rtol=1e-9)
    np.testing.assert_allclose(
        one(-jnp.inf, 0.9)(0.3)[0], stats.truncnorm.logpdf(0.5, -np.inf, 0.6 / 1.3, 0.3, 1.3), rtol=1e-9
    )
    draw = jax.grad(lambda m: stabilize(dist.TruncatedNormal(m, 1.3, low=0.0, high=jnp.inf)).sample(KEY))(0.3)
    other = jax.grad(lambda m: dist.LeftTruncatedDistribution(dist.Normal(m, 1.3), 0.0).sample(KEY))(0.3)
    np.testing.assert_allclose(draw, other, rtol=1e-9)


def test_the_mass_of_a_normal_far_in_a_tail():
    """Against scipy's survival functions; in float32 as well."""
    for low, high in ((30.0, 31.0), (-31.0, -30.0), (-1.0, 2.0), (5.0, np.inf), (-np.inf, -5.0)):
        exact = special.log_ndtr(-low if low > 0 else high)
        a, b = (-high, -low) if low > 0 else (low, high)
        exact += np.log1p(-np.exp(special.log_ndtr(a) - special.log_ndtr(b)))
        np.testing.assert_allclose(log_normal_mass(jnp.float64(low), jnp.float64(high)), exact, rtol=1e-9)
        np.testing.assert_allclose(log_normal_mass(f32(low), f32(high)), exact, rtol=1e-5)


def test_implicit_draws_of_student_move_in_every_draw():
    """x = loc + scale z: the derivative in loc is 1, in scale z, also next to the location, where NumPyro's is NaN."""
    law = lambda t: dist.StudentT(f32(4.0), t[0], t[1])  # noqa: E731
    one = jax.jit(jax.vmap(log_q(law, ImplicitReparam(), lambda trace: trace.choices["x"]), (0, None)))
    x, slopes = one(jax.random.split(KEY, 8000), jnp.array([0.4, 1.0], f32))
    np.testing.assert_allclose(slopes[:, 0], 1.0, rtol=1e-4)
    np.testing.assert_allclose(slopes[:, 1], x - f32(0.4), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    "make", [lambda t: dist.StudentT(t, 0.3, 1.0), lambda t: dist.Beta(t, 2.0), lambda t: dist.Beta(2.0, t)]
)
def test_implicit_derivatives_that_do_not_exist_are_refused(make):
    with pytest.raises(vipl.errors.EstimatorError, match=r"ImplicitReparam\(\) of (StudentT|Beta)"):
        log_q(make, ImplicitReparam(), lambda trace: trace.choices["x"])(KEY, 2.5)


def test_rejection_draws_with_a_boost_are_positive_in_float32():
    one = log_q(lambda t: dist.Gamma(t.astype(f32), f32(1.0)), RejectionReparam(boost=2))
    exact = entropy_of(lambda t: stats.gamma(t), 0.05)
    assert_unbiased(one, exact, key=KEY, resolution=(1.0, 60.0), args=(0.05,))


GENERATORS = {
    "ForwardKL": (objectives.ForwardKL(), lambda t: t * np.log(t)),
    "ReverseKL": (objectives.ReverseKL(), lambda t: -np.log(t)),
    "ChiSquared": (objectives.ChiSquared(), lambda t: (t - 1) ** 2),
    "TotalVariation": (objectives.TotalVariation(), lambda t: abs(t - 1) / 2),
    "SquaredHellinger": (objectives.SquaredHellinger(), lambda t: (np.sqrt(t) - 1) ** 2),
    "JensenShannon": (objectives.JensenShannon(), lambda t: (t * np.log(2 * t / (1 + t)) + np.log(2 / (1 + t))) / 2),
    "OfLogRatio": (objectives.OfLogRatio(lambda u: jnp.exp(u) - 1 - u), lambda t: t - 1 - np.log(t)),
}


@pytest.mark.parametrize("name", GENERATORS)
def test_generators_are_functions_of_the_log_ratio(name):
    """Equal to f(t), with its derivative; finite where the ratio underflows, and where p is 0 if f(0) is."""
    generator, f = GENERATORS[name]
    for u in (-1.3, 0.4, 2.2):
        value, slope = jax.value_and_grad(generator.of_log_ratio)(u)
        np.testing.assert_allclose(value, f(np.exp(u)), rtol=1e-9)
        np.testing.assert_allclose(slope, (f(np.exp(u + 1e-6)) - f(np.exp(u - 1e-6))) / 2e-6, rtol=1e-6)
    value, slope = jax.value_and_grad(generator.of_log_ratio)(f32(-300.0))
    assert jnp.isfinite(value)
    assert jnp.isfinite(slope)
    at_zero = generator.of_log_ratio(-jnp.inf)
    assert at_zero == jnp.inf if name in ("ReverseKL", "OfLogRatio") else jnp.isfinite(at_zero)


def test_forward_kl_by_its_generator_survives_an_underflow():
    """In float32, from a guide so wide that most ratios are 0: KL(p || q) in closed form."""

    @vipl.gen
    def normal(scale):
        sample("z", dist.Normal(f32(0.0), scale))

    @vipl.expectation
    def divergence(log_scale):
        return objectives.f_divergence(normal(f32(0.05)), normal(jnp.exp(log_scale)), objectives.ForwardKL())

    exact = lambda a: a - np.log(0.05) + 0.5 * (0.05 / np.exp(a)) ** 2 - 0.5  # noqa: E731
    one = jax.value_and_grad(divergence.estimate, argnums=1)
    expected = (exact(0.5), 1 - (0.05 / np.exp(0.5)) ** 2)
    assert_unbiased(one, expected, key=KEY, resolution=(0.3, 0.3), args=(f32(0.5),))
