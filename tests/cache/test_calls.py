"""The law of calls: a call from ordinary Python gives what it would give in a fresh process.

Each case is a program that reads something, and a change of that; right is what a fresh program of the same text gives.
"""

import collections
import dataclasses
import functools
import os
import random
import subprocess
import sys
import time
import types
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import optax
import pytest

import vipl
from vipl import sample
from vipl.cache.fingerprint import read

KEY = jax.random.key(29)


class Cell:
    """The globals of a notebook: cells are run in it, and may be edited and run again."""

    def __init__(self, *texts):
        self.names = {"__name__": "notebook", "vipl": vipl, "sample": sample, "dist": dist, "jnp": jnp, "jax": jax}
        self.names |= {"np": np, "functools": functools, "dataclasses": dataclasses, "collections": collections}
        self.texts = texts
        for text in texts:
            self.run(text)

    def run(self, text):
        """Runs a cell."""
        exec(compile(text, "<cell>", "exec"), self.names)  # noqa: S102

    def __getitem__(self, name):
        return self.names[name]


MODEL = """
@vipl.gen
def model():
    x = sample("x", dist.Normal(0.3, {sd}))
    sample("y", dist.Normal(x, 1.0))

@vipl.gen
def guide(phi):
    sample("x", dist.Normal(phi, 0.7))

def drawn():
    return sample("x", dist.Normal(0.3, {sd}))

@vipl.expectation
def objective(phi):
    q = guide(phi).simulate()
    return model().assess(q.choices | {{"y": 1.2}}).log_prob - q.log_prob
"""

# name -> a cell, one that changes something, and the model's `sd`: 2.0 before, 0.5 after.
CHANGES = {
    "a function": ("def spread(): return 2.0", "def spread(): return 0.5", "spread()"),
    "through two levels": (
        "def inner(): return 2.0\ndef outer(): return inner()",
        "def inner(): return 0.5",
        "outer()",
    ),
    "a number": ("sd = 2.0", "sd = 0.5", "sd"),
    "a nested list": ("s = [0, [2.0]]", "s[1][0] = 0.5", "s[1][0]"),
    "a dict": ("s = {'sd': {'x': 2.0}}", "s['sd']['x'] = 0.5", "s['sd']['x']"),
    "a set": ("s = {2.0}", "s.clear(); s.add(0.5)", "max(s)"),
    "an array in place": ("s = np.array([2.0, 1.0])", "s[0] = 0.5", "s[0]"),
    "a large array in place": ("s = np.full(9000, 2.0)", "s[8999] = 0.5", "s[-1]"),
    "a view": ("t = np.array([1.0, 2.0]); s = t[::-1]", "t[1] = 0.5", "s[0]"),
    "an array": ("s = jnp.array([2.0])", "s = jnp.array([0.5])", "s[0]"),
    "an attribute": ("class C: pass\nc = C(); c.sd = 2.0", "c.sd = 0.5", "c.sd"),
    "an attribute by name": ("class C: pass\nc = C(); c.sd = 2.0", "c.sd = 0.5", "getattr(c, 's' + 'd')"),
    "a dataclass": ("@dataclasses.dataclass\nclass C: sd: float = 2.0\nc = C()", "c.sd = 0.5", "c.sd"),
    "a slot": ("class C:\n  __slots__ = ('sd',)\nc = C(); c.sd = 2.0", "c.sd = 0.5", "c.sd"),
    "a class attribute": ("class C: sd = 2.0\nc = C()", "C.sd = 0.5", "c.sd"),
    "a class": ("class C:\n  sd = 2.0", "class C:\n  sd = 0.5", "C().sd"),
    "a method": ("class C:\n  def f(self): return 2.0\nc = C()", "C.f = lambda self: 0.5", "c.f()"),
    "a base class": (
        "class A:\n  def f(self): return 2.0\nclass B(A): pass\nc = B()",
        "A.f = lambda self: 0.5",
        "c.f()",
    ),
    "a property": ("t = 2.0\nclass C:\n  @property\n  def sd(self): return t\nc = C()", "t = 0.5", "c.sd"),
    "what a constructor reads": ("t = 2.0\nclass C:\n  def __init__(self): self.sd = t", "t = 0.5", "C().sd"),
    "a callable object": ("t = 2.0\nclass C:\n  def __call__(self): return t\nc = C()", "t = 0.5", "c()"),
    "a partial": ("t = [2.0]\nf = functools.partial(lambda a: a[0], t)", "t[0] = 0.5", "f()"),
    "a decorated function": (
        "t = 2.0\ndef d(f):\n  @functools.wraps(f)\n  def g(): return f()\n  return g\n@d\ndef f(): return t",
        "t = 0.5",
        "f()",
    ),
    "functions in a list": ("t = 2.0\nf = [lambda: t]", "t = 0.5", "f[0]()"),
    "functions in a dict": ("f = {'a': lambda: 2.0}", "f['a'] = lambda: 0.5", "f['a']()"),
    "a default": ("def f(sd=2.0): return sd", "f.__defaults__ = (0.5,)", "f()"),
    "a default that is a function": ("t = 2.0\nf = lambda g=lambda: t: g()", "t = 0.5", "f()"),
    "a variable of a closure": (
        "def make():\n  sd = 2.0\n  def f(): return sd\n  def put(x):\n    nonlocal sd\n    sd = x\n  return f, put\n"
        "f, put = make()",
        "put(0.5)",
        "f()",
    ),
    "a nested function": ("t = 2.0", "t = 0.5", "(lambda: [t for _ in range(1)][0])()"),
    "a jitted function": ("t = 2.0\nf = jax.jit(lambda x: x * t)", "t = 0.5", "f(1.0)"),
    "a mapped function": ("t = 2.0\nf = jax.vmap(lambda x: x * t)", "t = 0.5", "f(jnp.ones(2))[0]"),
    "a scanned function": (
        "t = 2.0\ndef step(c, _): return c * t, None",
        "t = 0.5",
        "jax.lax.scan(step, 1.0, None, length=1)[0]",
    ),
    "a custom rule": ("t = 2.0\n@jax.custom_jvp\ndef f(x): return x * t\nf.defjvps(None)", "t = 0.5", "f(1.0)"),
    "a distribution": ("d = dist.Normal(0.0, 2.0)", "d = dist.Normal(0.0, 0.5)", "d.scale"),
    "a distribution's attribute": ("d = dist.Normal(0.0, 2.0)", "d.scale = 0.5", "d.scale"),
    "a deque": ("s = collections.deque([2.0])", "s.appendleft(0.5)", "s[0]"),
    "an environment": ("import os\nos.environ['VIPL_SD'] = '2.0'", "os.environ['VIPL_SD'] = '0.5'",
                       "float(os.environ['VIPL_SD'])"),
}  # fmt: skip


@functools.cache
def right(name, sd):
    """What a call gives in a notebook in which nothing was ever changed."""
    return CALLS[name](Cell(MODEL.format(sd=sd)))


def agree(a, b):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12), a, b)


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_is_seen(name):
    before, after, expression = CHANGES[name]
    notebook = Cell(before, MODEL.format(sd=expression))
    for call in ("estimate", "value_and_grad", "assess"):
        agree(CALLS[call](notebook), right(call, 2.0))
    notebook.run(after)
    for call in ("estimate", "value_and_grad", "assess"):
        agree(CALLS[call](notebook), right(call, 0.5))
        assert abs(jax.tree.leaves(right(call, 0.5))[0] - jax.tree.leaves(right(call, 2.0))[0]) > 0.1


CALLS = {
    "estimate": lambda n: n["objective"].estimate(KEY, 0.4),
    "value_and_grad": lambda n: n["objective"].value_and_grad(KEY, 0.4),
    "grad": lambda n: jax.grad(n["objective"].estimate, argnums=1)(KEY, 0.4),
    "vmap": lambda n: jax.vmap(n["objective"].estimate, (0, None))(jax.random.split(KEY, 3), 0.4),
    "jit": lambda n: jax.jit(lambda key: n["objective"].estimate(key, 0.4))(KEY),
    "num_samples": lambda n: n["objective"].estimate(KEY, 0.4, num_samples=3),
    "with_estimators": lambda n: n["objective"].with_estimators({"x": vipl.Score()}).value_and_grad(KEY, 0.4),
    "simulate": lambda n: n["model"]().simulate(KEY).choices,
    "assess": lambda n: n["model"]().assess({"x": 0.2, "y": 0.1}).log_prob,
    "assess with a key": lambda n: n["model"]().assess({"x": 0.2, "y": 0.1}, key=KEY).log_prob,
    "gradient of assess": lambda n: jax.grad(lambda x: n["model"]().assess({"x": x, "y": 0.1}).log_prob)(0.2),
    "generate": lambda n: n["model"]().generate({"y": 0.1}, key=KEY)[1],
    "generate all": lambda n: n["model"]().generate({"x": 0.2, "y": 0.1})[1],
    "seed": lambda n: vipl.seed(n["drawn"])(KEY),
    "particles": lambda n: vipl.normalize(n["model"](), {"y": 0.1}, vipl.inference.Importance(3))
    .particles(KEY)
    .log_weights,
    "proposal": lambda n: vipl.normalize(n["model"](), {"y": 0.1}, vipl.inference.Importance(3, n["guide"](0.2)))
    .particles(KEY)
    .log_weights,
    "proposal function": lambda n: vipl.normalize(
        n["model"](), {"y": 0.1}, vipl.inference.Importance(2, lambda _: n["guide"](0.2))
    ).assess({"x": 0.3}, key=KEY).log_prob,
    "marginal": lambda n: vipl.marginal(n["model"](), "y").assess({"y": 0.1}, key=KEY).log_prob,
    "simulate of a marginal": lambda n: vipl.marginal(n["model"](), "x").simulate(KEY).choices,
    "objectives": lambda n: vipl.expectation(
        lambda phi: vipl.objectives.iwelbo(n["model"](), n["guide"](phi), {"y": 1.2}, num_particles=2)
    ).estimate(KEY, 0.4),
    "fit": lambda n: vipl.fit(
        n["objective"], 0.4, optax.adam(0.1), key=KEY, num_steps=3, progress=False
    ).params,
}  # fmt: skip


@pytest.mark.parametrize("name", CALLS)
def test_every_call_sees_a_change(name):
    notebook = Cell("sd = 2.0", MODEL.format(sd="sd"))
    old = CALLS[name](notebook)
    notebook.run("sd = 0.5")
    new = CALLS[name](notebook)
    agree(new, right(name, 0.5))
    assert any(np.any(np.abs(a - b) > 1e-3) for a, b in zip(jax.tree.leaves(old), jax.tree.leaves(new), strict=True))


def test_a_body_of_a_scan_that_another_program_has_traced():
    """JAX keeps what it has traced of a function by identity, also for programs that it has not seen."""
    notebook = Cell("rate = 2.0\ndef step(c, _): return c * rate, None")
    text = """
@vipl.expectation
def {name}(m):
    return jax.lax.scan(step, sample("x", dist.Normal(m, 0.1)), None, length=2)[0] + {shift}
"""
    notebook.run(text.format(name="first", shift=0.0))
    first = notebook["first"].estimate(KEY, 0.3)
    notebook.run("rate = 3.0" + text.format(name="second", shift=1.0))
    np.testing.assert_allclose(notebook["second"].estimate(KEY, 0.3), first / 4 * 9 + 1.0, rtol=1e-12)


def test_estimators_and_distributions_that_read():
    notebook = Cell(
        """
scale = 1.0
class Scored(vipl.estimators.Estimator):
    def points(self, law, key):
        x = jax.lax.stop_gradient(law.sample(key))
        return vipl.estimators.Draw(x, log_weight=scale * law.log_prob(x))
class Stretched(dist.Normal):
    def sample(self, key, sample_shape=()):
        return scale * super().sample(key, sample_shape)
@vipl.expectation
def objective(m):
    return sample("x", dist.Normal(m, 1.0), Scored())
@vipl.gen
def stretched():
    return sample("x", Stretched(0.0, 1.0))
"""
    )
    grad, draw = notebook["objective"].value_and_grad(KEY, 0.3)[1], notebook["stretched"]().simulate(KEY).retval
    notebook.run("scale = 3.0")
    np.testing.assert_allclose(notebook["objective"].value_and_grad(KEY, 0.3)[1], 3.0 * grad, rtol=1e-12)
    np.testing.assert_allclose(notebook["stretched"]().simulate(KEY).retval, 3.0 * draw, rtol=1e-12)


def test_a_module():
    module: Any = types.ModuleType("settings")
    module.scale = 2.0
    notebook = Cell()
    notebook.names["settings"] = module
    notebook.run(MODEL.format(sd="settings.scale"))
    notebook["objective"].estimate(KEY, 0.4)
    module.scale = 0.5
    agree(notebook["objective"].estimate(KEY, 0.4), right("estimate", 0.5))


def test_a_flax_module():
    from flax import nnx

    net = nnx.Linear(1, 1, rngs=nnx.Rngs(0))

    @vipl.expectation
    def objective(m):
        return net(sample("x", dist.Normal(m, 1.0))[None])[0]

    before = objective.estimate(KEY, 0.3)
    assert net.bias is not None
    net.bias[...] = net.bias[...] + 1.5
    np.testing.assert_allclose(objective.estimate(KEY, 0.3), before + 1.5, rtol=1e-5)  # Flax's parameters are float32


# --- what has not changed is not compiled again ---------------------------------------------------------------


class Counter:
    """How often XLA compiles, and programs are traced, in a `with` block."""

    count = 0
    listens = False

    def __enter__(self):
        if not Counter.listens:
            jax.monitoring.register_event_duration_secs_listener(Counter.hear)
            Counter.listens = True
        self.before = Counter.count
        return self

    @staticmethod
    def hear(event, *_, **__):
        """Counts."""
        Counter.count += "backend_compile" in event

    def __exit__(self, *_):
        self.compiled = Counter.count - self.before


def test_the_same_cell_again_is_not_traced():
    notebook, traces = Cell("n = []"), []
    text = MODEL.format(sd=2.0).replace("    q =", "    traces.append(1)\n    q =")
    notebook.names["traces"] = traces
    for _ in range(3):
        notebook.run("# another comment\n" * len(traces) + text)
        notebook["objective"].value_and_grad(KEY, 0.4)
    assert len(traces) == 1
    notebook.run(text.replace("2.0", "0.5"))
    notebook["objective"].value_and_grad(KEY, 0.4)
    assert len(traces) == 2


def test_value_and_grad_is_one_compiled_program():
    """Python does little more for it than for `estimate`; to differentiate `estimate` in each call takes much more."""
    objective = Cell(MODEL.format(sd=2.0))["objective"]

    def functions_called(fn):
        fn()
        counts = []

        def seen(_, event, __):
            counts[-1] += event in ("call", "c_call")

        for _ in range(3):  # the garbage collector may call functions in any of them
            counts.append(0)
            sys.setprofile(seen)
            try:
                fn()
            finally:
                sys.setprofile(None)
        return min(counts)

    estimate = functions_called(lambda: objective.estimate(KEY, 0.4))
    assert functions_called(lambda: objective.value_and_grad(KEY, 0.4)) < 2 * estimate
    assert functions_called(lambda: jax.value_and_grad(objective.estimate, argnums=1)(KEY, 0.4)) > 5 * estimate


@pytest.mark.parametrize(
    "count", ["traces.append(1)", "n['k'] += 1", "global m; m += 1", "c.k = c.k + 1", "n['k'] = n['k'] + 1", "c.k += 1"]
)
def test_a_program_that_counts_its_traces_is_traced_once(count):
    notebook = Cell("class C: k = 0\nc = C(); n = {'k': 0}; m = 0; traces = []")
    notebook.run(f"@vipl.expectation\ndef objective(x):\n    {count}\n    return sample('x', dist.Normal(x, 1.0))")
    for _ in range(3):
        notebook["objective"].estimate(KEY, 0.4)
    assert len(notebook["traces"]) + notebook["n"]["k"] + notebook["m"] + notebook["c"].k == 1


def test_what_is_not_read_may_change():
    class Trainer:
        def __init__(self):
            self.losses, self.scale, self.traces = [], 1.5, []

        def loss(self, m):
            self.traces.append(1)
            return self.scale * sample("x", dist.Normal(m, 1.0))

        def train(self):
            for _ in range(3):
                self.losses.append(vipl.expectation(self.loss).estimate(KEY, 0.3))
            return self.losses

    trainer = Trainer()
    trainer.train()
    assert len(trainer.traces) == 1
    trainer.scale = 3.0
    assert trainer.train()[3] == 2 * trainer.losses[0]


OPTIMIZERS = {
    "adam": lambda: optax.adam(1e-2),
    "schedule": lambda: optax.adamw(optax.cosine_decay_schedule(0.1, 100)),
    "chain": lambda: optax.chain(optax.clip(1.0), optax.sgd(lambda t: 0.1 / (1 + t))),
    "several": lambda: optax.multi_transform({"a": optax.adam(0.1), "b": optax.sgd(0.1)}, "a"),
}


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=list(OPTIMIZERS))
def test_fit_does_not_compile_for_another_optimizer_of_the_same_kind(make):
    @vipl.expectation
    def objective(m):
        return -((sample("x", dist.Normal(m, 1.0)) - 2.0) ** 2)

    options = {"key": KEY, "progress": False}
    first = vipl.fit(objective, 0.4, make(), num_steps=20, **options)
    vipl.fit(objective, 0.4, make(), num_steps=37, **options)  # the length of `values` is new
    with Counter() as counter:
        second = vipl.fit(objective, 0.4, make(), num_steps=20, **options)
        vipl.fit(objective, 0.4, make(), num_steps=37, **options)
    assert counter.compiled == 0
    assert first.params == second.params


def test_another_learning_rate_is_another_optimizer():
    a, b, c = (read(optax.adam(rate)).token for rate in (1e-2, 2e-2, 1e-2))
    assert a == c != b


# --- what cannot be read --------------------------------------------------------------------------------------


def stream():
    yield from [2.0, 2.0, 0.5]


UNREADABLE = {
    "a clock": lambda: time.time(),
    "random numbers": lambda: random.random(),
    "NumPy's random numbers": lambda: np.random.rand(),
    "the environment": lambda: os.environ.get("HOME"),
    "a file": lambda: open("name").read(),
    "globals": lambda: globals()["KEY"],
    "a generator": functools.partial(next, stream()),
    "a stream": functools.partial(np.random.default_rng(0).normal),
}


@pytest.mark.parametrize("fn", UNREADABLE.values(), ids=list(UNREADABLE))
def test_what_cannot_be_read_is_said(fn):
    assert read(fn).unreadable


def test_what_cannot_be_read_is_traced_and_compiled_where_the_trace_is_new():
    source = iter([2.0] * 4 + [0.5] * 2)

    @vipl.expectation
    def objective(m):
        return jax.nn.relu(next(source)) * jax.nn.softplus(sample("x", dist.Normal(m, 1.0)))

    first = float(objective.estimate(KEY, 0.3))
    with Counter() as counter:
        assert [float(objective.estimate(KEY, 0.3)) for _ in range(3)] == [first] * 3
    assert counter.compiled == 0
    assert objective.estimate(KEY, 0.3) == first / 4
    assert objective.estimate(KEY, 0.3) == first / 4


def test_a_closure_over_a_traced_value():
    def loss(m):
        @vipl.expectation
        def square():
            return sample("x", dist.Normal(m, 0.5)) ** 2

        @vipl.gen
        def model():
            sample("x", dist.Normal(m, 0.5))

        return square.estimate(KEY) + model().assess({"x": 0.2}).log_prob

    for m in (0.3, -1.1):
        drawn = vipl.expectation(lambda m: sample("x", dist.Normal(m, 0.5))).estimate(KEY, m)
        np.testing.assert_allclose(jax.grad(loss)(m), 2 * drawn + (0.2 - m) / 0.25, rtol=1e-12)


# --- assess and generate from ordinary Python -----------------------------------------------------------------


@vipl.gen
def chain(n, sd):
    def step(x, _):
        x = sample("x", dist.Normal(0.9 * x, sd))
        return x, x

    return jax.lax.scan(step, 0.0, None, length=n)[1], "text"


def test_assess_is_compiled_and_agrees_with_a_program():
    xs = jnp.array([0.3, -0.2, 0.5])
    inside = jax.jit(lambda xs: chain(3, 0.7).assess({"x": xs}).log_prob)(xs)
    others = 2 * xs
    chain(3, 0.7).assess({"x": xs})
    with Counter() as counter:
        trace = chain(3, 0.7).assess({"x": xs})
        trace_of_other_values = chain(3, 0.4).assess({"x": others})
    assert counter.compiled == 0
    np.testing.assert_allclose(trace.log_prob, inside, rtol=1e-12)
    assert trace.retval[1] == "text"
    assert trace_of_other_values.log_prob < trace.log_prob
    assert chain(2, 0.7).assess({"x": xs[:2]}).retval[0].shape == (2,)


def test_gradients_and_lanes_of_assess():
    def log_prob(x, sd):
        return chain(3, sd).assess({"x": x}).log_prob

    xs, h = jnp.array([0.3, -0.2, 0.5]), 1e-6
    grad = jax.grad(log_prob, argnums=1)(xs, 0.7)
    np.testing.assert_allclose(grad, (log_prob(xs, 0.7 + h) - log_prob(xs, 0.7 - h)) / (2 * h), rtol=1e-6)
    lanes = jax.vmap(log_prob, (0, None))(jnp.stack([xs, 2 * xs]), 0.7)
    np.testing.assert_allclose(lanes, [log_prob(xs, 0.7), log_prob(2 * xs, 0.7)], rtol=1e-12)


@vipl.gen
def flip(p, sd):
    sample("b", dist.Bernoulli(probs=p))
    sample("x", dist.Normal(0.0, sd))


@pytest.mark.parametrize("args", [(1.5, 1.0), (0.5, -1.0)])
def test_parameters_that_numpyro_refuses_are_refused(args):
    assert np.isfinite(flip(0.5, 1.0).assess({"b": 1, "x": 0.3}).log_prob)
    with pytest.raises(ValueError, match="invalid"):
        flip(*args).assess({"b": 1, "x": 0.3})
    with pytest.raises(ValueError, match="invalid"):
        vipl.seed(lambda sd: sample("x", dist.Normal(0.0, sd)))(KEY, -1.0)


def test_values_may_decide_what_a_program_is():
    @vipl.gen
    def model(depth):
        return [sample(f"x{i}", dist.Normal(0.0, 1.0)) for i in range(int(depth))]

    for _ in range(2):
        assert len(model(2.5).assess({"x0": 0.1, "x1": 0.2}).retval) == 2
        assert len(model(3.5).assess({"x0": 0.1, "x1": 0.2, "x2": 0.3}).retval) == 3


def test_an_alarm_rings_at_the_call():
    @vipl.gen
    def model():
        k = sample("k", dist.Categorical(probs=jnp.array([0.5, 0.5])))
        sample("u", dist.Uniform(0.0, 1.0 + k))

    def posterior(u):
        return vipl.normalize(model(), {"u": u}, vipl.inference.Enumeration()).assess({"k": 1})

    np.testing.assert_allclose(jnp.exp(posterior(0.5).log_prob), 1 / 3, rtol=1e-12)
    with pytest.raises(vipl.errors.ProgramError, match="all weights are zero"):
        posterior(5.0)
    np.testing.assert_allclose(jnp.exp(posterior(1.5).log_prob), 1.0, rtol=1e-12)


def test_sites_that_are_left_are_refused():
    for _ in range(2):
        with pytest.raises(vipl.errors.ProgramError, match="outside every program"):
            flip(0.5, 1.0).generate({"b": 1})


def test_a_callback_is_that_of_the_objects_that_are_read_now():
    """Equal objects are not the same where compiled code writes to them."""

    class Log:
        def __init__(self):
            self.count = 0

    def counted(log):
        def called(_):
            log.count += 1

        @vipl.expectation
        def objective(m):
            jax.debug.callback(called, m)
            return sample("x", dist.Normal(m, 1.0))

        return objective

    logs = [Log(), Log()]
    for log in logs:
        objective = counted(log)
        jax.block_until_ready([objective.estimate(KEY, 0.3), objective.value_and_grad(KEY, 0.3)])
        jax.effects_barrier()
    assert [log.count for log in logs] == [2, 2]


IN_A_PROCESS = """
import sys, jax, jax.numpy as jnp, numpyro.distributions as dist, optax
jax.config.update("jax_compilation_cache_dir", sys.argv[1])
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
events = []
jax.monitoring.register_event_listener(lambda name, **_: events.append(name.rsplit("/", 1)[-1]))
import vipl

@vipl.gen
def model(shift):
    x = vipl.sample("x", dist.Normal(shift, 1.0))
    k = vipl.sample("k", dist.Bernoulli(logits=x), vipl.Enumerate())
    jax.vmap(lambda: vipl.sample("y", dist.Normal(x + k, 1.0)), axis_size=3)()

@vipl.expectation
def bound(m):
    k = lambda: vipl.sample("k", dist.Bernoulli(0.3), vipl.Score())
    guide = vipl.gen(lambda: (vipl.sample("x", dist.Normal(m, 1.0)), k()))
    return vipl.objectives.elbo(model(1.0), guide(), {"y": jnp.ones(3)})

key = jax.random.key(0)
bound.value_and_grad(key, 0.1)
vipl.fit(bound, 0.1, optax.adam(0.1), key=key, num_steps=5, progress=False)
model(0.5).simulate(key)
print(events.count("cache_misses"), events.count("cache_hits"))
"""


@pytest.mark.newest
def test_a_second_process_compiles_nothing(tmp_path):
    """With JAX's cache on disk: programs are the same to the letter in every process."""

    def misses_and_hits(seed):
        command = [sys.executable, "-c", IN_A_PROCESS, str(tmp_path)]
        environment = os.environ | {"PYTHONHASHSEED": seed, "XLA_FLAGS": ""}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        return tuple(map(int, done.stdout.split()))

    misses, _ = misses_and_hits("1")
    again, hits = misses_and_hits("2")
    assert misses > 3
    assert again == 0
    assert hits >= misses
