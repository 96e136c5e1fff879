"""Supports and measures: a value that is given to a site has a density there, or it is an error, or it is looked at.

Whether one set lies in another is found here without the package: points of one are drawn, and looked at with NumPy;
the dimension of a set is the rank of a Jacobian.
"""

import inspect
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from jax import lax
from jax.experimental import pallas
from jax.experimental.pallas import tpu
from numpyro.distributions import constraints as c
from numpyro.distributions import transforms as t

import vipl
from vipl import sample
from vipl.analysis import supports
from vipl.analysis.regions import included
from vipl.gen._density import verdict
from vipl.gen._supports import describe, moving_parameters, region_of

KEY = jax.random.key(3)
T = dist.TransformedDistribution
VECTOR, MATRIX = (3,), (3, 3)


def whole(x):
    return x == np.floor(x)


def symmetric(x):
    return np.allclose(x, np.swapaxes(x, -1, -2)) and np.linalg.eigvalsh(x).min() > -1e-9


def triangular(x):
    return np.abs(np.triu(x, 1)).max() == 0 and np.diagonal(x).min() > 0


def sums_to_zero(axes):
    return lambda x: all(np.abs(x.sum(a)).max() < 1e-9 for a in axes)


# A constraint, and what a point of it is in NumPy. Parameters are chosen so that some of the sets lie in others.
TABLE = [
    (c.boolean, lambda x: np.isin(x, (0, 1))),
    (c.cat([c.real, c.positive, c.unit_interval], dim=-1), lambda x: [True, x[1] > 0, 0 <= x[2] <= 1]),
    (c.circular, lambda x: np.abs(x) <= np.pi),
    (c.complex, lambda x: np.isfinite(x)),
    (c.corr_cholesky, lambda x: triangular(x) and np.allclose((x**2).sum(-1), 1)),
    (c.corr_matrix, lambda x: symmetric(x) and np.allclose(np.diagonal(x), 1)),
    (c.greater_than(-1.0), lambda x: x > -1),
    (c.greater_than_eq(2.0), lambda x: x >= 2),
    (c.integer_greater_than(3), lambda x: whole(x) & (x >= 3)),
    (c.integer_interval(0, 4), lambda x: whole(x) & (x >= 0) & (x <= 4)),
    (c.integer_interval(-2, 0), lambda x: whole(x) & (x >= -2) & (x <= 0)),
    (c.interval(-4.0, 5.0), lambda x: (x >= -4) & (x <= 5)),
    (c.l1_ball, lambda x: np.abs(x).sum() <= 1 + 1e-9),
    (c.less_than(7.0), lambda x: x < 7),
    (c.less_than_eq(0.0), lambda x: x <= 0),
    (c.lower_cholesky, triangular),
    (c.multinomial(4), lambda x: [whole(x).all(), (x >= 0).all(), x.sum() == 4]),
    (c.multinomial(6), lambda x: [whole(x).all(), (x >= 0).all(), x.sum() == 6]),
    (c.nonnegative, lambda x: x >= 0),
    (c.nonnegative_integer, lambda x: whole(x) & (x >= 0)),
    (c.open_interval(0.0, 2.0), lambda x: (x > 0) & (x < 2)),
    (c.ordered_vector, lambda x: np.diff(x) > 0),
    (c.positive, lambda x: x > 0),
    (c.positive_definite, symmetric),
    (c.positive_definite_circulant_vector, lambda x: np.abs(x[1] - x[2]) < 1e-9 and np.fft.rfft(x).real.min() > 0),
    (c.positive_integer, lambda x: whole(x) & (x >= 1)),
    (c.positive_ordered_vector, lambda x: [x[0] > 0, (np.diff(x) > 0).all()]),
    (c.positive_semidefinite, symmetric),
    (c.real, lambda x: np.isfinite(x) & np.isreal(x)),
    (c.real_matrix, lambda x: np.isfinite(x) & np.isreal(x)),
    (c.real_vector, lambda x: np.isfinite(x) & np.isreal(x)),
    (c.scaled_unit_lower_cholesky, triangular),
    (c.simplex, lambda x: [(x >= 0).all(), abs(x.sum() - 1) < 1e-6]),
    (c.softplus_lower_cholesky, triangular),
    (c.softplus_positive, lambda x: x > 0),
    (c.sphere, lambda x: abs((x**2).sum() - 1) < 1e-9),
    (c.unit_interval, lambda x: (x >= 0) & (x <= 1)),
    (c.zero_sum(1), sums_to_zero([-1])),
    (c.zero_sum(2), sums_to_zero([-1, -2])),
]
NAMES = [str(s).split("(")[0] + str(i) for i, (s, _) in enumerate(TABLE)]


def shapes_of(s):
    """The shapes at which a constraint is compared."""
    if isinstance(s, c.cat) or s.event_dim == 1:
        return [VECTOR]
    return [MATRIX] if s.event_dim == 2 else [(), VECTOR, MATRIX]


def points(s, shape, num=150):
    """Support of the set, and the dimension of the set; -1 for integers."""
    rng = np.random.default_rng(0)
    if isinstance(s, c.multinomial):
        number: Any = s.upper_bound
        return rng.multinomial(number, [0.3, 0.3, 0.4], num), -1
    if s.is_discrete:
        low = getattr(s, "lower_bound", 0)
        high = 1 if s is c.boolean else getattr(s, "upper_bound", low + 9)
        return rng.integers(low, high + 1, (num, *shape)), -1
    if s is c.positive_definite_circulant_vector:
        a, b = rng.uniform(1.0, 2.0, num), rng.uniform(-0.4, 0.4, num)
        return np.stack([a, b, b], -1), 2
    if isinstance(s, c.cat):
        x = rng.normal(size=(num, 3))
        return np.stack([x[:, 0], np.exp(x[:, 1]), 1 / (1 + np.exp(x[:, 2]))], -1), 3
    if s is c.sphere:
        return (x := rng.normal(size=(num, 3))) / np.linalg.norm(x, axis=-1, keepdims=True), 2
    while isinstance(s, c.independent):
        s = s.base_constraint
    bijection = t.biject_to(s)
    base = bijection.inverse_shape(shape if s.event_dim else ())
    lanes = (num * 9,) if not s.event_dim else (num,)  # one call for all shapes
    x = rng.normal(scale=2.0 if s.event_dim else 4.0, size=(*lanes, *base))
    x = np.asarray(jax.jit(lambda x: bijection(x))(jnp.asarray(x)))
    size = 1 if s.event_dim else int(np.prod(shape))
    return x.ravel()[: num * size].reshape(num, *shape) if not s.event_dim else x, size * rank(bijection, base)


def rank(bijection, base):
    """How many free numbers the points have that a bijection makes."""

    def real(x):
        y = bijection(x.reshape(base)).ravel()
        return jnp.concatenate([y.real, y.imag]) if jnp.iscomplexobj(y) else y

    return np.linalg.matrix_rank(np.asarray(jax.jit(jax.jacobian(real))(jnp.linspace(-0.7, 0.9, int(np.prod(base))))))


@pytest.fixture(scope="module")
def drawn():
    return {(i, shape): points(s, shape) for i, (s, _) in enumerate(TABLE) for shape in shapes_of(s)}


def test_every_constraint_of_numpyro_is_in_the_table():
    abstract = {c.Constraint, c.ParameterFreeConstraint, c._SingletonConstraint, c.dependent_property}
    every = {x for _, x in inspect.getmembers(c, inspect.isclass) if issubclass(x, c.Constraint)}
    every -= abstract | {type(c.dependent), c.independent}  # made of others, or not known
    assert every == {type(s) for s, _ in TABLE}


@pytest.mark.parametrize("i", range(len(TABLE)), ids=NAMES)
def test_one_support_in_each_other(drawn, i):
    """A set lies in another if all of its points do and a density on it is one over as many free numbers."""
    a = TABLE[i][0]
    for j, (b, member) in enumerate(TABLE):
        for shape in set(shapes_of(a)) & set(shapes_of(b)):
            x, dimension = drawn[i, shape]
            comparable = not np.iscomplexobj(x) or b is c.complex
            inside = comparable and all(bool(np.all(member(v))) for v in x)
            expected = bool(inside and dimension == drawn[j, shape][1])
            regions = region_of(c.independent(a, 0), shape), region_of(b, shape)
            assert included(*regions) is expected, (a, b, shape)


def normal(*shape):
    return dist.Normal(jnp.zeros(shape), 1.3).to_event(len(shape))


# NumPyro has no bijection onto these; and that of slices asks for a batch of its own.
WITHOUT = (type(c.positive_definite_circulant_vector), type(c.sphere), c.cat)


@pytest.mark.parametrize(
    "s", [s for s, _ in TABLE if not s.is_discrete and not isinstance(s, WITHOUT)], ids=lambda s: type(s).__name__
)
def test_a_bijection_draws_on_its_constraint(s):
    for shape in shapes_of(s):
        bijection = t.biject_to(s)
        d = T(normal(*bijection.inverse_shape(shape)), bijection)
        assert included(describe(d), region_of(s, shape)) is included(region_of(s, shape), describe(d)) is True


FAMILIES = [
    (dist.Beta(2.0, 3.0), c.unit_interval),
    (dist.Uniform(0.0, 1.0), c.unit_interval),
    (dist.LogNormal(0.0, 1.0), c.positive),
    (dist.InverseGamma(2.0, 1.0), c.nonnegative),
    (dist.Pareto(2.0, 3.0), c.greater_than(2.0)),
    (dist.TruncatedNormal(0.0, 1.0, low=0.0), c.positive),
    (dist.TruncatedNormal(0.0, 1.0, low=-1.0, high=2.0), c.interval(-1.0, 2.0)),
    (dist.LogUniform(1.0, 3.0), c.interval(1.0, 3.0)),
    (dist.VonMises(0.0, 1.0), c.circular),
    (dist.Bernoulli(0.3), c.boolean),
    (dist.Categorical(jnp.ones(4) / 4), c.integer_interval(0, 3)),
    (dist.Binomial(5, 0.2), c.integer_interval(0, 5)),
    (dist.ZeroInflatedPoisson(0.2, 1.0), c.nonnegative_integer),
    (dist.ZeroInflatedDistribution(dist.Binomial(5, 0.2), gate=0.3), c.integer_interval(0, 5)),
    (dist.Multinomial(5, jnp.ones(3) / 3), c.multinomial(5)),
    (dist.DirichletMultinomial(jnp.ones(3), 5), c.multinomial(5)),
    (dist.Dirichlet(jnp.ones(3)), c.simplex),
    (dist.ProjectedNormal(jnp.ones(3)), c.sphere),
    (dist.MultivariateNormal(jnp.zeros(3), jnp.eye(3)), c.real_vector),
    (dist.GaussianRandomWalk(1.0, 3), c.real_vector),
    (dist.MatrixNormal(jnp.zeros((3, 3)), jnp.eye(3), jnp.eye(3)), c.real_matrix),
    (dist.LKJ(3), c.corr_matrix),
    (dist.LKJCholesky(3), c.corr_cholesky),
    (dist.Wishart(5.0, jnp.eye(3)), c.positive_definite),
    (dist.WishartCholesky(5.0, jnp.eye(3)), c.lower_cholesky),
    (dist.ZeroSumNormal(1.0, (3,)), c.zero_sum(1)),
    (dist.ZeroSumNormal(1.0, (3, 3)), c.zero_sum(2)),
    (dist.GaussianCopula(dist.Uniform(jnp.zeros(3), 1.0), jnp.eye(3)), c.unit_interval),
    (dist.HalfNormal(jnp.ones(3)).to_event(1), c.positive),
    (dist.HalfNormal(1.0).expand([3, 3]).mask(True), c.positive),
    (T(dist.Gamma(2.0, 1.0), t.AffineTransform(0.0, 3.0)), c.positive),
    (T(dist.Gamma(2.0, 1.0), t.AffineTransform(1.0, -3.0)), c.less_than(1.0)),
    (T(normal(), [t.ExpTransform(), t.AffineTransform(1.0, 1.0)]), c.greater_than(1.0)),
    (T(normal(), [t.ExpTransform(), t.AffineTransform(0.0, 2.0)]), c.positive),
    (T(normal(), t.ComposeTransform([t.SigmoidTransform(), t.AffineTransform(-1.0, 3.0)])), c.interval(-1.0, 2.0)),
    (T(dist.Beta(2.0, 2.0), t.SigmoidTransform().inv), c.real),
    (T(dist.Uniform(1.0, 4.0), t.PowerTransform(-0.5)), c.interval(0.5, 1.0)),
    (T(dist.LogNormal(0.0, 1.0), t.ExpTransform()), c.greater_than(1.0)),
    (T(normal(3), [t.OrderedTransform(), t.ExpTransform()]), c.positive_ordered_vector),
    (T(dist.LKJCholesky(3), t.CorrMatrixCholeskyTransform().inv), c.corr_matrix),
    (T(dist.Dirichlet(jnp.ones(4)), t.SimplexToOrderedTransform(0.3)), c.ordered_vector),
    (T(normal(2), [t.StickBreakingTransform(), t.PermuteTransform(jnp.array([2, 0, 1]))]), c.simplex),
    (T(normal(2), [t.ZeroSumTransform(1), t.PermuteTransform(jnp.array([2, 0, 1]))]), c.zero_sum(1)),
    (T(normal(3), t.LowerCholeskyAffine(jnp.ones(3), jnp.eye(3))), c.real_vector),
    (T(dist.Poisson(2.0), t.AffineTransform(1, 1)), c.positive_integer),
    (dist.MixtureSameFamily(dist.Categorical(jnp.ones(2) / 2), dist.LogNormal(jnp.zeros(2), 1.0)), c.positive),
]


@pytest.mark.parametrize(("d", "s"), FAMILIES, ids=lambda x: type(x).__name__)
def test_what_a_family_draws_on(d, s):
    """Its description is that of a constraint, and draws are points of it."""
    region = region_of(s, d.shape())
    assert included(describe(d), region) is included(region, describe(d)) is True
    assert bool(jax.jit(lambda: jnp.all(s(d.sample(KEY, (20,)))))())


UNLIKE = [
    (dist.Dirichlet(jnp.ones(3)), normal(3)),
    (dist.ZeroSumNormal(1.0, (3,)), normal(3)),
    (dist.Poisson(2.0), normal()),
    (dist.ProjectedNormal(jnp.ones(3)), normal(3)),
    (dist.LKJ(3), dist.Wishart(5.0, jnp.eye(3))),
    (dist.LKJ(3), dist.MatrixNormal(jnp.zeros((3, 3)), jnp.eye(3), jnp.eye(3))),
    (dist.Wishart(5.0, jnp.eye(3)), dist.WishartCholesky(5.0, jnp.eye(3))),
    (T(normal(2), [t.ZeroSumTransform(1), t.AffineTransform(0.0, 2.0)]), dist.ZeroSumNormal(1.0, (3,))),
    (T(normal(2), [t.StickBreakingTransform(), t.AffineTransform(0.0, 2.0)]), normal(3)),
    (T(dist.Poisson(2.0), t.AffineTransform(0.0, 2.0)), dist.Poisson(2.0)),
]


@pytest.mark.parametrize(("a", "b"), UNLIKE, ids=lambda d: type(d).__name__)
def test_different_measures_exclude_each_other(a, b):
    """In both directions: a subset of a space with fewer free numbers has no density on it, nor it on the subset."""
    assert included(describe(a), describe(b)) is False
    assert included(describe(b), describe(a)) is False


def test_atoms():
    """A point is the mode of a posterior and is looked at; nothing else has a density at a point."""
    gamma, point = dist.Gamma(2.0, 1.0), dist.Delta(1.0)
    hurdle = dist.HurdleGamma(0.3, 2.0, 1.0)
    spike = dist.MixtureGeneral(dist.Categorical(jnp.ones(2) / 2), [point, normal()], support=c.real)
    for a, b, expected in [
        (point, gamma, None),
        (gamma, point, False),
        (gamma, hurdle, True),
        (hurdle, gamma, False),
        (hurdle, hurdle, True),
        (spike, normal(), False),
    ]:
        assert included(describe(a), describe(b)) is expected, (a, b)


def test_unknown_bounds_are_left_to_the_run():
    def traced(low):
        a = dist.Uniform(low, 2.0)
        assert included(describe(a), describe(dist.Uniform(0.0, 3.0))) is None
        assert included(describe(a), describe(dist.Uniform(0.0, 1.0))) is False  # the upper bound alone decides
        assert included(describe(a), describe(normal())) is True
        assert (
            included(describe(normal()), describe(T(normal(), [t.ExpTransform(), t.AffineTransform(low, 1.0)]))) is None
        )
        return low

    jax.make_jaxpr(traced)(0.5)
    masked = dist.Gamma(2.0, 1.0).mask(jnp.array(False))  # what is masked out may lie anywhere
    assert included(describe(normal()), describe(masked)) is None
    assert included(describe(masked), describe(normal())) is True
    assert included(describe(dist.Poisson(2.0)), describe(masked)) is False


def test_bounds_that_are_arrays():
    low, high = jnp.array([0.0, 1.0]), jnp.array([1.0, 2.0])
    a, wide, shifted = dist.Uniform(low, high), dist.Uniform(0.0, 2.0), dist.Uniform(low[::-1], high[::-1])
    assert included(describe(a), describe(wide.expand([2]))) is True
    assert included(describe(wide.expand([2])), describe(a)) is False
    assert included(describe(a), describe(shifted)) is False
    assert included(describe(a), describe(a.expand([3, 2]).to_event(1))) is True
    increasing = region_of(c.ordered_vector, (2,))
    assert included(describe(a), increasing) is True
    assert included(describe(shifted), increasing) is False
    affine = T(dist.Beta(2.0, 2.0), t.AffineTransform(low, jnp.array([1.0, -1.0])))
    assert (
        included(describe(affine), describe(dist.Uniform(low - jnp.array([0.0, 1.0]), low + jnp.array([1.0, 0.0]))))
        is True
    )


# --- when the program runs --------------------------------------------------------------------------------


STICKS = [t.StickBreakingTransform(), t.AffineTransform(1.0, 2.0)]
ZEROS = [t.ZeroSumTransform(1), t.AffineTransform(jnp.arange(3.0), 2.0)]


@pytest.mark.parametrize(
    ("d", "inside", "outside"),
    [
        (T(normal(2), STICKS), [1.4, 1.6, 2.0], [1.4, 1.6, 2.5]),
        (T(normal(2), t.ComposeTransform(STICKS)), [1.4, 1.6, 2.0], [1.4, 1.6, 2.5]),
        (T(normal(2), ZEROS), [2.0, 3.0, -2.0], [2.0, 3.0, 0.0]),
        (T(normal(2), t.ComposeTransform(ZEROS)), [2.0, 3.0, -2.0], [2.0, 3.0, 0.0]),
        (T(normal(2), t.ComposeTransform([x.inv for x in ZEROS[::-1]]).inv), [2.0, 3.0, -2.0], [2.0, 3.0, 0.0]),
        (T(dist.Dirichlet(jnp.ones(3)), t.PermuteTransform(jnp.array([2, 0, 1]))), [0.2, 0.3, 0.5], [0.2, 0.3, 0.6]),
        (T(dist.Gamma(2.0, 1.0), t.AffineTransform(1.0, -1.0, domain=c.positive)), 0.5, 1.5),
        (T(normal(), [t.ExpTransform(), t.AffineTransform(1.0, 1.0)]), 1.5, 0.5),
        (
            dist.MixtureGeneral(dist.Categorical(jnp.ones(2) / 2), [dist.Uniform(0.0, 1.0), dist.Uniform(2.0, 3.0)]),
            2.5,
            1.5,
        ),
        (dist.ZeroInflatedDistribution(dist.DiscreteUniform(3, 5), gate=0.3), 0, 2),
    ],
)
def test_points_are_looked_at_through_all_transforms(d, inside, outside):
    inside, outside = (jnp.asarray(x) for x in (inside, outside))
    model = vipl.gen(lambda: sample("x", d))
    assert jnp.isfinite(model().assess({"x": inside}).log_prob)
    assert model().assess({"x": outside}).log_prob == -jnp.inf


def test_draws_lie_inside():
    """No draw of a large family is taken for a point outside, in single precision."""
    for d in [
        dist.Dirichlet(jnp.ones(2000, jnp.float32)),
        dist.LKJ(12, jnp.float32(1.0)),
        dist.LKJCholesky(12, jnp.float32(1.0)),
        dist.ProjectedNormal(jnp.ones(2000, jnp.float32)),
        dist.ZeroSumNormal(jnp.float32(3.0), (2000,)),
        T(dist.Dirichlet(jnp.ones(300, jnp.float32)), t.PermuteTransform(jnp.arange(300)[::-1])),
    ]:
        x = jax.jit(lambda d=d: d.sample(KEY, (20,)))().astype(jnp.float32)
        assert bool(jax.jit(lambda x, d=d: verdict(d, x).inside.all())(x)), d


# --- objectives -------------------------------------------------------------------------------------------


def one(d):
    return vipl.gen(lambda: sample("x", d))


def run(guide, model, how=lambda x: x, around=lambda f: f):
    def objective():
        q = guide().simulate()
        p = around(lambda x: model().assess({"x": x}).log_prob)
        return p(how(q.choices["x"])) - q.log_prob

    return vipl.expectation(objective).estimate(KEY)


def in_scan(f):
    return lambda x: lax.scan(lambda s, y: (s + f(y), None), 0.0, x[None])[0]


def in_carry(f):
    return lambda x: lax.scan(lambda y, _: (y, f(y)), x, None, length=2)[1].sum()


def in_vmap(f):
    return lambda x: jax.vmap(f)(x[None]).sum()


def in_cond(f):
    return lambda x: lax.cond(jnp.sum(x) > -50.0, f, lambda x: 0.0, x)


def in_loop(f):
    return lambda x: lax.fori_loop(0, 2, lambda i, s: (s[0] + f(s[1]), s[1]), (0.0, x))[0]


AROUND = {
    "plain": lambda f: f,
    "jit": jax.jit,
    "scan": in_scan,
    "carry": in_carry,
    "vmap": in_vmap,
    "cond": in_cond,
    "fori_loop": in_loop,
    "checkpoint": jax.checkpoint,
}


@pytest.mark.parametrize("around", AROUND)
def test_supports_are_carried_into_every_construct(around):
    with pytest.raises(vipl.errors.SupportError, match="density of the site that it is given to is zero") as caught:
        run(one(normal()), one(dist.Gamma(2.0, 1.0)), around=AROUND[around])
    assert '"x" in' in caught.value.at
    assert "whose support is all reals" in caught.value.got
    with pytest.raises(vipl.errors.SupportError, match="different measures"):
        run(one(dist.Dirichlet(jnp.ones(3))), one(normal(3)), around=AROUND[around])
    assert jnp.isfinite(run(one(dist.Gamma(2.0, 1.0)), one(normal()), around=AROUND[around]))


TWICE = dist.Normal(jnp.zeros(2), 1.0)


@pytest.mark.parametrize(
    "how",
    [
        lambda x: x.astype(jnp.float32),
        lambda x: lax.stop_gradient(x),
        lambda x: x[:, None].reshape(2).astype(x.dtype),
        lambda x: jnp.stack([x[1], x[0]]),
        lambda x: jnp.concatenate([x[1:], x[:1]]),
        lambda x: jnp.flip(x),
        lambda x: x[jnp.array([1, 0])],
        lambda x: jnp.where(jnp.array([True, False]), x, x[::-1]),
        lambda x: jnp.array([*x]),
        lambda x: jnp.broadcast_to(x, (3, 2)).T[:, 1],
        lambda x: jnp.split(x, 2)[0].repeat(2),
        lambda x: lax.dynamic_index_in_dim(jnp.stack([x, x]), 1, keepdims=False),
        jax.vmap(lambda x: x),
    ],
)
def test_supports_are_carried_through_what_moves_values(how):
    with pytest.raises(vipl.errors.SupportError):
        run(one(TWICE), one(dist.Gamma(2.0, jnp.ones(2))), how)
    assert jnp.isfinite(run(one(dist.Gamma(2.0, jnp.ones(2))), one(TWICE), how))


def test_arithmetic_forgets_the_support():
    """Then the value is looked at: exp makes a positive number of every real one."""
    assert jnp.isfinite(run(one(normal()), one(dist.Gamma(2.0, 1.0)), jnp.exp))
    assert run(one(normal()), one(dist.Gamma(2.0, 1.0)), lambda x: -jnp.exp(x)) == -jnp.inf


def test_bounds_are_carried_with_the_numbers_that_have_them():
    guide = one(dist.Uniform(jnp.array([0.0, 1.0]), jnp.array([1.0, 2.0])))
    model = one(dist.Uniform(1.0, 2.0))
    assert jnp.isfinite(run(guide, model, lambda x: x[1]))
    with pytest.raises(vipl.errors.SupportError, match="from 0 to 1"):
        run(guide, model, lambda x: x[0])
    both = one(dist.Uniform(jnp.array([1.0, 0.0]), jnp.array([2.0, 1.0])))
    assert jnp.isfinite(run(guide, both, lambda x: jnp.stack([x[1], x[0]])))
    with pytest.raises(vipl.errors.SupportError):
        run(guide, both)


def test_branches_that_share_an_address_are_carried_together():
    def guide_of(a, b):
        def program():
            first = sample("b", dist.Bernoulli(0.5)) == 1
            lax.cond(first, lambda: sample("x", a), lambda: sample("x", b))

        return vipl.gen(program)

    with pytest.raises(vipl.errors.SupportError):
        run(guide_of(dist.Normal(0.0, 1.0), dist.Normal(3.0, 1.0)), one(dist.Gamma(2.0, 1.0)))
    assert jnp.isfinite(run(guide_of(dist.Gamma(2.0, 1.0), dist.LogNormal(0.0, 1.0)), one(dist.Gamma(2.0, 1.0))))


def test_a_marginal_draws_on_the_support_of_what_it_keeps():
    inner = vipl.gen(lambda: sample("x", dist.Normal(sample("a", dist.Normal(0.0, 1.0)), 1.0)))
    with pytest.raises(vipl.errors.SupportError):
        run(lambda: vipl.marginal(inner(), "x"), one(dist.Gamma(2.0, 1.0)))


def test_the_posterior_of_a_poisson_rate_from_a_shifted_guide():
    """ELBO = log evidence - KL: of Gamma(2, 1) and y ~ Poisson(rate) the evidence is (y + 1) / 2^(y + 2)."""
    y = 3

    @vipl.gen
    def model():
        sample("y", dist.Poisson(sample("x", dist.Gamma(2.0, 1.0))))

    base = dist.Normal(0.0, 0.6)
    for guide in [dist.Gamma(2.0 + y, 2.0), T(base, [t.ExpTransform(), t.AffineTransform(0.0, 2.0)])]:

        def objective(guide=guide):
            q = one(guide)().simulate()
            return model().assess(q.choices | {"y": y}).log_prob - q.log_prob

        values = jax.vmap(vipl.expectation(objective).estimate)(jax.random.split(KEY, 4000))
        evidence = jnp.log((y + 1) / 2.0 ** (y + 2))
        assert values.mean() <= evidence + 5 * values.std() / jnp.sqrt(4000.0) + 1e-12
        assert values.mean() > evidence - 1.0


def test_the_mode_is_found_by_a_point():
    value = run(one(dist.Delta(1.5)), one(dist.Gamma(2.0, 1.0)))
    np.testing.assert_allclose(value, dist.Gamma(2.0, 1.0).log_prob(1.5), rtol=1e-12)
    assert run(one(dist.Delta(-1.5)), one(dist.Gamma(2.0, 1.0))) == -jnp.inf
    with pytest.raises(vipl.errors.SupportError, match="different measures"):
        run(one(normal()), one(dist.Delta(1.5)))


def test_a_choice_is_converted_to_the_dtype_of_its_site():
    trace = one(dist.Normal(0.0, 1.0))().assess({"x": 2})
    assert trace.choices["x"].dtype == jnp.zeros(()).dtype
    for value in (np.uint8(200), np.int16(200), np.float32(200)):
        trace = one(dist.Normal(201.0, 1.0))().assess({"x": value})
        assert trace.choices["x"].dtype == jnp.zeros(()).dtype
        np.testing.assert_allclose(trace.log_prob, dist.Normal(201.0, 1.0).log_prob(200.0), rtol=1e-14)
    trace = one(dist.Binomial(300, 0.5))().assess({"x": np.uint8(200)})
    np.testing.assert_allclose(trace.log_prob, dist.Binomial(300, 0.5).log_prob(200), rtol=1e-12)


def test_parameters_that_move_a_support():
    x = jnp.float32(0.7)
    affine = t.AffineTransform
    loc, scale = jnp.float32(1.0), jnp.float32(2.0)
    names = {id(loc): "loc", id(scale): "scale"}

    def moving(d):
        return {names[id(v)] for v in moving_parameters(d) if id(v) in names}

    assert moving(T(dist.Normal(0.0, 1.0), affine(loc, scale))) == set()
    assert moving(T(dist.HalfNormal(1.0), affine(0.0, scale))) == set()
    assert moving(T(dist.HalfNormal(1.0), affine(loc, scale))) == {"loc"}
    assert moving(T(dist.Beta(2.0, 2.0), affine(loc, scale))) == {"loc", "scale"}
    assert moving(T(dist.Dirichlet(jnp.ones(3)), affine(loc, scale))) == {"loc", "scale"}
    assert moving(T(dist.Normal(x, 1.0), [t.ExpTransform(), affine(loc, scale)])) == {"loc"}
    assert moving(T(dist.Normal(x, 1.0), [affine(loc, scale), t.ExpTransform()])) == set()
    assert moving(T(dist.LogNormal(x, 1.0), t.PowerTransform(scale))) == set()
    assert moving(dist.Pareto(scale, 3.0)) == {"scale"}
    assert moving(dist.GaussianCopula(dist.Uniform(loc, jnp.full(2, 9.0)), jnp.eye(2))) == {"loc"}


def test_a_kernel_with_memory_of_its_own_is_passed_over():
    """The program inside has constants whose values stand nowhere."""

    def kernel(x, out):
        def body(memory):
            memory[...] = x[...]
            out[...] = memory[...]

        pallas.run_scoped(body, tpu.VMEM((8,), jnp.float32))

    def program(x):
        supports.mark(x, (), lambda *_: ValueError(), "x")
        return pallas.pallas_call(kernel, out_shape=jax.ShapeDtypeStruct((8,), jnp.float32), interpret=True)(x)

    supports.check_marks(jax.make_jaxpr(lambda: program(jnp.ones(8, jnp.float32)))())
