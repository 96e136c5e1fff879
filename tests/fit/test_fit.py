"""`vipl.fit`: optima that are known exactly, laws, and messages; `vipl.interop.flax`."""

import importlib
import math
import re
import signal
import sys
import types
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import optax
import pytest

import vipl
from tests.helpers.jaxprs import equations
from vipl.fit import Fit, fit
from vipl.fit._steps import MOST, Job, State, compiled_steps, take_steps
from vipl.ir.probe import probing

MODULE = importlib.import_module("vipl.fit._fit")
KEY = jax.random.key(37)
DATA = jnp.arange(11.0)


@vipl.expectation
def square(params, data):
    """E|x - data|² with x ~ Normal(params, 1): least at the data's mean."""
    return jnp.sum((vipl.sample("x", dist.Normal(params, 1.0)) - data) ** 2)


@vipl.expectation
def plain(params):
    """A function of the parameters alone."""
    return -jnp.sum((params - 1.3) ** 2)


def first(params, optimizer):
    """The state before the first step."""
    params = jnp.asarray(params, float)
    return State(params, optimizer.init(params), jnp.int32(0), jnp.int32(0))


def quiet(objective, params, optimizer, **options):
    """`fit` without a bar."""
    return fit(objective, params, optimizer, key=KEY, progress=False, **options)


# --- optima -------------------------------------------------------------------------------------------------


@vipl.gen
def prior():
    vipl.sample("m", dist.Normal(0.7, 2.0))


@vipl.gen
def likelihood(m, n):
    vipl.sample("x", dist.Normal(m, 1.5).expand([n]).to_event(1))


@vipl.gen
def guide(phi):
    vipl.sample("m", dist.Normal(phi["loc"], jnp.exp(phi["log_scale"])))


def bound(num_rows):
    """The ELBO of a batch, scaled to `num_rows` rows."""

    @vipl.expectation
    def elbo(phi, batch):
        q = guide(phi).simulate()
        rows = likelihood(q.choices["m"], batch["x"].shape[0]).assess({"x": batch["x"]}).log_prob
        return prior().assess(q.choices).log_prob + num_rows / batch["x"].shape[0] * rows - q.log_prob

    return elbo


@pytest.mark.parametrize("batch_size", [None, 20])
def test_finds_the_posterior_of_a_conjugate_model(batch_size):
    x = 2.1 + 1.5 * jax.random.normal(jax.random.key(5), (60,))
    precision = 1 / 2.0**2 + 60 / 1.5**2
    loc = (0.7 / 2.0**2 + jnp.sum(x) / 1.5**2) / precision
    optimizer = optax.adam(optax.cosine_decay_schedule(0.05, 3000))
    start = {"loc": 0.0, "log_scale": 0.0}
    options = {"num_steps": 3000, "num_samples": 8, "batch_size": batch_size}
    found = quiet(bound(60), start, optimizer, data={"x": x}, **options)
    # The posterior's standard deviation is 0.19; Adam's last steps wander by less than a tenth of it.
    assert abs(found.params["loc"] - loc) < 0.015
    assert abs(found.params["log_scale"] + 0.5 * jnp.log(precision)) < 0.05
    assert int(found.stopped) == 3000


def ppca(rows, dim, latent):
    """A linear decoder and a linear encoder, and their bound per datum."""

    @vipl.gen
    def model(params):
        z = vipl.sample("z", dist.Normal(jnp.zeros(latent), 1.0).to_event(1))
        mean = params["w"] @ z + params["mu"]
        vipl.sample("x", dist.Normal(mean, jnp.exp(params["log_sigma"])).to_event(1))

    @vipl.gen
    def encoder(params, x):
        loc = params["a"] @ (x - params["mu"])
        vipl.sample("z", dist.Normal(loc, jnp.exp(params["log_scale"])).to_event(1))

    @vipl.expectation
    def elbo(params, data):
        def datum(x):
            q = encoder(params, x).simulate()
            return model(params).assess(q.choices | {"x": x}).log_prob - q.log_prob

        return jnp.mean(jax.vmap(datum)(data))

    keys = jax.random.split(jax.random.key(3), 2)
    start = {
        "w": 0.3 * jax.random.normal(keys[0], (dim, latent)),
        "a": 0.3 * jax.random.normal(keys[1], (latent, dim)),
        "mu": jnp.zeros(dim),
        "log_sigma": 0.0,
        "log_scale": jnp.zeros(latent),
    }
    return elbo, start


def best_ppca(data, latent):
    """Greatest mean log likelihood (Tipping and Bishop 1999, eq. 9): all from the covariance's eigenvalues."""
    n, d = data.shape
    roots = np.sort(np.linalg.eigvalsh(np.cov(data.T, bias=True)))[::-1]
    noise = roots[latent:].mean()
    return -0.5 * (d * math.log(2 * math.pi) + np.log(roots[:latent]).sum() + (d - latent) * math.log(noise) + d)


def test_a_linear_autoencoder_reaches_probabilistic_pca():
    with jax.enable_x64(True):
        rng = np.random.default_rng(11)
        data = rng.normal(size=(50, 2)) @ np.array([[1.9, -0.4, 0.8, 0.1, -1.2], [0.2, 0.9, -0.3, 1.1, 0.5]])
        data = data + rng.normal(size=(50, 5)) * 0.6 + np.array([0.3, -1.7, 0.0, 2.2, 0.9])
        best = best_ppca(data, 2)
        elbo, start = ppca(50, 5, 2)
        optimizer = optax.adam(optax.cosine_decay_schedule(0.03, 4000))
        found = quiet(elbo, start, optimizer, data=data, num_steps=4000, num_samples=4)
        evaluate = jax.jit(jax.vmap(lambda key: elbo.estimate(key, found.params, data)))
        values = evaluate(jax.random.split(jax.random.key(8), 4000))
        mean, se = float(jnp.mean(values)), float(jnp.std(values)) / math.sqrt(4000)
        assert values.dtype == jnp.float64
        # At the optimum the encoder is the posterior and the bound has no variance, so that se is small as well.
        assert se < 2e-4
        assert best - 5e-3 < mean < best + 5 * se
        w, noise = np.asarray(found.params["w"]), np.exp(2 * float(found.params["log_sigma"]))
        covariance = w @ w.T + noise * np.eye(5)
        centred = data - np.asarray(found.params["mu"])
        log_likelihood = -0.5 * (
            5 * math.log(2 * math.pi)
            + np.linalg.slogdet(covariance)[1]
            + np.einsum("ni,ij,nj->n", centred, np.linalg.inv(covariance), centred).mean()
        )
        assert best - 5e-3 < log_likelihood <= best + 1e-12
        assert mean <= log_likelihood + 5 * se


def test_minimizes():
    @vipl.expectation
    def distance(params, data):
        return jnp.sum((params - data["x"]) ** 2)

    data = {"x": jnp.array([0.37, -1.3, 2.0])}
    found = quiet(distance, jnp.zeros(3), optax.sgd(0.25), data=data, num_steps=40, maximize=False)
    np.testing.assert_allclose(found.params, data["x"], rtol=1e-6)


# --- laws ---------------------------------------------------------------------------------------------------


def same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.parametrize("seconds", [0.0, 1e9])
def test_steps_do_not_depend_on_how_many_run_together(seconds, monkeypatch, capsys):
    options = {"data": jnp.arange(11.0), "num_steps": 53, "batch_size": 3}
    here = quiet(square, 0.37, optax.adam(0.1), **options)
    monkeypatch.setattr(MODULE, "_SECONDS", seconds)
    there = fit(square, 0.37, optax.adam(0.1), key=KEY, progress=True, **options)
    same(here, there)
    assert "53/53" in capsys.readouterr().err


def test_the_number_of_steps_and_the_bar_are_not_compiled(monkeypatch):
    traces = []

    @vipl.expectation
    def counted(params):
        traces.append(params)
        return -jnp.sum((params - 1.3) ** 2)

    for num_steps, seconds in ((3, 0.25), (np.int64(40), 0.0), (200, 0.25)):
        monkeypatch.setattr(MODULE, "_SECONDS", seconds)
        fit(counted, 0.37, optax.adam(0.1), key=KEY, num_steps=num_steps, progress=False)
    assert len(traces) == 1


def compilations(call):
    """How many programs are compiled."""
    found = []

    def listen(event: str, duration_secs: float, **_: Any) -> None:
        if event.endswith("backend_compile_duration"):
            found.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        call()
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    return len(found)


def test_nothing_is_compiled_for_another_number_of_steps_or_an_equal_optimizer():
    """Nor to see whether rows count once, which this objective's do."""

    def run(num_steps=3, rate=0.1, **options):
        @vipl.expectation
        def forgetful(phi, batch):
            q = guide(phi).simulate()
            rows = likelihood(q.choices["m"], batch.shape[0]).assess({"x": batch}).log_prob
            return prior().assess(q.choices).log_prob + rows - q.log_prob

        start = {"loc": jnp.zeros(()), "log_scale": jnp.zeros(())}
        options |= {"data": DATA, "batch_size": 4, "num_steps": num_steps}
        with pytest.warns(RuntimeWarning, match="rows of a batch counts once"):
            return quiet(forgetful, start, optax.adam(rate), **options)

    run(10)
    assert compilations(lambda: run(10)) == 0
    assert compilations(lambda: run(num_steps=200)) == 0
    assert compilations(lambda: run(callback=lambda fit: fit.stopped >= 13, callback_every=13)) == 0
    assert compilations(lambda: run(rate=0.2)) > 0


def test_the_bar_moves_by_time(monkeypatch):
    """With a clock that goes 10 ms on at each step, and 3 s at the compilation."""
    clock, lengths = [0.0], []

    def timed(job):
        take = compiled_steps(job)

        def counted(key, state, args, stop):
            out = take(key, state, args, stop)
            lengths.append(int(out[0].taken - state.taken))
            clock[0] += 0.01 * lengths[-1] + 3.0 * (len(lengths) == 1)
            return out

        return counted

    monkeypatch.setattr(MODULE, "compiled_steps", timed)
    monkeypatch.setattr(MODULE, "time", types.SimpleNamespace(perf_counter=lambda: clock[0]))
    quiet(plain, 0.37, optax.sgd(0.1), num_steps=1000)
    assert sum(lengths) == 1000
    assert lengths[:3] == [1, 1, 8]
    assert all(20 <= n <= 50 for n in lengths[3:-1])


def test_no_more_steps_than_there_is_room_for():
    take = compiled_steps(Job((plain,), (optax.sgd(0.1),)))
    state, history = take(KEY, first(0.0, optax.sgd(0.1)), (), 10**6)
    assert int(state.taken) == MOST
    assert np.all(np.isfinite(history.values))


def test_a_step_adds_as_little_to_a_long_objective_as_to_a_short_one():
    """Against a loop that is written by hand: where to stop, whether numbers are finite, and what is then kept."""
    optimizer = optax.adam(0.1)

    def added(objective):
        def loss(params, key):
            return -objective.estimate(key, params, DATA)

        def by_hand(params, opt_state):
            def step(carry, i):
                params, opt_state = carry
                value, grads = jax.value_and_grad(loss)(params, jax.random.fold_in(KEY, i))
                updates, opt_state = optimizer.update(grads, opt_state, params)
                return (optax.apply_updates(params, updates), opt_state), value

            return jax.lax.scan(step, (params, opt_state), jnp.arange(100))

        state, job = first(0.37, optimizer), Job((objective,), (optimizer,))
        ours = jax.make_jaxpr(take_steps, static_argnums=0)(job, KEY, state, (DATA,), 100)
        theirs = jax.make_jaxpr(by_hand)(state.params, state.opt_state)
        assert not any(eqn.primitive.name == "cond" for eqn in equations(ours.jaxpr))
        return len(list(equations(ours.jaxpr))) - len(list(equations(theirs.jaxpr)))

    @vipl.expectation
    def long(params, data):
        return sum(square(params + vipl.sample(f"x{i}", dist.Gamma(2.0, 1.3)), data) * i for i in range(5))

    assert added(long) == added(square) < 63


def test_the_key_decides():
    options = {"data": jnp.arange(11.0), "num_steps": 5, "progress": False}
    values = [fit(square, 0.37, optax.adam(0.1), key=jax.random.key(k), **options).values for k in (1, 1, 2)]
    np.testing.assert_array_equal(values[0], values[1])
    assert np.all(values[0] != values[2])


def test_a_bar_shows_the_latest_mean(capsys):
    fit(plain, 0.8, optax.sgd(0.0), key=KEY, num_steps=3, progress=True)
    text = capsys.readouterr().err
    assert "plain" in text
    assert "3/3" in text
    assert "-0.2500" in text


def test_the_number_of_samples_arrives():
    """A leave-one-out baseline wants other samples; that of a constant leaves no gradient at all."""
    leave_one_out = vipl.Score(vipl.LeaveOneOut())

    @vipl.expectation
    def constant(m):
        return 2.5 * jnp.exp(0.0 * vipl.sample("x", dist.Normal(m, 1.0), leave_one_out))

    found = quiet(constant, 0.3, optax.sgd(1.0), num_steps=3, num_samples=4)
    assert found.params == 0.3
    assert (found.values == 2.5).all()


def test_values_are_estimates_before_each_step():
    found = quiet(plain, 0.0, optax.sgd(0.25), num_steps=3)
    # m - 1.3 halves at each step.
    np.testing.assert_allclose(found.values, [-(1.3**2), -(0.65**2), -(0.325**2)], rtol=1e-6)
    assert isinstance(found, Fit)
    assert len(jax.tree.leaves(found)) == 5


def test_an_epoch_is_a_permutation_and_drops_the_remainder():
    @vipl.expectation
    def rows(params, batch):
        return 0.0 * params + jnp.sum(2.0 ** batch["row"]) + 0.0 * jnp.sum(batch["other"])

    data = {"row": jnp.arange(7), "other": jnp.zeros((7, 2))}
    values = np.asarray(quiet(rows, 0.0, optax.sgd(0.1), data=data, num_steps=12, batch_size=2).values).astype(int)
    bits = np.array([[v >> i & 1 for i in range(7)] for v in values])
    assert np.all(bits.sum(1) == 2)
    epochs = bits.reshape(4, 3, 7).sum(1)
    assert np.all(epochs.sum(1) == 6)
    assert epochs.max() == 1
    assert len({tuple(v) for v in values.reshape(4, 3)}) == 4


def test_auxiliary_output_is_dropped_and_the_optimizer_sees_the_loss():
    @vipl.expectation(has_aux=True)
    def objective(params):
        return -((params - 1.3) ** 2), {"twice": 2 * params}

    optimizer = optax.chain(optax.sgd(0.25), optax.contrib.reduce_on_plateau(patience=1))
    assert abs(quiet(objective, 0.0, optimizer, num_steps=30).params - 1.3) < 1e-3


# --- to go on -----------------------------------------------------------------------------------------------

OPTIONS: dict[str, Any] = {"data": DATA, "batch_size": 3, "num_samples": 2, "progress": False}
OPTIMIZERS = {
    "adam": optax.adam(optax.exponential_decay(0.1, 7, 0.9)),
    "momentum": optax.sgd(0.01, momentum=0.9),
    "plateau": optax.chain(optax.sgd(0.01), optax.contrib.reduce_on_plateau(patience=1)),
}


@pytest.mark.parametrize("parts", [(20, 33), (1, 2, 50), (9, 44)])  # an epoch is 3 steps: in it, and at its end
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_parts_of_a_fit_are_the_fit_bit_for_bit(optimizer, parts):
    optimizer = OPTIMIZERS[optimizer]
    whole = fit(square, 0.37, optimizer, key=KEY, num_steps=53, **OPTIONS)
    there = None
    for n in parts:
        there = fit(square, 0.37, optimizer, key=KEY, num_steps=n, resume=there, **OPTIONS)
    same(whole, there)
    assert len(np.unique(whole.values)) == 53


def test_a_fit_goes_on_from_a_file_and_without_parameters():
    optimizer = OPTIMIZERS["adam"]
    whole = fit(square, 0.37, optimizer, key=KEY, num_steps=53, **OPTIONS)
    there = fit(square, 0.37, optimizer, key=KEY, num_steps=20, **OPTIONS)
    there = jax.tree.map(np.asarray, there)
    same(whole, fit(square, None, optimizer, key=jax.random.key_data(KEY), num_steps=33, resume=there, **OPTIONS))


def test_a_fit_goes_on_with_other_data_of_as_many_rows_and_another_rate():
    here = quiet(plain, 0.0, optax.sgd(0.25), num_steps=2)
    there = quiet(plain, None, optax.sgd(0.5), num_steps=1, resume=here)
    np.testing.assert_allclose(there.params, 1.3, rtol=1e-6)  # m - 1.3 is 0 after one step of 0.5


def test_a_fit_that_stopped_tries_its_step_again():
    @vipl.expectation
    def root(params, data):
        return jnp.sum(jnp.sqrt(params - data))

    with pytest.warns(RuntimeWarning, match="stopped at step 0 of 2"):
        here = quiet(root, 1.0, optax.sgd(1.0), data=jnp.array([2.0]), num_steps=2)
    with pytest.warns(RuntimeWarning, match="stopped at step 0 of 3"):
        quiet(root, 1.0, optax.sgd(1.0), data=jnp.array([2.0]), num_steps=3, resume=here)
    there = quiet(root, 1.0, optax.sgd(1.0), data=jnp.array([0.75]), num_steps=2, resume=here)
    np.testing.assert_allclose(there.values, [0.5, np.sqrt(1.25)], rtol=1e-6)


RESUMED = {
    "not a fit": (
        {"resume": (0.37, None)},
        "what is to be continued is not a fit.\n  at:        vipl.fit\n  got:       tuple",
    ),
    "key": (
        {"key": jax.random.key(38)},
        "the key is not that of the fit that is continued, so that its steps would not be those of one fit.\n"
        "  at:        vipl.fit\n  got:       the threefry2x32 key [0, 38]\n"
        "  expected:  the threefry2x32 key [0, 37]\n"
        "  fix:       pass the first fit's key; for other draws, begin a fit at its `params`",
    ),
    "generator": ({"key": jax.random.key(37, impl="rbg")}, "got:       the rbg key [0, 37, 0, 37]\n"),
    "batch_size": (
        {"batch_size": 4},
        "the batches are not those of the fit that is continued.\n  at:        vipl.fit\n"
        "  got:       batch_size=4 of 11 rows\n  expected:  batch_size=3 of 11 rows\n"
        "  fix:       pass what the first fit got; to go on otherwise, begin a fit at its `params`",
    ),
    "no batches": ({"batch_size": None}, "got:       no batches\n  expected:  batch_size=3 of 11 rows\n"),
    "rows": ({"data": jnp.arange(10.0)}, "got:       batch_size=3 of 10 rows\n"),
    "params": (
        {"params": jnp.zeros(2)},
        "the parameters are not of the kind of the fit that is continued.\n  at:        vipl.fit\n"
        "  got:       float64[2] at params\n  expected:  float64[] at params\n",
    ),
    "structure": (
        {"params": {"m": 0.0}},
        "  got:       float64[] at params['m']\n  expected:  float64[] at params\n",
    ),
    "optimizer": (
        {"optimizer": optax.sgd(0.1)},
        "the optimizer's state is not of the kind of the fit that is continued.\n  at:        vipl.fit\n"
        "  got:       no arrays\n  expected:  int32[] at opt_state[0].count",
    ),
}


@pytest.mark.parametrize("case", RESUMED)
def test_a_fit_does_not_go_on_with(case):
    given = {"objective": square, "params": 0.37, "optimizer": optax.adam(0.1), "key": KEY, "num_steps": 2} | OPTIONS
    resume = fit(**given)
    changed, text = RESUMED[case]
    with pytest.raises(vipl.errors.ProgramError) as error:
        fit(**given | {"resume": resume} | changed)
    assert text in str(error.value)
    assert str(error.value).count("\n  ") == 4


# --- interrupts ---------------------------------------------------------------------------------------------


def interrupt_at(line, call):
    """Calls with an interrupt at the n-th line that runs in the module from the first one of `_calls` on."""
    seen, begun = [0], [False]

    def trace(frame, event, _):
        if frame.f_code.co_filename != MODULE.__file__:
            return None
        begun[0] |= frame.f_code.co_name == "_calls"
        if event == "line" and begun[0]:
            seen[0] += 1
            if seen[0] == line:
                signal.raise_signal(signal.SIGINT)
        return trace

    sys.settrace(trace)
    try:
        return call(), seen[0]
    finally:
        sys.settrace(None)


@pytest.mark.oldest
def test_an_interrupt_at_any_line_loses_nothing(monkeypatch):
    """The fit so far is a beginning of the whole one, and goes on to the whole one; the call that runs may be lost."""
    monkeypatch.setattr(MODULE, "_SECONDS", 0.0)  # one step a call
    optimizer = OPTIMIZERS["adam"]

    def run(**options):
        every: dict[str, Any] = OPTIONS | {"progress": True} | options
        return fit(square, 0.37, optimizer, key=KEY, **every)

    whole = run(num_steps=4)
    _, lines = interrupt_at(0, lambda: run(num_steps=4))
    assert lines > 60
    steps = []
    for line in range(1, lines + 1):
        with pytest.warns(RuntimeWarning) as caught:
            found, _ = interrupt_at(line, lambda: run(num_steps=4))
        n = int(found.stopped)
        assert [str(w.message) for w in caught] == [
            f"vipl.fit was interrupted after {n} of 4 steps of square. The fit so far is returned: its `values` are "
            "NaN after these, and vipl.fit(..., resume=fit) goes on."
        ]
        assert caught[0].filename == __file__
        np.testing.assert_array_equal(found.values[:n], whole.values[:n])
        assert np.all(np.isnan(found.values[n:]))
        assert found.values.shape == (4,)
        if n < 4:
            found = run(num_steps=4 - n, resume=found)
        same(whole, found)
        steps.append(n)
    assert steps == sorted(steps)
    assert set(steps) == {0, 1, 2, 3, 4}


def test_an_interrupt_while_the_steps_are_compiled_and_a_second_one(monkeypatch):
    @vipl.expectation
    def slow(params):
        signal.raise_signal(signal.SIGINT)
        return -(params**2)

    with pytest.warns(RuntimeWarning, match="interrupted after 0 of 5 steps of slow"):
        found = quiet(slow, 0.37, optax.adam(0.1), num_steps=5)
    assert found.params == 0.37
    assert int(found.stopped) == 0
    assert np.all(np.isnan(found.values))

    monkeypatch.setattr(MODULE, "_warn", lambda text: signal.raise_signal(signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        quiet(slow, 0.37, optax.adam(0.1), num_steps=5)


def test_an_exception_of_a_callback_holds_the_fit():
    def data(n):
        if n == 3:
            raise OSError("the disk is full")
        return np.float64(n)

    @vipl.expectation
    def reads(params):
        n = jax.lax.stop_gradient(jnp.round(params)).astype(int)
        return params + jax.pure_callback(data, jax.ShapeDtypeStruct((), float), n)

    monkey = pytest.MonkeyPatch()
    monkey.setattr(MODULE, "_SECONDS", 0.0)
    with monkey.context(), pytest.raises(Exception, match="the disk is full") as error:
        quiet(reads, 0.0, optax.sgd(1.0), num_steps=10)
    monkey.undo()
    raised: Any = error.value
    assert int(raised.fit.stopped) == 3
    np.testing.assert_allclose(raised.fit.params, 3.0)
    np.testing.assert_allclose(raised.fit.values[:3], [0.0, 2.0, 4.0])
    assert "3 steps were taken before" in raised.__notes__[-1]


@pytest.mark.parametrize("broken", ["__init__", "update", "close"])
def test_a_bar_that_fails_does_not_end_the_fit(broken, monkeypatch):
    works, failed = getattr(MODULE.tqdm, broken), []

    def fails(*args, **options):
        if not failed:
            failed.append(True)
            raise BrokenPipeError("gone")
        return works(*args, **options)

    monkeypatch.setattr(MODULE.tqdm, broken, fails)
    with pytest.warns(RuntimeWarning, match=r"goes on without its progress bar, which failed: BrokenPipeError: gone"):
        found = fit(plain, 0.0, optax.sgd(0.25), key=KEY, num_steps=3)
    same(found, quiet(plain, 0.0, optax.sgd(0.25), num_steps=3))


# --- what is not finite -------------------------------------------------------------------------------------


def test_stops_before_a_value_that_is_not_finite():
    @vipl.expectation
    def log(params):
        return -jnp.log(params["m"])

    text = r"stopped at step 4 of 10 of log: the objective's value is not finite \(the estimate there is nan\)"
    with pytest.warns(RuntimeWarning, match=text):
        found = quiet(log, {"m": 1.0}, optax.sgd(0.2), num_steps=10)
    m, path = 1.0, []
    while m > 0:
        path.append(m)
        m -= 0.2 / m
    assert len(path) == 4
    np.testing.assert_allclose(found.params["m"], m, rtol=1e-5)
    assert int(found.stopped) == 4
    np.testing.assert_allclose(found.values[:4], -np.log(path), rtol=1e-4, atol=1e-6)
    assert np.all(np.isnan(found.values[4:]))


def test_stops_before_a_gradient_that_is_not_finite():
    @vipl.expectation
    def root(params):
        return jnp.sqrt(params)

    text = r"step 0 of 4 of root: the gradient is not finite \(the estimate there is 0.0\)"
    with pytest.warns(RuntimeWarning, match=text):
        found = quiet(root, 0.0, optax.sgd(0.1), num_steps=4)
    assert found.params == 0.0
    np.testing.assert_array_equal(found.values, [0.0, np.nan, np.nan, np.nan])


def test_stops_before_an_update_that_is_not_finite():
    with pytest.warns(RuntimeWarning, match=r"step 0 of 4 of plain: the optimizer's update is not finite"):
        found = quiet(plain, -1e10, optax.sgd(1e300), num_steps=4)
    assert found.params == -1e10


@vipl.gen
def scaled_normal(phi):
    scale = vipl.sample("scale", dist.LogNormal(phi["s"], 1.0))
    vipl.sample("x", dist.Normal(phi["m"], jnp.sqrt(phi["v"]) * scale))


@vipl.gen
def half_line():
    vipl.sample("scale", dist.Exponential(1.0))
    x = vipl.sample("x", dist.Normal(0.0, 1.0))
    vipl.sample("y", dist.Normal(jnp.sqrt(x - 100.0), 1.0))


@vipl.gen
def line():
    vipl.sample("scale", dist.Exponential(1.0))
    vipl.sample("x", dist.Normal(0.0, 1.0))
    vipl.sample("y", dist.Normal(0.0, 1.0))


def elbo_of(model, wrap):
    return vipl.expectation(lambda phi: wrap(lambda: vipl.objectives.elbo(model(), scaled_normal(phi), {"y": 1.5})))


PHI = {"s": 0.2, "m": 0.3, "v": 1.5}
NOT_FINITE = {
    "a parameter": (line, {"v": -1.0}, "x", "scaled_normal", "a parameter of its distribution is nan"),
    "a parameter in the model": (half_line, {}, "y", "half_line", "a parameter of its distribution is nan"),
    "a log density": (line, {"m": 1e200}, "x", "line", "its log density is -inf"),
    "a scale of zero": (line, {"v": 0.0}, "x", "scaled_normal", "its log density is nan"),
}
WRAPPED = {
    "plain": lambda f: f(),
    "lanes": lambda f: jnp.mean(jax.vmap(f, axis_size=3)()),
    "a loop": lambda f: jax.lax.scan(lambda c, _: (c + f(), None), 0.0, None, length=2)[0],
    "compiled": lambda f: jax.jit(f)(),
    "a branch": lambda f: jax.lax.cond(jnp.array(True), f, lambda: 0.0),
}


@pytest.mark.parametrize("wrap", WRAPPED)
@pytest.mark.parametrize("name", NOT_FINITE)
def test_the_first_site_where_a_number_is_not_finite_is_named(name, wrap):
    model, change, address, program, what = NOT_FINITE[name]
    text = rf'stopped at step 0 of 3.* is not finite is "{address}" in {program} \(test_fit.py:\d+\): {what}\.'
    with pytest.warns(RuntimeWarning, match=text):
        quiet(elbo_of(model, WRAPPED[wrap]), PHI | change, optax.sgd(0.1), num_steps=3)


def test_the_site_of_a_value_that_is_not_finite_is_named():
    """Of eight draws around the largest number some are beyond it."""

    @vipl.expectation
    def objective(m):
        return jnp.mean(jax.vmap(lambda: vipl.sample("z", dist.Normal(m, 1e308)), axis_size=8)())

    with pytest.warns(RuntimeWarning, match=r'"z" in <lambda> \(test_fit.py:\d+\): its value is inf\.'):
        quiet(objective, 1.79e308, optax.sgd(0.1), num_steps=3)


def test_the_host_is_told_of_all_lanes_in_one_call():
    """So that a program with many lanes is no larger when the site is looked for."""

    def count(lanes):
        of_lanes = elbo_of(line, lambda f: jnp.mean(jax.vmap(f, axis_size=lanes)()))
        with probing():
            estimate = jax.value_and_grad(lambda phi: of_lanes.estimate_anew(KEY, phi, num_samples=2))
            return str(jax.make_jaxpr(estimate)(PHI)).count("debug_callback[")

    assert 0 < count(3) == count(30)


def test_the_parameters_of_a_site_that_is_not_finite_are_told():
    """Of a scalar the number, of few numbers all, of many their range; and no parameters of a factor."""

    @vipl.gen
    def model(phi):
        vipl.sample("z", dist.Gamma(phi["a"], jnp.arange(1.0, 7.0)).to_event(1))
        vipl.factor("f", jnp.log(phi["b"]))

    @vipl.expectation
    def objective(phi):
        return model(phi).assess({"z": phi["z"]}).log_prob

    text = r'"z" in model \(test_fit.py:\d+\): a parameter .* is nan. Its parameters are (.*)\. The parameters'
    phi = {"a": jnp.array([0.5, jnp.nan, 1.5, 2.0, 2.5, 3.0]), "z": jnp.ones(6), "b": 1.0}
    with pytest.warns(RuntimeWarning, match=text) as told:
        quiet(objective, phi, optax.sgd(0.1), num_steps=2)
    found = re.search(text, str(told[0].message))
    assert found is not None
    assert found[1] == "concentration = 0.5 to 3 (6 numbers, 1 not finite), rate = 1 to 6 (6 numbers)"
    with pytest.warns(RuntimeWarning, match='"f" in model .*: its log density is nan. The parameters'):
        quiet(objective, phi | {"a": jnp.ones(6), "b": -1.0}, optax.sgd(0.1), num_steps=2)
    wide = vipl.expectation(lambda m: vipl.sample("x", dist.Normal(m, jnp.array([1.0, -jnp.inf]))).sum())
    with pytest.warns(RuntimeWarning, match=r"Its parameters are loc = .*, scale = \[1.0, -inf\]\. The"):
        quiet(wide, 0.3, optax.sgd(0.1), num_steps=2)


@jax.jit
def jitted_elbo(phi):
    return vipl.objectives.elbo(half_line(), scaled_normal(phi), {"y": 1.5})


def test_a_jitted_function_that_was_traced_before_is_told_about_and_is_what_it_was():
    objective = vipl.expectation(jitted_elbo)
    before = str(jax.make_jaxpr(lambda phi: objective.estimate(KEY, phi))(PHI))
    with pytest.warns(RuntimeWarning, match='is not finite is "y" in half_line'):
        quiet(objective, PHI, optax.sgd(0.1), num_steps=3)
    assert "callback" not in str(jax.make_jaxpr(lambda phi: objective.estimate(KEY, phi))(PHI))
    assert "callback" not in before


def test_the_site_of_a_derivative_that_is_not_finite_is_named():
    """sqrt has an infinite derivative at 0; what comes before it in the program gets it, too."""

    @vipl.expectation
    def objective(phi):
        z = vipl.sample("z", dist.Normal(phi, 1.0))
        w = vipl.sample("w", dist.Normal(z, 1.0))
        return jnp.sqrt(0.0 * w) + vipl.sample("u", dist.Normal(phi, 1.0))

    text = r'the gradient is not finite .* The numbers of all sites are finite. The last site .* is "w" in objective'
    with pytest.warns(RuntimeWarning, match=text):
        quiet(objective, 0.3, optax.sgd(0.1), num_steps=3)


def test_nothing_of_the_optimizer_is_touched_at_a_step_that_is_not_finite():
    @vipl.expectation
    def objective(params):
        return -jnp.log(params["m"])

    with pytest.warns(RuntimeWarning, match="stopped at step 4"):
        stopped = quiet(objective, {"m": 1.0}, optax.adam(0.3), num_steps=10)
    before = quiet(objective, {"m": 1.0}, optax.adam(0.3), num_steps=int(stopped.stopped))
    same(stopped.opt_state, before.opt_state)
    same(stopped.params, before.params)


# --- messages -----------------------------------------------------------------------------------------------

WRONG = {
    "objective": (
        {"objective": lambda params: params},
        "the objective is not an expectation.\n  at:        vipl.fit\n  got:       function\n"
        "  expected:  what vipl.expectation returns\n  fix:       decorate the function with @vipl.expectation",
    ),
    "optimizer": ({"optimizer": 0.1}, "the optimizer is not an optax optimizer."),
    "num_steps": ({"num_steps": 0}, "num_steps is not a positive integer.\n  at:        vipl.fit\n  got:       0\n"),
    "integers": (
        {"params": {"m": jnp.int16(3)}},
        "the parameters are not float arrays.\n  at:        vipl.fit\n  got:       int16[] at params['m']\n",
    ),
    "nothing": (
        {"params": {}},
        "the parameters are not float arrays.\n  at:        vipl.fit\n  got:       no arrays\n",
    ),
    "batch": (
        {"data": jnp.zeros((5, 2), "float32"), "batch_size": 6},
        "the batch size does not fit the data.\n  at:        vipl.fit\n"
        "  got:       batch_size=6, and float32[5,2] at data\n  expected:  an integer from 1 to 5\n",
    ),
    "rows": (
        {"data": {"x": jnp.zeros(5, "float32"), "y": jnp.zeros((4, 2), "float32")}, "batch_size": 2},
        "the data's arrays do not share a leading axis, so that they have no batches.\n  at:        vipl.fit\n"
        "  got:       float32[5] at data['x'], float32[4,2] at data['y']\n",
    ),
    "scalar": ({"data": jnp.float32(3.0), "batch_size": 2}, "got:       float32[] at data\n"),
    "no data": ({"batch_size": 2}, "got:       no data\n"),
}


@pytest.mark.parametrize("case", WRONG)
def test_messages(case):
    changed, text = WRONG[case]
    arguments = {"objective": plain, "params": 0.0, "optimizer": optax.sgd(0.1), "num_steps": 3} | changed
    with pytest.raises(vipl.errors.ProgramError) as error:
        fit(**arguments, key=KEY, progress=False)
    assert text in str(error.value)
    assert str(error.value).count("\n  ") == 4


# --- flax ---------------------------------------------------------------------------------------------------


def test_a_flax_module_is_fitted():
    nnx = pytest.importorskip("flax.nnx")
    from vipl.interop.flax import functional

    module = nnx.Linear(3, 1, rngs=nnx.Rngs(0))
    params, apply = functional(module)
    x = jax.random.normal(jax.random.key(1), (40, 3))
    np.testing.assert_array_equal(apply(params)(x), module(x))
    y = x @ jnp.array([0.3, -1.2, 2.1]) + 0.7

    @vipl.gen
    def model(params, x):
        vipl.sample("y", dist.Normal(apply(params)(x)[0], 1.0))

    @vipl.expectation
    def log_likelihood(params, data):
        return jnp.mean(jax.vmap(lambda x, y: model(params, x).assess({"y": y}).log_prob)(data["x"], data["y"]))

    options = {"data": {"x": x, "y": y}, "num_steps": 500, "batch_size": 10}
    found = quiet(log_likelihood, params, optax.sgd(0.3), **options)
    np.testing.assert_allclose(found.params["kernel"][:, 0], [0.3, -1.2, 2.1], atol=1e-4)
    np.testing.assert_allclose(found.params["bias"], [0.7], atol=1e-4)


def test_a_flax_module_with_other_state_is_refused():
    nnx = pytest.importorskip("flax.nnx")
    from vipl.interop.flax import functional

    with pytest.raises(vipl.errors.ProgramError) as error:
        functional(nnx.BatchNorm(3, rngs=nnx.Rngs(0)))
    assert str(error.value) == (
        "a module has state that is not parameters, which a program would lose.\n"
        "  at:        vipl.interop.flax.functional of BatchNorm\n"
        "  got:       BatchStat at mean, BatchStat at var\n"
        "  expected:  nnx.Param only\n"
        "  fix:       take the state along: params, state, apply = functional(module, state=True)"
    )
    with pytest.raises(vipl.errors.ProgramError, match=r"got:       RngCount at rngs.count, RngKey at rngs.key"):
        functional(nnx.Dropout(0.5, rngs=nnx.Rngs(0)))
    with pytest.raises(vipl.errors.ProgramError, match=r"not a Flax NNX module.*\n.*\n  got:       Linear itself"):
        functional(nnx.Linear)
