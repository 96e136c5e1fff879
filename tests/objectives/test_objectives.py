"""Objectives against their formulas, by quadrature: value, and gradient (or what their gradient is instead)."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from jax import lax

import vipl
from benchmarks.measure import count_equations
from vipl import objectives as ob
from vipl import sample
from vipl.testing import assert_unbiased

pytestmark = pytest.mark.usefixtures("typed_face")

KEY = jax.random.key(31)
Y = {"y": jnp.array(0.7)}
THETA, PHI = jnp.array([0.4, -0.3]), jnp.array([0.2, -0.4])
GRID = jnp.linspace(-7.0, 7.0, 281)
STEP = GRID[1] - GRID[0]
sg = lax.stop_gradient


@vipl.gen
def model(theta):
    z = sample("z", dist.Normal(theta[0], 1.1))
    sample("y", dist.Normal(z, jnp.exp(theta[1])))


@vipl.gen
def guide(phi):
    sample("z", dist.Normal(phi[0], jnp.exp(phi[1])))


@vipl.gen
def guide_of(phi, y):
    sample("z", dist.Normal(phi[0] * y["y"], jnp.exp(phi[1])))


@vipl.gen
def nested_guide(phi):
    a = sample("a", dist.Normal(phi[0], 0.6))
    sample("z", dist.Normal(a, jnp.exp(phi[1])))


@vipl.gen
def latent(m, s):
    sample("z", dist.Normal(m, s))


def lp(theta, z):
    return dist.Normal(theta[0], 1.1).log_prob(z) + dist.Normal(z, jnp.exp(theta[1])).log_prob(Y["y"])


def lq(phi, z):
    return dist.Normal(phi[0], jnp.exp(phi[1])).log_prob(z)


def one(f, density=lq):
    """∫ q(z) f(z)."""

    def value(theta, phi):
        return jnp.sum(jnp.exp(density(phi, GRID)) * f(theta, phi, GRID)) * STEP

    return value


def two(f, still=False):
    """∫∫ q(z1) q(z2) f(log w1, log w2); f gets log p and log q of both; draws without derivative, if `still`."""

    def value(theta, phi):
        p, q = lp(theta, GRID), lq(phi, GRID)
        weight = jnp.exp(q[:, None] + q[None]) * STEP**2
        args = (p[:, None], q[:, None], p[None], q[None])
        return jnp.sum((sg(weight) if still else weight) * f(*args))

    return value


def lme(*xs):
    """log of the mean of exponentials of two arrays."""
    return jnp.logaddexp(*xs) - jnp.log(2.0)


def wake(p1, q1, p2, q2, of):
    w = sg(jax.nn.sigmoid((p1 - q1) - (p2 - q2)))
    x1, x2 = (p1, p2) if of == "p" else (q1, q2)
    return w * x1 + (1 - w) * x2


def hierarchical(inner, outer):
    """E[log mean_m p(z_m) / q̂(z_m)], by Gauss-Hermite over all auxiliary draws."""
    n = {1: 48, 2: 40, 3: 32, 4: 20}
    count = outer * (1 + inner)
    nodes, weights = np.polynomial.hermite_e.hermegauss(n[min(count, 4)])
    weights = weights / weights.sum()

    def value(theta, phi):
        axes = jnp.meshgrid(*[jnp.asarray(nodes)] * count, indexing="ij")
        w = jnp.prod(jnp.stack(jnp.meshgrid(*[jnp.asarray(weights)] * count, indexing="ij")), axis=0)
        logs = []
        for m in range(outer):
            eps, *rest = axes[m * (1 + inner) : (m + 1) * (1 + inner)]
            a = [phi[0] + 0.6 * r for r in rest]  # the first was drawn with z, the others anew
            z = a[0] + jnp.exp(phi[1]) * eps
            q = [dist.Normal(x, jnp.exp(phi[1])).log_prob(z) for x in a]
            logs.append(lp(theta, z) - (q[0] if inner == 1 else lme(*q)))
        return jnp.sum(w * (logs[0] if outer == 1 else lme(*logs)))

    return value


def sleep_value(theta, phi):
    z, y = GRID[:, None], GRID[None]
    p = dist.Normal(theta[0], 1.1).log_prob(z) + dist.Normal(z, jnp.exp(theta[1])).log_prob(y)
    return jnp.sum(sg(jnp.exp(p)) * dist.Normal(phi[0] * y, jnp.exp(phi[1])).log_prob(z)) * STEP**2


def beta_value(theta, phi, z, beta=2.5):
    prior = dist.Normal(theta[0], 1.1).log_prob(z)
    return lp(theta, z) - prior - beta * (lq(phi, z) - prior)


def mmd_value(theta, phi, h=0.9):
    """With Gaussians, E k(x, y) = h / sqrt(h² + v) exp(-d² / (2 (h² + v))), v the variance of x - y, d its mean."""
    s = jnp.exp(phi[1])

    def k(d, v):
        return h / jnp.sqrt(h**2 + v) * jnp.exp(-(d**2) / (2 * (h**2 + v)))

    return k(0.0, 2 * s**2) + k(0.0, 2 * 1.21) - 2 * k(phi[0] - theta[0], s**2 + 1.21)


def score_distance(theta, phi, z):
    slope = jax.vmap(jax.grad(lambda z: lp(theta, z) - lq(phi, z)))
    return slope(z) ** 2


iw = two(lambda p1, q1, p2, q2: lme(p1 - q1, p2 - q2))
plain = one(lambda t, f, z: lp(t, z) - lq(f, z))
BETAS = jnp.array([0.0, 0.3, 0.6])


def tvo(p1, q1, p2, q2):
    w1, w2 = p1 - q1, p2 - q2
    return sum(
        (b1 - b0) * (jax.nn.sigmoid(b0 * (w1 - w2)) * w1 + jax.nn.sigmoid(b0 * (w2 - w1)) * w2)
        for b0, b1 in zip(BETAS, [*BETAS[1:], 1.0], strict=True)
    )


K = {"num_particles": 2}
TABLE = {
    "elbo": (lambda t, f: ob.elbo(model(t), guide(f), Y), plain),
    "elbo_with_kl": (lambda t, f: ob.elbo_with_kl(model(t), guide(f), Y), plain),
    "beta_elbo": (lambda t, f: ob.beta_elbo(model(t), guide(f), Y, 2.5), one(beta_value)),
    "iwelbo": (lambda t, f: ob.iwelbo(model(t), guide(f), Y, **K), iw),
    "miwae": (lambda t, f: ob.miwae(model(t), guide(f), Y, num_bounds=3, **K), iw),
    "ciwae": (
        lambda t, f: ob.ciwae(model(t), guide(f), Y, 0.3, **K),
        lambda t, f: 0.3 * plain(t, f) + 0.7 * iw(t, f),
    ),
    "piwae": (
        lambda t, f: ob.piwae(model(t), guide(f), Y, num_bounds=2, num_particles=1),
        lambda t, f: plain(sg(t), f) + iw(t, sg(f)) - sg(iw(t, f)),
    ),
    "hvi": (lambda t, f: ob.hvi(model(t), nested_guide(f), Y, "z"), hierarchical(1, 1)),
    "iwhvi": (lambda t, f: ob.iwhvi(model(t), nested_guide(f), Y, "z", num_inner=2), hierarchical(2, 1)),
    "diwhvi": (
        lambda t, f: ob.diwhvi(model(t), nested_guide(f), Y, "z", num_outer=2, num_inner=1),
        hierarchical(1, 2),
    ),
    "fivo": (lambda t, f: ob.fivo(model(t), Y, vipl.inference.Importance(2, lambda _: guide(f))), iw),
    "renyi": (
        lambda t, f: ob.renyi(model(t), guide(f), Y, 0.4, **K),
        two(lambda p1, q1, p2, q2: lme(0.6 * (p1 - q1), 0.6 * (p2 - q2)) / 0.6),
    ),
    "chi_upper_bound": (
        lambda t, f: ob.chi_upper_bound(model(t), guide(f), Y, **K),
        two(lambda p1, q1, p2, q2: lme(2 * (p1 - q1), 2 * (p2 - q2)) / 2),
    ),
    "thermodynamic": (lambda t, f: ob.thermodynamic(model(t), guide(f), Y, BETAS, **K), two(tvo)),
    "sticking_the_landing": (lambda t, f: ob.sticking_the_landing(model(t), guide(f), Y), plain),
    "doubly_reparametrized": (lambda t, f: ob.doubly_reparametrized(model(t), guide(f), Y, **K), iw),
    "wake_theta": (
        lambda t, f: ob.wake_theta(model(t), guide(f), Y, **K),
        lambda t, f: sg(iw(t, f)) + (x := two(lambda *a: wake(*a, of="p"), still=True)(t, sg(f))) - sg(x),
    ),
    "wake_phi": (
        lambda t, f: ob.wake_phi(model(t), guide(f), Y, **K),
        two(lambda *a: wake(*a, of="q"), still=True),
    ),
    "sleep": (lambda t, f: ob.sleep(model(t), lambda y: guide_of(f, y), "y"), sleep_value),
    "forward_kl": (
        lambda t, f: ob.forward_kl(latent(t[0], 1.1), guide(f)),
        lambda t, f: dist.kl_divergence(dist.Normal(t[0], 1.1), dist.Normal(f[0], jnp.exp(f[1]))),
    ),
    "reverse_kl": (
        lambda t, f: ob.reverse_kl(latent(t[0], 1.1), guide(f)),
        lambda t, f: dist.kl_divergence(dist.Normal(f[0], jnp.exp(f[1])), dist.Normal(t[0], 1.1)),
    ),
    "f_divergence": (
        lambda t, f: ob.f_divergence(latent(t[0], 0.7), guide(f), lambda r: (jnp.sqrt(r) - 1) ** 2),
        one(lambda t, f, z: (jnp.exp(0.5 * (dist.Normal(t[0], 0.7).log_prob(z) - lq(f, z))) - 1) ** 2),
    ),
    "trajectory_balance": (
        lambda t, f: ob.trajectory_balance(model(t), guide(f), Y, -1.2),
        lambda t, f: one(lambda t, _, z: (-1.2 + lq(f, z) - lp(t, z)) ** 2)(t, sg(f)),
    ),
    "log_variance": (
        lambda t, f: ob.log_variance(model(t), guide(f), Y, **K),
        two(lambda p1, q1, p2, q2: 0.25 * ((p1 - q1) - (p2 - q2)) ** 2, still=True),
    ),
    "fisher": (
        lambda t, f: ob.fisher(given(t), guide(f)),
        one(score_distance),
    ),
    "mmd": (
        lambda t, f: ob.mmd(guide(f), latent(t[0], 1.1), num_samples=4, bandwidth=0.9),
        mmd_value,
    ),
}


@vipl.gen
def given(theta):
    """log p(z, y) as a function of z."""
    z = sample("z", dist.Normal(theta[0], 1.1))
    vipl.factor("y", dist.Normal(z, jnp.exp(theta[1])).log_prob(Y["y"]))


@pytest.mark.parametrize("name", TABLE)
def test_value_and_gradient(name):
    program, exact = TABLE[name]
    objective = vipl.expectation(program)

    def draw(key):
        value, grads = objective.value_and_grad(key, THETA, PHI, argnums=(1, 2))
        return value, grads

    value, grads = jax.jit(jax.value_and_grad(exact, argnums=(0, 1)))(THETA, PHI)
    slope = float(max(np.abs(g).max() for g in grads))
    resolution = (0.03 + 0.05 * abs(float(value)), (max(0.15 * slope, 0.03),) * 2)
    assert_unbiased(draw, (value, grads), key=KEY, resolution=resolution)
    wrong = jax.tree.map(lambda g: 1.3 * g + 0.05 * slope, grads)
    with pytest.raises(AssertionError, match="z = "):
        assert_unbiased(draw, (value, wrong), key=KEY, resolution=resolution)


def test_a_renyi_bound_of_order_one_is_the_elbo():
    """Of four particles the mean of the log weights: value and gradient of one."""
    objective = vipl.expectation(lambda t, f: ob.renyi(model(t), guide(f), Y, 1.0, num_particles=4))
    exact = jax.jit(jax.value_and_grad(plain, argnums=(0, 1)))(THETA, PHI)
    draw = lambda key: objective.value_and_grad(key, THETA, PHI, argnums=(1, 2))  # noqa: E731
    assert_unbiased(draw, exact, key=KEY, resolution=0.1)


def test_a_datum_of_sleep_may_be_nested():
    @vipl.gen
    def seen(z, s):
        sample("y", dist.Normal(z, s))

    @vipl.gen
    def nested(theta):
        z = sample("z", dist.Normal(theta[0], 1.1))
        sample("obs", seen(z, jnp.exp(theta[1])))

    objective = vipl.expectation(lambda f: ob.sleep(nested(THETA), lambda y: guide_of(f, y["obs"]), (("obs", "y"),)))
    exact = jax.jit(jax.value_and_grad(lambda f: sleep_value(THETA, f)))(PHI)
    assert_unbiased(lambda key: objective.value_and_grad(key, PHI), exact, key=KEY, resolution=0.2)


def test_a_particle_of_weight_zero_in_the_thermodynamic_objective():
    """Its log weight counts where its share is not zero, at β = 0, and nowhere else; nothing is NaN."""

    @vipl.gen
    def bit():
        z = sample("z", dist.Bernoulli(logits=0.0))
        vipl.factor("y", jnp.where(z == 1, -jnp.inf, -0.3))

    @vipl.gen
    def coin(f):
        return sample("z", dist.Bernoulli(logits=f), vipl.Score())

    def tempered(betas):
        objective = vipl.expectation(lambda f: ob.thermodynamic(bit(), coin(f), {}, betas, num_particles=5))
        return jax.jit(jax.value_and_grad(objective.estimate, argnums=1))

    log_w = jnp.log(0.5) - 0.3 - jnp.log(jax.nn.sigmoid(0.4))  # of the particles that are possible
    from_zero, later, values = tempered([0.0, 0.4]), tempered([0.3, 0.6]), []
    for key in jax.random.split(KEY, 8):
        values.append(from_zero(key, -0.4)[0])
        value, slope = later(key, -0.4)
        np.testing.assert_allclose(value, 0.7 * log_w, rtol=1e-12)
        assert jnp.isfinite(slope)
    assert -jnp.inf in values
    assert all(value == -jnp.inf or abs(value - log_w) < 1e-12 for value in values)  # no particle of weight zero


def test_every_objective_is_in_the_table():
    functions = {name for name, f in vars(ob).items() if inspect.isfunction(f)}
    assert functions == {*TABLE, "elbo_with_chain"}  # that one is in test_markov.py, against sums over all paths


def test_objectives_are_programs_that_can_be_added():
    program, _ = TABLE["elbo"]
    both = vipl.expectation(lambda t, f: program(t, f) - 0.5 * ob.mmd(guide(f), latent(t[0], 1.1), num_samples=2))
    exact = plain(THETA, PHI) - 0.5 * mmd_value(THETA, PHI, 1.0)
    assert_unbiased(lambda key: both.estimate(key, THETA, PHI), exact, key=KEY, resolution=0.05)


def test_at_the_exact_posterior_sticking_the_landing_has_no_noise():
    """Posterior of z ~ Normal(0, 1), y ~ Normal(z, 1): Normal(y / 2, 1 / sqrt 2)."""
    theta = jnp.array([0.0, 0.0])
    exact_model = vipl.gen(lambda: sample("y", dist.Normal(sample("z", dist.Normal(0.0, 1.0)), 1.0)))
    objective = vipl.expectation(lambda f: ob.sticking_the_landing(exact_model(), guide(f), Y))
    phi = jnp.array([Y["y"] / 2, jnp.log(jnp.sqrt(0.5))])
    grads = jax.vmap(lambda key: objective.value_and_grad(key, phi)[1])(jax.random.split(KEY, 100))
    assert np.abs(grads).max() < 1e-12 + 0 * theta[0]


@vipl.gen
def long_model(theta):
    """A latent of the model in each of the ways that a closed form may or may not be taken."""
    a = sample("a", dist.Normal(theta[0], 1.1))
    b = jax.vmap(lambda t: sample("b", dist.Normal(a * t, 0.9)))(jnp.arange(1.0, 3.0))
    c = lax.scan(lambda c, _: (sample("c", dist.Normal(0.5 * c, 1.0)),) * 2, a, None, length=2)[1]
    g = sample("g", dist.Gamma(2.0, 1.5))
    k = sample("k", dist.Laplace(c[1], 1.0))
    sample("y", dist.Normal(a + b.sum() + c.sum() + jnp.log(g) + k, 0.8))


@vipl.gen
def long_guide(phi, swapped=False):
    if swapped:
        b = jax.vmap(lambda: sample("b", dist.Normal(phi[0], 0.7)), axis_size=2)()
        a = sample("a", dist.Normal(0.3 * b.sum(), jnp.exp(phi[1])))
    else:
        a = sample("a", dist.Normal(phi[0], jnp.exp(phi[1])))
        jax.vmap(lambda: sample("b", dist.Normal(phi[0] * a, 0.7)), axis_size=2)()
    lax.scan(lambda c, _: (sample("c", dist.Normal(0.4 * c, 0.8)), None), a, None, length=2)
    sample("g", dist.Gamma(jnp.exp(phi[0]), 1.0))
    sample("k", dist.Normal(a, 0.6))


@pytest.mark.parametrize("swapped", [False, True])
def test_closed_forms_leave_the_bound_as_it_is(swapped):
    """The difference of the two bounds, on one key, has mean zero, in value and gradient; swapped, it is zero."""

    def both(form):
        return vipl.expectation(lambda t, f: form(long_model(t), long_guide(f, swapped), Y))

    sampled, closed = both(ob.elbo), both(ob.elbo_with_kl)

    def difference(key):
        one, other = (e.value_and_grad(key, THETA, PHI, argnums=(1, 2)) for e in (sampled, closed))
        return jax.tree.map(jnp.subtract, one, other)

    zeros = (0.0, (jnp.zeros(2), jnp.zeros(2)))
    check = assert_unbiased(difference, zeros, key=KEY, resolution=(0.05, (0.2, 0.2)))
    assert (check.mean[0] == 0.0 and check.se[0] == 0.0) == swapped  # no closed form is taken: bit for bit the same


COVARIANCE = jnp.array([[1.3, 0.4, -0.2], [0.4, 0.9, 0.1], [-0.2, 0.1, 0.7]])
SCALES = jnp.array([0.6, 1.4, 0.8])
NORMALS = {
    "an event": dist.Normal(jnp.array([0.3, -0.4, 1.1]), SCALES).to_event(1),
    "a batch": dist.Normal(jnp.array([0.3, -0.4, 1.1]), SCALES),
    "expanded": dist.Normal(0.3, 0.6).expand([3]).to_event(1),
}


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("name", NORMALS)
def test_normals_beside_a_multivariate_normal_have_a_closed_form(name, turned):
    """KL(N(m, S) || N(n, T)) = (tr(T^-1 S) - d + (n - m)' T^-1 (n - m) + log |T| - log |S|) / 2, without noise."""
    normals, correlated = NORMALS[name], dist.MultivariateNormal(jnp.array([0.2, 0.5, -0.6]), COVARIANCE)
    q, p = (correlated, normals) if turned else (normals, correlated)

    def moments(d):
        return (d.mean, d.covariance_matrix) if d is correlated else (d.mean, jnp.diag(d.variance))

    (m, s), (n, t) = moments(q), moments(p)
    kl = jnp.trace(jnp.linalg.solve(t, s)) - 3 + (n - m) @ jnp.linalg.solve(t, n - m)
    exact = -0.5 * (kl + jnp.linalg.slogdet(t)[1] - jnp.linalg.slogdet(s)[1])
    programs = [vipl.gen(lambda d=d: sample("z", d)) for d in (p, q)]
    bound = vipl.expectation(lambda: ob.elbo_with_kl(programs[0](), programs[1](), {}))
    np.testing.assert_allclose(bound.estimate(KEY), exact, rtol=1e-12)


def test_piwae_with_a_discrete_guide():
    """Two bounds of two particles for the guide: its gradient is that of `miwae`, also through the score."""
    target = vipl.gen(lambda: sample("y", dist.Normal(2.0 * sample("z", dist.Bernoulli(0.3)), 1.0)))
    coin = vipl.gen(lambda phi: sample("z", dist.Bernoulli(logits=phi)))
    data = {"y": jnp.array(1.7)}

    def exact(phi):
        log_q = jnp.stack([jax.nn.log_sigmoid(-phi), jax.nn.log_sigmoid(phi)])
        log_w = jnp.stack([target().assess({"z": z} | data).log_prob for z in range(2)]) - log_q
        return jnp.sum(jnp.exp(log_q[:, None] + log_q[None]) * lme(log_w[:, None], log_w[None]))

    objective = vipl.expectation(lambda phi: ob.piwae(target(), coin(phi), data, num_bounds=2, num_particles=2))
    expected = jax.value_and_grad(exact)(-1.0)
    assert_unbiased(lambda key: objective.value_and_grad(key, -1.0), expected, key=KEY, resolution=(0.05, 0.05))


def test_the_number_of_particles_does_not_make_a_program_longer():
    def size(outer, inner):
        bound = vipl.expectation(
            lambda f: ob.diwhvi(model(THETA), nested_guide(f), Y, "z", num_outer=outer, num_inner=inner)
        )
        return count_equations(jax.make_jaxpr(lambda f: bound.value_and_grad(KEY, f))(PHI).jaxpr)

    assert size(50, 50) <= 1.1 * size(5, 5)


def test_five_particles_of_three_enumerated_bits():
    """8^5 joint values in one program, whose length does not depend on the number of particles; no noise."""
    weights = jnp.array([0.5, -1.0, 2.0])

    @vipl.gen
    def bits(phi):
        return jnp.stack([1.0 * sample(f"b{i}", dist.Bernoulli(logits=phi[i]), vipl.Enumerate()) for i in range(3)])

    @vipl.gen
    def target():
        sample("y", dist.Normal(bits.fn(jnp.zeros(3)) @ weights, 0.8))

    def bound(num_particles):
        return vipl.expectation(lambda phi: ob.iwelbo(target(), bits(phi), Y, num_particles=num_particles))

    def exact(phi):
        table = {f"b{i}": (jnp.arange(8) >> i) & 1 for i in range(3)}
        log_q = jax.vmap(lambda b: bits(phi).assess(b).log_prob)(table)
        log_w = jax.vmap(lambda b: target().assess(b | Y).log_prob)(table) - log_q
        rows = np.indices((8,) * 5).reshape(5, -1)
        return jnp.exp(log_q[rows].sum(0)) @ (jax.nn.logsumexp(log_w[rows], axis=0) - jnp.log(5))

    phi = jnp.array([0.3, -0.8, 1.1])
    got, expected = bound(5).value_and_grad(KEY, phi), jax.jit(jax.value_and_grad(exact))(phi)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9), got, expected)
    # (of two or three particles an equation is shared with the two values, or with the three bits)
    sizes = [count_equations(jax.make_jaxpr(bound(k).estimate)(KEY, phi).jaxpr) for k in (4, 5)]
    assert sizes[0] == sizes[1]
