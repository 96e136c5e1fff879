"""A loop that is written out draws what the loop draws, bit for bit: `unroll` is a hint for speed."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from jax import lax

import vipl
from tests.helpers.jaxprs import equations
from vipl import CoupledAlternative, LeaveOneOut, LocalEnumerate, MeasureValued, Score, sample
from vipl.ir.sites import list_sites
from vipl.ir.stage import stage_program
from vipl.passes.unroll import origins, unroll_scans

KEY = jax.random.key(83)
XS = jnp.array([0.5, -1.0, 2.0])

flip = lambda a, t, *e: 1.0 * sample(a, dist.Bernoulli(logits=t), *e)  # noqa: E731
normal = lambda a, t, *e: sample(a, dist.Normal(t, 1.3), *e)  # noqa: E731
gamma = lambda a, t, *e: sample(a, dist.Gamma(0.7 + t**2, 1.1), *e)  # noqa: E731


def chain(unroll, site, t, reverse=False):
    """Three steps, each of which decides on the next."""

    def step(carry, s):
        z = site("z", t * s + 0.1 * carry)
        carry = jnp.sin(carry + z * t)
        return carry, (z, carry * s)

    return lax.scan(step, 0.1 * t, XS, reverse=reverse, unroll=unroll)


def two_sites(unroll, site, t, reverse=False):
    """Two sites in a step, of which one has an address that comes twice."""

    def step(carry, s):
        z, w = site("z", t * s), site("w", carry)
        return jnp.tanh(carry + z - w), (z, w, site("z", carry - t))

    return lax.scan(step, t, XS, reverse=reverse, unroll=unroll)


def nested(unroll, site, t, reverse=False):
    """Both loops are written out."""
    outer = lambda c, s: chain(unroll, site, c + s * t, reverse)  # noqa: E731
    return lax.scan(outer, t, XS[:2], reverse=reverse, unroll=unroll)


def loop_inside(unroll, site, t, reverse=False):
    """A loop that stays one, in a loop that is written out."""
    outer = lambda c, s: chain(1, site, c + s * t, reverse)  # noqa: E731
    return lax.scan(outer, t, XS[:2], reverse=reverse, unroll=unroll)


def inside_a_loop(unroll, site, t, reverse=False):
    """The reverse."""
    return lax.scan(lambda c, s: chain(unroll, site, c + s * t, reverse), t, XS[:2], reverse=reverse)


def in_lanes(unroll, site, t, reverse=False):
    """Lanes around the loop."""
    out = jax.vmap(lambda s: chain(unroll, site, t + s, reverse))(jnp.arange(2.0))
    return jnp.sum(out[0]), out[1]


def lanes_inside(unroll, site, t, reverse=False):
    """Lanes in each step, which meet in the carry."""

    def step(carry, s):
        z = jax.vmap(lambda k: site("z", carry * k + t * s))(jnp.arange(1.0, 3.0))
        return jnp.sin(z.sum() + t), z

    return lax.scan(step, t, XS, reverse=reverse, unroll=unroll)


def lanes_on_both_sides(unroll, site, t, reverse=False):
    """Lanes around the loop and in it."""
    out = jax.vmap(lambda s: lanes_inside(unroll, site, t + s, reverse))(jnp.arange(2.0))
    return jnp.sum(out[0]), out[1]


def in_jit(unroll, site, t, reverse=False):
    """A compiled loop, in lanes."""
    return jax.vmap(jax.jit(lambda s: chain(unroll, site, t + s, reverse)))(jnp.arange(2.0))[1]


def cond_inside(unroll, site, t, reverse=False):
    """A site in a branch, beside one of the same address in the other."""

    def step(carry, s):
        z = lax.cond(s > 0, lambda: site("z", t * s + carry), lambda: site("z", t) - site("w", t * carry))
        return jnp.sin(carry + z), z

    return lax.scan(step, t, XS, reverse=reverse, unroll=unroll)


def in_a_branch(unroll, site, t, reverse=False):
    """The loop stands in a branch."""
    return lax.cond(t > 0, lambda: chain(unroll, site, t, reverse), lambda: chain(1, site, 2 * t, reverse))


def helper_again(unroll, site, t, reverse=False):
    """The same address before the loop, in it, and after it."""
    before = site("z", t)
    carry, draws = chain(unroll, site, t + before, reverse)
    return site("z", carry), (draws, site("z", 2 * t), before)


def counted(unroll, site, t, reverse=False):
    """`fori_loop`."""
    del reverse

    def step(i, state):
        z = site("z", t * i + 0.1 * state[0])
        return jnp.sin(state[0] + z), state[1].at[i].set(z)

    return lax.fori_loop(0, 3, step, (t, jnp.zeros(3)), unroll=unroll)


def checkpointed(unroll, site, t, reverse=False):
    """Each step is recomputed."""
    step = jax.checkpoint(lambda c, s: (jnp.sin(c + site("z", t * s + c)), c))
    return lax.scan(step, t, XS, reverse=reverse, unroll=unroll)


def weak_types(unroll, site, t, reverse=False):
    """Python numbers, which a loop's body knows as arrays."""
    return lax.scan(lambda c, s: (c + t * site("z", c * s), c), 0.25, XS, reverse=reverse, unroll=unroll)


NESTINGS = [
    chain, two_sites, nested, loop_inside, inside_a_loop, in_lanes, lanes_inside, lanes_on_both_sides, in_jit,
    cond_inside, in_a_branch, helper_again, counted, checkpointed, weak_types,
]  # fmt: skip

SITES = {
    "normal": normal,
    "gamma": gamma,  # a rejection sampler: each pass has a key of its own
    "score at a normal": lambda a, t: normal(a, t, Score()),
    "measure valued normal": lambda a, t: normal(a, t, MeasureValued()),  # noise for alternatives
    "local enumeration": lambda a, t: flip(a, t, LocalEnumerate()),
    "coupled flips": lambda a, t: flip(a, t, CoupledAlternative()),
    "vector": lambda a, t: sample(a, dist.Normal(t, jnp.array([1.0, 0.5])).to_event(1)).sum(),
}


def objective(nesting, site, reverse, unroll):
    @functools.partial(vipl.expectation, has_aux=True)
    def f(t):
        out = nesting(unroll, site, t, reverse)
        leaves = jax.tree.leaves(out)
        return sum(jnp.sum(jnp.cos(x + 0.3) * x) for x in leaves), out

    return f


def assert_equal(f, g, *, num_samples=1):
    """Equal but for roundings: the compiler multiplies and adds in one step here, and not there."""
    every = (jax.jit(lambda t, h=h: h.estimate(KEY, t, num_samples=num_samples))(0.7) for h in (f, g))
    for x, y in zip(*map(jax.tree.leaves, every), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-11, atol=1e-13)  # of double precision


@pytest.mark.parametrize("nesting", NESTINGS, ids=lambda n: n.__name__)
def test_a_loop_that_is_written_out_draws_what_the_loop_draws(nesting):
    """The pass of a loop in reverse is that of its x."""
    assert_equal(*(objective(nesting, flip, True, unroll) for unroll in (1, True)))


@pytest.mark.parametrize("name", SITES)
def test_whatever_the_distribution_and_the_estimator(name):
    assert_equal(*(objective(lanes_inside, SITES[name], False, unroll) for unroll in (1, True)))


def uniforms(loop, t=0.7):
    """The draws of a program in which nothing has to be rounded."""

    @functools.partial(vipl.expectation, has_aux=True)
    def f(t):
        draws = loop(lambda a: sample(a, dist.Uniform(0.0, 1.0)))
        return t * sum(jnp.sum(x) for x in jax.tree.leaves(draws)), draws

    return jax.tree.leaves(f.estimate(KEY, t)[1])


@pytest.mark.parametrize("unroll", [True, 3, 2])
@pytest.mark.parametrize("reverse", [False, True])
def test_the_numbers_are_equal_bit_for_bit(unroll, reverse):
    """However far the loop is written out; and the helper that is called again after it draws the same, too."""

    def loop(unroll):
        def run(draw):
            step = lambda _, x: (None, (draw("z"), draw("w"), jax.vmap(lambda _: draw("v"))(XS)))  # noqa: E731
            return lax.scan(step, None, XS, reverse=reverse, unroll=unroll)[1], draw("z"), draw("w")

        return run

    first, second = uniforms(loop(1)), uniforms(loop(unroll))
    assert len({float(x) for draws in first for x in jnp.ravel(draws)}) == 3 + 3 + 9 + 2
    for x, y in zip(first, second, strict=True):
        np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize("unroll", [False, True, 4, 2])
def test_fori_loop_draws_the_same_however_far_it_is_written_out(unroll):
    def run(draw, **options):
        return lax.fori_loop(0, 4, lambda i, x: x.at[i].set(draw("z")), jnp.zeros(4), **options)

    np.testing.assert_array_equal(uniforms(run)[0], uniforms(functools.partial(run, unroll=unroll))[0])


@pytest.mark.parametrize("batch_size", [2, 3, 6])
def test_map_in_batches_that_divide_it_draws_the_same(batch_size):
    run = lambda draw, **options: lax.map(lambda _: draw("z"), jnp.arange(6), **options)  # noqa: E731
    np.testing.assert_array_equal(uniforms(run)[0], uniforms(functools.partial(run, batch_size=batch_size))[0])


def test_samples_of_an_estimate_draw_the_same():
    shared = lambda a, t: flip(a, t, Score(LeaveOneOut()))  # noqa: E731
    assert_equal(*(objective(in_lanes, shared, False, unroll) for unroll in (1, True)), num_samples=3)


def test_simulate_and_seed_write_nothing_out():
    def program(unroll):
        return vipl.seed(lambda: chain(unroll, normal, 0.7)[1])(KEY)

    for x, y in zip(program(1), program(True), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-13)  # roundings of double precision
    model = vipl.gen(lambda: chain(True, normal, 0.7))
    np.testing.assert_array_equal(model().simulate(KEY).choices["z"], program(True)[0])


def test_the_same_run_is_picked_of_those_that_are_pruned():
    """Two sites in a step: the runs are numbered site by site, whether the loop is written out or not."""

    def gradients(unroll):
        @vipl.expectation
        def f(t):
            def step(carry, s):
                z = jax.vmap(lambda k: flip("z", t * k - s, CoupledAlternative()))(jnp.arange(2.0))
                w = flip("w", carry + t, CoupledAlternative())
                return jnp.sin(carry + w * s + z[0] * z[1] * t), None

            return jnp.exp(lax.scan(step, t, XS, unroll=unroll)[0])

        return jax.jit(jax.vmap(lambda key: jax.grad(f.estimate, 1)(key, 0.7)))(jax.random.split(KEY, 12))

    loop, written = gradients(1), gradients(True)
    assert len(jnp.unique(loop)) > 8
    np.testing.assert_allclose(loop, written, rtol=1e-11)  # roundings of double precision


def test_a_pass_of_a_loop_costs_no_draw_of_its_own():
    """Two sites in eight steps: two calls of the generator, as in the loop."""
    f = objective(two_sites, lambda a, t: normal(a, t), False, True)
    jaxpr = jax.make_jaxpr(f.estimate)(KEY, 0.7).jaxpr
    bits = [eqn for eqn in equations(jaxpr) if eqn.primitive.name == "random_bits"]
    assert len(bits) == 1
    assert bits[0].outvars[0].aval.shape[-1] == len(XS)


@pytest.mark.parametrize("nesting", [nested, lanes_on_both_sides, cond_inside], ids=lambda n: n.__name__)
def test_every_site_that_is_written_out_knows_what_it_was(nesting):
    jaxpr = stage_program(lambda: nesting(True, normal, 0.7), (), {}).jaxpr
    found, before = list_sites(unroll_scans(jaxpr)), origins(jaxpr)
    assert [p.site for p in found] == [o.info.site for o in before]
    for p, origin in zip(found, before, strict=True):
        left = [x for x, number in zip(origin.info.loops, origin.passes, strict=True) if number is None]
        assert p.loops == tuple(left)
    assert len({(o.info.path, o.passes) for o in before}) == len(before)
