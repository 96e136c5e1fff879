"""A step of `vipl.fit` beside one of a loop that is written by hand: `python -m benchmarks fits`.

The problem is a linear regression with four coefficients and a Gaussian guide, 256 rows in a batch, by Adam. The
hand-written twins are compiled `lax.scan`s: they make the keys and the numbers of the rows of many steps at once, draw
the noise in each step, check nothing, and record nothing but the estimates.

- loop: the loop by hand; the gradient is that of the same objective, the rows are those that `vipl.fit` draws.
- all: the bound by hand, too, with all draws of a step from one key and nothing computed twice.
- randint: the same with rows by `jax.random.randint`, with replacement, which is what one writes first.

Timed is the whole call of `vipl.fit`, and of the twins, from Python to `block_until_ready`, in turns. CPU time is that
of the process, of all its threads; it depends less on what else the machine does. Before that parameters after 200
steps are compared, by z-scores over keys.
"""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import optax
from jax import lax

import vipl
from benchmarks.measure import DisagreementError, count_equations
from vipl.fit._ahead import MOST as AHEAD
from vipl.fit._order import order_of, rows_at
from vipl.fit._steps import Job, State, take_steps

BATCH, SIZE, KEYS = 256, 4, 12
LOG_2PI = float(np.log(2 * np.pi))
OPTIMIZER = optax.adam(1e-2)


def problem(n: int) -> tuple[vipl.Expectation, dict[str, jax.Array], dict[str, jax.Array]]:
    """The bound, where to begin, and the data."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((n, SIZE), np.float32)
    y = x.sum(1) + rng.standard_normal(n, np.float32)

    @vipl.gen
    def model(x):
        w = vipl.sample("w", dist.Normal(jnp.zeros(SIZE), 1.0).to_event(1))
        vipl.sample("y", vipl.scaled(dist.Normal(x @ w, 1.0).to_event(1), n / BATCH))

    @vipl.gen
    def guide(phi):
        vipl.sample("w", dist.Normal(phi["m"], jnp.exp(phi["s"])).to_event(1))

    @vipl.expectation
    def elbo(phi, batch):
        q = guide(phi).simulate()
        return model(batch["x"]).assess(q.choices | {"y": batch["y"]}).log_prob - q.log_prob

    phi = {"m": jnp.zeros(SIZE, "float32"), "s": jnp.full(SIZE, -1.0, "float32")}
    return elbo, phi, {"x": jnp.asarray(x), "y": jnp.asarray(y)}


def by_hand(n: int, num_steps: int, draws: str, elbo: vipl.Expectation | None = None) -> Callable:
    """A twin: (key, phi, data) -> parameters and estimates.

    Args:
      n: how many rows the data have.
      num_steps: …
      draws: "same": the rows that `vipl.fit` draws; "randint": with replacement; "none": all rows that there are.
      elbo: the objective; None for the bound by hand.
    """

    def loss(phi, key, batch):
        if elbo is not None:
            return -elbo.estimate(key, phi, batch)
        e = jax.random.normal(key, (SIZE,), "float32")
        w = phi["m"] + jnp.exp(phi["s"]) * e
        residual = batch["y"] - batch["x"] @ w
        rows = -0.5 * jnp.sum(residual**2) - 0.5 * BATCH * LOG_2PI
        prior, entropy = -0.5 * jnp.sum(w**2), 0.5 * jnp.sum(e**2) + jnp.sum(phi["s"])
        return -(prior + n / BATCH * rows + entropy)

    def run(key, phi, data):
        per_epoch = max(1, n // BATCH)
        keys_of = jax.vmap(functools.partial(jax.random.fold_in, key))

        def step(carry, given):
            phi, state = carry
            key, rows = given
            if draws == "randint":
                rows = jax.random.randint(jax.random.fold_in(key, 1), (BATCH,), 0, n)
            batch = data if draws == "none" else {name: x[rows] for name, x in data.items()}
            value, grads = jax.value_and_grad(loss)(phi, key, batch)
            updates, state = OPTIMIZER.update(grads, state, phi)
            return (optax.apply_updates(phi, updates), state), -value

        def steps_ahead(carry, numbers):
            rows = jax.vmap(rows_of)(numbers) if draws == "same" else None
            return lax.scan(step, carry, (keys_of(numbers), rows))

        def rows_of(i):
            return rows_at(order_of(key, i // per_epoch, n), i % per_epoch * BATCH, BATCH, n)

        carry, numbers = (phi, OPTIMIZER.init(phi)), jnp.arange(num_steps)
        if draws != "same":
            (phi, _), values = steps_ahead(carry, numbers)
        else:
            whole = numbers[: num_steps // AHEAD * AHEAD].reshape(-1, AHEAD)
            carry, first = lax.scan(steps_ahead, carry, whole)
            (phi, _), last = steps_ahead(carry, numbers[whole.size :])
            values = jnp.concatenate([first.ravel(), last])
        return phi, values

    return run


def compare(fitted: Callable, twin: Callable) -> None:
    """Raises where the two do not make the same parameters: `num_steps -> key -> parameters`."""
    fits, twins = (
        np.array([np.concatenate(jax.tree.leaves(run(jax.random.key(k)))) for k in range(KEYS)])
        for run in (fitted, twin)
    )
    error = np.sqrt((fits.var(0) + twins.var(0)) / (KEYS - 1))
    z = np.max(np.abs(fits.mean(0) - twins.mean(0)) / (error + 1e-6))
    if not z <= 5:
        raise DisagreementError(f"fits: vipl.fit against the loop by hand: z = {z:.1f}")


def line(n: int | None, num_steps: int, rounds: int) -> dict[str, Any]:
    """Figures of one number of rows; of 256 rows that are all given in each step where it is None."""
    elbo, phi, data = problem(n or BATCH)
    batch_size = None if n is None else BATCH
    draws = "none" if n is None else "same"
    twins: dict[str, Any] = {"loop": (draws, elbo), "all": (draws, None)}
    twins |= {} if n is None else {"randint": ("randint", None)}

    def fitted(num_steps):
        options = {"batch_size": batch_size, "num_steps": num_steps, "progress": False}
        return lambda key: vipl.fit(elbo, phi, OPTIMIZER, key=key, data=data, **options).params

    def twin(num_steps, name):
        run = jax.jit(by_hand(n or BATCH, num_steps, *twins[name]))
        return lambda key: run(key, phi, data)[0]

    for name in twins:
        compare(fitted(200), twin(200, name))
    calls = {"vipl": fitted(num_steps)} | {name: twin(num_steps, name) for name in twins}
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in calls}
    for turn in range(rounds + 1):
        for name, call in calls.items():
            begun = time.perf_counter(), time.process_time()
            jax.block_until_ready(call(jax.random.key(turn)))
            times[name].append((time.perf_counter() - begun[0], time.process_time() - begun[1]))
    out: dict[str, Any] = {"rows": n, "steps": num_steps}
    for name, found in times.items():
        wall, cpu = (1e6 / num_steps * statistics.median(x[i] for x in found[1:]) for i in (0, 1))
        out[name] = {"wall_us": wall, "cpu_us": cpu}
    for name, found in _sizes(n, elbo, phi, data, twins).items():
        out[name] |= found
    return out


def _sizes(n: int | None, elbo: vipl.Expectation, phi: Any, data: Any, twins: dict[str, Any]) -> dict[str, Any]:
    """Equations, and operations of the compiled programs, of which XLA counts each loop's body once.

    Twins are those of as many steps as `vipl.fit` makes keys for at once.
    """
    job = Job((elbo,), (OPTIMIZER,), batch_size=None if n is None else BATCH, owners=(0, 0))
    state = State(phi, OPTIMIZER.init(phi), jnp.int32(0), jnp.int32(0))
    programs: dict[str, Any] = {
        "vipl": (functools.partial(take_steps, job), (jax.random.key(0), state, (data,), AHEAD)),
    }
    for name in ("loop", "all"):
        programs[name] = by_hand(n or BATCH, AHEAD, *twins[name]), (jax.random.key(0), phi, data)
    out = {}
    for name, (program, args) in programs.items():
        cost: Any = jax.jit(program).lower(*args).compile().cost_analysis()
        cost = cost[0] if isinstance(cost, list) else cost
        out[name] = {"flops": cost.get("flops", 0.0), "equations": count_equations(jax.make_jaxpr(program)(*args))}
    return out


HEADING = f"{'rows':>10} {'':5}" + "".join(
    f"{x:>10}" for x in ("vipl.fit", "loop", "all", "randint", "/ loop", "/ all")
)


def text(figures: dict[str, Any]) -> str:
    """Microseconds of a step by the clock and of the CPU, and sizes of the compiled programs."""
    rows = f"{figures['rows']:,}" if figures["rows"] else "no batches"
    lines = []
    for kind, name, form in (
        ("wall_us", "us", "10.2f"),
        ("cpu_us", "CPU", "10.2f"),
        ("equations", "eqns", "10.0f"),
        ("flops", "flops", "10.0f"),
    ):
        each = [figures.get(twin, {}).get(kind) for twin in ("vipl", "loop", "all", "randint")]
        cells = "".join(f"{'-':>10}" if x is None else f"{x:{form}}" for x in each)
        lines.append(f"{rows:>10} {name:5}{cells}" + "".join(f"{each[0] / x:>10.2f}" for x in each[1:3]))
        rows = ""
    return "\n".join(lines)


def lines(quick: bool) -> list[dict[str, Any]]:
    """Measures and prints all."""
    print(HEADING, flush=True)
    found = []
    for n in (None, 1000) if quick else (None, 10**3, 10**5, 10**7):
        found.append(line(n, 2_000 if quick else 20_000, 3 if quick else 9))
        print(text(found[-1]), flush=True)
    return found
