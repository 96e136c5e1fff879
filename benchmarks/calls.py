"""What a call from ordinary Python costs beside the compiled program: `python -m benchmarks.calls`.

Times are the least of nine rounds, in microseconds.
"""

from __future__ import annotations

import timeit
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist

import vipl
from vipl import sample
from vipl.cache.fingerprint import read
from vipl.cache.programs import reading_of


def least(fn: Callable, number: int = 2000) -> float:
    """Microseconds of one call."""
    return min(timeit.repeat(fn, number=number, repeat=9)) / number * 1e6


def chain_of(number: int) -> Callable:
    """A function that calls `number` functions, each of which reads a number and a list."""
    names: dict[str, Any] = {"f0": lambda x: x}
    for i in range(1, number + 1):
        names |= {f"scale{i}": 1.0, f"table{i}": [0.1, 0.2]}
        exec(f"def f{i}(x):\n    return f{i - 1}(x) * scale{i} + table{i}[0]", names)  # noqa: S102
    return names[f"f{number}"]


def objective_with(number: int) -> Any:
    """An evidence lower bound whose model calls `number` functions."""
    mean = chain_of(number)

    @vipl.gen
    def model():
        x = sample("x", dist.Normal(0.0, 2.0))
        sample("y", dist.Normal(mean(x), 1.0))

    @vipl.gen
    def guide(phi):
        sample("x", dist.Normal(phi["m"], jnp.exp(phi["s"])))

    @vipl.expectation
    def elbo(phi, y):
        q = guide(phi).simulate()
        return model().assess(q.choices | {"y": y}).log_prob - q.log_prob

    return elbo


def main() -> None:
    """Prints the table."""
    args = (jax.random.key(0), {"m": jnp.zeros(()), "s": jnp.zeros(())}, jnp.ones(()))
    print("functions  estimate  value_and_grad  of which comparing  reading anew")
    for number in (0, 10):
        elbo = objective_with(number)
        jax.block_until_ready(elbo.estimate(*args))
        jax.block_until_ready(elbo.value_and_grad(*args))
        total, compared = least(lambda elbo=elbo: elbo.estimate(*args)), least(reading_of(elbo).holds)
        both = least(lambda elbo=elbo: elbo.value_and_grad(*args))
        anew = least(lambda elbo=elbo: read(elbo), 50)
        print(f"{number:9d}  {total:8.1f}  {both:14.1f}  {compared:18.2f}  {anew:12.0f}")


if __name__ == "__main__":
    main()
