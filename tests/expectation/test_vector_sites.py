"""A vector site is lanes: to an estimator, its elements are one-element sites in a `vmap`."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

import vipl
from vipl import sample
from vipl.testing import assert_unbiased

N = 5
KEY = jax.random.key(3)
ESTIMATORS = {
    "score": vipl.Score(),
    "leave-one-out": vipl.Score(vipl.LeaveOneOut()),
    "enumerate": vipl.Enumerate(),
    "local": vipl.LocalEnumerate(),
    "measure-valued": vipl.MeasureValued(),
    "disarm": vipl.DisARM(),
    "arm": vipl.ARM(),
    "coupled": vipl.CoupledAlternative(),
}
W = jnp.linspace(-1.0, 2.0, N)


def each(of_one, estimator):
    """Draws of elements by `vmap`, the form that a vector site has to be the same as."""
    return lambda *parameters: jax.vmap(lambda *p: sample("z", of_one(*p), estimator))(*parameters)


# Distribution of a vector of parameters: as one site, and as sites in lanes.
FAMILIES = {
    "to_event": (lambda p: dist.Bernoulli(logits=p).to_event(1), lambda p: dist.Bernoulli(logits=p)),
    "batch": (lambda p: dist.Bernoulli(logits=p), lambda p: dist.Bernoulli(logits=p)),
    "expand": (
        lambda p: dist.Bernoulli(logits=p[0]).expand([N]).to_event(1),
        lambda p: dist.Bernoulli(logits=p),
    ),
    "categorical": (
        lambda p: dist.Categorical(logits=p[:, None] * jnp.arange(3.0)),
        lambda p: dist.Categorical(logits=p * jnp.arange(3.0)),
    ),
    "masked": (
        lambda p: dist.Bernoulli(logits=p).mask(jnp.arange(N) > 2).to_event(1),
        lambda p: dist.Bernoulli(logits=p),
    ),
    "normal": (lambda p: dist.Normal(p, jnp.exp(p)).to_event(1), lambda p: dist.Normal(p, jnp.exp(p))),
    "log-normal": (lambda p: dist.LogNormal(p, 0.5).to_event(1), lambda p: dist.LogNormal(p, 0.5)),
    "poisson": (lambda p: dist.Poisson(jnp.exp(p)), lambda p: dist.Poisson(jnp.exp(p))),
}
SERVED = {
    "normal": ("score", "leave-one-out", "measure-valued"),
    "log-normal": ("score", "leave-one-out", "measure-valued"),
    "poisson": ("score", "leave-one-out", "measure-valued"),
    "categorical": ("score", "leave-one-out", "enumerate", "local", "measure-valued", "coupled"),
}
CASES = [(f, e) for f in FAMILIES for e in SERVED.get(f, ESTIMATORS)]


def estimates(program, phi, num_samples=1):
    """Value, gradient, and the flops of both together."""

    def run(phi):
        return jax.value_and_grad(lambda phi: objective.estimate(KEY, phi, num_samples=num_samples))(phi)

    objective = vipl.expectation(program)
    value, grad = jax.jit(run)(phi)
    return value, grad, jax.jit(run).lower(phi).compile().cost_analysis()["flops"]  # type: ignore[index]


@pytest.mark.parametrize(("family", "name"), CASES)
def test_a_vector_site_is_the_site_of_one_element_in_lanes(family, name):
    """Same draws, same estimate, same derivative, same work."""
    whole, one = FAMILIES[family]
    estimator, num = ESTIMATORS[name], 4 if name == "leave-one-out" else 1
    phi = jnp.linspace(-0.5, 0.8, N)

    def vector(phi):
        return jnp.sum(jnp.cos(sample("z", whole(phi), estimator) * W + phi))

    def lanes(phi):
        parameters = jnp.broadcast_to(phi[0], N) if family == "expand" else phi
        return jnp.sum(jnp.cos(each(one, estimator)(parameters) * W + phi))

    value, grad, flops = estimates(vector, phi, num)
    expected, expected_grad, expected_flops = estimates(lanes, phi, num)
    np.testing.assert_allclose(value, expected, rtol=1e-12)
    np.testing.assert_allclose(grad, expected_grad, rtol=1e-9, atol=1e-12)
    assert flops <= 1.02 * expected_flops


def deviation(program, phi, num=4000):
    """The standard deviation of the first entry of the gradient; from 4000 draws it is known to about 3 %."""
    keys = jax.random.split(KEY, num)
    grads = jax.jit(jax.vmap(jax.grad(vipl.expectation(program).estimate, argnums=1), (0, None)))(keys, phi)
    return float(jnp.std(grads[:, 0]))


def test_the_variance_of_one_element_does_not_grow_with_the_others():
    def program(phi):
        return jnp.sum((sample("z", dist.Bernoulli(logits=phi).to_event(1), vipl.Score()) - 0.3) ** 2)

    one, many = deviation(program, jnp.zeros(1)), deviation(program, jnp.zeros(100))
    assert 0.1 < one
    assert abs(many / one - 1) < 0.1


def test_a_vector_is_enumerated_element_by_element():
    """2^100 joint values are none too many, where elements are only added up."""

    def program(phi):
        return jnp.sum(jnp.sin(sample("z", dist.Bernoulli(logits=phi).to_event(1), vipl.Enumerate()) + phi))

    phi = jnp.linspace(-1, 1, 100)
    p = jax.nn.sigmoid(phi)
    exact = jnp.sum(p * jnp.sin(1 + phi) + (1 - p) * jnp.sin(phi))
    np.testing.assert_allclose(vipl.expectation(program).estimate(KEY, phi), exact, rtol=1e-12)


def test_a_vector_that_is_not_a_sum_of_its_elements_is_refused_where_it_is_too_large():
    def program(phi):
        return jnp.sum(sample("z", dist.Bernoulli(logits=phi).to_event(1), vipl.Enumerate())) ** 2.0

    with pytest.raises(vipl.errors.EstimatorError, match="too many joint values"):
        vipl.expectation(program).estimate(KEY, jnp.zeros(40))


@vipl.gen
def model(n):
    z = sample("z", dist.Bernoulli(probs=jnp.full(n, 0.3)).to_event(1))
    sample("y", dist.Normal(z * 1.5, 1.0).to_event(1))


@vipl.gen
def guide(phi, estimator):
    sample("z", dist.Bernoulli(logits=phi).to_event(1), estimator)


@pytest.mark.parametrize("name", ["score", "enumerate", "measure-valued", "disarm"])
def test_elements_stay_apart_through_a_bound(name):
    """The gradient of an element is the same, whatever the data of the others."""
    phi = jnp.linspace(-1.0, 1.0, N)

    def gradient(y):
        def bound(phi):
            return vipl.objectives.elbo(model(N), guide(phi, ESTIMATORS[name]), {"y": y})

        return jax.grad(vipl.expectation(bound).estimate, argnums=1)(KEY, phi)

    near, far = gradient(jnp.zeros(N)), gradient(jnp.zeros(N).at[1:].set(50.0))
    np.testing.assert_allclose(near[0], far[0], rtol=1e-12)
    assert abs(near[1] - far[1]) > 1e-3


PLACES = {
    "scan": lambda draw, phi: jax.lax.scan(lambda c, _: (c + jnp.sum(jnp.sin(draw(phi) + phi)), None), 0.0, None, 3)[0],
    "unrolled": lambda draw, phi: jax.lax.scan(
        lambda c, _: (c + jnp.sum(jnp.sin(draw(phi) + phi)), None), 0.0, None, 3, unroll=True
    )[0],
    "cond": lambda draw, phi: jax.lax.cond(
        phi[0] > -9.0, lambda: jnp.sum(jnp.sin(draw(phi) + phi)), lambda: jnp.sum(phi)
    ),
    "checkpoint": lambda draw, phi: jax.checkpoint(lambda phi: jnp.sum(jnp.sin(draw(phi) + phi)))(phi),
    "vmap": lambda draw, phi: jnp.sum(jax.vmap(lambda a: jnp.sum(jnp.sin(draw(phi + a) + phi)))(jnp.arange(3.0))),
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", ["score", "enumerate", "measure-valued"])
def test_wherever_the_vector_stands(place, name):
    phi, estimator = jnp.linspace(-0.5, 0.8, N), ESTIMATORS[name]

    def vector(phi):
        return PLACES[place](lambda p: sample("z", dist.Bernoulli(logits=p).to_event(1), estimator), phi)

    def lanes(phi):
        return PLACES[place](each(lambda p: dist.Bernoulli(logits=p), estimator), phi)

    value, grad, _ = estimates(vector, phi)
    expected, expected_grad, _ = estimates(lanes, phi)
    np.testing.assert_allclose(value, expected, rtol=1e-12)
    np.testing.assert_allclose(grad, expected_grad, rtol=1e-9, atol=1e-12)


def test_vectors_of_a_marginal_are_taken_apart():
    @vipl.gen
    def flips(phi):
        z = sample("z", dist.Bernoulli(logits=phi).to_event(1), vipl.Enumerate())
        sample("x", dist.Normal(z * W, 1.0).to_event(1))

    def program(phi):
        x = vipl.marginal(flips(phi), "x").simulate().choices["x"]
        return jnp.sum(x)

    phi = jnp.linspace(-0.5, 0.8, N)
    grad = jax.grad(vipl.expectation(program).estimate, argnums=1)(KEY, phi)
    p = jax.nn.sigmoid(phi)
    np.testing.assert_allclose(grad, W * p * (1 - p), rtol=1e-9)


def test_rows_are_apart_and_their_elements_change_together():
    """An antithetic pair for each row of a matrix, not one for all of it, and none for each entry."""
    phi = jnp.linspace(-0.5, 0.8, 12).reshape(4, 3)

    def whole(phi):
        z = sample("z", dist.Bernoulli(logits=phi).to_event(2), vipl.DisARM())
        return jnp.sum(jnp.sin(jnp.sum(z, axis=1)))

    def rows(phi):
        z = jax.vmap(lambda p: sample("z", dist.Bernoulli(logits=p), vipl.DisARM()))(phi)
        return jnp.sum(jnp.sin(jnp.sum(z, axis=1)))

    value, grad, flops = estimates(whole, phi)
    expected, expected_grad, expected_flops = estimates(rows, phi)
    np.testing.assert_allclose(value, expected, rtol=1e-12)
    np.testing.assert_allclose(grad, expected_grad, rtol=1e-9, atol=1e-12)
    assert flops <= 1.02 * expected_flops


def test_columns_are_apart_and_rows_together():
    """One pair for the whole matrix: element by element there would be a run for each row."""
    phi = jnp.linspace(-0.5, 0.8, 36).reshape(12, 3)

    def whole(phi):
        z = sample("z", dist.Bernoulli(logits=phi).to_event(2), vipl.DisARM())
        return jnp.sum(jnp.sin(jnp.sum(z, axis=0)))

    def elements(phi):
        z = jax.vmap(jax.vmap(lambda p: sample("z", dist.Bernoulli(logits=p), vipl.DisARM())))(phi)
        return jnp.sum(jnp.sin(jnp.sum(z, axis=0)))

    assert estimates(whole, phi)[2] < 0.8 * estimates(elements, phi)[2]


class OfVector(vipl.estimators.Estimator):
    """A score with a weight for each element: an estimator that is written for the vector."""

    weights: jax.Array

    def points(self, law, key):
        """The draw, with its score."""
        x = jax.lax.stop_gradient(law.sample(key))
        log_probs = getattr(law.dist, "base_dist", law.dist).log_prob(x)  # of an element, too, but that is not meant
        return vipl.estimators.Draw(x, log_weight=jnp.sum(self.weights * log_probs))


def test_what_is_meant_for_the_vector_stays_whole():
    def program(estimator):
        return lambda phi: jnp.sum(jnp.cos(sample("z", dist.Bernoulli(logits=phi).to_event(1), estimator) + phi))

    phi = jnp.linspace(-0.5, 0.8, N)
    grad = jax.grad(vipl.expectation(program(OfVector(jnp.ones(N)))).estimate, argnums=1)(KEY, phi)
    draws = vipl.seed(lambda: sample("z", dist.Bernoulli(logits=phi).to_event(1)))(KEY)
    score = draws - jax.nn.sigmoid(phi)
    np.testing.assert_allclose(grad, jnp.sum(jnp.cos(draws + phi)) * score - jnp.sin(draws + phi), rtol=1e-9)


def test_a_control_variate_of_the_whole_value_is_called_with_the_whole_value():
    """It is tried on one element, and then not kept there: it counts for the objective as a whole."""
    shapes = []

    def control(z):
        shapes.append(z.shape)
        return jnp.sum(z * jnp.arange(N))

    def program(phi):
        z = sample("z", dist.Bernoulli(logits=phi).to_event(1), vipl.Relax(control))
        return jnp.sum(jnp.cos(z + phi))

    vipl.expectation(program).estimate(KEY, jnp.linspace(-0.5, 0.8, N))
    assert shapes[-1] == (N,)


class OfScalar(vipl.estimators.Estimator):
    """Another estimator, which serves scalars alone."""

    of: vipl.estimators.Estimator

    def points(self, law, key):
        """As the other one does, for a scalar."""
        if law.dist.shape():
            raise vipl.errors.EstimatorError(
                "of scalars alone.", at="", got="a vector", expected="a scalar", fix="map it"
            )
        return self.of.points(law, key)


@pytest.mark.parametrize("name", ["score", "disarm", "enumerate", "measure-valued"])
def test_an_estimator_of_scalars_serves_a_vector_also_where_its_elements_are_not_apart(name):
    estimator = OfScalar(ESTIMATORS[name])

    def vector(phi):
        return jnp.sum(sample("z", dist.Bernoulli(logits=phi).to_event(1), estimator)) ** 2.0

    def lanes(phi):
        return jnp.sum(each(lambda p: dist.Bernoulli(logits=p), estimator)(phi)) ** 2.0

    phi = jnp.linspace(-0.5, 0.8, N)
    value, grad, _ = estimates(vector, phi)
    expected, expected_grad, _ = estimates(lanes, phi)
    np.testing.assert_allclose(value, expected, rtol=1e-12)
    np.testing.assert_allclose(grad, expected_grad, rtol=1e-9)


def test_a_vector_that_is_apart_where_it_is_drawn_once_more_stays_apart_there():
    """Two sites of one address and shape; nothing is told apart at the second, which could stay whole."""

    def program(draw):
        return lambda phi: jnp.sum(jnp.sin(draw(phi) + phi)) + jnp.sum(draw(phi)) ** 2.0

    phi = jnp.linspace(-0.5, 0.8, N)
    vector = program(lambda phi: guide(phi, vipl.Score()).simulate().choices["z"])
    lanes = program(each(lambda p: dist.Bernoulli(logits=p), vipl.Score()))
    np.testing.assert_allclose(estimates(vector, phi)[1], estimates(lanes, phi)[1], rtol=1e-9)


class OfVectors(dist.Distribution):
    """A user's distribution that only draws vectors: its parameters are no fields, and one element makes no sense."""

    arg_constraints = {}
    support: Any = dist.constraints.real
    pytree_data_fields = ("loc",)

    def __init__(self, loc):
        self.loc = loc
        super().__init__(jnp.shape(loc), ())

    def sample(self, key: Any, sample_shape=()):
        """A vector; the shape of the parameter is unpacked."""
        (n,) = jnp.shape(self.loc)
        return self.loc + jax.random.normal(key, (*sample_shape, n))

    def log_prob(self, value):
        """Of each element."""
        return dist.Normal(self.loc, 1.0).log_prob(value)


def test_a_distribution_that_only_draws_vectors_stays_whole():
    def program(m):
        return jnp.sum(sample("x", OfVectors(m), vipl.Score()) ** 2)

    m = jnp.arange(3.0)
    grad = jax.grad(vipl.expectation(program).estimate, argnums=1)(KEY, m)
    x = vipl.seed(lambda: sample("x", OfVectors(m)))(KEY)
    np.testing.assert_allclose(grad, jnp.sum(x**2) * (x - m), rtol=1e-9)


def test_vectors_with_joint_densities_stay_whole():
    def program(m):
        x = sample("x", dist.MultivariateNormal(m, jnp.eye(3)), vipl.Score())
        return jnp.sum(x**2)

    m = jnp.arange(3.0)
    grad = jax.grad(vipl.expectation(program).estimate, argnums=1)(KEY, m)
    x = vipl.seed(lambda: sample("x", dist.MultivariateNormal(m, jnp.eye(3))))(KEY)
    np.testing.assert_allclose(grad, jnp.sum(x**2) * (x - m), rtol=1e-9)


# --- what users write around vectors --------------------------------------------------------------------------

GROUPS, ROWS = 3, 12
GROUP = jnp.arange(ROWS) % GROUPS
Y = jnp.linspace(-1.0, 1.5, ROWS)


def rows_of(z, group, y):
    return dist.Normal(1.5 * z[group], 1.0).log_prob(y)


AROUND = {
    "indexed": lambda z, group, y: jnp.sum(rows_of(z, group, y)),
    "negative": lambda z, group, y: jnp.sum(rows_of(z, group - GROUPS, y)),
    "mapped": lambda z, group, y: jnp.sum(jax.vmap(lambda g, y: dist.Normal(1.5 * z[g], 1.0).log_prob(y))(group, y)),
    "columns": lambda z, group, y: jnp.sum(rows_of(z[:, None], group, y[:, None])),
    "segments": lambda z, group, y: jnp.sum(jnp.tanh(jax.ops.segment_sum(rows_of(z, group, y), group, GROUPS))),
    "segments times": lambda z, group, y: jnp.sum(z * jax.ops.segment_sum(rows_of(z, group, y), group, GROUPS)),
    "einsum": lambda z, group, y: jnp.einsum("g,gr->", jnp.exp(z / 3), y.reshape(GROUPS, -1)),
    "outer": lambda z, group, y: jnp.sum(jnp.sin(z[:, None] * y[None])),
    "one-hot": lambda z, group, y: jnp.sum(jnp.sin(z)[group] * y),
}


def group_terms(name, phi, y):
    """What a group's element reaches, as a program of that element alone."""
    out = []
    for g in range(GROUPS):
        mine = [r for r in range(ROWS) if int(GROUP[r]) == g]
        own = y.reshape(GROUPS, -1)[g]

        def f(z, mine=mine, own=own):
            rows = jnp.sum(dist.Normal(1.5 * z, 1.0).log_prob(y[jnp.array(mine)]))
            return {
                "segments": jnp.tanh(rows),
                "segments times": z * rows,
                "einsum": jnp.sum(jnp.exp(z / 3) * own),
                "outer": jnp.sum(jnp.sin(z * y)),
                "one-hot": jnp.sum(jnp.sin(z) * y[jnp.array(mine)]),
            }.get(name, rows)

        out.append((f(0.0), f(1.0)))
    return jnp.array(out)


@pytest.mark.oldest
@pytest.mark.parametrize("around", AROUND)
@pytest.mark.parametrize("name", ["enumerate", "score", "measure-valued"])
def test_a_group_is_reached_by_its_own_element_alone(around, name):
    """Estimates with what each element reaches by itself: exact by enumeration; for a score, term by term."""
    phi = jnp.linspace(-0.5, 0.8, GROUPS)

    def program(phi, group, y):
        z = sample("z", dist.Bernoulli(logits=phi).to_event(1), ESTIMATORS[name])
        return AROUND[around](z, group, y)

    objective = vipl.expectation(program)
    grad = jax.jit(jax.grad(lambda phi: objective.estimate(KEY, phi, GROUP, Y)))(phi)
    terms, p = group_terms(around, phi, Y), jax.nn.sigmoid(phi)
    if name in ("enumerate", "measure-valued"):
        expected = p * (1 - p) * (terms[:, 1] - terms[:, 0])
    else:
        z = vipl.seed(lambda: sample("z", dist.Bernoulli(logits=phi).to_event(1)))(KEY)
        expected = (z - p) * jnp.where(z == 1, terms[:, 1], terms[:, 0])
    np.testing.assert_allclose(grad, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.oldest
@pytest.mark.parametrize("around", [name for name in AROUND if name != "outer"])  # there every datum is everyone's
@pytest.mark.parametrize("name", ["disarm", "leave-one-out"])
def test_data_of_other_groups_change_nothing(around, name):
    """Elements that are weighed with their neighbours, or with other samples, are weighed with their own data alone."""
    phi, num = jnp.linspace(-0.5, 0.8, GROUPS), 3 if name == "leave-one-out" else 1
    own = jnp.arange(ROWS) < ROWS // GROUPS if around == "einsum" else GROUP == 0

    def program(phi, y):
        z = sample("z", dist.Bernoulli(logits=phi).to_event(1), ESTIMATORS[name])
        return AROUND[around](z, GROUP, y)

    objective = vipl.expectation(program)
    gradient = jax.jit(jax.grad(lambda phi, y: objective.estimate(KEY, phi, y, num_samples=num)))
    grad, other = gradient(phi, Y), gradient(phi, jnp.where(own, Y, 40.0))
    np.testing.assert_allclose(grad[0], other[0], rtol=1e-9, atol=1e-12)
    assert jnp.any(jnp.abs(grad[1:] - other[1:]) > 1e-6)


def against_all_values(cost, phi, name, resolution, num_samples=1):
    """The gradient of the mean cost of a vector of flips is that of the sum over all their joint values."""

    def exact(phi):
        values = jnp.array(list(np.ndindex((2,) * phi.size))) * 1.0
        return jnp.exp(dist.Bernoulli(logits=phi).log_prob(values).sum(1)) @ jax.vmap(cost)(values)

    objective = vipl.expectation(
        lambda phi: cost(sample("z", dist.Bernoulli(logits=phi).to_event(1), ESTIMATORS[name]) * 1.0)
    )
    estimate = jax.grad(lambda phi, key: objective.estimate(key, phi, num_samples=num_samples))
    assert_unbiased(lambda key: estimate(phi, key), jax.grad(exact)(phi), key=KEY, resolution=resolution)


@pytest.mark.parametrize("name", ["enumerate", "score", "disarm", "local"])
@pytest.mark.parametrize("number", [1, 2, 7])
def test_rows_that_come_back_in_another_number_of_places(name, number):
    """Rows that are added up by their index in fewer or more places than there are elements: exact by all values."""
    phi, group = jnp.linspace(-0.7, 0.9, 5), jnp.array([0, 3, 3, 1, 1, 4, 2])

    def cost(z):
        return jnp.sum(jnp.exp(0.3 * jax.ops.segment_sum(z[group], group, number)))

    against_all_values(cost, phi, name, resolution=0.05)


def test_two_groupings_of_the_same_rows():
    """Crossed effects: each row is reached by one element of each; each of them by enumeration needs the other."""
    other = (jnp.arange(ROWS) // 4) % GROUPS

    def program(phi):
        z = sample("z", dist.Bernoulli(logits=phi).to_event(1), vipl.Score())
        w = sample("w", dist.Bernoulli(logits=-phi).to_event(1), vipl.Score())
        return jnp.sum(jnp.sin(z[GROUP] + 2.0 * w[other] + Y))

    phi = jnp.linspace(-0.5, 0.8, GROUPS)
    grad = jax.grad(vipl.expectation(program).estimate, argnums=1)(KEY, phi)
    draws = vipl.seed(
        lambda: (
            sample("z", dist.Bernoulli(logits=phi).to_event(1)),
            sample("w", dist.Bernoulli(logits=-phi).to_event(1)),
        )
    )
    z, w = draws(KEY)
    rows = jnp.sin(z[GROUP] + 2.0 * w[other] + Y)
    per_z, per_w = (jax.ops.segment_sum(rows, g, GROUPS) for g in (GROUP, other))
    expected = per_z * (z - jax.nn.sigmoid(phi)) - per_w * (w - jax.nn.sigmoid(-phi))
    np.testing.assert_allclose(grad, expected, rtol=1e-9)


# Elements that are put together by group: for each, the costs, and the groups that each cost sees.
MEMBER, OF, ON = jnp.array([2, 0, 1, 1, 2, 0]), jnp.array([1, 0, 1]), jnp.array([0, 2, 1, 2, 0])
TOGETHER = {
    "sums": (lambda z: jnp.tanh(jax.ops.segment_sum(z, MEMBER, 3) - Y[:3]), jnp.eye(3)),
    "added in place": (lambda z: jnp.tanh(jnp.ones(3).at[MEMBER].add(z) - Y[:3]), jnp.eye(3)),
    "maxima": (lambda z: jnp.exp(Y[:3] * jax.ops.segment_max(2.0 * z - Y[:6], MEMBER, 3)), jnp.eye(3)),
    "columns": (lambda z: jnp.sin(jax.ops.segment_sum(z[:, None] * ROW, MEMBER, 3)).sum(1), jnp.eye(3)),
    "looked up": (lambda z: jnp.sin(jax.ops.segment_sum(z, MEMBER, 3)[ON] + Y[:5]), jnp.eye(3)[ON]),
    "sums of sums": (
        lambda z: jnp.tanh(jax.ops.segment_sum(jnp.sin(jax.ops.segment_sum(z, MEMBER, 3)), OF, 2) + Y[:2]),
        jnp.array([[0.0, 1.0, 0.0], [1.0, 0.0, 1.0]]),
    ),
}
ROW = jnp.arange(1.0, 3.0)


@pytest.mark.parametrize("together", TOGETHER)
def test_a_group_is_reached_by_its_members_alone(together):
    """The score of an element multiplies the costs of its own group, term by term; other estimators are exact."""
    phi = jnp.linspace(-0.5, 0.8, 6)
    costs, sees = TOGETHER[together]

    def program(phi):
        return jnp.sum(costs(sample("z", dist.Bernoulli(logits=phi).to_event(1), vipl.Score()) * 1.0))

    objective, p = vipl.expectation(program), jax.nn.sigmoid(phi)
    z = vipl.seed(lambda: sample("z", dist.Bernoulli(logits=phi).to_event(1)))(KEY) * 1.0
    grad = jax.jit(jax.grad(objective.estimate, argnums=1))(KEY, phi)
    np.testing.assert_allclose(grad, (z - p) * (costs(z) @ sees)[MEMBER], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", ["enumerate", "leave-one-out", "local", "measure-valued", "disarm", "coupled"])
def test_groups_that_are_looked_up_are_unbiased(name):
    """By every estimator, with the exact gradient by all joint values."""
    costs, _ = TOGETHER["looked up"]
    num_samples = 2 if name == "leave-one-out" else 1
    against_all_values(lambda z: jnp.sum(costs(z)), jnp.linspace(-0.5, 0.8, 6), name, 0.03, num_samples)


# Functions of an index that was counted from the end are no rows of the same function of it as it was.
SIGNED = jnp.array([-1, 0, 2, -2, 1])
FUNCTIONS = {
    "remainder": (6, lambda g: g % 4),
    "absolute": (4, jnp.abs),
    "clipped": (4, lambda g: jnp.clip(g, 0, 3)),
}


@pytest.mark.parametrize("name", ["enumerate", "score", "local"])
@pytest.mark.parametrize("function", FUNCTIONS)
def test_a_function_of_an_index_that_is_counted_from_the_end(function, name):
    """It differs from that of the index as it is; the exact gradient is that of all joint values."""
    number, f = FUNCTIONS[function]
    rows = jnp.array([1.0, 2.0, -1.0, 3.0, 0.5])

    def cost(z):
        counted = jnp.where(SIGNED < 0, SIGNED + number, SIGNED)
        return jnp.sum((jax.ops.segment_sum(rows * z[f(counted)], f(SIGNED), 4) - jnp.arange(1.0, 5.0)) ** 2)

    against_all_values(cost, jnp.linspace(-0.5, 0.8, 4), name, resolution=0.25)


def test_an_index_that_is_drawn_tells_nothing_apart():
    """Its rows may belong to any element; a sum by another index does not bring the elements back."""

    def program(phi, drawn):
        z = sample("z", dist.Bernoulli(logits=phi).to_event(1), vipl.Enumerate())
        k = sample("k", dist.Categorical(logits=jnp.zeros(GROUPS)), vipl.Score())
        index = (GROUP + k) % GROUPS if drawn else GROUP
        sums = jax.ops.segment_sum(rows_of(z, index, Y), jnp.flip(GROUP), GROUPS)
        return jnp.sum(jnp.tanh(sums))

    phi = jnp.linspace(-0.5, 0.8, GROUPS)
    p = jax.nn.sigmoid(phi)
    for drawn in (True, False):
        k = int(vipl.seed(lambda: sample("k", dist.Categorical(logits=jnp.zeros(GROUPS))))(KEY)) if drawn else 0
        total = 0.0
        for z in np.ndindex(2, 2, 2):
            weight = jnp.prod(jnp.where(jnp.array(z) == 1, p, 1 - p))
            rows = rows_of(jnp.array(z), (GROUP + k) % GROUPS, Y)
            total += weight * jnp.sum(jnp.tanh(jax.ops.segment_sum(rows, jnp.flip(GROUP), GROUPS)))
        np.testing.assert_allclose(vipl.expectation(program).estimate(KEY, phi, drawn), total, rtol=1e-9)
