"""An objective taken apart by what its sites reach, lane by lane, against the sum over all joint values."""

import functools
import sys

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from jax import lax

import vipl
from tests.helpers.jaxprs import equations, sizes
from vipl import CoupledAlternative, Enumerate, LeaveOneOut, LocalEnumerate, MeasureValued, Score, sample
from vipl.cache.programs import forget
from vipl.expectation.plan import Plan, make_plan
from vipl.ir.sites import list_sites
from vipl.ir.stage import stage_program
from vipl.testing import assert_unbiased

KEY = jax.random.key(71)

# --- objectives taken apart -------------------------------------------------------------------------------

SHIFTS = jnp.linspace(-0.6, 0.9, 3)


def flip(address, logit):
    return 1.0 * sample(address, dist.Bernoulli(logits=logit))


def plate(t):
    z = jax.vmap(lambda s: flip("z", t + s))(SHIFTS)
    return jnp.sum(jnp.cos(z * t + SHIFTS)) + 0.5


def plate_below_a_site(t):
    w = flip("w", 0.3 * t)
    z = jax.vmap(lambda s: flip("z", t * s + w))(SHIFTS)
    return jnp.mean((z - t + w) ** 2) + jnp.sin(w + t)


def plate_and_its_sum(t):
    z = jax.vmap(lambda s: flip("z", t + s))(SHIFTS)
    return SHIFTS @ jnp.exp(t * z) + jnp.sin(t * z.sum())


def two_plates(t):
    z = jax.vmap(lambda s: flip("z", t + s))(SHIFTS)
    w = jax.vmap(lambda z, s: flip("w", s - t * z))(z, SHIFTS)
    return jnp.sum(jnp.where(SHIFTS > 0, (w + z * t) ** 2, w)) - jnp.mean(z * t)


def crossed_plates(t):
    z = jax.vmap(lambda s: flip("z", t + s))(SHIFTS)
    w = jax.vmap(lambda z, s: flip("w", s - t * z))(z[::-1], SHIFTS)
    return jnp.sum((w + z * t) ** 2)


def nested_plates(t):
    def outer(s):
        a = flip("a", t + s)
        b = jax.vmap(lambda r: flip("b", r * t - a))(SHIFTS[:2])
        return jnp.log(1.5 + jnp.sum(b) + a * t)

    return jnp.sum(jax.vmap(outer)(SHIFTS[:2])) / 2


def chains(t):
    def step(z, s):
        z = flip("z", t - z + s)
        return z, z * s

    last, terms = jax.vmap(lambda s: lax.scan(step, s, SHIFTS[:2]))(SHIFTS[:2])
    return jnp.sum(terms**2) + jnp.sum(jnp.exp(t * last))


def branches(t):
    def lane(s):
        z = flip("z", t + s)
        return lax.cond(z > 0, lambda: flip("w", t - s) * t, lambda: jnp.sin(t * s))

    return jnp.sum(jax.vmap(lane)(SHIFTS) ** 2)


def plate_in_a_scan(t):
    def step(total, s):
        z = jax.vmap(lambda r: flip("z", r * t + s))(SHIFTS[:2])
        return total + jnp.sum(z * t), jnp.sum(z**2 * r2)

    r2 = SHIFTS[:2]
    total, terms = lax.scan(step, 0.0, SHIFTS[:2])
    return jnp.sin(total) + jnp.sum(terms)


def collectives(t):
    def lane(s):
        def step(z, r):
            z = flip("z", t + s + 0.1 * z)
            twice = lax.while_loop(lambda c: c[0] < 1, lambda c: (c[0] + 1, lax.psum(c[1], "i")), (0, z))[1]
            return twice, jnp.exp(t * lax.psum(z, "i") * r)

        return lax.scan(step, s, SHIFTS[:2])

    last, terms = jax.vmap(lane, axis_name="i")(SHIFTS[:2])
    return jnp.sum(jnp.exp(t * last)) + jnp.sum(terms)


@jax.jit
def compiled(t):
    z = jax.vmap(lambda s: flip("z", t + s))(SHIFTS)
    return jax.jit(lambda z: jnp.sum(z * t) / 3)(z) + jnp.sum(z * SHIFTS) * t


def sites(t):
    a = flip("a", t)
    b = flip("b", t - a)
    c = flip("c", 0.4 * t)
    return a * t + jnp.exp(b - t) + a * c + jnp.cos(t)


def bound(t):
    """Lanes that meet at the end, each with a scan; and one more number of which no lane knows."""
    c = flip("c", t)

    def lane(s):
        last, terms = lax.scan(lambda z, r: (flip("z", t - z + s * r), jnp.sin(z * t + r)), s, SHIFTS[:2])
        return jnp.where(last > 0, t, s) + jnp.sum(terms)

    return jax.nn.logsumexp(jax.vmap(lane)(SHIFTS[:2])) + c * t


def bounds_of_a_plate(t):
    def outer(s):
        a = flip("a", t * s)
        return jax.nn.logsumexp(jax.vmap(lambda r: jnp.sin(flip("z", t * r + a) * (t + r)))(SHIFTS[:2]))

    return jnp.mean(jax.vmap(outer)(SHIFTS[:2]))


def bound_of_two(t):
    """Lanes of two sites, one below the other in the next `vmap`, meet twice."""
    z = jax.vmap(lambda s: flip("z", t + s))(SHIFTS)
    w = jax.vmap(lambda z, s: flip("w", s - t * z))(z, SHIFTS)
    return jnp.prod(jnp.sin(w + t * z) + 1.0) + jnp.exp(t * jnp.max(z + w) + z[0])


def bound_above_a_site(t):
    """The lanes meet before the end, at another site."""
    z = jax.vmap(lambda s: flip("z", t + s))(SHIFTS[:2])
    w = flip("w", jnp.prod(z * t + 1.0))
    return w * t + jnp.sin(jnp.sum(z) + w)


def bound_of_bounds(t):
    """The lanes of a lane meet, and what they make meets again; neither is linear."""

    def outer(s):
        a = flip("a", t * s)
        return jax.nn.logsumexp(jax.vmap(lambda r: jnp.sin(flip("z", t * r + a) * (t + r)))(SHIFTS[:2])) ** 2

    return jax.nn.logsumexp(jax.vmap(outer)(SHIFTS[:2]))


PROGRAMS = [
    plate, plate_below_a_site, plate_and_its_sum, two_plates, crossed_plates, nested_plates, chains, branches,
    plate_in_a_scan, collectives, compiled, sites, bound, bounds_of_a_plate, bound_of_two, bound_above_a_site,
    bound_of_bounds,
]  # fmt: skip


def exact(program):
    """E[f], by summing over all joint values of the sites."""
    source = vipl.gen(lambda t: program(t))  # noqa: PLW0108 jit has no name that gen could take

    def expected(t):
        shapes = jax.eval_shape(lambda: source(t).simulate(KEY).choices)
        leaves, treedef = jax.tree.flatten(shapes)
        count = sum(x.size for x in leaves)
        bits = (jnp.arange(2**count)[:, None] >> jnp.arange(count)) & 1

        def one(row):
            parts = jnp.split(row, np.cumsum([x.size for x in leaves])[:-1])
            values = [p.reshape(x.shape).astype(x.dtype) for p, x in zip(parts, leaves, strict=True)]
            trace = source(t).assess(jax.tree.unflatten(treedef, values))
            taken = 1.0 if program is not branches else 0.5 ** jnp.sum(1 - values[1])  # of a site not visited, any
            return jnp.exp(trace.log_prob) * trace.retval * taken

        return jnp.sum(jax.vmap(one)(bits))

    return expected


def under(program, estimator):
    """The expectation of a program, one estimator at all of its sites, or one for each address."""
    each = estimator if isinstance(estimator, dict) else dict.fromkeys("abcwz", estimator)
    addresses = {p.site.address[0] for p in list_sites(jax.make_jaxpr(program)(0.0))}
    return vipl.expectation(lambda t: program(t)).with_estimators({a: each[a] for a in sorted(addresses)})  # noqa: PLW0108


@functools.cache
def answer(program):
    """Value, first and second derivative of E[f] at 0.7."""
    expected = exact(program)
    return jax.jit(lambda t: (expected(t), jax.grad(expected)(t), jax.grad(jax.grad(expected))(t)))(0.7)


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda p: p.__name__)
def test_enumeration_is_exact(program):
    f = under(program, Enumerate()).estimate
    slope = jax.grad(f, argnums=1)
    got = jax.jit(lambda t: (f(KEY, t), slope(KEY, t), jax.grad(slope, argnums=1)(KEY, t)))(0.7)
    np.testing.assert_allclose(got, answer(program), rtol=1e-10)


MIXED = {"a": LocalEnumerate(), "b": Score(), "c": CoupledAlternative(), "w": MeasureValued(), "z": Score()}
OTHERWISE = {"a": Score(), "b": CoupledAlternative(), "c": Enumerate(), "w": Score(0.3), "z": LocalEnumerate()}
BESIDE = {"a": Score(), "b": Enumerate(), "c": Score(), "w": Score(), "z": Enumerate()}


@pytest.mark.parametrize("estimators", [MIXED, OTHERWISE, BESIDE], ids=["mixed", "otherwise", "beside"])
@pytest.mark.parametrize("program", PROGRAMS, ids=lambda p: p.__name__)
def test_estimators_are_unbiased(program, estimators):
    assert_unbiased(
        under(program, estimators).value_and_grad, answer(program)[:2], key=KEY, args=(0.7,), resolution=0.1
    )


def test_what_stays_in_a_lane_is_evaluated_for_the_values_of_one():
    """Two values of each of ten lanes, where 2^10 joint values meet; before a site, all of these."""
    lanes = jnp.linspace(-1.0, 1.0, 10)

    def meeting(t):
        x = jax.vmap(lambda s: jnp.sin(flip("z", t + s) * t))(lanes)
        return jax.nn.logsumexp(x)

    def before_a_site(t):
        x = jax.vmap(lambda s: jnp.sin(flip("z", t + s) * t))(lanes)
        return flip("w", jax.nn.logsumexp(x))

    count = lambda f: sizes(jax.make_jaxpr(under(f, Enumerate()).estimate)(KEY, 0.7).jaxpr, "sin")  # noqa: E731
    assert count(meeting) == [20]
    assert count(before_a_site) == [2**10 * 10]


def test_of_few_sites_each_runs_again_what_it_reaches():
    """Five other values of b: what a alone reaches is not evaluated five times."""

    def total(t):
        a = flip("a", t)
        b = sample("b", dist.Bernoulli(logits=t + jnp.arange(5.0)).to_event(1))
        return jnp.sin(a * t) + jnp.sum(b) * a * t

    found = sizes(jax.make_jaxpr(under(total, LocalEnumerate()).estimate)(KEY, 0.7).jaxpr, "sin")
    assert max(found) == 1


def test_values_that_are_all_possible_are_the_same_in_all_lanes():
    """What depends on a value alone is computed for the values, not in each of fifty lanes of `estimate`."""
    shifts = jnp.linspace(-1.0, 1.0, 50)

    def lane(t, s):
        k = sample("z", dist.Categorical(logits=jnp.stack([t, s, 0.3 * t])))
        return jnp.tan(k * t) * s + lax.cond(s > 0, lambda: k * s, lambda: t)

    def total(all_possible):
        f = vipl.expectation(lane).with_estimators({"z": Enumerate(all_possible=all_possible)})
        return lambda t: jnp.sum(jax.vmap(f.estimate, (None, None, 0))(KEY, t, shifts))

    count = lambda f: sizes(jax.make_jaxpr(f)(0.7).jaxpr, "tan")  # noqa: E731
    assert count(total(True)) == [3]
    assert count(total(False)) == [150]
    for derivative in (lambda f: f, jax.grad):
        np.testing.assert_allclose(derivative(total(True))(0.7), derivative(total(False))(0.7), rtol=1e-12)


def test_a_promise_that_is_broken_does_no_harm_to_the_value():
    def total(t):
        k = sample("z", dist.Categorical(logits=jnp.stack([t, 0.2, -jnp.inf])))
        return jnp.log(2.0 - k) * t

    promised, careful = under(total, Enumerate(all_possible=True)), under(total, Enumerate())
    assert promised.estimate(KEY, 0.7) == careful.estimate(KEY, 0.7)
    assert np.isfinite(careful.value_and_grad(KEY, 0.7)[1])
    assert np.isnan(promised.value_and_grad(KEY, 0.7)[1])


def test_a_value_whose_probability_underflows_is_not_looked_at():
    """Both flips may be 0, so that nothing stands in for that: e^-800 is 0, and counts nothing beside log 0."""
    objective = under(lambda t: t + jnp.log(flip("a", 400.0 * t) + flip("b", 400.0 * t)), Enumerate())
    np.testing.assert_allclose(objective.value_and_grad(KEY, 1.0), [1.0 + np.log(2.0), 1.0], rtol=1e-12)


def test_a_vector_of_values_that_are_all_possible():
    def total(t):
        z = sample("z", dist.Bernoulli(logits=t + SHIFTS).to_event(1))
        return jnp.prod(jnp.exp(t * z) + SHIFTS)

    promised, careful = under(total, Enumerate(all_possible=True)), under(total, Enumerate())
    for a, b in zip(promised.value_and_grad(KEY, 0.7), careful.value_and_grad(KEY, 0.7), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12)


def looped(unroll, reverse=False, wrap=lambda f: f, estimator=None):
    """Three flips, each of which decides on the next; all steps and the last carry count."""

    def total(t):
        def step(carry, s):
            z = 1.0 * sample("z", dist.Bernoulli(logits=t * s + carry), estimator)
            carry = jnp.sin(carry + z * t)
            return carry, carry * s

        run = wrap(lambda: lax.scan(step, 0.1 * t, jnp.array([0.5, -1.0, 2.0]), reverse=reverse, unroll=unroll))
        carry, ys = run()
        return carry * jnp.sum(ys * jnp.arange(1.0, 4.0))

    return total


def in_lanes(f):
    """Two of it, of which the mean is taken."""

    def lanes():
        carries, ys = jax.vmap(lambda _: f())(jnp.arange(2))
        return jnp.mean(carries), jnp.mean(ys, axis=0)

    return lanes


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit, in_lanes], ids=["plain", "jit", "lanes"])
def test_a_loop_that_is_written_out_is_the_loop(wrap, reverse):
    f, g = (under(looped(unroll, reverse, wrap), Enumerate()).estimate for unroll in (1, True))
    every = lambda f: lambda t: [f(KEY, t), jax.grad(f, 1)(KEY, t), jax.hessian(f, 1)(KEY, t)]  # noqa: E731
    np.testing.assert_allclose(jax.jit(every(g))(0.7), jax.jit(every(f))(0.7), rtol=1e-10)


@pytest.mark.parametrize("estimator", [LocalEnumerate(), Score(), CoupledAlternative()], ids=repr)
def test_a_loop_that_is_written_out_is_unbiased(estimator):
    exact = under(looped(1), Enumerate()).value_and_grad(KEY, 0.7)
    objective = under(looped(True), estimator)
    assert_unbiased(objective.value_and_grad, exact, key=KEY, args=(0.7,), resolution=0.1)


@pytest.mark.parametrize("at_the_site", [True, False])
@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit, in_lanes], ids=["plain", "jit", "lanes"])
def test_a_step_that_is_written_out_depends_on_the_values_before_it(wrap, at_the_site):
    """Two values in the first of three steps, four in the second, eight in the last; in a loop eight in each."""

    def count(unroll):
        if at_the_site:
            objective = vipl.expectation(looped(unroll, False, wrap, Enumerate()))
        else:
            objective = under(looped(unroll, False, wrap), Enumerate())
        return sizes(jax.make_jaxpr(objective.estimate)(KEY, 0.7).jaxpr, "sin")

    assert count(3) == count(True) == [2, 4, 8]
    if wrap is not in_lanes:  # there each lane has a loop of its own
        assert count(2) == [8]  # an equation in the body of a loop of three steps


def test_a_divisor_is_not_a_sum():
    """2 / (1 + a + b) with flips of .3 and .4 is 2 (.42 / 1 + .46 / 2 + .12 / 3)."""

    @vipl.expectation
    def ratio(t):
        a, b = (1.0 * sample(address, dist.Bernoulli(p), Enumerate()) for address, p in [("a", 0.3), ("b", 0.4)])
        return t / (1.0 + a + b)

    np.testing.assert_allclose(ratio.value_and_grad(KEY, 2.0), [1.38, 0.69], rtol=1e-12)


def test_a_baseline_is_for_the_objective_as_a_whole():
    """Two lanes of 2.5 are an objective of 5.0: with this baseline no draw counts, and nothing is left by lanes."""

    @vipl.expectation
    def constant(t):
        def lane(s):
            sample("z", dist.Normal(t * s, 1.0), Score(5.0))
            return 2.5

        return jnp.sum(jax.vmap(lane)(SHIFTS[:2]))

    value, slope = constant.value_and_grad(KEY, 0.7)
    assert (value, slope) == (5.0, 0.0)


def test_forty_enumerated_lanes_of_which_a_jit_takes_the_mean():
    """2^40 joint values where the mean in it is not seen."""
    shifts = jnp.linspace(-1.0, 1.0, 40)

    @jax.jit
    def total(t):
        lane = lambda s: jnp.exp(1.0 * sample("z", dist.Bernoulli(logits=t + s), Enumerate()))  # noqa: E731
        return jnp.mean(jax.vmap(lane)(shifts))

    p = jax.nn.sigmoid(0.3 + shifts)
    expected = jnp.mean(1 + p * (jnp.e - 1)), jnp.mean(p * (1 - p) * (jnp.e - 1))
    np.testing.assert_allclose(vipl.expectation(total).value_and_grad(KEY, 0.3), expected, rtol=1e-12)


def test_a_density_that_a_program_and_a_score_need_is_differentiated_once():
    def elbo(logits):
        q = vipl.gen(lambda: sample("k", dist.Categorical(logits=logits), Score()))().simulate()
        return q.choices["k"] * 2.0 - q.log_prob

    step = jax.make_jaxpr(vipl.expectation(elbo).value_and_grad)(KEY, jnp.arange(3.0))
    assert len(sizes(step.jaxpr, "scatter-add")) == 1
    apart = jax.make_jaxpr(vipl.expectation(lambda x: elbo(x) + elbo(x + 1.0)).value_and_grad)(KEY, jnp.arange(3.0))
    assert len(sizes(apart.jaxpr, "scatter-add")) == 2  # of two draws


def test_what_has_an_effect_is_neither_merged_nor_dropped():
    seen = []

    note = jax.jit(lambda t: jax.debug.callback(lambda x: seen.append(float(x)), t))

    def noisy(t):
        note(t)
        note(t)
        return t * flip("z", t)

    vipl.expectation(noisy).estimate(KEY, 0.7)
    jax.effects_barrier()
    assert seen == [0.7, 0.7]


def test_a_jit_is_opened_unless_it_says_where_it_runs():
    there = jax.sharding.SingleDeviceSharding(jax.devices()[0])

    def total(t):
        return flip("z", t) * jax.jit(jnp.sin)(t) + jnp.exp(jax.jit(jnp.cos, in_shardings=there)(t))

    found = list(equations(jax.make_jaxpr(under(total, Enumerate()).estimate)(KEY, 0.7).jaxpr))
    names = {e.params["name"] for e in found if e.primitive.name == "jit"}
    assert "cos" in names
    assert "sin" not in names


def test_equations_of_different_numbers_are_not_merged():
    """Literals, the signs of zeros, parameters and types tell equations apart."""

    def total(t):
        above, below = 1.0 / (0.0 * t), 1.0 / (-0.0 * t)
        narrow, wide = lax.convert_element_type(t, jnp.float32), lax.convert_element_type(t, jnp.float64)
        return flip("z", t) + 2.0 * t + 3.0 * t + t**2 + t**3 + (above > below) + (narrow != wide)

    got = under(total, Enumerate()).estimate(KEY, 0.7)
    np.testing.assert_allclose(got, jax.nn.sigmoid(0.7) + 5 * 0.7 + 0.49 + 0.343 + 2, rtol=1e-12)

    near = np.float64(1.00000000001), np.array(1.00000000002)  # numpy prints eight digits of both
    slope = under(lambda t: flip("z", 0.0) + 1e11 * (t * near[1] - t * near[0]), Enumerate()).value_and_grad(KEY, 0.7)[
        1
    ]
    np.testing.assert_allclose(slope, 1.0, rtol=1e-3)


def test_a_site_of_one_value_has_no_others():
    def total(t):
        one = sample("z", dist.Categorical(logits=t[None]))
        return (one + sample("w", dist.Categorical(logits=jnp.stack([t, 0.0, -t])))) * t

    exact = under(total, Enumerate()).value_and_grad(KEY, 0.7)
    for estimator in (CoupledAlternative(), LocalEnumerate(), MeasureValued()):
        assert_unbiased(under(total, estimator).value_and_grad, exact, key=KEY, args=(0.7,), resolution=0.1)


@pytest.mark.parametrize("estimator", [LocalEnumerate(), MeasureValued()], ids=repr)
def test_values_of_one_site_are_a_table(estimator):
    """What depends on a value alone is evaluated for the values, and no more equations for more of them."""

    def step(n):
        lane = lambda t, s: jnp.tan(sample("z", dist.Categorical(logits=t * jnp.arange(1.0 * n))) * 0.1) * s  # noqa: E731
        f = vipl.expectation(lane).with_estimators({"z": estimator})
        keys = jax.random.split(KEY, 50)
        total = lambda t: jnp.sum(jax.vmap(f.estimate, (0, None, 0))(keys, t, jnp.arange(50.0)))  # noqa: E731
        return jax.make_jaxpr(jax.grad(total))(0.7).jaxpr

    assert sizes(step(4), "tan") == [50, 4]  # the draws, and all values
    assert len(list(equations(step(4)))) == len(list(equations(step(40))))


@pytest.mark.parametrize("estimator", [LocalEnumerate(), MeasureValued(), CoupledAlternative()], ids=repr)
def test_the_run_at_an_impossible_value_is_not_looked_at(estimator):
    def total(t):
        k = sample("z", dist.Categorical(logits=jnp.stack([t, 0.2, -jnp.inf])))
        return jnp.log(2.0 - k) * t

    exact = under(total, Enumerate()).value_and_grad(KEY, 0.7)
    assert_unbiased(under(total, estimator).value_and_grad, exact, key=KEY, args=(0.7,), resolution=0.1)


def test_without_the_word_that_it_is_impossible_it_is():
    class Careless(vipl.estimators.Estimator):
        def points(self, law, key):
            draw = LocalEnumerate().points(law, key)
            assert draw.alternatives is not None
            return draw._replace(alternatives=draw.alternatives._replace(possible=None))

    def total(t):
        return jnp.log(2.0 - sample("z", dist.Categorical(logits=jnp.stack([t, 0.2, -jnp.inf])))) * t

    assert np.isnan(under(total, Careless()).value_and_grad(KEY, 0.7)[1])


def test_a_baseline_above_enumerated_lanes():
    """The baseline is a number for the whole objective, and the lanes below it are enumerated jointly."""
    assert_unbiased(
        under(plate_below_a_site, {"w": Score(20.0), "z": Enumerate()}).value_and_grad,
        answer(plate_below_a_site)[:2],
        key=KEY,
        args=(0.7,),
        resolution=0.1,
    )


@pytest.mark.parametrize("scale", [2.0**16, 1e-8])
def test_coefficients_do_not_pass_through_a_narrower_dtype(scale):
    @vipl.expectation
    def scaled(t):
        z = jax.vmap(lambda s: sample("z", dist.Bernoulli(logits=t + s), Enumerate()))(SHIFTS).astype(jnp.float16)
        return jnp.mean(jnp.cos(z)).astype(float) * scale

    value, slope = scaled.value_and_grad(KEY, 0.7)
    p = jax.nn.sigmoid(0.7 + SHIFTS)
    np.testing.assert_allclose(value / scale, jnp.mean(1 - p + p * jnp.cos(1.0)), rtol=2e-3)
    np.testing.assert_allclose(slope / scale, jnp.mean(p * (1 - p)) * (jnp.cos(1.0) - 1), rtol=2e-3)


def test_a_cost_without_one_of_its_sites_is_caught(monkeypatch):
    """The broken twin: what the other plate reaches is not seen."""
    from vipl.ir.traits import TRAITS

    monkeypatch.setitem(TRAITS, "rev", TRAITS["rev"]._replace(axes=lambda eqn, k, a: a))
    with pytest.raises(AssertionError, match="z = "):
        assert_unbiased(
            under(crossed_plates, MIXED).value_and_grad,
            answer(crossed_plates)[:2],
            key=KEY,
            args=(0.7,),
            resolution=0.1,
        )


# --- many sites, one after the other --------------------------------------------------------------------------


def chain_of_flips(length, estimator):
    """Each flip reads the one before it, and has a term of its own."""

    @vipl.expectation(has_aux=True)
    def total(t):
        z, terms, flips = 0.0, 0.0, []
        for k in range(length):
            z = flip_with(f"z{k}", t * z - 0.3, estimator)
            terms += jnp.cos(z + t * k)
            flips.append(z)
        return terms, jnp.stack(flips)

    return total


def flip_with(address, logit, estimator):
    return 1.0 * sample(address, dist.Bernoulli(logits=logit), estimator)


def reward_to_go(t, flips, baseline):
    """The gradient by hand, over samples f[samples, length]: each flip is weighed with the terms from its own on."""
    steps = jnp.arange(flips.shape[1])

    def log_probs(t):
        before = jnp.pad(flips, ((0, 0), (1, 0)))[:, :-1]
        return dist.Bernoulli(logits=t * before - 0.3).log_prob(flips)

    terms = jnp.cos(flips + t * steps)
    after = jnp.cumsum(terms[:, ::-1], axis=1)[:, ::-1]
    if baseline:
        after = after - (after.sum(0) - after) / (len(flips) - 1)
    own = jnp.sum(-steps * jnp.sin(flips + t * steps), axis=1)
    return jnp.mean(jnp.sum(jax.jacfwd(log_probs)(t) * after, axis=1) + own)


@pytest.mark.parametrize("estimator", [Score(), Score(LeaveOneOut())], ids=["score", "loo"])
@pytest.mark.oldest
def test_each_of_many_sites_is_weighed_with_the_costs_that_it_reaches(estimator, monkeypatch):
    """The same draws and the same gradient as by hand; where costs are merged, another (the broken twin)."""
    num_samples = 3

    def slope():
        forget()
        total = chain_of_flips(12, estimator)
        grad = jax.grad(lambda t: total.estimate(KEY, t, num_samples=num_samples), has_aux=True)
        return grad(0.7)

    found, flips = slope()
    by_hand = reward_to_go(0.7, flips, estimator == Score(LeaveOneOut()))
    np.testing.assert_allclose(found, by_hand, rtol=1e-12)
    monkeypatch.setattr("vipl.analysis.decomposition.MANY", 0)
    merged, same = slope()
    np.testing.assert_array_equal(flips, same)
    assert abs(merged - by_hand) > 0.01


@pytest.mark.oldest
def test_many_sites_are_unbiased():
    """Against the sum over all joint values of nine flips."""
    exact = vipl.expectation(lambda t: chain_of_flips(9, Enumerate()).fn(t)[0]).value_and_grad(KEY, 0.7)
    mixed = vipl.expectation(lambda t: chain_of_flips(9, Score()).fn(t)[0])
    assert_unbiased(mixed.value_and_grad, exact, key=KEY, args=(0.7,), resolution=0.1)


@pytest.mark.parametrize("estimator", [Score(), Score(LeaveOneOut())], ids=["score", "loo"])
def test_costs_that_are_weighed_together_are_weighed_as_one_by_one(estimator, monkeypatch):
    """The first of them holds a flip that the others do not; what one holds has its derivative in the others."""

    @vipl.expectation
    def total(t):
        flips = [flip_with(f"z{k}", t + 0.1 * k, estimator) for k in range(10)]
        held = 2.0 * jnp.sin(lax.stop_gradient(flips[0]))
        return held + sum(jnp.cos(z * (1.0 + k)) for k, z in enumerate(flips)) + flips[0] * flips[1]

    def slope():
        forget()
        return jax.grad(lambda t: total.estimate(KEY, t, num_samples=3))(0.4)

    together = slope()
    monkeypatch.setattr(Plan, "cost_groups", property(lambda plan: [[k] for k in range(len(plan.costs.costs))]))
    np.testing.assert_allclose(together, slope(), rtol=1e-12)


def instructions(length, estimator):
    """How many the compiled gradient of a chain of Gaussians has, and how many of them the largest fusion."""

    @vipl.expectation
    def total(t):
        x, terms = 0.0, 0.0
        for k in range(length):
            x = sample(f"x{k}", dist.Normal(0.9 * x + t, 1.0), estimator)
            terms += jnp.sin(x)
        return terms

    text = jax.jit(jax.value_and_grad(total.estimate, argnums=1)).lower(KEY, 0.3).compile().as_text()
    assert text is not None
    return text.count(" = "), max(part.count(" = ") for part in text.split("\n\n") if "ENTRY" not in part)


@pytest.mark.parametrize(("estimator", "length"), [(Score(), 24), (MeasureValued(), 12)], ids=["score", "mv"])
@pytest.mark.oldest
def test_the_compiled_program_is_linear_in_the_sites(estimator, length, monkeypatch):
    """XLA repeats nothing of what comes before a site.

    Without fences (the broken twin) it repeats all of it: before each score; before each alternative, in one fusion.
    """
    (short, _), (long, largest) = (instructions(n, estimator) for n in (length, 2 * length))
    assert long < 2.1 * short
    forget()
    monkeypatch.setattr(Plan, "is_long", False)
    without, largest_without = instructions(2 * length, estimator)
    assert without > 2 * long if isinstance(estimator, Score) else largest_without > 1.5 * largest


@pytest.mark.parametrize("estimator", [LocalEnumerate(), CoupledAlternative()], ids=["local", "coupled"])
def test_alternatives_of_a_long_chain_are_made_before_its_runs(estimator, monkeypatch):
    """All together, as one array; the broken twin leaves them to the loop over the chain, which is compiled whole."""
    runs = sys.modules["vipl.expectation.other_runs"]

    @vipl.expectation
    def last(t):
        x = 0.0
        for k in range(24):
            x = flip_with(f"x{k}", 0.9 * x + t, estimator)
        return jnp.sin(x)

    def largest():
        """How many instructions the largest fusion has."""
        forget()
        text = jax.jit(jax.value_and_grad(last.estimate, argnums=1)).lower(KEY, 0.3).compile().as_text()
        assert text is not None
        return max(part.count(" = ") for part in text.split("\n\n") if "ENTRY" not in part)

    before = largest()
    monkeypatch.setattr(runs, "fence_together", lambda fence, arrays: arrays)
    assert largest() > 1.4 * before


def test_sites_that_read_no_other_are_left_to_xla():
    """Nothing is repeated there, and a division for each value would cost as much as the sites do."""

    def program(t):
        return sum(sample(f"x{k}", dist.Normal(t, 1.0), Score()) for k in range(12))

    assert not make_plan(stage_program(program, (0.3,), {})).is_long
    assert make_plan(stage_program(chain_of_flips(12, Score()).fn, (0.3,), {})).is_long


@pytest.mark.parametrize("estimator", [Score(), Score(LeaveOneOut()), MeasureValued()], ids=["score", "loo", "mv"])
def test_the_spread_of_a_lane_does_not_grow_with_the_lanes(estimator):
    samples = 2 if estimator == Score(LeaveOneOut()) else 1

    def spread(lanes):
        @vipl.expectation
        def total(t):
            return jnp.sum(jax.vmap(lambda t: (sample("z", dist.Bernoulli(logits=t), estimator) + 1.0) ** 2)(t))

        slope = jax.grad(lambda key, t: total.estimate(key, t, num_samples=samples), argnums=1)
        slopes = jax.jit(jax.vmap(slope, (0, None)))(jax.random.split(KEY, 5000), jnp.full(lanes, 0.5))
        return slopes[:, 0].std()

    assert abs(spread(100) / spread(1) - 1) < 0.1


def test_a_thousand_enumerated_lanes_with_a_mean_beside():
    """2^1000 joint values, each lane on its own; the mean of an auxiliary output, too."""

    @vipl.expectation(has_aux=True)
    def total(t):
        z = jax.vmap(lambda t: sample("z", dist.Bernoulli(logits=t), Enumerate()))(t)
        return jnp.mean(jnp.exp(0.3 * z)), 1.0 * z

    t = jnp.linspace(-2.0, 2.0, 1000)
    (value, mean), slope = total.value_and_grad(KEY, t)
    p = jax.nn.sigmoid(t)
    np.testing.assert_allclose(value, jnp.mean(1 - p + p * jnp.exp(0.3)), rtol=1e-12)
    np.testing.assert_allclose(mean, p, rtol=1e-12)
    np.testing.assert_allclose(slope, p * (1 - p) * (jnp.exp(0.3) - 1) / 1000, rtol=1e-10)


def test_an_output_that_mixes_lanes_is_enumerated_jointly():
    @vipl.expectation(has_aux=True)
    def total(t):
        z = jax.vmap(lambda s: sample("z", dist.Bernoulli(logits=t + s), Enumerate()))(SHIFTS)
        return jnp.sum(z * t), (jnp.prod(1.0 * z), 3.0)

    _, (product, three) = total.estimate(KEY, 0.7)
    assert three == 3.0
    np.testing.assert_allclose(product, jnp.prod(jax.nn.sigmoid(0.7 + SHIFTS)), rtol=1e-12)
