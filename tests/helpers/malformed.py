"""Programs that are wrong, each in one way. `tests/test_errors.py` pins what each is told."""
# The arguments are wrong on purpose:
# pyright: reportArgumentType=false, reportCallIssue=false

from __future__ import annotations

import sys
import tempfile
from unittest import mock

import jax
import jax.experimental
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.contrib.control_flow
import numpyro.distributions as dist
import numpyro.optim
import optax
import scipy.stats
from flax import nnx
from jax import lax

import vipl
from vipl import (
    DisARM,
    Enumerate,
    ImplicitReparam,
    LeaveOneOut,
    MeasureValued,
    RejectionReparam,
    Relax,
    Reparam,
    Score,
    StraightThrough,
    marginal,
    normalize,
    sample,
)
from vipl.estimators import Estimator
from vipl.inference import SMC, Enumeration, ForwardBackward, Kalman, Systematic

KEY = jax.random.key(0)
MALFORMED = {}


def malformed(fn):
    """Registers a program."""
    MALFORMED[fn.__name__] = fn
    return fn


@vipl.gen
def regression(n):
    """A model with nested, plated and scalar sites."""
    sigma = sample("sigma", dist.HalfNormal(1.0))
    w = jax.vmap(lambda _: sample("w", dist.Normal(0.0, 1.0)))(jnp.arange(n))
    sample(("data", "y"), dist.Normal(w.sum(), sigma))
    sample("k", dist.Poisson(2.0))


@vipl.gen
def mean_field():
    """A guide that misnames a site."""
    sample("scale", dist.HalfNormal(1.0))


def seeded(fn):
    """Runs a program."""
    return vipl.seed(fn)(KEY)


def expected(fn, *args, **kwargs):
    """Estimates an objective."""
    return vipl.expectation(fn).estimate(KEY, *args, **kwargs)


GOOD = {"sigma": 1.0, "w": jnp.zeros(3), "data": {"y": 0.5}, "k": 2}


@malformed
def unknown_address():
    regression(3).assess(GOOD | {"sigmas": 2.0})


@malformed
def unknown_address_in_generate():
    regression(3).generate({"data": {"z": 0.5}}, key=KEY)


@malformed
def missing_address():
    regression(3).assess({"sigma": 1.0, "w": jnp.zeros(3), "k": 1})


@malformed
def guide_site_absent_from_the_model():
    def elbo():
        q = mean_field().simulate()
        return regression(3).assess(q.choices | GOOD).log_prob - q.log_prob

    expected(elbo)


@malformed
def wrong_shape():
    regression(3).assess(GOOD | {"w": jnp.zeros(4)})


@malformed
def vector_for_a_scalar_site():
    regression(3).assess(GOOD | {"data": {"y": jnp.zeros(5)}})


@malformed
def float_for_an_integer_site():
    regression(3).assess(GOOD | {"k": 1.5})


@malformed
def string_for_a_value():
    regression(3).assess(GOOD | {"k": "two"})


@malformed
def choices_not_a_dict():
    regression(3).assess(jnp.zeros(3))


@malformed
def choices_with_tuple_keys():
    regression(3).assess({("data", "y"): 0.5})


@malformed
def address_not_a_string():
    seeded(lambda: sample(3, dist.Normal(0.0, 1.0)))


@malformed
def address_twice():
    @vipl.gen
    def twice():
        return sample("x", dist.Normal(0.0, 1.0)) + sample("x", dist.Normal(0.0, 2.0))

    twice().simulate(KEY)


@malformed
def address_below_a_site():
    @vipl.gen
    def both():
        sample("x", dist.Normal(0.0, 1.0))
        sample(("x", "y"), dist.Normal(0.0, 1.0))

    both().simulate(KEY)


@malformed
def python_loop_over_a_helper():
    @vipl.gen
    def loop():
        return sum(_draw() for _ in range(3))

    loop().simulate(KEY)


def _draw():
    return sample("x", dist.Normal(0.0, 1.0))


@malformed
def map_with_a_remainder():
    @vipl.gen
    def mapped():
        return lax.map(lambda m: sample("x", dist.Normal(m, 1.0)), jnp.arange(6.0), batch_size=4)

    mapped().simulate(KEY)


@malformed
def associative_scan():
    @vipl.gen
    def scanned():
        return lax.associative_scan(
            lambda a, b: a + b + sample("x", dist.Normal(jnp.zeros_like(a), 1.0)), jnp.arange(6.0)
        )

    scanned().simulate(KEY)


@malformed
def loop_under_disable_jit():
    @vipl.gen
    def loop():
        return lax.scan(lambda c, _: (c + _draw(), None), 0.0, None, length=3)[0]

    with jax.disable_jit():
        seeded(lambda: loop().simulate().log_prob)


@malformed
def not_a_distribution():
    seeded(lambda: sample("x", 3.0))


@malformed
def distribution_class():
    seeded(lambda: sample("x", dist.Normal))


@malformed
def distribution_of_scipy():
    seeded(lambda: sample("x", scipy.stats.norm(0.0, 1.0)))


@malformed
def distribution_of_tensorflow_probability():
    seeded(lambda: sample("x", of_library("tensorflow_probability.substrates.jax", "MultivariateNormalDiag")))


@malformed
def distribution_of_distrax():
    seeded(lambda: sample("x", of_library("distrax._src.distributions.gamma", "Gamma")))


def of_library(module, name):
    """A stand-in for a distribution of a library that is not installed."""
    return type(name, (), {"__module__": module, "sample": lambda *_: 0.0, "log_prob": lambda *_: 0.0})()


@malformed
def generative_function_not_called():
    seeded(lambda: sample("x", regression))


@malformed
def simulate_of_a_function():
    mean_field.simulate(KEY)


@malformed
def assess_of_a_method():
    class Model:
        @vipl.gen
        def noise(self):
            sample("x", dist.Normal(0.0, 1.0))

    Model().noise.assess({"x": 1.0})


@malformed
def key_before_the_choices():
    regression(3).assess(KEY, GOOD)


@malformed
def key_after_the_choices():
    regression(3).generate(GOOD, KEY)


@malformed
def datum_at_a_site():
    seeded(lambda: sample("x", dist.Normal(0.0, 1.0), obs=1.0))


@malformed
def enumeration_by_infer():
    seeded(lambda: sample("x", dist.Bernoulli(0.5), infer={"enumerate": "parallel"}))


@malformed
def gen_of_a_generator():
    @vipl.gen
    def program():
        yield sample("x", dist.Normal(0.0, 1.0))


@malformed
def gen_of_a_coroutine():
    @vipl.gen
    async def program():
        return sample("x", dist.Normal(0.0, 1.0))


@malformed
def gen_twice():
    vipl.gen(mean_field)


@malformed
def gen_of_a_class_method():
    vipl.gen(classmethod(lambda cls: sample("x", dist.Normal(0.0, 1.0))))


@malformed
def gen_of_a_class():
    vipl.gen(dict)


@malformed
def expectation_of_a_number():
    vipl.expectation(3.0)


@malformed
def expectation_of_a_generative_function():
    vipl.expectation(mean_field)


@malformed
def seed_of_a_program():
    vipl.seed(mean_field())


@malformed
def distribution_from_outside_vmap():
    def program():
        ds = jax.vmap(lambda m: dist.Normal(m, 1.0))(jnp.zeros(3))
        return sample("x", ds)

    seeded(program)


@malformed
def improper_distribution():
    seeded(lambda: sample("x", dist.ImproperUniform(dist.constraints.real, (), ())))


@malformed
def factor_of_an_integer():
    seeded(lambda: vipl.factor("f", 3))


@malformed
def factor_in_an_objective():
    def objective():
        vipl.factor("f", -1.0)
        return sample("x", dist.Normal(0.0, 1.0))

    expected(objective)


@malformed
def estimator_class():
    seeded(lambda: sample("x", dist.Normal(0.0, 1.0), Reparam))


@malformed
def estimator_name():
    seeded(lambda: sample("x", dist.Normal(0.0, 1.0), "reparam"))


@malformed
def estimator_for_a_program():
    seeded(lambda: sample("x", regression(3), Score()))


@malformed
def reparam_of_a_coin():
    seeded(lambda: sample("x", dist.Bernoulli(0.5), Reparam()))


@malformed
def reparam_of_a_mixture():
    mixture = dist.MixtureSameFamily(dist.Categorical(jnp.ones(2) / 2), dist.Normal(jnp.zeros(2), 1.0))
    seeded(lambda: sample("x", mixture, Reparam()))


@malformed
def enumerate_a_normal():
    seeded(lambda: sample("x", dist.Normal(0.0, 1.0), Enumerate()))


@malformed
def enumerate_a_traced_size():
    vipl.expectation(lambda n: sample("x", dist.Binomial(n, 0.5), Enumerate()) * 1.0).estimate(KEY, 3)


@malformed
def enumerate_too_many_values():
    seeded(lambda: sample("x", dist.Binomial(2**21, 0.5), Enumerate()))


@malformed
def enumerate_a_long_vector():
    def objective(p):
        return jnp.sum(sample("x", dist.Bernoulli(jnp.full(30, p)), Enumerate())) ** 2.0

    expected(objective, 0.5)


@malformed
def enumerate_a_long_scan():
    def objective(p):
        step = lambda c, _: (c + sample("x", dist.Bernoulli(p), Enumerate()), None)  # noqa: E731
        return lax.scan(step, 0, None, length=100)[0] * 1.0

    expected(objective, 0.5)


@malformed
def measure_valued_of_a_beta():
    seeded(lambda: sample("x", dist.Beta(2.0, 3.0), MeasureValued()))


@malformed
def measure_valued_in_another_parameter():
    objective = vipl.expectation(lambda a: sample("x", dist.Gamma(a, 2.0), MeasureValued()) ** 2)
    objective.value_and_grad(KEY, 2.0)


@malformed
def second_derivative_of_measure_valued():
    objective = vipl.expectation(lambda p: sample("x", dist.Bernoulli(p), MeasureValued()) * 1.0)
    jax.hessian(objective.estimate, argnums=1)(KEY, 0.3)


@malformed
def baseline_not_a_scalar():
    seeded(lambda: sample("x", dist.Normal(0.0, 1.0), Score(baseline=jnp.zeros(3))))


@malformed
def baseline_by_name():
    expected(lambda m: sample("x", dist.Normal(m, 1.0), Score("average")), 0.5)


@malformed
def baseline_complex():
    expected(lambda m: sample("x", dist.Normal(m, 1.0), Score(1j)), 0.5)


@malformed
def baseline_class():
    expected(lambda m: sample("x", dist.Normal(m, 1.0), Score(LeaveOneOut)), 0.5)


@malformed
def temperature_by_name():
    expected(lambda m: sample("x", dist.Bernoulli(m), vipl.GumbelSoftmax("cold")), 0.5)


@malformed
def control_variate_by_name():
    expected(lambda m: 1.0 * sample("x", dist.Bernoulli(m), Relax("net")), 0.5)


@malformed
def boost_below_zero():
    expected(lambda a: sample("x", dist.Gamma(a, 1.0), RejectionReparam(-1)), 1.5)


@malformed
def baseline_that_closes_over_a_draw():
    def program():
        z = sample("z", dist.Normal(0.0, 1.0))
        return sample("x", dist.Normal(z, 1.0), Score(baseline=lambda d: z**2))

    expected(program)


@malformed
def leave_one_out_of_one():
    expected(lambda: sample("x", dist.Normal(0.0, 1.0), Score(LeaveOneOut())))


class Constant(Estimator):
    """Forgets what it has to return."""

    def points(self, law, key):
        return 1.0


class WrongShape(Estimator):
    """Returns too many values."""

    def points(self, law, key):
        return vipl.estimators.Draw(jnp.zeros(3))


@malformed
def estimator_without_points():
    seeded(lambda: sample("x", dist.Normal(0.0, 1.0), Constant()))


@malformed
def estimator_of_another_shape():
    seeded(lambda: sample("x", dist.Normal(0.0, 1.0), WrongShape()))


@malformed
def estimators_for_an_unknown_address():
    vipl.expectation(lambda: _draw()).with_estimators({"y": Score()}).estimate(KEY)


@malformed
def estimators_by_name():
    regression.with_estimators({"sigma": "score"})


@malformed
def outside_every_program():
    sample("x", dist.Normal(0.0, 1.0))


@malformed
def simulate_without_a_key():
    regression(3).simulate()


@malformed
def gradient_of_a_site():
    seeded(lambda: jax.grad(lambda m: sample("x", dist.Normal(m, 1.0)))(0.3))


@malformed
def gradient_around_a_scan():
    def loop(m):
        return lax.scan(lambda c, _: (c * m * sample("x", dist.Normal(0.0, 1.0)), None), m, None, length=3)[0]

    seeded(lambda: jax.grad(loop)(0.3))


@malformed
def gradient_of_checkpoint_with_a_site():
    seeded(lambda: jax.grad(jax.checkpoint(lambda m: m * sample("x", dist.Normal(0.0, 1.0))))(0.3))


@malformed
def gradient_through_a_seeded_coin():
    jax.grad(lambda p: vipl.seed(lambda: sample("x", dist.Bernoulli(p)) * 1.0)(KEY))(0.3)


@malformed
def while_loop_in_simulate():
    @vipl.gen
    def until():
        return lax.while_loop(lambda c: c < 3.0, lambda c: c + sample("x", dist.Exponential(1.0)), 0.0)

    until().simulate(KEY)


@malformed
def ordered_callback_in_a_program_that_is_run_again():
    def program():
        z = sample("z", dist.Bernoulli(0.3), Enumerate())
        jax.experimental.io_callback(lambda z: None, None, z, ordered=True)
        return 1.0 * z

    expected(program)


@malformed
def ordered_callback_in_lanes():
    def program():
        def step(carry, _):
            z = sample("z", dist.Normal(carry, 1.0))
            jax.experimental.io_callback(lambda z: None, None, z, ordered=True)
            return z, None

        return jax.vmap(lambda m: lax.scan(step, m, None, length=2)[0])(jnp.zeros(3)).sum()

    expected(program)


@malformed
def while_loop_in_an_expectation():
    expected(lambda: lax.while_loop(lambda c: c < 3.0, lambda c: c + sample("x", dist.Exponential(1.0)), 0.0))


@malformed
def fori_loop_with_traced_bounds():
    expected(lambda n: lax.fori_loop(0, n, lambda i, c: c + sample("x", dist.Normal(0.0, 1.0)), 0.0), 3)


@malformed
def site_in_custom_jvp():
    @jax.custom_jvp
    def f(x):
        return x + sample("x", dist.Normal(0.0, 1.0))

    f.defjvp(lambda p, t: (f(*p), t[0]))
    seeded(lambda: f(1.0))


@malformed
def site_in_custom_vjp():
    @jax.custom_vjp
    def f(x):
        return x + sample("x", dist.Normal(0.0, 1.0))

    f.defvjp(lambda x: (f(x), None), lambda _, g: (g,))
    seeded(lambda: f(1.0))


@malformed
def site_in_custom_vmap():
    f = jax.custom_batching.custom_vmap(lambda x: x + sample("x", dist.Normal(0.0, 1.0)))
    f.def_vmap(lambda size, batched, x: (x, batched[0]))
    seeded(lambda: f(1.0))


@malformed
def site_in_reduce():
    add = lambda a, b: a + b + sample("x", dist.Normal(0.0, 1.0))  # noqa: E731
    seeded(lambda: lax.reduce(jnp.arange(3.0), 0.0, add, (0,)))


@malformed
def site_in_a_linear_solve():
    def program():
        matvec = lambda v: v * (2.0 + 0 * sample("x", dist.Normal(0.0, 1.0)))  # noqa: E731
        return lax.custom_linear_solve(matvec, jnp.ones(2), lambda _, b: b / 2, symmetric=True)

    seeded(program)


@malformed
def site_in_shard_map():
    mesh = jax.make_mesh((1,), ("i",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = jax.sharding.PartitionSpec("i")
    draw = jax.shard_map(lambda m: sample("x", dist.Normal(m, 1.0)), mesh=mesh, in_specs=spec, out_specs=spec)
    seeded(lambda: draw(jnp.zeros(1)))


@malformed
def site_on_one_platform():
    def program():
        return lax.platform_dependent(
            1.0, cpu=lambda m: sample("x", dist.Normal(m, 1.0)), default=lambda m: sample("y", dist.Normal(m, 2.0))
        )

    seeded(program)


@malformed
def branches_of_different_shape():
    @vipl.gen
    def program(i):
        return lax.cond(
            i > 0,
            lambda: sample("x", dist.Normal(jnp.zeros(2), 1.0)).sum(),
            lambda: sample("x", dist.Normal(0.0, 1.0)),
        )

    program(1).simulate(KEY)


@malformed
def support_wider_than_the_model():
    guide = vipl.gen(lambda m: sample("sigma", dist.Normal(m, 1.0)))

    def elbo(m):
        q = guide(m).simulate()
        return regression(3).assess(GOOD | q.choices).log_prob - q.log_prob

    expected(elbo, 0.0)


@malformed
def support_of_another_kind():
    guide = vipl.gen(lambda: sample("k", dist.Normal(0.0, 1.0)))
    expected(lambda: regression(3).generate(guide().simulate().choices)[1])


@malformed
def guide_of_integers_for_a_model_of_reals():
    guide = vipl.gen(lambda: sample("x", dist.Poisson(2.0)))
    model = vipl.gen(lambda: sample("x", dist.Normal(0.0, 1.0)))
    expected(lambda: model().assess({"x": guide().simulate().choices["x"].astype(float)}).log_prob)


@malformed
def guide_on_the_simplex_for_a_model_of_vectors():
    """The value enters a loop, where it is found to be a draw of the guide when the objective is staged."""
    guide = vipl.gen(lambda: sample("x", dist.Dirichlet(jnp.ones(3))))
    model = vipl.gen(lambda: sample("x", dist.Normal(jnp.zeros(3), 1.0)))

    def objective():
        x = guide().simulate().choices["x"]
        return lax.map(lambda x: model().assess({"x": x}).log_prob, x[None]).sum()

    expected(objective)


@malformed
def guide_of_an_affine_simplex():
    simplex = dist.transforms.StickBreakingTransform()
    base = dist.Normal(jnp.zeros(2), 1.0).to_event(1)
    scaled = dist.TransformedDistribution(base, [simplex, dist.transforms.AffineTransform(0.0, 2.0)])
    model = vipl.gen(lambda: sample("x", dist.Dirichlet(jnp.ones(3))))
    expected(lambda: model().assess(vipl.gen(lambda: sample("x", scaled))().simulate().choices).log_prob)


@malformed
def guide_with_a_density_for_a_point():
    guide = vipl.gen(lambda: sample("x", dist.Normal(0.0, 1.0)))
    model = vipl.gen(lambda: sample("x", dist.Delta(0.0)))
    expected(lambda: model().assess(guide().simulate().choices).log_prob)


@malformed
def objective_returns_a_vector():
    expected(lambda: sample("x", dist.Normal(jnp.zeros(3), 1.0)))


@malformed
def objective_returns_an_integer():
    expected(lambda: sample("x", dist.Bernoulli(0.5)))


@malformed
def objective_without_aux():
    vipl.expectation(lambda: sample("x", dist.Normal(0.0, 1.0)), has_aux=True).estimate(KEY)


@malformed
def text_as_aux():
    vipl.expectation(lambda: (sample("x", dist.Normal(0.0, 1.0)), "note"), has_aux=True).estimate(KEY)


@malformed
def text_as_result():
    vipl.gen(lambda: "note")().simulate(KEY)


@malformed
def integer_aux_under_enumerate():
    def objective():
        b = sample("b", dist.Bernoulli(0.5), Enumerate())
        return b * 1.0, b

    vipl.expectation(objective, has_aux=True).estimate(KEY)


@malformed
def no_key():
    regression(3).simulate(0)


@malformed
def several_keys():
    vipl.expectation(lambda: _draw()).estimate(jax.random.split(KEY, 3))


@malformed
def raw_key_of_another_shape():
    regression(3).simulate(jnp.zeros(3, jnp.uint32))


@malformed
def argnums_by_name():
    vipl.expectation(lambda t: t).value_and_grad(KEY, 1.0, argnums="t")


@malformed
def argnums_out_of_range():
    vipl.expectation(lambda t: t).value_and_grad(KEY, 1.0, argnums=(1, 2))


@malformed
def gradient_in_the_key():
    vipl.expectation(lambda t: t).value_and_grad(KEY, 1.0, argnums=0)


@malformed
def gradient_in_the_key_and_more():
    vipl.expectation(lambda t, s: t + s).value_and_grad(KEY, 1.0, 2.0, argnums=(0, 1))


@malformed
def gradient_in_an_integer():
    vipl.expectation(lambda t: t["n"] * t["x"]).value_and_grad(KEY, {"n": 2, "x": 1.0})


@malformed
def traced_number_of_samples():
    jax.jit(lambda n: expected(lambda: _draw(), num_samples=n))(3)


@malformed
def traced_length():
    expected(lambda n: jnp.sum(jnp.zeros(n)), jnp.array(3))


@malformed
def no_samples():
    expected(lambda: _draw(), num_samples=0)


@malformed
def argument_not_hashable():
    expected(lambda xs: _draw(), {1, 2})


@malformed
def result_not_an_array():
    seeded(lambda: (sample("x", dist.Normal(0.0, 1.0)), {1, 2}))


# --- arguments of objectives, algorithms and fits -----------------------------------------------------------------


@vipl.gen
def normal(m):
    """One site."""
    sample("x", dist.Normal(m, 1.0))


def objective(name, *args, **kwargs):
    """Estimates an objective of the package."""
    expected(lambda: getattr(vipl.objectives, name)(*args, **kwargs))


def fitted(optimizer, **options):
    """Fits one number."""
    vipl.fit(vipl.expectation(lambda m, *_: m), 1.0, optimizer, key=KEY, progress=False, **options)


@malformed
def model_not_called():
    objective("elbo", normal, normal(0.0), {})


@malformed
def guide_is_a_function():
    objective("iwelbo", normal(0.0), lambda: 0.0, {}, num_particles=2)


@malformed
def guide_is_a_trace():
    expected(lambda: vipl.objectives.elbo(normal(0.0), normal(1.0).simulate(), {}))


@malformed
def target_is_a_distribution():
    objective("forward_kl", dist.Normal(0.0, 1.0), normal(1.0))


@malformed
def closed_form_of_a_marginal():
    objective("elbo_with_kl", normal(0.0), marginal(normal(1.0), "x"), {})


@malformed
def data_is_an_array():
    objective("elbo", normal(0.0), normal(1.0), jnp.zeros(3))


@malformed
def variance_of_one_particle():
    objective("log_variance", normal(0.0), normal(1.0), {}, num_particles=1)


@malformed
def generator_by_name():
    objective("f_divergence", normal(0.0), normal(1.0), "kl")


@malformed
def weight_by_name():
    objective("beta_elbo", normal(0.0), normal(1.0), {}, "annealed")


@malformed
def algorithm_class():
    objective("fivo", normal(0.0), {}, vipl.inference.Importance)


@malformed
def sleep_with_a_program():
    objective("sleep", normal(0.0), normal(1.0), "x")


@malformed
def sleep_without_data():
    objective("sleep", normal(0.0), lambda y: normal(1.0), 3)


@malformed
def sleep_with_a_function_that_makes_no_program():
    objective("sleep", normal(0.0), lambda y: normal, "x")


@malformed
def proposal_that_is_a_distribution():
    vipl.inference.Importance(5, dist.Normal(0.0, 1.0))


@malformed
def proposal_not_applied():
    normalize(pair(), {"x": 0.3}, vipl.inference.Importance(3, lambda known: normal)).simulate(KEY)


@malformed
def smc_with_a_proposal_already_applied():
    vipl.inference.SMC(5, normal(0.0))


@malformed
def smc_with_a_proposal_of_three_arguments():
    vipl.inference.SMC(5, lambda step, previous, known: normal(0.0))


@malformed
def proposal_without_arguments():
    vipl.inference.Importance(3, pair)


@malformed
def resampling_by_name():
    vipl.inference.SMC(5, resampling="systematic")


@malformed
def particles_without_a_key():
    normalize(pair(), {"x": 0.5}, vipl.inference.Importance(3)).particles()


@malformed
def pick_without_a_key():
    normalize(pair(), {"x": 0.5}, vipl.inference.Importance(3)).particles(KEY).pick()


@malformed
def keep_a_number():
    marginal(pair(), 3)


@malformed
def numpyro_optimizer():
    fitted(numpyro.optim.Adam(1e-2), num_steps=3)


@malformed
def optimizer_not_called():
    fitted(optax.adam, num_steps=3)


@malformed
def steps_by_a_float():
    fitted(optax.adam(1e-2), num_steps=1e3)


@malformed
def data_of_text():
    fitted(optax.adam(1e-2), num_steps=3, data={"y": np.array(["a", "b"])})


def fitted_twice(first, second):
    """Fits, and goes on with other options."""
    options = {"optimizer": optax.adam(1e-2), "num_steps": 3, "key": KEY, "progress": False}
    options |= {"objective": vipl.expectation(lambda m, *_: -jnp.sum(m**2)), "params": 1.0}
    vipl.fit(**options | {"resume": vipl.fit(**options | first)} | first | second)


def fitted_in_a_folder(**second):
    """Fits with a checkpoint, and again with other options."""

    def square(m):
        return -jnp.sum(m**2)

    options = {"optimizer": optax.adam(1e-2), "num_steps": 3, "key": KEY, "progress": False}
    options |= {"objective": vipl.expectation(square), "params": jnp.ones(2)}
    with tempfile.TemporaryDirectory() as folder:
        vipl.fit(**options, checkpoint=folder)
        vipl.fit(**options | second, checkpoint=folder)


def fitted_by_name(**options):
    """Fits two numbers by two objectives."""
    a, b = (vipl.expectation(lambda p: -jnp.sum(p["theta"] ** 2)) for _ in range(2))
    given = {"objective": {"wake": a, "sleep": b}, "optimizer": dict.fromkeys(("wake", "sleep"), optax.sgd(0.1))}
    given |= {"params": {"theta": 1.0, "phi": 2}, "num_steps": 3, "key": KEY, "progress": False}
    vipl.fit(**given | options)


@malformed
def complex_parameter():
    fitted_twice({"params": {"m": 1.0, "c": 1j}}, {})


@malformed
def parameters_without_floats():
    fitted_twice({"params": {"m": jnp.int32(1)}}, {})


@malformed
def average_of_more_than_all():
    fitted(optax.adam(1e-2), num_steps=3, average=100)


@malformed
def callback_every_no_steps():
    fitted(optax.adam(1e-2), num_steps=3, callback=print, callback_every=0)


@malformed
def callback_not_a_function():
    fitted(optax.adam(1e-2), num_steps=3, callback=5)


@malformed
def checkpoints_every_so_often():
    fitted(optax.adam(1e-2), num_steps=3, checkpoint="folder", checkpoint_every="minute")


@malformed
def optimizers_of_other_names():
    fitted_by_name(optimizer={"wake": optax.sgd(0.1), "dream": optax.sgd(0.1)})


@malformed
def one_optimizer_for_two():
    fitted_by_name(optimizer=optax.sgd(0.1))


@malformed
def no_labels():
    fitted_by_name()


@malformed
def labels_for_one_objective():
    fitted(optax.adam(1e-2), num_steps=3, labels="wake")


@malformed
def labels_of_other_names():
    fitted_by_name(labels={"theta": "wake", "phi": "dream"})


@malformed
def objective_without_parameters():
    fitted_by_name(labels={"theta": "wake", "phi": "sleep"})


@malformed
def turns_of_some():
    fitted_by_name(labels={"theta": "wake", "phi": "sleep"}, turns={"wake": 2})


@malformed
def other_number_of_starts():
    fitted_twice({"num_restarts": 2}, {"num_restarts": 3})


@malformed
def other_metrics():
    fitted_twice({}, {"objective": vipl.expectation(lambda m: (-(m**2), m), has_aux=True)})


@malformed
def state_not_returned():
    fitted(optax.adam(1e-2), num_steps=3, state=0.0)


@malformed
def state_of_another_shape():
    objective = vipl.expectation(lambda m, s: (-(m**2), jnp.stack([s, m])), has_aux=True)
    fitted_twice({"objective": objective, "state": 0.0}, {})


@malformed
def batches_of_batches():
    fitted(optax.adam(1e-2), num_steps=3, data=iter([jnp.ones(3)]), batch_size=2)


@malformed
def batch_of_another_kind():
    fitted(optax.adam(1e-2), num_steps=3, data=iter([jnp.ones((3, 2), "float32"), jnp.ones((2, 3), "float32")]))


@malformed
def stream_without_batches():
    fitted(optax.adam(1e-2), num_steps=3, data=iter([]))


@malformed
def checkpoint_of_another_objective():
    fitted_in_a_folder(objective=vipl.expectation(lambda m: -jnp.sum(m)))


@malformed
def checkpoint_of_an_objective_that_changed():
    def square(m):
        return -3.0 * jnp.sum(m**2)

    fitted_in_a_folder(objective=vipl.expectation(square))


@malformed
def checkpoint_of_other_parameters():
    fitted_in_a_folder(params=jnp.ones(3))


@malformed
def checkpoint_of_another_optimizer():
    fitted_in_a_folder(optimizer=optax.sgd(1e-2))


@malformed
def checkpoint_with_another_key():
    fitted_in_a_folder(key=jax.random.key(1))


@malformed
def checkpoint_of_more_steps():
    fitted_in_a_folder(num_steps=2)


@malformed
def chain_of_no_steps():
    vipl.distributions.HiddenMarkov(jnp.zeros(2), jnp.zeros((2, 2)), dist.Normal(jnp.zeros(2), 1.0), 0)


# --- statements of NumPyro ------------------------------------------------------------------------------------


def with_a_site(statement):
    """Runs a program that makes a statement."""

    @vipl.gen
    def program():
        sample("x", dist.Normal(0.0, 1.0))
        statement()

    program().simulate(KEY)


@malformed
def numpyro_sample():
    with_a_site(lambda: numpyro.sample("y", dist.Normal(0.0, 1.0)))


@malformed
def numpyro_sample_with_a_datum():
    with_a_site(lambda: numpyro.sample("y", dist.Normal(0.0, 1.0), obs=0.5))


@malformed
def numpyro_factor():
    with_a_site(lambda: numpyro.factor("penalty", -1.0))


@malformed
def numpyro_param():
    with_a_site(lambda: numpyro.param("w", 1.0))


@malformed
def numpyro_deterministic():
    with_a_site(lambda: numpyro.deterministic("mean", 1.0))


@malformed
def numpyro_plate():
    def statement():
        with numpyro.plate("rows", 3):
            sample("y", dist.Normal(0.0, 1.0))

    with_a_site(statement)


@malformed
def numpyro_subsample():
    with_a_site(lambda: numpyro.subsample(jnp.zeros(3), 0))


@malformed
def numpyro_prng_key():
    with_a_site(numpyro.prng_key)


@malformed
def numpyro_control_flow():
    with_a_site(lambda: numpyro.contrib.control_flow.scan(lambda c, _: (c, None), 0.0, None, length=3))


@malformed
def numpyro_model_that_is_not_recorded():
    with_a_site(numpyro.handlers.seed(lambda: numpyro.sample("y", dist.Normal(0.0, 1.0)), KEY))


@malformed
def numpyro_handler_around_a_site():
    with numpyro.handlers.seed(rng_seed=0):  # one from outside the program does no harm

        def statement():
            with numpyro.handlers.scale(scale=2.0):
                sample("y", dist.Normal(0.0, 1.0))

        with_a_site(statement)


@malformed
def numpyro_handler_around_a_factor():
    with_a_site(numpyro.handlers.mask(lambda: vipl.factor("penalty", -1.0), mask=False))


@malformed
def numpyro_handler_around_a_program():
    def objective():
        with numpyro.handlers.condition(data={"x": 1.0}):
            return mean_field().simulate().log_prob

    expected(objective)


# --- Python where only JAX can go -------------------------------------------------------------------------------


def uses_draws(use):
    """Runs a program that uses a float and an integer that it draws."""

    @vipl.gen
    def program():
        x, n = sample("x", dist.Normal(0.0, 1.0)), sample("n", dist.Poisson(2.0))
        return use(2.0 * x, n)

    program().simulate(KEY)


@malformed
def if_on_a_draw():
    uses_draws(lambda x, n: 1.0 if x > 0 else 2.0)


@malformed
def if_on_a_draw_in_vmap():
    uses_draws(lambda x, n: jax.vmap(lambda m: 1.0 if sample("y", dist.Normal(m, 1.0)) > 0 else m)(jnp.zeros(3)))


@malformed
def float_of_a_draw():
    uses_draws(lambda x, n: float(x))


@malformed
def range_of_a_draw():
    uses_draws(lambda x, n: sum(range(n)))


@malformed
def list_indexed_by_a_draw():
    uses_draws(lambda x, n: [1.0, 2.0][n])


@malformed
def dict_indexed_by_a_draw():
    uses_draws(lambda x, n: {0: 1.0, 1: 2.0}[n])


@malformed
def numpy_of_a_draw():
    uses_draws(lambda x, n: np.sin(x))


@malformed
def length_of_a_draw():
    uses_draws(lambda x, n: len(x))


@malformed
def drawn_length():
    uses_draws(lambda x, n: jnp.zeros(n))


@malformed
def drawn_slice():
    uses_draws(lambda x, n: jnp.zeros(5)[:n])


@malformed
def drawn_mask():
    uses_draws(lambda x, n: jnp.zeros(3)[jnp.zeros(3) > x])


@malformed
def formatted_draw():
    uses_draws(lambda x, n: f"{x:.2f}")


@malformed
def precision_of_one_site():
    def statement():
        with jax.enable_x64(False):
            sample("y", dist.Normal(0.0, 1.0), Score())

    with_a_site(statement)


@malformed
def state_of_a_flax_module():
    dropout = nnx.Dropout(0.5, rngs=nnx.Rngs(0))
    with_a_site(lambda: dropout(jnp.ones(3)))


# --- estimated densities --------------------------------------------------------------------------------------


@vipl.gen
def pair():
    """Two choices and a number that depends on them."""
    a = sample("a", dist.Bernoulli(0.3))
    b = sample("b", dist.Normal(0.0, 1.0))
    sample("x", dist.Normal(a + b, 1.0))


@vipl.gen
def uses_a_marginal():
    """A marginal of two choices as a site."""
    sample("s", marginal(pair(), ("b", "x")))


@malformed
def marginal_of_a_function():
    marginal(pair, "x")


@malformed
def marginal_of_nothing():
    marginal(pair(), ())


@malformed
def marginal_of_an_unknown_address():
    marginal(pair(), "y").simulate(KEY)


@malformed
def marginal_with_a_number_of_particles():
    marginal(pair(), "x", 5)


@malformed
def marginal_assessed_at_another_address():
    marginal(pair(), "x").assess({"x": 0.3, "a": 1}, key=KEY)


@malformed
def no_particles():
    normalize(pair(), {"x": 0.3}, vipl.inference.Importance(0)).particles(KEY)


@malformed
def enumeration_of_a_normal():
    marginal(pair(), "x", Enumeration()).assess({"x": 0.3}, key=KEY)


@malformed
def enumeration_of_too_many_values():
    many = vipl.gen(lambda: sample("a", dist.Bernoulli(0.3 * jnp.ones(30))).sum() + sample("x", dist.Normal(0.0, 1.0)))
    marginal(many(), "x", Enumeration()).assess({"x": 0.3}, key=KEY)


@malformed
def enumeration_of_an_estimated_site():
    whole = vipl.gen(lambda: sample("s", marginal(pair(), "a")) + sample("x", dist.Normal(0.0, 1.0)))
    marginal(whole(), "x", Enumeration()).assess({"x": 0.3}, key=KEY)


@malformed
def enumeration_of_a_posterior():
    marginal(marginal(pair(), ("a", "x")), "x", Enumeration()).assess({"x": 0.3}, key=KEY)


@malformed
def values_of_a_marginal_given_in_part():
    uses_a_marginal().generate({"s": {"x": 0.3}}, key=KEY)


@malformed
def given_an_unknown_address():
    normalize(pair(), {"y": 0.3}).simulate(KEY)


@malformed
def proposal_without_an_address():
    proposal = vipl.gen(lambda: sample("a", dist.Bernoulli(0.5)))
    normalize(pair(), {"x": 0.3}, vipl.inference.Importance(2, proposal())).particles(KEY)


# --- more estimators ------------------------------------------------------------------------------------------


@malformed
def implicit_without_a_distribution_function():
    expected(lambda: sample("x", dist.Dirichlet(jnp.ones(3)), ImplicitReparam()).sum())


@malformed
def rejection_of_a_normal():
    expected(lambda: sample("x", dist.Normal(0.0, 1.0), RejectionReparam()))


@malformed
def antithetic_of_a_poisson():
    expected(lambda: 1.0 * sample("x", dist.Poisson(2.0), DisARM()))


@malformed
def relax_of_a_poisson():
    expected(lambda: 1.0 * sample("x", dist.Poisson(2.0), Relax(jnp.sum)))


@malformed
def relax_with_a_vector():
    expected(lambda: 1.0 * sample("x", dist.Bernoulli(jnp.ones(3) / 2), Relax(jnp.tanh)).sum())


@malformed
def straight_through_of_a_poisson():
    expected(lambda: 1.0 * sample("x", dist.Poisson(2.0), StraightThrough()))


@malformed
def straight_through_from_outside():
    objective = vipl.expectation(lambda: 1.0 * sample("x", dist.Bernoulli(0.3)))
    objective.with_estimators({"x": StraightThrough()}).estimate(KEY)


# --- values that are held ---------------------------------------------------------------------------------------


@malformed
def held_and_not_held():
    def objective(p):
        z = sample("z", dist.Bernoulli(p))
        weight = lax.stop_gradient(2.0 * z + 1.0)
        return weight * (3.0 - z)

    jax.grad(vipl.expectation(objective).estimate, argnums=1)(KEY, 0.3)


@malformed
def hold_of_a_function():
    vipl.detach(regression)


@malformed
def hold_of_an_array():
    vipl.detach(jnp.ones(3))


# --- sequential Monte Carlo -----------------------------------------------------------------------------------


@vipl.gen
def steps(m):
    """A random walk that is seen."""

    def step(x, _):
        x = sample("x", dist.Normal(x, 1.0))
        sample("y", dist.Normal(x, 1.0))
        return x, None

    lax.scan(step, m, None, length=3)


@vipl.gen
def drift():
    """A random walk whose drift, drawn before, is closed over."""
    slope = sample("slope", dist.Normal(0.0, 1.0))
    lax.scan(lambda x, _: (sample("x", dist.Normal(slope * x, 1.0)), None), 1.0, None, length=3)


def filtered(program, known, algorithm):
    """Runs an algorithm."""
    seeded(lambda: algorithm.particles(program, known).log_normalizer)


@malformed
def smc_without_a_scan():
    filtered(pair(), {"x": 0.3}, SMC(3))


@malformed
def smc_of_a_marginal():
    filtered(marginal(pair(), "x"), {"x": 0.3}, SMC(3))


@malformed
def smc_with_a_drawn_parameter_closed_over():
    filtered(drift(), {}, SMC(3))


@malformed
def smc_with_a_proposal_for_another_site():
    other = vipl.gen(lambda: sample("z", dist.Normal(0.0, 1.0)))
    filtered(steps(0.0), {"y": jnp.zeros(3)}, SMC(3, lambda known: other()))


@malformed
def systematic_resampling_with_one_trajectory_kept():
    marginal(steps(0.0), "y", SMC(3, resampling=Systematic())).simulate(KEY)


@vipl.gen
def memory():
    """A chain whose carry remembers all steps."""

    def step(total, _):
        b = sample("b", dist.Bernoulli(logits=0.1 * total))
        return total + b, None

    lax.scan(step, 0, None, length=3)


@malformed
def forward_backward_with_a_long_memory():
    marginal(memory_and_end(), "y", ForwardBackward()).assess({"y": jnp.zeros(3)}, key=KEY)


@vipl.gen
def memory_and_end():
    """The same with data."""

    def step(total, _):
        total = total + sample("b", dist.Bernoulli(logits=0.1 * total))
        sample("y", dist.Normal(total, 1.0))
        return total, None

    lax.scan(step, 0, None, length=3)


@malformed
def forward_backward_of_numbers():
    marginal(steps(0.0), "y", ForwardBackward()).assess({"y": jnp.zeros(3)}, key=KEY)


@malformed
def forward_backward_of_nothing_unknown():
    marginal(memory(), "b", ForwardBackward()).assess({"b": jnp.zeros(3, int)}, key=KEY)


# --- what would be silently wrong otherwise -------------------------------------------------------------------


@vipl.gen
def branched():
    """A site in one branch."""
    b = sample("b", dist.Bernoulli(0.3))
    lax.cond(b == 1, lambda: sample("z", dist.Bernoulli(0.2)), lambda: 0)
    sample("y", dist.Normal(0.0, 1.0))


@vipl.gen
def weighted():
    """An unnormalized program."""
    u = sample("u", dist.Normal(0.0, 1.0))
    sample("x", dist.Normal(u, 1.0))
    vipl.factor("f", -(u**2))


@vipl.gen
def lumped():
    """Steps with an estimated site of two values."""
    lax.scan(lambda c, _: (sample("s", marginal(pair(), ("b", "x")))["x"], None), 0.0, None, length=3)


def pair_guide():
    """A guide with an estimated density."""
    return marginal(pair(), "x")


target = vipl.gen(lambda: sample("y", dist.Normal(sample("x", dist.Normal(0.0, 1.0)), 1.0)))


@malformed
def enumeration_of_a_branch():
    marginal(branched(), "y", Enumeration()).assess({"y": 0.3}, key=KEY)


@malformed
def marginal_of_an_unnormalized_program():
    marginal(weighted(), "x").simulate(KEY)


@malformed
def smc_with_a_part_of_an_estimated_site_known():
    filtered(lumped(), {"s": {"x": jnp.zeros(3)}}, SMC(3))


@malformed
def guide_that_samples_the_data():
    guide = vipl.gen(lambda: sample("x", dist.Normal(0.0, 1.0)) + sample("y", dist.Normal(0.0, 1.0)))
    expected(lambda: vipl.objectives.elbo(target(), guide(), {"y": 2.0}))


@malformed
def sticking_the_landing_of_an_estimated_guide():
    expected(lambda: vipl.objectives.sticking_the_landing(target(), pair_guide(), {"y": 2.0}))


def pair_model():
    """A model with an estimated density, of a latent and a datum."""

    @vipl.gen
    def model():
        x = sample("x", dist.Normal(0.0, 1.0))
        sample("part", marginal(vipl.gen(lambda: sample("y", dist.Normal(x + sample("u", dist.Normal()), 1.0)))(), "y"))

    return model()


@vipl.gen
def with_dropout():
    """A model whose density is random."""
    keep = jax.random.bernoulli(vipl.random_key("dropout"), 0.5)
    sample("y", dist.Normal(keep * sample("x", dist.Normal(0.0, 1.0)), 1.0))


@malformed
def wake_theta_of_an_estimated_model():
    data = {"part": {"y": 2.0}}
    expected(lambda: vipl.objectives.wake_theta(pair_model(), normal(0.0), data, num_particles=2))


@malformed
def wake_theta_of_a_model_with_dropout():
    expected(lambda: vipl.objectives.wake_theta(with_dropout(), normal(0.0), {"y": 2.0}, num_particles=2))


@malformed
def doubly_reparametrized_of_an_estimated_model():
    data = {"part": {"y": 2.0}}
    expected(lambda: vipl.objectives.doubly_reparametrized(pair_model(), normal(0.0), data, num_particles=2))


@malformed
def trajectory_balance_of_an_estimated_model():
    expected(lambda: vipl.objectives.trajectory_balance(pair_model(), normal(0.0), {"part": {"y": 2.0}}, 0.0))


@malformed
def log_variance_of_an_estimated_model():
    data = {"part": {"y": 2.0}}
    expected(lambda: vipl.objectives.log_variance(pair_model(), normal(0.0), data, num_particles=2))


@malformed
def f_divergence_of_an_estimated_target():
    objective("f_divergence", pair_guide(), normal(0.0), vipl.objectives.ChiSquared())


@malformed
def f_divergence_by_a_class():
    objective("f_divergence", normal(0.0), normal(1.0), vipl.objectives.ForwardKL)


@malformed
def fisher_of_an_estimated_guide():
    objective("fisher", normal(0.0), pair_guide())


@malformed
def fisher_of_integers():
    flip = vipl.gen(lambda: sample("x", dist.Bernoulli(0.5)))
    objective("fisher", flip(), flip())


@malformed
def mmd_of_other_choices():
    objective("mmd", normal(0.0), target(), num_samples=3)


@malformed
def mmd_of_other_shapes():
    wide = vipl.gen(lambda: sample("x", dist.Normal(jnp.zeros(2), 1.0)))
    objective("mmd", normal(0.0), wide(), num_samples=3)


@malformed
def renyi_of_two_orders():
    objective("renyi", target(), normal(0.0), {"y": 2.0}, jnp.array([0.5, 0.6]), num_particles=2)


@malformed
def renyi_of_a_traced_order():
    fn = vipl.expectation(lambda a: vipl.objectives.renyi(target(), normal(0.0), {"y": 2.0}, a, num_particles=2))
    fn.estimate(KEY, 0.5)


@malformed
def threshold_below_zero():
    SMC(3, ess_threshold=-1.0)


@malformed
def threshold_that_is_no_number():
    SMC(3, ess_threshold=float("nan"))


@malformed
def doubly_reparametrized_with_a_score():
    guide = vipl.gen(lambda: sample("x", dist.Normal(0.0, 1.0), Score()))
    expected(lambda: vipl.objectives.doubly_reparametrized(target(), guide(), {"y": 2.0}, num_particles=3))


@malformed
def alternatives_of_two_kinds():
    class Both(Estimator):
        def points(self, law, key):
            other = vipl.estimators.Alternatives(jnp.zeros(1), jnp.zeros(1))
            return vipl.estimators.Draw(law.sample(key), alternatives=other, pruned=other)

    expected(lambda: sample("x", dist.Normal(0.0, 1.0), Both()))


@malformed
def implicit_of_counts():
    expected(lambda: 1.0 * sample("x", dist.Poisson(2.0), ImplicitReparam()))


@malformed
def straight_through_of_many_trials():
    expected(lambda: 1.0 * sample("x", dist.Multinomial(5, jnp.ones(3) / 3), StraightThrough())[0])


@malformed
def particles_that_all_weigh_zero():
    model = vipl.gen(lambda: sample("y", dist.Uniform(0.0, sample("x", dist.Uniform(0.0, 1.0)))))
    normalize(model(), {"y": 2.0}, vipl.inference.Importance(5)).particles(KEY).mean(lambda z: z["x"])


@malformed
def proposal_with_a_wider_support():
    model = vipl.gen(lambda: sample("y", dist.Normal(sample("x", dist.HalfNormal(1.0)), 1.0)))
    proposal = vipl.gen(lambda: sample("x", dist.Normal(0.0, 1.0)))
    normalize(model(), {"y": 2.0}, vipl.inference.Importance(5, proposal())).particles(KEY)


def kalman(transition):
    """Assesses the data of a chain with that transition, state -> distribution."""

    @vipl.gen
    def chain():
        def step(x, _):
            x = sample("x", transition(x))
            sample("y", dist.Normal(x, 1.0))
            return x, None

        lax.scan(step, 0.0, None, length=3)

    marginal(chain(), "y", Kalman()).assess({"y": jnp.zeros(3)})


@malformed
def kalman_of_a_curved_chain():
    kalman(lambda x: dist.Normal(jnp.sin(x), 1.0))


@malformed
def kalman_of_a_scale_that_depends_on_the_state():
    kalman(lambda x: dist.Normal(0.5 * x, jnp.exp(x)))


@malformed
def kalman_of_half_a_line():
    kalman(lambda x: dist.HalfNormal(1.0))


@malformed
def kalman_of_a_laplace_chain():
    kalman(lambda x: dist.Laplace(x, 1.0))


@vipl.gen
def telling():
    """A program with a record and a random key."""
    z = sample("z", dist.Normal(0.0, 1.0))
    noise = jax.random.normal(vipl.random_key("noise"))
    vipl.deterministic(("shown", "double"), 2.0 * z + noise)
    return z


@malformed
def a_record_at_the_address_of_a_site():
    def both():
        sample("x", dist.Normal(0.0, 1.0))
        vipl.deterministic("x", 1.0)

    vipl.gen(both)().simulate(KEY)


@malformed
def a_record_above_a_site():
    def both():
        vipl.deterministic("x", 1.0)
        sample(("x", "y"), dist.Normal(0.0, 1.0))

    vipl.gen(both)().simulate(KEY)


@malformed
def a_record_is_given():
    telling().assess({"z": 0.5, "shown": {"double": 1.0}}, key=KEY)


@malformed
def a_record_is_observed_in_a_table():
    vipl.sites(telling(), {"shown": {"double": 1.0}})


@malformed
def a_random_key_is_given():
    telling().generate({"noise": KEY}, key=KEY)


@malformed
def a_record_of_a_pytree():
    seeded(lambda: vipl.deterministic("both", {"a": 1.0}))


@malformed
def a_record_of_a_key():
    seeded(lambda: vipl.deterministic("key", vipl.random_key("noise")))


@malformed
def assess_without_the_key_that_a_random_key_needs():
    telling().assess({"z": 0.5})


@malformed
def assess_without_the_key_that_a_random_key_in_a_loop_needs():
    def loop():
        return lax.scan(lambda c, _: (c, jax.random.normal(vipl.random_key("noise"))), 0.0, None, length=2)

    vipl.gen(loop)().assess({})


@malformed
def a_random_key_for_an_exact_algorithm():
    normalize(telling(), {}, Enumeration()).particles(KEY)


@malformed
def an_estimator_for_a_random_key():
    telling().with_estimators({"noise": Score()}).simulate(KEY)


@malformed
def a_table_of_a_function():
    vipl.sites(telling)


@malformed
def a_table_with_an_unknown_address():
    vipl.sites(telling(), {"w": 1.0})


@malformed
def a_weight_that_is_an_integer():
    vipl.scaled(dist.Normal(0.0, 1.0), 2)


@malformed
def a_weight_for_each_element():
    vipl.scaled(telling(), jnp.ones(3))


@malformed
def a_function_is_scaled():
    vipl.scaled(telling, 2.0)


@malformed
def a_number_is_scaled():
    vipl.scaled(1.0, 2.0)


@malformed
def scaled_source_in_an_objective():
    expected(lambda: sample("x", vipl.scaled(dist.Normal(0.0, 1.0), 2.0)))


@malformed
def marginal_of_a_scaled_program_is_drawn():
    marginal(vipl.scaled(mean_field(), 2.0), "scale").simulate(KEY)


@malformed
def log_densities_by_site_of_a_mapped_trace():
    print(jax.vmap(telling().simulate)(jax.random.split(KEY, 2)).log_probs)


# --- data with holes ---


@vipl.gen
def holes(n=3):
    """A vector of independent elements, a vector with a joint density, and a site in the way."""
    m = sample("m", dist.Normal(0.0, 1.0))
    sample("y", dist.Normal(m, 1.0).expand([n]))
    sample("v", dist.MultivariateNormal(jnp.zeros(2), jnp.eye(2)).expand([2]))
    sample("v_missing", dist.Normal(0.0, 1.0))


HALF = np.array([0.4, np.nan, 1.2])


@malformed
def nan_in_the_data_of_a_guide():
    vipl.guides.FullRank(holes(), {"y": HALF})


@malformed
def nan_in_the_data_of_infer():
    vipl.infer(holes(), {"y": HALF}, key=KEY)


@malformed
def missing_data_that_are_traced():
    jax.jit(lambda y: vipl.partly_observed(holes(), {"y": y})[1])(HALF)


@malformed
def a_mask_that_is_traced():
    jax.jit(lambda mask: vipl.partly_observed(holes(), {"y": HALF}, mask)[1])(HALF > 0)


@malformed
def a_part_of_an_event_is_missing():
    vipl.partly_observed(holes(), {"v": np.array([[0.1, 0.2], [0.3, np.nan]])}, suffix="_unseen")


@malformed
def a_mask_that_calls_nan_observed():
    vipl.partly_observed(holes(), {"y": HALF}, np.ones(3, bool))


@malformed
def a_mask_of_numbers():
    vipl.partly_observed(holes(), {"y": HALF}, np.array([1, 0, 1]))


@malformed
def a_mask_of_another_length():
    vipl.partly_observed(holes(), {"y": HALF}, np.array([True, False]))


@malformed
def a_mask_of_what_is_no_data():
    vipl.partly_observed(holes(), {"y": HALF}, {"z": np.array([True, False, True])})


@malformed
def one_mask_for_two_addresses():
    vipl.partly_observed(holes(), {"y": HALF, "m": 0.1}, np.array([True, False, True]))


@malformed
def missing_elements_at_an_address_that_is_taken():
    vipl.partly_observed(holes(), {"v": np.array([[0.1, 0.2], [np.nan, np.nan]])})


@malformed
def nothing_is_observed():
    vipl.partly_observed(holes(), {"y": np.full(3, np.nan)})


@malformed
def a_value_of_marginal_with_holes():
    inner = marginal(holes(), "y", vipl.inference.Importance(2))
    vipl.partly_observed(vipl.gen(lambda: sample("post", inner))(), {"post": {"y": HALF}})


@malformed
def elements_that_cannot_be_told_apart():
    low = dist.LowRankMultivariateNormal(jnp.zeros((3, 2)), jnp.ones((3, 2, 1)), jnp.ones(2))
    vipl.partly_observed(vipl.gen(lambda: sample("y", low))(), {"y": np.ones((3, 2))}, np.array([True, False, True]))


@malformed
def data_with_holes_of_a_function():
    vipl.partly_observed(holes, {"y": HALF})


# --- guides, posteriors, and what is asked of them ---


@vipl.gen
def location(n=3):
    """Two real latent choices and a vector of data."""
    m = sample("m", dist.Normal(0.0, 1.0))
    s = sample("s", dist.HalfNormal(1.0))
    sample("y", dist.Normal(m, s).expand([n]))


@vipl.gen
def elsewhere():
    """A program of other choices."""
    sample("a", dist.Normal(0.0, 1.0))
    sample("y", dist.Normal(0.0, 1.0).expand([3]))


@vipl.gen
def of_s(params):
    """A guide of one's own."""
    sample("s", dist.LogNormal(params, 0.1))


SEEN = {"y": np.array([0.4, 0.9, 1.2])}


def full(**options):
    """A joint guide."""
    return vipl.guides.FullRank(location(), SEEN, **options)


def by_hand(**changes):
    """A posterior that was put together."""
    params = full().init(KEY)
    return vipl.Posterior(location(), SEEN, full(), params | changes)


def loaded(program, data):
    """What is read of the file of a posterior."""
    with tempfile.TemporaryDirectory() as folder:
        by_hand().save(f"{folder}/posterior.npz")
        vipl.load(f"{folder}/posterior.npz", program, data)


@malformed
def a_guide_in_another_precision():
    guide = full()
    with jax.enable_x64(False):
        guide(guide.init(KEY))


@malformed
def a_posterior_in_another_precision():
    posterior = by_hand()
    with jax.enable_x64(False):
        posterior.sample(KEY, 3)


@malformed
def a_guide_without_parameters():
    full()(None)


@malformed
def a_guide_with_an_array_for_parameters():
    full()(jnp.zeros(2))


@malformed
def a_guide_with_the_parameters_of_another():
    full()(vipl.guides.MeanField(location(), SEEN).init(KEY))


@malformed
def a_guide_with_parameters_of_another_shape():
    full()(full().init(KEY) | {"loc": jnp.zeros(3)})


@malformed
def a_mean_field_without_some_parameters():
    vipl.guides.MeanField(location(), SEEN)({"m": {"loc": 0.0, "log_scale": 0.0}})


@malformed
def a_mean_field_with_parameters_of_no_choice():
    guide = vipl.guides.MeanField(location(), SEEN)
    guide(guide.init(KEY) | {"mean": {"loc": 0.0, "log_scale": 0.0}})


@malformed
def a_combination_with_parameters_of_another_shape():
    guide = vipl.guides.combine({"m": full(addresses="m"), "s": full(addresses="s")})
    guide({"m": guide.init(KEY)["m"], "s": full().init(KEY)})


@malformed
def addresses_that_are_a_number():
    full(addresses=3)


@malformed
def a_start_that_is_a_number():
    full().init(KEY, start=1.0)


@malformed
def a_start_outside_its_support():
    full().init(KEY, start={"s": -1.0})


@malformed
def a_start_outside_its_support_of_some_choices():
    full(addresses="s").init(KEY, start={"s": -1.0})


@malformed
def a_start_where_the_density_of_some_choices_is_not_finite():
    def cut():
        a = sample("a", dist.Normal(0.0, 1.0))
        sample("b", dist.Normal(0.0, 1.0))
        sample("y", dist.Uniform(a, a + 1.0))

    vipl.guides.FullRank(vipl.gen(cut)(), {"y": 50.0}, addresses="a").init(KEY)


@vipl.gen
def slope(x):
    """A model of the numbers x."""
    sample("y", dist.Normal(sample("b", dist.Normal(0.0, 1.0)) * x, 1.0))


@malformed
def arguments_that_are_no_numbers():
    vipl.infer(slope(jnp.array([0.0, jnp.nan, 1.0])), {"y": jnp.zeros(3)}, key=KEY)


@malformed
def data_of_infer_without_an_address():
    vipl.infer(slope(jnp.zeros(3)), jnp.zeros(3), key=KEY)


@malformed
def a_guide_of_infer_without_a_choice():
    vipl.infer(location(), SEEN, key=KEY, guide=full(addresses="m"))


@malformed
def a_mode_without_second_derivatives():
    double = jax.custom_vjp(lambda x: 2 * x)
    shape = jax.ShapeDtypeStruct((), jnp.float64)
    double.defvjp(lambda x: (2 * x, None), lambda _, g: (jax.pure_callback(lambda g: 2 * np.asarray(g), shape, g),))

    def callback():
        sample("y", dist.Normal(double(sample("x", dist.Normal(0.0, 1.0))), 1.0))

    vipl.infer(vipl.gen(callback)(), {"y": 1.0}, key=KEY, guide=vipl.guides.Laplace)


@malformed
def a_start_of_a_combination_at_an_unknown_address():
    vipl.guides.combine({"m": full(addresses="m"), "own": of_s}).init(KEY, start={"s": 1.0}, own=0.0)


@malformed
def a_combination_begins_with_an_unknown_part():
    vipl.guides.combine({"m": full(addresses="m"), "own": of_s}).init(KEY, own=0.0, mine=0.0)


@malformed
def a_scale_that_is_negative():
    full().init(KEY, scale=-0.1)


@malformed
def a_scale_that_is_text():
    full().init(KEY, scale="small")


@malformed
def a_frame_of_another_size():
    full(frame=(jnp.zeros(3), jnp.eye(3)))


@malformed
def a_frame_that_is_not_positive():
    full(frame=(jnp.zeros(2), -jnp.eye(2)))


@malformed
def a_flow_with_a_small_layer():
    vipl.guides.Flow(location(), SEEN, hidden=(1,))


@malformed
def a_flow_with_a_layer_that_is_a_number():
    vipl.guides.Flow(location(), SEEN, hidden=32)


@vipl.gen
def plate(weight=None):
    """A global choice, and rows with one of their own."""
    m = sample("m", dist.Normal(0.0, 1.0))

    def row():
        of_row = dist.Normal(m, 1.0)
        z = sample("z", of_row if weight is None else vipl.scaled(of_row, weight))
        sample("y", dist.Normal(z, 1.0))

    jax.vmap(row, axis_size=3)()


def by_network(params, row):
    """An encoder."""
    return {"z": {"loc": params * row["y"], "log_scale": params}}


def amortized(encode=by_network, params=0.5, *, model=None, data=None, **options):
    """A guide by row."""
    options = {"addresses": "z"} | options
    return vipl.guides.Amortized(plate() if model is None else model, data or SEEN, encode, params, **options)


@malformed
def an_encoder_of_one_argument():
    amortized(lambda row: by_network(0.5, row))


@malformed
def an_encoder_with_outputs_of_another_shape():
    amortized(lambda params, row: {"z": {"loc": jnp.zeros(2), "scale": params}})


@malformed
def an_encoder_that_returns_a_vector():
    amortized(lambda params, row: params * jnp.ones(2))


@malformed
def an_encoder_that_returns_integers():
    amortized(lambda params, row: {"z": {"loc": jnp.array(1), "log_scale": jnp.array(0)}})


@malformed
def an_encoder_with_parameters_that_are_no_arrays():
    amortized(params={"net": jnp.tanh})


@malformed
def an_amortized_guide_without_parameters():
    amortized(params=None).init(KEY)


@malformed
def an_amortized_guide_with_a_start():
    amortized().init(KEY, start={"z": jnp.zeros(3)})


@malformed
def an_amortized_guide_of_a_global_choice_too():
    amortized(addresses=None)


@malformed
def an_amortized_guide_by_row_without_rows():
    amortized(addresses="m", by_row=True)


@malformed
def an_amortized_guide_with_a_word_for_by_row():
    amortized(by_row="z")


@malformed
def rows_of_a_guide_that_has_none():
    vipl.guides.Amortized(location(), SEEN, by_network, num_rows=9)


@malformed
def inputs_with_another_number_of_rows():
    amortized(inputs={"y": jnp.ones(4)})


@malformed
def inputs_that_are_nan():
    amortized(inputs={"y": np.array([0.1, np.nan, 0.3])})


@malformed
def inputs_that_are_forgotten_for_other_data():
    amortized(inputs=SEEN).for_data(plate(), SEEN)


@malformed
def rows_that_count_in_the_model_alone():
    amortized(model=plate(4.0))


@malformed
def rows_that_count_in_the_guide_alone():
    amortized(num_rows=12)


@malformed
def an_amortized_guide_of_a_family_that_is_a_search():
    amortized(family=vipl.guides.Laplace)


@malformed
def an_amortized_guide_of_a_family_that_wants_more():
    amortized(family=vipl.guides.LowRank)


@malformed
def an_amortized_guide_in_a_file():
    posterior = vipl.Posterior(location(), SEEN, vipl.guides.Amortized(
        location(), SEEN, lambda params, data: params, vipl.guides.MeanField(location(), SEEN).init(KEY)
    ), vipl.guides.MeanField(location(), SEEN).init(KEY))  # fmt: skip
    posterior.save("posterior.npz")


@vipl.gen
def regimes(low=0):
    """A real choice, a chain, and a choice beside it."""
    m = sample("m", dist.Normal(0.0, 1.0))
    a = sample("a", dist.Bernoulli(0.5))

    def step(z, _):
        z = sample("z", dist.DiscreteUniform(low, low + 2))
        return z, sample("y", dist.Normal(z + m + a, 1.0))

    jax.lax.scan(step, 0, None, length=3)


@malformed
def a_chain_of_real_numbers():
    vipl.guides.Markov(location(), SEEN)


@malformed
def a_chain_outside_a_scan():
    vipl.guides.Markov(regimes(), SEEN, addresses=["a", "z"])


@malformed
def a_chain_in_a_branch():
    def step(z, x):
        z = jax.lax.cond(x > 0, lambda: sample("z", dist.Bernoulli(0.4)), lambda: 0)
        return z, sample("y", dist.Normal(z, 1.0))

    program = vipl.gen(lambda x: jax.lax.scan(step, 0, x)[1])
    jax.jit(lambda x: vipl.guides.Markov(program(x), SEEN).init(KEY))(jnp.ones(3))


@malformed
def a_chain_with_an_estimator_that_is_none():
    vipl.guides.Markov(regimes(), SEEN, addresses="z", discrete="score")


@malformed
def a_chain_with_parameters_of_a_mean_field():
    free = vipl.guides.MeanField(regimes(), SEEN, addresses="z")
    vipl.guides.Markov(regimes(), SEEN, addresses="z")(free.init(KEY))


@vipl.gen
def two_steps(params):
    """A chain with fewer steps."""
    jax.lax.scan(lambda z, _: (sample("z", dist.Categorical(jnp.ones(3) / 3)), None), 0, None, length=2)


def bound_with_chain(guide, address="z", given=None):
    """The bound of regimes whose other choices are known."""
    known = SEEN | {"m": 0.0, "a": 1} if given is None else given
    expected(lambda: vipl.objectives.elbo_with_chain(regimes(), guide, known, address))


@malformed
def a_chain_of_another_length():
    bound_with_chain(two_steps(0.0))


@malformed
def a_chain_at_an_address_that_is_not_the_guides():
    bound_with_chain(two_steps(0.0), "w")


@malformed
def a_chain_of_a_model_with_other_choices():
    bound_with_chain(two_steps(0.0), given=SEEN)


@malformed
def a_flow_of_an_unknown_architecture():
    vipl.guides.Flow(location(), SEEN, architecture="planar")


@malformed
def a_flow_without_layers_in_its_network():
    vipl.guides.Flow(location(), SEEN, architecture="block_neural", hidden=())


@malformed
def a_flow_with_bins_and_no_splines():
    vipl.guides.Flow(location(), SEEN, num_bins=8)


@malformed
def a_coupling_with_layers_of_two_sizes():
    vipl.guides.Flow(location(), SEEN, architecture="coupling", hidden=(8, 16))


@malformed
def a_coupling_with_one_bin():
    vipl.guides.Flow(location(), SEEN, architecture="coupling", num_bins=1)


@malformed
def a_coupling_without_flowjax():
    with mock.patch.dict(sys.modules, {"flowjax.bijections": None}):
        vipl.guides.Flow(location(), SEEN, architecture="coupling")


def semi_implicit(**options):
    """A guide whose density is estimated."""
    return vipl.guides.SemiImplicit(location(), SEEN, **options)


@malformed
def a_semi_implicit_guide_without_particles():
    semi_implicit(num_particles=0)


@malformed
def a_semi_implicit_guide_without_noise():
    semi_implicit(noise_size=0)


@malformed
def a_semi_implicit_guide_without_layers():
    semi_implicit(hidden=())


@malformed
def a_semi_implicit_guide_with_a_layer_that_is_a_number():
    semi_implicit(hidden=32)


@malformed
def the_density_of_a_semi_implicit_guide_held():
    held = vipl.expectation(lambda p: vipl.objectives.sticking_the_landing(location(), semi_implicit()(p), SEEN))
    held.estimate(KEY, semi_implicit().init(KEY))


@malformed
def the_density_of_a_semi_implicit_posterior_without_a_key():
    guide = semi_implicit()
    vipl.Posterior(location(), SEEN, guide, guide.init(KEY)).log_prob({"m": 0.1, "s": 0.5})


def boosted(**options):
    """A mixture that is grown."""
    return vipl.guides.Boosted(location(), SEEN, **options)


@malformed
def a_boosted_guide_without_components():
    boosted(num_components=0)


@malformed
def a_boosted_guide_grows_by_less_than_nothing():
    guide = boosted(num_components=1)
    params = {"logits": jnp.zeros(1), "loc": jnp.zeros((1, 2)), "scale_tril": jnp.eye(2)[None]}
    guide.grow(KEY, params, -1)


@malformed
def a_boosted_guide_grows_from_the_parameters_of_another():
    boosted(num_components=1).grow(KEY, full().init(KEY))


@malformed
def a_boosted_guide_of_a_discrete_choice():
    vipl.guides.Boosted(vipl.gen(lambda: sample("k", dist.Bernoulli(0.5)))(), {})


@malformed
def a_boosted_guide_whose_density_ends():
    def ends():
        a = sample("a", dist.Normal(0.0, 1.0))
        sample("y", dist.Uniform(a - 1.0, a + 1.0))

    vipl.guides.Boosted(vipl.gen(ends)(), {"y": 0.5}, 1).init(KEY)


@malformed
def infer_by_a_class_that_wants_more():
    vipl.infer(location(), SEEN, key=KEY, guide=vipl.guides.LowRank)


@malformed
def infer_by_a_guide_of_another_model():
    vipl.infer(elsewhere(), SEEN, key=KEY, guide=full())


@malformed
def infer_by_a_guide_of_other_data():
    vipl.infer(location(), {"y": np.ones(3)}, key=KEY, guide=full())


@malformed
def infer_by_a_combination_of_other_data():
    parts = {"m": full(addresses="m"), "s": full(addresses="s")}
    vipl.infer(location(), {"y": np.ones(3)}, key=KEY, guide=vipl.guides.combine(parts))


@malformed
def infer_by_a_program_of_ones_own_in_a_combination():
    guide = vipl.guides.combine({"m": full(addresses="m"), "s": of_s})
    vipl.infer(location(), SEEN, key=KEY, guide=guide)


@malformed
def a_bound_in_another_block():
    def ends():
        a = sample("a", dist.Normal(0.0, 1.0))
        sample("u", dist.Uniform(a, a + 1.0))

    vipl.guides.BlockDiagonal(vipl.gen(ends)(), {}, [["a"], ["u"]])


@malformed
def weights_of_a_point_beside_a_guide():
    guide = vipl.guides.combine({"m": full(addresses="m"), "s": vipl.guides.Delta(location(), SEEN, addresses="s")})
    vipl.Posterior(location(), SEEN, guide, guide.init(KEY)).improve(KEY)


@malformed
def a_posterior_of_other_supports():
    model = vipl.gen(lambda: sample("m", dist.Normal(0.0, 1.0)) + sample("s", dist.Normal(0.0, 1.0)))
    other = vipl.gen(lambda: sample("m", dist.Normal(0.0, 1.0)) + sample("s", dist.HalfNormal(1.0)))
    guide = vipl.guides.MeanField(model(), {})
    with tempfile.TemporaryDirectory() as folder:
        vipl.Posterior(model(), {}, guide, guide.init(KEY)).save(f"{folder}/posterior.npz")
        vipl.load(f"{folder}/posterior.npz", other(), {})


@malformed
def a_batch_that_is_none():
    data = iter([np.float64(1.0), None, np.float64(1.0)])
    objective = vipl.expectation(lambda m, x: (m - x) ** 2)
    vipl.fit(objective, 0.0, optax.adam(0.1), key=KEY, data=data, num_steps=3, progress=False)


@malformed
def infer_by_stochastic_gradients_inside_jit():
    mixed = lambda model, data: vipl.guides.Mixture(model, data, 2)  # noqa: E731
    jax.jit(lambda y: vipl.infer(location(), {"y": y}, key=KEY, guide=mixed).params)(SEEN["y"])


@malformed
def infer_of_what_has_to_be_tried_inside_vmap():
    structured = vipl.guides.Structured
    jax.vmap(lambda y: vipl.infer(location(), {"y": y}, key=KEY, guide=structured).params)(np.ones((2, 3)))


@malformed
def a_fit_inside_jit():
    options = {"key": KEY, "num_steps": 5, "progress": False}
    jax.jit(lambda m: vipl.fit(vipl.expectation(lambda m: m), m, optax.adam(0.1), **options).params)(1.0)


@malformed
def a_fit_inside_vmap_of_an_objective_that_is_traced():
    options = {"key": KEY, "num_steps": 5, "progress": False}

    def fitted(y):
        return vipl.fit(vipl.expectation(lambda m: (m - y) ** 2), 0.0, optax.adam(0.1), **options).params

    jax.vmap(fitted)(np.ones(2))


@malformed
def weights_inside_vmap():
    jax.vmap(lambda key: by_hand().improve(key, 50).bound)(jax.random.split(KEY, 2))


@malformed
def evidence_of_a_traced_truth():
    jax.jit(lambda m: by_hand().evidence(KEY, 50, truth={"m": m, "s": 1.0}).upper)(0.0)


@malformed
def a_file_inside_jit():
    jax.jit(lambda scale: by_hand(log_diag=scale).save("posterior.npz"))(jnp.zeros(2))


@malformed
def infer_with_half_a_sample():
    vipl.infer(location(), SEEN, key=KEY, num_samples=0.5)


@malformed
def infer_with_less_than_no_steps():
    vipl.infer(location(), SEEN, key=KEY, num_steps=-3)


@malformed
def a_posterior_predicts_a_function():
    by_hand().predict(KEY, location)


@malformed
def a_posterior_predicts_a_number():
    by_hand().predict(KEY, 100)


@malformed
def the_likelihood_of_a_function():
    by_hand().log_likelihood(KEY, location)


@malformed
def an_expectation_of_a_number():
    by_hand().expectation(3.0)


@malformed
def a_weighted_expectation_of_a_number():
    by_hand().improve(KEY, 50).expectation(3.0)


@malformed
def a_posterior_is_improved_by_few_draws():
    by_hand().improve(KEY, 3)


@malformed
def evidence_of_few_draws():
    by_hand().evidence(KEY, 10)


@malformed
def evidence_in_one_group():
    by_hand().evidence(KEY, 100, num_particles=60)


@malformed
def evidence_in_groups_of_half_a_draw():
    by_hand().evidence(KEY, 100, num_particles=0.5)


@malformed
def evidence_of_a_point():
    guide = vipl.guides.Delta(location(), SEEN)
    vipl.Posterior(location(), SEEN, guide, guide.init(KEY)).evidence(KEY)


@malformed
def evidence_with_the_truth_of_something_else():
    by_hand().evidence(KEY, truth={"b": 1.0})


@malformed
def evidence_with_a_number_for_the_truth():
    by_hand().evidence(KEY, truth=1.0)


@malformed
def evidence_with_a_true_draw_of_another_shape():
    by_hand().evidence(KEY, truth={"m": jnp.zeros(2), "s": 1.0})


@malformed
def evidence_of_an_estimated_density_with_a_truth():
    inner = marginal(pair(), "x", vipl.inference.Importance(2))
    model = vipl.gen(lambda: (sample("m", dist.Normal(0.0, 1.0)), sample("post", inner))[0])()
    data = {"post": {"x": 0.3}}
    guide = vipl.guides.FullRank(model, data)
    params = guide.of_moments(jnp.zeros(1), jnp.eye(1))
    vipl.Posterior(model, data, guide, params).evidence(KEY, truth={"m": 0.0})


@malformed
def evidence_with_a_true_draw_outside_its_support():
    by_hand().evidence(KEY, truth={"m": 0.0, "s": -1.0})


@malformed
def fewer_than_no_weighted_draws():
    by_hand().improve(KEY, 50).sample(KEY, -2)


@malformed
def dimensions_with_the_name_of_a_site():
    model = vipl.gen(lambda: sample("v", dist.Normal(sample("m", dist.Normal(0.0, 1.0)), 1.0).expand([2])))()
    guide = vipl.guides.MeanField(model, {})
    vipl.Posterior(model, {}, guide, guide.init(KEY)).to_arviz(KEY, num_samples=10, dims={"v": ["m"]})


@malformed
def a_site_with_the_name_of_a_dimension():
    model = vipl.gen(lambda: sample("draw", dist.Normal(0.0, 1.0)))()
    guide = vipl.guides.MeanField(model, {})
    vipl.Posterior(model, {}, guide, guide.init(KEY)).to_arviz(KEY, num_samples=10)


@malformed
def dimensions_of_an_unknown_address():
    by_hand().to_arviz(KEY, num_samples=10, dims={"x": ["row"]})


@malformed
def a_posterior_whose_guide_is_text():
    vipl.Posterior(location(), SEEN, "FullRank", {})  # type: ignore[arg-type]


@malformed
def a_posterior_with_parameters_of_another_shape():
    by_hand(loc=jnp.zeros(3))


@malformed
def a_posterior_of_a_function():
    vipl.Posterior(location, SEEN, full(), full().init(KEY))  # type: ignore[arg-type]


@malformed
def as_many_predictions_as_there_are_not_choices():
    vipl.predict(KEY, location(), 5, choices={"m": jnp.zeros(3)})


@malformed
def predictions_of_one_choice():
    vipl.predict(KEY, location(), 5, choices={"m": 0.3})


@malformed
def predictions_of_unknown_choices():
    vipl.predict(KEY, location(), 5, choices={"mean": jnp.zeros(5)})


@malformed
def predictions_of_a_list():
    vipl.predict(KEY, location(), 5, choices=[0.1, 0.2])  # type: ignore[arg-type]


@malformed
def a_file_of_data_of_another_shape():
    loaded(location(4), {"y": np.ones(4)})


@malformed
def a_file_for_a_function():
    loaded(location, SEEN)


@malformed
def a_file_of_other_latent_choices():
    def renamed():
        sample("mu", dist.Normal(0.0, 1.0))
        sample("sd", dist.HalfNormal(1.0))
        sample("y", dist.Normal(jnp.zeros(3), 1.0))

    renamed.__name__ = "location"
    loaded(vipl.gen(renamed)(), SEEN)


@malformed
def calibrate_with_data_that_are_given():
    vipl.diagnostics.calibrate(KEY, location(), "y", given=SEEN)


@malformed
def calibrate_without_data():
    vipl.diagnostics.calibrate(KEY, location(), None)


# --- what use has found ------------------------------------------------------------------------------------------


@malformed
def more_dimensions_than_a_variable_has():
    by_hand().to_arviz(KEY, num_samples=30, dims={"m": ["school"]})


@malformed
def coordinates_of_another_length():
    by_hand().to_arviz(KEY, num_samples=30, dims={"y": ["row"]}, coords={"row": [1, 2]})


@malformed
def a_file_of_other_data():
    loaded(location(), {"y": np.full(3, 7.0)})


@malformed
def a_datum_outside_its_support():
    @vipl.gen
    def waits():
        rate = sample("rate", dist.Gamma(2.0, 1.0))
        sample("y", dist.Exponential(rate))

    vipl.infer(waits(), {"y": -1.0}, key=KEY)


@malformed
def discrete_choices_that_are_impossible_together():
    @vipl.gen
    def alive():
        stays = sample("stays", dist.Uniform(0.0, 1.0))

        def step(z, _):
            z = sample("z", dist.Bernoulli(stays * z))
            return z, sample("y", dist.Bernoulli(0.5 * z))

        jax.lax.scan(step, 1, None, length=12)

    vipl.infer(alive(), {"y": jnp.ones(12, int)}, key=KEY)


@malformed
def a_checkpoint_in_the_place_of_a_file():
    vipl.fit(vipl.expectation(lambda m: m), 1.0, optax.adam(0.1), key=KEY, num_steps=2, checkpoint=__file__)


@malformed
def a_fit_of_nothing():
    vipl.fit(vipl.expectation(lambda m: m), None, optax.adam(0.1), key=KEY, num_steps=2)


@malformed
def counts_with_holes():
    vipl.gen(lambda: sample("k", dist.Poisson(jnp.ones(3))))().assess({"k": jnp.array([1.0, jnp.nan, 2.0])})


@malformed
def counts_that_are_no_integers():
    vipl.gen(lambda: sample("k", dist.Poisson(jnp.ones(3))))().assess({"k": jnp.array([1.0, 0.5, 2.0])})


@malformed
def a_probability_that_is_an_integer():
    vipl.gen(lambda: sample("b", dist.Bernoulli(1)))().simulate(KEY)


@malformed
def a_score_of_a_moving_support():
    vipl.expectation(lambda p: sample("x", dist.Uniform(0.0, p), vipl.Score())).value_and_grad(KEY, 0.3)


@malformed
def an_objective_that_returns_an_integer():
    vipl.expectation(lambda p: jnp.sum(sample("b", dist.Bernoulli(p).expand([3])))).estimate(KEY, 0.3)


@malformed
def an_objective_that_returns_a_program():
    vipl.expectation(lambda: location()).estimate(KEY)


@malformed
def a_size_of_lanes_that_is_traced():
    @vipl.gen
    def repeated(n):
        z = sample("z", dist.Normal(0.0, 1.0))
        jax.vmap(lambda: sample("y", dist.Normal(z, 1.0)), axis_size=n)()

    jax.jit(lambda n: repeated(n).simulate(KEY).log_prob)(3)


@malformed
def a_chi_bound_below_one():
    model, guide = location(), vipl.gen(lambda: sample("m", dist.Normal(0.0, 1.0)))
    objective("chi_upper_bound", model, guide(), SEEN, order=0.5, num_particles=2)


@malformed
def betas_that_decrease():
    model, guide = location(), vipl.gen(lambda: sample("m", dist.Normal(0.0, 1.0)))
    objective("thermodynamic", model, guide(), SEEN, [0.0, 0.9, 0.5], num_particles=2)


@malformed
def a_suffix_that_is_no_text():
    vipl.partly_observed(location(), {"y": jnp.array([1.0, jnp.nan, 2.0])}, suffix=3)  # type: ignore[arg-type]


class TooManyWeights(Estimator):
    """Returns two values, and three weights."""

    def points(self, law, key):
        return vipl.estimators.Points(jnp.array([0, 1]), jnp.log(jnp.array([0.5, 0.3, 0.2])))


class WeightOfVector(Estimator):
    """Returns a log weight for each of three elements that there are not."""

    def points(self, law, key):
        return vipl.estimators.Draw(law.sample(key), log_weight=jnp.zeros(3))


class WeightsInRows(Estimator):
    """Returns one alternative, with a row of weights."""

    def points(self, law, key):
        x = law.sample(key)
        return vipl.estimators.Draw(x, alternatives=vipl.estimators.Alternatives((1 - x)[None], jnp.zeros((1, 2))))


@malformed
def more_weights_than_values():
    seeded(lambda: jax.vmap(lambda p: sample("x", dist.Bernoulli(p), TooManyWeights()))(jnp.array([0.2, 0.3])))


@malformed
def a_log_weight_that_is_no_number():
    seeded(lambda: sample("x", dist.Bernoulli(0.2), WeightOfVector()))


@malformed
def weights_of_alternatives_in_rows():
    seeded(lambda: sample("x", dist.Bernoulli(0.2), WeightsInRows()))


@malformed
def a_count_beyond_the_integers():
    vipl.gen(lambda: sample("k", dist.Poisson(3.0)))().assess({"k": np.array([2**63 + 5], np.uint64)[0]})


@malformed
def counts_beyond_the_integers():
    vipl.gen(lambda: sample("k", dist.Poisson(jnp.ones(2))))().assess({"k": np.array([1.0, 1e30])})


@malformed
def a_masked_array_as_choices():
    location().assess({"m": 0.0, "y": np.ma.masked_array([1.0, 2.0, 3.0], mask=[0, 0, 1])})


@malformed
def a_masked_array_as_an_argument():
    vipl.expectation(lambda y: jnp.sum(y)).estimate(KEY, np.ma.masked_array([1.0, 2.0], mask=[0, 1]))


@malformed
def a_masked_array_as_data_of_fit():
    masked = np.ma.masked_array([1.0, 2.0, 3.0], mask=[0, 0, 1])
    objective = vipl.expectation(lambda m, y: -((m - y.mean()) ** 2))
    vipl.fit(objective, 0.0, optax.adam(0.1), key=KEY, data=masked, num_steps=2)


@malformed
def a_guide_of_three_arguments():
    vipl.infer(location(), SEEN, key=KEY, guide=lambda model, data, rank: vipl.guides.LowRank(model, data, rank))


@malformed
def a_guide_that_needs_a_rank():
    vipl.infer(location(), SEEN, key=KEY, guide=vipl.guides.LowRank)


@malformed
def a_program_of_ones_own_as_a_guide_of_infer():
    @vipl.gen
    def mine(loc, scale, more):
        sample("m", dist.Normal(loc, scale + more))

    vipl.infer(location(), SEEN, key=KEY, guide=mine)


@malformed
def guides_in_a_list():
    vipl.guides.combine([vipl.guides.FullRank(location(), SEEN)])  # type: ignore[arg-type]


@malformed
def a_direction_that_is_a_text():
    objective, wrong = vipl.expectation(lambda m: -(m**2)), {"maximize": "no"}
    vipl.fit(objective, 0.0, optax.adam(0.1), key=KEY, num_steps=2, **wrong)  # type: ignore[arg-type]


@malformed
def a_dimension_called_draw():
    posterior = vipl.infer(location(), SEEN, key=KEY)
    posterior.to_arviz(KEY, num_samples=4, dims={"y": ["draw"]})


@malformed
def coordinates_of_a_dimension_that_arviz_names():
    posterior = vipl.infer(location(), SEEN, key=KEY)
    posterior.to_arviz(KEY, num_samples=4, coords={"y_dim_0": [1, 2]})


@malformed
def parameters_of_another_network():
    params, apply = vipl.interop.flax.functional(nnx.Linear(2, 3, rngs=nnx.Rngs(0)))
    apply({"x": 1.0})


@malformed
def a_function_in_a_distribution_that_closes_over_an_argument():
    @vipl.gen
    def process(t):
        sample("x", dist.EulerMaruyama(jnp.array([0.0, 0.3]), lambda x, _: (-t * x, 1.0), dist.Normal(0.0, 1.0)))

    process(0.5).simulate(KEY)


@malformed
def a_distribution_that_needs_a_library():
    @vipl.gen
    def cut(scale):
        sample("x", dist.TruncatedDistribution(dist.StudentT(4.0, 0.0, scale), low=-1.0, high=2.0))

    cut(1.0).assess({"x": 0.3})


@malformed
def a_marginal_as_its_own_proposal():
    @vipl.gen
    def pairs():
        k = sample("k", dist.Bernoulli(0.3))
        sample("x", dist.Normal(k + sample("j", dist.Bernoulli(0.6)), 1.0))

    inner = vipl.marginal(pairs(), ("k", "x"), vipl.inference.Enumeration())
    vipl.marginal(inner, "x", vipl.inference.Importance(2)).assess({"x": 0.7}, key=KEY)


@malformed
def counts_of_a_multinomial_that_are_traced():
    @vipl.gen
    def votes(counts):
        p = sample("p", dist.Dirichlet(jnp.ones(3)))
        sample("y", dist.Multinomial(counts.sum(-1), p).to_event(1))

    vipl.infer(votes(jnp.ones((4, 3), int)), {"y": jnp.ones((4, 3), int)}, key=KEY)


@malformed
def data_whose_address_has_a_capital():
    vipl.infer(location(), {"Y": 1.0}, key=KEY)


@malformed
def data_of_objects():
    vipl.infer(location(), {"y": np.array(1.0, object)}, key=KEY)


@malformed
def an_optimizer_of_infer_by_name():
    vipl.infer(location(), SEEN, key=KEY, optimizer="adam")


@malformed
def a_relaxed_draw_for_a_site_of_integers():
    model = vipl.gen(lambda: sample("b", dist.Bernoulli(0.3)))
    guide = vipl.gen(lambda phi: sample("b", dist.Bernoulli(logits=phi), vipl.StraightThrough()))
    expected(lambda phi: vipl.objectives.elbo(model(), guide(phi), {}), 0.5)


@malformed
def a_guide_itself_for_calibrate():
    vipl.diagnostics.calibrate(KEY, location(), "y", guide=vipl.guides.MeanField(location(), SEEN))


@malformed
def a_log_likelihood_of_other_rows_without_data():
    guide = vipl.guides.MeanField(location(), SEEN)
    vipl.Posterior(location(), SEEN, guide, guide.init(KEY)).log_likelihood(KEY, location(5))
