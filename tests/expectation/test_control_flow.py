"""Sites in JAX's control flow: densities, draws and choices are those of the program written out by hand."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
import scipy.stats
from jax import lax

import vipl
from tests.helpers.jaxprs import equations, sizes
from vipl import Reparam, Score, sample
from vipl.interpret import noise
from vipl.ir.stage import stage
from vipl.passes import scan_fission as fission
from vipl.testing import assert_unbiased

KEY = jax.random.key(7)


def normal(x, m: Any = 0.0, s: Any = 1.0):
    return dist.Normal(m, s).log_prob(x).sum()


def agree(program, by_hand):
    """`assess` of a simulated trace gives its `log_prob`, the return value, and the density by hand."""
    trace = program.simulate(KEY)
    again = program.assess(trace.choices)
    np.testing.assert_allclose(again.log_prob, trace.log_prob, rtol=1e-12)
    np.testing.assert_allclose(trace.log_prob, by_hand(trace.choices), rtol=1e-12)
    for a, b in zip(jax.tree.leaves(trace.retval), jax.tree.leaves(again.retval), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12)
    return trace


def test_jit_scan_and_helpers():
    def helper(name, m):
        return sample(name, dist.Normal(m, 0.7))

    @vipl.gen
    def program(n):
        a = jax.jit(lambda m: helper("a", m))(0.3)
        b, cs = lax.scan(lambda c, t: (helper("b", c + t), c), a, jnp.arange(3.0), reverse=True)
        return a, b, cs

    def by_hand(c):
        b = c["b"]
        return (
            normal(c["a"], 0.3, 0.7)
            + normal(b[2], c["a"] + 2, 0.7)
            + normal(b[1], b[2] + 1, 0.7)
            + normal(b[0], b[1], 0.7)
        )

    trace = agree(program(3), by_hand)
    assert trace.choices["b"].shape == (3,)


def test_vmap_of_scan_with_nothing_mapped_gives_independent_series():
    @vipl.gen
    def program():
        series = lambda: lax.scan(lambda c, _: (sample("x", dist.Normal(c, 1.0)),) * 2, 0.0, None, length=4)[1]  # noqa: E731
        return jax.vmap(series, axis_size=3)()

    def by_hand(c):
        x = c["x"].T  # lanes outside, scan inside
        return normal(x, jnp.concatenate([jnp.zeros((1, 3)), x[:-1]]))

    trace = agree(program(), by_hand)
    assert trace.choices["x"].shape == (3, 4)
    assert len(np.unique(trace.choices["x"])) == 12


@pytest.mark.parametrize("taken", [0, 1, 2])
def test_switch_with_different_addresses(taken):
    @vipl.gen
    def program(i):
        return lax.switch(
            i,
            [
                lambda: sample("a", dist.Normal(0.0, 1.0)),
                lambda: sample("b", dist.Gamma(2.0, 1.0)) + sample("c", dist.Normal(1.0, 2.0)),
                lambda: 0.5,
            ],
        )

    def by_hand(c):
        gamma = dist.Gamma(2.0, 1.0).log_prob(c["b"]) if taken == 1 else 0.0
        return [normal(c["a"]), gamma + normal(c["c"], 1.0, 2.0), 0.0][taken]

    trace = agree(program(jnp.asarray(taken)), by_hand)
    assert {k for k, v in trace.choices.items() if v != 0} == [{"a"}, {"b", "c"}, set()][taken]


def test_vmap_of_cond_counts_one_branch_per_lane():
    """The worst trap: JAX turns this into "run both, select", which would add both densities."""

    @vipl.gen
    def program(xs):
        def lane(x):
            return lax.cond(
                x > 0,
                lambda: sample("u", dist.Normal(x, 1.0)),
                lambda: sample("v", dist.Normal(0.0, 2.0)) * sample("w", dist.Normal(x, 3.0)),
            )

        return jax.vmap(lane)(xs)

    xs = jnp.array([0.4, -0.7, 1.3, -0.1])

    def by_hand(c):
        return sum(
            normal(c["u"][i], x) if x > 0 else normal(c["v"][i], 0.0, 2.0) + normal(c["w"][i], x, 3.0)
            for i, x in enumerate(xs)
        )

    trace = agree(program(xs), by_hand)
    assert (trace.choices["u"] != 0).tolist() == [True, False, True, False]
    assert len(np.unique(trace.retval)) == 4


@pytest.mark.parametrize("outer", ["vmap", "scan", "jit", "checkpoint", "cond", "map"])
@pytest.mark.parametrize("inner", ["vmap", "scan", "jit", "checkpoint", "cond", "map", "switch"])
def test_constructs_nest(outer, inner):
    """Every construct in every other: the density is the sum over the choices that were made."""

    def wrap(kind, f):
        return {
            "vmap": lambda x: jax.vmap(f)(x + jnp.arange(2.0)).sum(),
            "scan": lambda x: lax.scan(lambda c, t: (c + f(x + t), None), 0.0, jnp.arange(2.0))[0],
            "jit": jax.jit(f),
            "checkpoint": jax.checkpoint(f),
            "cond": lambda x: lax.cond(x > 0.5, f, lambda x: f(x) * 2.0, x),
            "map": lambda x: lax.map(f, x + jnp.arange(2.0)).sum(),
            "switch": lambda x: lax.switch(jnp.int32(x > 0.5), [f, lambda x: x, f], x),
        }[kind]

    def site(x):
        return sample("s", dist.Normal(x, 1.0))

    @vipl.gen
    def program(x):
        return wrap(outer, wrap(inner, site))(x)

    trace = program(0.2).simulate(KEY)
    again = program(0.2).assess(trace.choices)
    np.testing.assert_allclose(again.log_prob, trace.log_prob, rtol=1e-12)
    np.testing.assert_allclose(again.retval, trace.retval, rtol=1e-12)
    shape = ((2,) if outer in ("vmap", "scan", "map") else ()) + ((2,) if inner in ("vmap", "scan", "map") else ())
    assert trace.choices["s"].shape == shape
    x = 0.2
    for kind in (outer, inner):
        x = jnp.asarray(x)[..., None] + jnp.arange(2.0) if kind in ("vmap", "scan", "map") else x
    made = trace.choices["s"] != 0
    if inner == "switch":
        assert bool((made == (jnp.asarray(x) <= 0.5)).all())
    np.testing.assert_allclose(
        trace.log_prob, jnp.where(made, dist.Normal(x, 1.0).log_prob(trace.choices["s"]), 0.0).sum(), rtol=1e-12
    )


@pytest.mark.parametrize("f", [jax.nn.relu, jax.nn.gelu, jax.nn.softplus, jax.nn.silu, lambda x: jnp.logaddexp(x, 0.3)])
def test_functions_with_custom_derivatives(f):
    """Their rules are kept: the gradient of the expectation is that of the function."""
    objective = vipl.expectation(lambda m: f(m) * (1.0 + 0.0 * sample("x", dist.Normal(m, 1.0))) + f(f(m)))
    got = jax.grad(objective.estimate, argnums=1)(KEY, 0.37)
    np.testing.assert_allclose(got, jax.grad(lambda m: f(m) + f(f(m)))(0.37), rtol=1e-12)
    assert jax.grad(objective.estimate, argnums=1)(KEY, 0.0) == jax.grad(lambda m: f(m) + f(f(m)))(0.0)


class FoldedByADraw(dist.Normal):
    """Makes a key of a key and of what another one drew."""

    def sample(self, key: Any, sample_shape=()):
        first, second = jax.random.split(key)
        return super().sample(jax.random.fold_in(second, jax.random.randint(first, (), 0, 3)), sample_shape)


class WithAKeyOfItsOwn(dist.Normal):
    """Scales its draw by numbers that are the same in all draws, and folds another one into its key."""

    def sample(self, key: Any, sample_shape=()) -> Any:
        fixed = jax.random.bits(jax.random.key(1), (4,)).sum()
        scale = jnp.mean(jax.random.uniform(jax.random.key(2), (3,)) > 2.0) + 1.0
        loc: Any = self.loc
        return loc + scale * super().sample(jax.random.fold_in(key, fixed), sample_shape) - scale * loc


SAMPLERS = {
    "normal": dist.Normal(0.5, 1.0),
    "vector": dist.Normal(jnp.array([0.5, 0.2]), 1.0).to_event(1),
    "two keys, one of them rejects": dist.StudentT(9.0, 0.5, 1.0),
    "rejects": dist.Gamma(2.0, 2.0),
    "two keys": dist.MixtureSameFamily(dist.Categorical(logits=jnp.zeros(2)), dist.Normal(jnp.array([0.0, 1.0]), 1.0)),
    "keys of draws": FoldedByADraw(0.5, 1.0),
    "a key of its own": WithAKeyOfItsOwn(0.5, 1.0),
    "integers": dist.Binomial(3, 0.4),
}


@pytest.mark.parametrize("name", SAMPLERS)
def test_draws_of_the_passes_of_a_loop(name):
    """They are independent, of the right mean, and do not depend on how many passes there are."""
    source = SAMPLERS[name]

    def walk(outer, inner):
        def step(c, _):
            return c, sample("x", source).astype(float)

        return jax.vmap(lambda: lax.scan(step, 0, None, length=inner)[1], axis_size=outer)()

    many, few = vipl.seed(lambda: walk(3, 40))(KEY), vipl.seed(lambda: walk(2, 40))(KEY)
    np.testing.assert_array_equal(many[:2], few)
    mean = jnp.broadcast_to(source.mean, source.event_shape)

    def draw(key, lag):
        x = (vipl.seed(lambda: walk(2, 3))(key) - mean).reshape(6, -1)
        return {"means": jnp.mean(x, axis=1), "pairs": jnp.stack([jnp.mean(x[i] * x[i - lag]) for i in range(6)])}

    exact = {"means": jnp.zeros(6), "pairs": jnp.zeros(6)}
    assert_unbiased(draw, exact, key=KEY, resolution=0.1, args=(1,))
    with pytest.raises(AssertionError, match="z = "):
        assert_unbiased(draw, exact, key=KEY, resolution=0.1, args=(0,))


def test_a_site_of_one_number_costs_one_hash():
    def sites():
        return [sample(f"x{i}", dist.Normal(0.0, 1.0)) for i in range(50)]

    jaxpr = jax.make_jaxpr(vipl.seed(sites))(KEY).jaxpr
    made = [sum(sizes(jaxpr, f"random_{name}")) for name in ("fold_in", "bits", "split")]
    assert made == [50, 0, 0]


def test_keys_of_all_sites_are_made_in_one_call():
    def sites():
        sample("a", dist.Normal(jnp.zeros(3), 1.0))
        sample("b", dist.Gamma(2.0))
        return lax.scan(lambda c, _: (c + sample("c", dist.Laplace(0.0, 1.0)), None), 0.0, None, length=4)[0]

    assert sizes(jax.make_jaxpr(vipl.seed(sites))(KEY).jaxpr, "random_fold_in") == [3]


@pytest.mark.parametrize("source", [dist.Normal(0.0, 1.0), dist.Laplace(0.0, 1.0), dist.Bernoulli(0.3)])
@pytest.mark.parametrize("x64", [True, False])
def test_a_site_of_one_number_draws_from_the_stream_of_the_key(source, x64, monkeypatch):
    """Number i of the stream, where i is the hash of the address; of another generator, what fold_in(key, i) draws."""
    monkeypatch.setattr(noise, "site_digest", lambda info: 7)
    other = jax.random.key(3, impl="rbg")
    with jax.enable_x64(x64):
        draw = vipl.seed(lambda: sample("x", source))
        assert draw(KEY) == source.sample(KEY, (8,))[7]
        assert draw(other) == source.sample(jax.random.fold_in(other, 7))


@pytest.mark.parametrize("estimator", [Reparam(), Score()])
def test_a_number_in_a_loop_costs_one_hash(estimator):
    def walk(scale):
        step = lambda x, _: (x + sample("x", dist.Normal(0.0, scale), estimator), None)  # noqa: E731
        return lax.scan(step, 0.0, None, length=1000)[0] ** 2

    jaxpr = jax.make_jaxpr(vipl.expectation(walk).estimate)(KEY, 1.0).jaxpr
    assert sizes(jaxpr, "random_bits") == [1000]
    assert sum(sizes(jaxpr, "random_fold_in") + sizes(jaxpr, "random_split")) <= 2


def test_while_loop_can_be_seeded():
    def waiting(rate):
        total, n = lax.while_loop(
            lambda c: c[0] < 3.0, lambda c: (c[0] + sample("x", dist.Exponential(rate)), c[1] + 1), (0.0, 0)
        )
        return total, n

    totals, counts = jax.vmap(lambda k: vipl.seed(waiting)(k, 1.0))(jax.random.split(KEY, 20_000))
    assert (totals >= 3.0).all()
    assert abs(counts.mean() - 4.0) < 5 * np.sqrt(3.0 / 20_000)  # 1 + Poisson(3)
    _, lanes = vipl.seed(lambda: jax.vmap(lambda _: waiting(1.0))(jnp.arange(5_000)))(KEY)
    assert abs(lanes.mean() - 4.0) < 5 * np.sqrt(3.0 / 5_000)


def test_while_loop_draws_differ_between_passes_and_in_its_condition():
    def program():
        return lax.while_loop(
            lambda c: (c[0] < 4) & (sample("go", dist.Normal(0.0, 1.0)) < 100.0),
            lambda c: (c[0] + 1, c[1].at[c[0]].set(sample("x", dist.Normal(0.0, 1.0)))),
            (0, jnp.zeros(4)),
        )[1]

    assert len(np.unique(vipl.seed(program)(KEY))) == 4


def test_scan_of_length_zero_has_density_zero():
    @vipl.gen
    def program():
        return lax.scan(lambda c, _: (c + sample("x", dist.Normal(0.0, 1.0)), None), 0.0, None, length=0)[0]

    trace = program().simulate(KEY)
    assert trace.log_prob == 0.0
    assert trace.choices["x"].shape == (0,)
    assert program().assess({"x": jnp.zeros(0)}).log_prob == 0.0


def test_unused_sites_count():
    @vipl.gen
    def program():
        sample("unused", dist.Normal(0.0, 1.0))
        jax.jit(lambda: sample("also", dist.Normal(0.0, 2.0)))()

    trace = program().simulate(KEY)
    np.testing.assert_allclose(
        trace.log_prob, normal(trace.choices["unused"]) + normal(trace.choices["also"], 0.0, 2.0)
    )


def test_where_is_not_cond():
    @vipl.gen
    def program():
        return jnp.where(True, sample("a", dist.Normal(0.0, 1.0)), sample("b", dist.Normal(0.0, 1.0)))

    assert set(program().simulate(KEY).choices) == {"a", "b"}


def test_generative_functions_nest_and_jitted_helpers_keep_their_addresses():
    @vipl.gen
    def inner(m):
        return jax.jit(lambda: sample("x", dist.Normal(m, 1.0)))()

    @vipl.gen
    def outer():
        left = sample("left", inner(1.0))
        right = sample("right", inner(-1.0))
        deep = jax.vmap(lambda m: sample(("deep", "er"), inner(m)))(jnp.arange(3.0))
        vipl.factor("penalty", -0.5 * (left - right) ** 2)
        return left + right + deep.sum()

    trace = outer().simulate(KEY)
    x, y, z = trace.choices["left"]["x"], trace.choices["right"]["x"], trace.choices["deep"]["er"]["x"]
    np.testing.assert_allclose(
        trace.log_prob, normal(x, 1.0) + normal(y, -1.0) + normal(z, jnp.arange(3.0)) - 0.5 * (x - y) ** 2, rtol=1e-12
    )
    np.testing.assert_allclose(outer().assess(trace.choices).log_prob, trace.log_prob, rtol=1e-12)


def test_a_mean_over_lanes_may_decide_on_a_branch():
    """It is taken by JAX, before the `cond` that holds the sites."""

    @vipl.gen
    def program(xs):
        def lane(x):
            mean = lax.pmean(x, "i")
            return lax.cond(
                x > mean, lambda: sample("u", dist.Normal(x, 1.0)), lambda: sample("v", dist.Normal(mean, 1.0))
            )

        return jax.vmap(lane, axis_name="i")(xs)

    xs = jnp.array([0.0, 1.0, 5.0])
    trace = program(xs).simulate(KEY)
    c = trace.choices
    np.testing.assert_allclose(
        trace.log_prob, normal(c["v"][0], 2.0) + normal(c["v"][1], 2.0) + normal(c["u"][2], 5.0), rtol=1e-12
    )


def test_a_branch_a_step_and_a_lane_see_the_axis_by_its_name():
    """The name is used inside of what holds the site, which is taken over and mapped anew."""

    @vipl.gen
    def program(xs):
        def lane(x):
            step = lambda c, _: (sample("z", dist.Normal(c - lax.pmean(x, "i"), 1.0)), lax.axis_index("i"))  # noqa: E731
            z, number = lax.scan(step, x, None, length=2)
            y = lax.cond(x > 1.0, lambda: sample("u", dist.Normal(lax.psum(x, "i"), 1.0)), lambda: lax.pmax(x, "i"))
            return z + y, number

        return jax.vmap(lane, axis_name="i")(xs)

    xs = jnp.array([0.5, 1.5, 7.0])

    def by_hand(c):
        steps = normal(c["z"][:, 0], xs - 3.0) + normal(c["z"][:, 1], c["z"][:, 0] - 3.0)
        return steps + normal(c["u"][1:], 9.0)

    trace = agree(program(xs), by_hand)
    np.testing.assert_allclose(trace.retval[0][0], trace.choices["z"][0, 1] + 7.0, rtol=1e-12)
    np.testing.assert_array_equal(trace.retval[1], [[0, 0], [1, 1], [2, 2]])


def test_a_checkpoint_keeps_its_options():
    policy = jax.checkpoint_policies.dots_saveable

    @vipl.expectation
    def objective(m):
        part = lambda m: jnp.sin(sample("x", dist.Normal(m, 1.0))) * m  # noqa: E731
        return jax.checkpoint(part, policy=policy, prevent_cse=False)(m) + jax.checkpoint(jnp.sin)(m)

    found = equations(jax.make_jaxpr(objective.estimate)(KEY, 0.3).jaxpr)
    options = [
        (e.params["policy"], e.params["prevent_cse"]) for e in found if e.primitive.name in ("checkpoint", "remat2")
    ]
    assert sorted(options, key=lambda x: x[1]) == [(policy, False), (None, True)]


def test_pure_code_is_evaluated_as_jax_does():
    """Equations without sites keep values and gradients, whatever they are."""

    def pure(x):
        a = jnp.outer(x, x) + 3 * jnp.eye(3)
        y = jnp.linalg.solve(a, x) + jnp.sort(x) + jnp.fft.fft(x).real + jax.scipy.special.gammaln(x + 3)
        y = (
            y
            + lax.scan(lambda c, t: (c * 0.9 + t, c), x, jnp.ones((2, 3)))[0]
            + lax.cond(x[0] > 0, jnp.sin, jnp.cos, x)
        )
        y = y + jax.checkpoint(jnp.tanh)(x) + jax.nn.logsumexp(x) + lax.fori_loop(0, 2, lambda _, c: c * 1.1, x)
        y = y + lax.while_loop(lambda c: c[1] < 3, lambda c: (c[0], c[1] + 1), (lax.stop_gradient(x), 0))[0]
        return y.sum() + jnp.einsum("ij,jk->", a, a) + lax.associative_scan(jnp.add, x)[-1]

    x = jnp.array([0.3, -1.1, 0.7])
    objective = vipl.expectation(lambda x: pure(x) + 0.0 * sample("s", dist.Normal(0.0, 1.0)))
    value, grad = objective.value_and_grad(KEY, x)
    exact, slope = jax.jit(jax.value_and_grad(pure))(x)
    np.testing.assert_allclose(value, exact, rtol=1e-12)
    np.testing.assert_allclose(grad, slope, rtol=1e-12)


def test_a_site_in_the_rule_of_a_custom_derivative_is_drawn_where_the_rule_runs():
    @jax.custom_jvp
    def f(x):
        return x

    f.defjvp(lambda p, t: (p[0], t[0] * sample("noise", dist.Normal(0.0, 1.0))))
    got = vipl.seed(lambda: jax.grad(f)(1.0))(KEY)
    assert got == vipl.seed(lambda: sample("noise", dist.Normal(0.0, 1.0)))(KEY)


def test_operands_may_be_mapped_along_any_axis():
    """XLA likes to leave the mapped axis of a product at the end."""
    a = jnp.arange(10.0).reshape(2, 5)

    @vipl.gen
    def program(xs):
        return jax.vmap(lambda x: sample("z", dist.Normal(a @ x, 1.0).to_event(1)))(xs)

    xs = jnp.arange(15.0).reshape(3, 5)
    trace = agree(program(xs), lambda c: normal(c["z"], xs @ a.T))
    assert trace.choices["z"].shape == (3, 2)


def test_axes_of_a_choice_are_its_loops_outermost_first():
    """Lanes outside a loop come before its steps; with a mapped predicate of a `cond` between them, too."""

    def site(m):
        return sample("x", dist.Normal(m, 1.0))

    def scan(f, n):
        return lambda m: lax.scan(lambda c, t: (c + f(m + t), None), 0.0, jnp.arange(1.0 * n))[0]

    def lanes(f, n):
        return lambda m: jax.vmap(f)(m + jnp.arange(1.0 * n)).sum()

    def branch(f):
        return lambda m: lax.cond(m > -1.0, f, lambda m: m, m)

    programs = {
        (3, 4): lanes(scan(site, 4), 3),
        (4, 3): scan(lanes(site, 3), 4),
        (2, 3, 4): lanes(scan(lanes(site, 4), 3), 2),
        (4, 2, 3): scan(lanes(scan(site, 3), 2), 4),
        (5, 2): lanes(branch(scan(site, 2)), 5),
        (2, 5): scan(lanes(branch(site), 5), 2),
        (3, 2, 4): lanes(lanes(scan(jax.jit(site), 4), 2), 3),
    }
    for shape, program in programs.items():
        trace = vipl.gen(program)(0.0).simulate(KEY)
        x = trace.choices["x"]
        assert x.shape == shape
        means = sum(np.arange(1.0 * n).reshape(-1, *(1,) * (len(shape) - i - 1)) for i, n in enumerate(shape))
        np.testing.assert_allclose(trace.log_prob, scipy.stats.norm.logpdf(x, means).sum(), rtol=1e-12)
        np.testing.assert_allclose(trace.retval, np.sum(x), rtol=1e-12)


# --- what a loop keeps ------------------------------------------------------------------------------------


def scans_in(jaxpr):
    """The bodies of all scans in a jaxpr, at any depth."""
    for eqn in jaxpr.eqns:
        inner = [getattr(x, "jaxpr", x) for p in eqn.params.values() for x in (p if isinstance(p, tuple) else (p,))]
        inner = [x for x in inner if hasattr(x, "eqns")]
        yield from inner if eqn.primitive.name == "scan" else []
        for x in inner:
            yield from scans_in(x)


@vipl.gen
def chain(a):
    def step(x, _):
        x = sample("x", dist.Normal(a * x, 1.3))
        sample("y", dist.Normal(jnp.tanh(x), 0.7))
        return x, None

    lax.scan(step, 0.4, None, length=5)


@vipl.gen
def chain_guide(slope, log_scale):
    def step(x, row):
        x = sample("x", dist.Normal(row[0] * x, jnp.exp(row[1])))
        return x, None

    lax.scan(step, -0.2, (slope, log_scale))


def test_densities_of_a_chain_are_not_computed_in_its_loop():
    """Given choices leave no loop at all; drawn ones leave a loop that only draws."""
    slope, log_scale, y = jnp.linspace(0.1, 0.6, 5), jnp.linspace(-1.0, 0.3, 5), jnp.linspace(-1.0, 2.0, 5)
    assess = jax.make_jaxpr(lambda a, x: chain(a).assess({"x": x, "y": y}).log_prob)(0.7, y)
    assert not list(scans_in(assess))
    objective = vipl.expectation(lambda p: vipl.objectives.elbo(chain(p[0]), chain_guide(*p[1:]), {"y": y}))
    for estimator in (vipl.Reparam(), vipl.Score()):
        estimate = objective.with_estimators({"x": estimator}).estimate
        (body,) = scans_in(jax.make_jaxpr(lambda p, e=estimate: e(KEY, p))((0.7, slope, log_scale)).jaxpr)
        found = {e.primitive.name for e in equations(body)}
        assert not found & {"log", "div", "exp", "tanh", "square", "integer_pow", "reduce_sum"}


def law(case) -> tuple[Any, Any]:
    """A body `(carry, x, const) -> (carry, (ys, total))`, a carry, and xs of length 4, for each case."""
    normal = lambda x, m, s: -0.5 * ((x - m) / s) ** 2 - jnp.log(s)  # noqa: E731

    def plain(c, x, w):
        new = jnp.tanh(w[0] * c + x[0])
        return new, (new, normal(new, w[0] * c, jnp.exp(w[1] * x[1])))

    def given(c, x, w):
        (a, b), k = c
        return ((x[0], a), k), (a * b, normal(x[0], w[0] * a + w[1] * b, 1.0 + x[1] ** 2) + k)

    def integers(c, x, w):
        n, z = c
        s = (z + x[0] > 0.3).astype(jnp.int32)
        return (n + 1 + s, z * 0.7 + s), (s, jnp.where(s == 1, w[0] * z, w[1] * n) + jnp.log1p(w[s] ** 2))

    def branching(c, x, w):
        new = lax.cond(c > 0.5, lambda c: jnp.log(c), lambda c: 0.9 * c + x[0], c)
        root = lax.cond(new > 0.2, lambda z: jnp.sqrt(z - 0.2), lambda z: w[0] * z, new)
        return new, (jnp.zeros(2), normal(root, w[1] * new, 1.5))

    def nested(c, x, w):
        inner, ls = lax.scan(lambda d, t: (jnp.sin(d * t), normal(d, w[0], 2.0)), c, x[0] + jnp.arange(3.0))
        return inner, (inner * c, jnp.sum(ls) + normal(inner, w[1], 1.1))

    def matrices(c, x, w):
        m = jnp.array([[0.3, w[0]], [w[1], 0.2]])
        drawn = lax.stop_gradient(m @ c + x[0])
        log_p = -0.5 * jnp.sum(jax.scipy.linalg.solve_triangular(m, drawn - m @ c, lower=True) ** 2)
        return drawn, (m @ c, jax.nn.logsumexp(drawn * w[0]) + log_p + jax.nn.relu(w[1] * drawn[1]))

    def history(c, x, w):
        buffer, t = c
        last = lax.dynamic_index_in_dim(buffer, t, keepdims=False)
        before = lax.dynamic_index_in_dim(buffer, jnp.maximum(t - 1, 0), keepdims=False)
        log_p = normal(x[0], last - before, w[1] ** 2 + 1.0)
        return (buffer.at[t + 1].set(w[0] * last + x[0]), t + 1), (jnp.sum(buffer**2), log_p)

    def counted(c, x, w):
        key, z = c
        key, sub = jax.random.split(key)
        return (key, z + w[0] * jax.random.normal(sub)), (z, normal(z, x[0], jnp.exp(w[1])))

    def passed_on(c, x, w):
        """A second-order chain, and two carries that change places."""
        a, b, k, m = c
        new = jnp.tanh(w[0] * a - b + x[0])
        return (b, new, m, k), (a * m, normal(new, w[0] * a + k, 1.5) + m * w[1])

    f = jnp.array(0.37)
    return {
        "plain": (plain, f),
        "given": (given, ((f, 2 * f), -f)),
        "integers": (integers, (jnp.array(2, jnp.int32), f)),
        "branching": (branching, f),
        "nested": (nested, f),
        "matrices": (matrices, jnp.array([0.4, -0.9])),
        "history": (history, (jnp.zeros(5).at[0].set(0.8), jnp.array(0, jnp.int32))),
        "keys": (counted, (jax.random.key(3), f)),
        "passed on": (passed_on, (f, -f, 2 * f, 0.5 * f)),
    }[case]


def by_scan(body, init, xs, w, options):
    return lax.scan(lambda c, x: body(c, x, w), init, xs, **options)


def by_fission(body, init, xs, w, options):
    x = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), xs)
    jaxpr, shape = stage(lambda c, x: body(c, x, w), init, x)
    is_total = [False] * (len(jax.tree.leaves(shape[1])) - 1) + [True]
    outs = fission.scan(jaxpr, jax.tree.leaves(init), jax.tree.leaves(xs), is_total, options)
    return jax.tree.unflatten(jax.tree.structure(shape), outs)


def all_close(ours, theirs):
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        assert a.shape == b.shape
        assert a.dtype == b.dtype
        if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12)


XS = (jnp.array([0.9, -0.35, 0.2, 0.6]), jnp.array([0.1, 0.7, -0.4, 0.3]))
W = jnp.array([0.8, -0.6])


CASES = ["plain", "given", "integers", "branching", "nested", "matrices", "history", "keys", "passed on"]


@pytest.mark.parametrize("case", CASES)
def test_a_split_scan_is_the_scan(case):
    """Values, gradients and second derivatives, mapped over a constant."""
    body, init = law(case)
    reverse = case in ("plain", "given", "nested", "passed on")
    options = {"reverse": reverse, "unroll": 1 + reverse, "length": 4}

    def derivatives(scan):
        def f(xs, w):
            carry, (ys, total) = out = scan(body, init, xs, w, options)
            floats = [x for x in jax.tree.leaves((carry, ys)) if jnp.issubdtype(x.dtype, jnp.floating)]
            return jnp.sum(total) + sum(jnp.sum(jnp.sin(x)) for x in floats), out

        def lane(w):
            grad = jax.grad(f, (0, 1), has_aux=True)
            (slopes, out), (dslopes, dout) = jax.jvp(grad, (XS, w), (jax.tree.map(jnp.cos, XS), jnp.cos(w)))
            return slopes, out, dslopes

        return jax.jit(jax.vmap(lane))(jnp.stack([W, 2 * W]))

    all_close(derivatives(by_fission), derivatives(by_scan))


@pytest.mark.parametrize(("length", "reverse"), [(0, True), (0, False), (1, True), (3, False)])
def test_a_short_split_scan_is_the_scan(length, reverse):
    body, init = law("given")
    options = {"reverse": reverse, "unroll": 1, "length": length}
    xs = jax.tree.map(lambda x: x[:length], XS)
    all_close(by_fission(body, init, xs, W, options), by_scan(body, init, xs, W, options))


def test_no_step_no_derivative():
    """What a step would compute has no slope, not even an infinite one, where there is no step."""

    def program(t):
        last, roots = lax.scan(
            lambda c, _: (c + sample("x", dist.Bernoulli(logits=c), vipl.Score()) * t, jnp.sqrt(t)), t, None, length=0
        )
        return last + jnp.sum(roots)

    for estimator in (vipl.Score(), vipl.Enumerate(), vipl.MeasureValued(), vipl.CoupledAlternative()):
        objective = vipl.expectation(program).with_estimators({"x": estimator})
        assert objective.value_and_grad(KEY, 0.0) == (0.0, 1.0)


def test_what_a_loop_keeps(monkeypatch):
    """Sites, branches, keys, checkpoints and a history in the carry stay; what is scored is what was drawn."""
    kept = {}
    split = fission._split

    def spy(body, totals):
        out = split(body, totals)
        kept["made"], kept["body"] = out, body
        return out

    monkeypatch.setattr(fission, "_split", spy)

    def names(numbers):
        return [kept["body"].eqns[i].primitive.name for i in sorted(numbers)]

    def look(case):
        jax.eval_shape(lambda: by_fission(*law(case), XS, W, {"reverse": False, "unroll": 1, "length": 4}))
        return kept["made"]

    assert names(look("branching").loop).count("cond") == 2
    assert "scan" not in names(look("nested").after)
    assert max(v.aval.size for v in look("history").stacked) == 1
    assert not look("given").loop
    assert "gt" not in names(look("integers").after)

    def activated(a):
        def step(x, _):
            x = sample("x", dist.Normal(a * x, 1.0), Score())
            return x, jax.nn.relu(jnp.sin(x))

        return jnp.sum(lax.scan(step, 0.5, None, 3)[1])

    # A function with a derivative of its own, which JAX compiles, is moved as what it computes is.
    jax.eval_shape(lambda: vipl.expectation(activated).estimate(KEY, 0.5))
    assert names(kept["made"].after).count("custom_jvp_call") == 1

    @vipl.gen
    def saving(a):
        lax.map(jax.checkpoint(lambda t: sample("x", dist.Normal(a * t, 1.0))), jnp.arange(3.0))

    jax.eval_shape(lambda: saving(0.5).assess({"x": jnp.ones(3)}))
    assert kept["made"] is None
