"""The overhead of vipl over hand-written JAX, in one process: `python -m benchmarks.core [--json OUT]`.

- A gradient step of the digits VAE (64-200-10, batch 64): floating-point operations of the compiled step, median
  time of a call, trace time, compile time.
- 200 scalar sites: compile time against one hand-written draw of all 200.
- An eager `estimate` called twice: how often the program is staged.

Both sides compute the same gradient estimate; it is checked first to agree within Monte Carlo error.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax import lax

import vipl
from vipl import sample

PIXELS, HIDDEN, LATENT, BATCH = 64, 200, 10, 64


def parameters(key: Any) -> dict[str, Any]:
    """Two two-layer networks."""
    sizes = {"e1": (PIXELS, HIDDEN), "e2": (HIDDEN, 2 * LATENT), "d1": (LATENT, HIDDEN), "d2": (HIDDEN, PIXELS)}
    keys = jax.random.split(key, len(sizes))
    return {
        name: (jax.random.normal(k, shape) / np.sqrt(shape[0]), jnp.zeros(shape[1]))
        for k, (name, shape) in zip(keys, sizes.items(), strict=True)
    }


def dense(params: Any, x: Any) -> Any:
    """x W + b."""
    return x @ params[0] + params[1]


def encode(params: Any, x: Any) -> tuple[Any, Any]:
    """Mean and scale of the latents."""
    out = dense(params["e2"], jax.nn.relu(dense(params["e1"], x)))
    return out[..., :LATENT], jax.nn.softplus(out[..., LATENT:]) + 1e-4


def decode(params: Any, z: Any) -> Any:
    """Logits of the pixels."""
    return dense(params["d2"], jax.nn.relu(dense(params["d1"], z)))


@vipl.gen
def model(params, n):
    """One batch of images."""
    z = sample("z", dist.Normal(jnp.zeros((n, LATENT)), 1.0).to_event(2))
    sample("x", dist.Bernoulli(logits=decode(params, z)).to_event(2))


@vipl.gen
def guide(params, x):
    """One batch of latents."""
    loc, scale = encode(params, x)
    sample("z", dist.Normal(loc, scale).to_event(2))


@vipl.expectation
def elbo(params, x):
    """The evidence lower bound of a batch."""
    q = guide(params, x).simulate()
    p = model(params, x.shape[0]).assess(q.choices | {"x": x})
    return (p.log_prob - q.log_prob) / x.shape[0]


def handwritten(key: Any, params: Any, x: Any) -> Any:
    """The same estimator, written by hand."""
    loc, scale = encode(params, x)
    eps = jax.random.normal(key, loc.shape)
    z = loc + scale * eps
    log_q = jnp.sum(-0.5 * ((z - loc) / scale) ** 2 - jnp.log(scale) - 0.5 * jnp.log(2 * jnp.pi))
    log_prior = jnp.sum(-0.5 * z**2 - 0.5 * jnp.log(2 * jnp.pi))
    logits = decode(params, z)
    log_x = jnp.sum(x * logits - jax.nn.softplus(logits))
    return (log_x + log_prior - log_q) / x.shape[0]


def measure(steps: dict[str, Callable], args: tuple[Any, ...], rounds: int = 200, calls: int = 20) -> dict[str, Any]:
    """Trace, compile, run: alternating A B A B, medians."""
    out: dict[str, Any] = {name: {} for name in steps}
    compiled = {}
    traces: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(7):
        for name, step in steps.items():
            jax.clear_caches()
            start = time.perf_counter()
            lowered = jax.jit(step).trace(*args)
            traces[name].append(time.perf_counter() - start)
            compiled[name] = lowered
    for name in steps:
        start = time.perf_counter()
        compiled[name] = compiled[name].lower().compile()
        out[name] |= {"trace_s": statistics.median(traces[name]), "compile_s": time.perf_counter() - start}
        cost = compiled[name].cost_analysis()
        out[name]["flops"] = (cost[0] if isinstance(cost, list) else cost)["flops"]
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds):
        for name, step in compiled.items():
            start = time.perf_counter()
            for _ in range(calls):
                result = step(*args)
            jax.block_until_ready(result)
            times[name].append((time.perf_counter() - start) / calls)
    for name in steps:
        out[name]["time_s"] = statistics.median(times[name])
    names = list(steps)
    out["ratio"] = {k: out[names[0]][k] / out[names[1]][k] for k in out[names[0]]}
    return out


def vae() -> dict[str, Any]:
    """A gradient step of the digits VAE."""
    params = parameters(jax.random.key(0))
    x = (jax.random.uniform(jax.random.key(1), (BATCH, PIXELS)) < 0.4).astype(jnp.int32)
    key = jax.random.key(2)
    steps = {
        "vipl": jax.value_and_grad(elbo.estimate, argnums=1),
        "handwritten": jax.value_and_grad(handwritten, argnums=1),
    }
    keys = jax.random.split(key, 400)
    means = {n: jax.vmap(lambda k, s=s: s(k, params, x))(keys) for n, s in steps.items()}
    flat = {
        n: np.concatenate([np.asarray(a).reshape(400, -1) for a in jax.tree.leaves(m)], 1) for n, m in means.items()
    }
    se = np.sqrt(sum(f.var(0) / 400 for f in flat.values())) + 1e-6
    z = np.abs(flat["vipl"].mean(0) - flat["handwritten"].mean(0)) / se
    if np.quantile(z, 0.99) > 4 or z.max() > 7:
        raise SystemExit(f"the two sides do not estimate the same gradient: z = {z.max():.1f}")
    return measure(steps, (key, params, x)) | {"max_z": float(z.max())}


def many_sites(n: int = 200) -> dict[str, Any]:
    """Compile time of n scalar sites."""

    @vipl.expectation
    def objective(loc):
        return sum(sample(f"x{i}", dist.Normal(loc[i], 1.0)) ** 2 for i in range(n))

    def by_hand(key, loc):
        return jnp.sum((loc + jax.random.normal(key, (n,))) ** 2)

    def by_hand_scalars(key, loc):
        eps = jax.random.normal(key, (n,))
        return sum((loc[i] + eps[i]) ** 2 for i in range(n))

    loc = jnp.linspace(-1.0, 1.0, n)
    out = {}
    for name, other in {"vector twin": by_hand, "scalar twin": by_hand_scalars}.items():
        steps = {
            "vipl": jax.value_and_grad(objective.estimate, argnums=1),
            "handwritten": jax.value_and_grad(other, argnums=1),
        }
        out[name] = measure(steps, (jax.random.key(0), loc), rounds=5)
    return out


def stagings() -> int:
    """How often an eager estimate, called twice, runs the user's Python function."""
    count = []

    @vipl.expectation
    def objective(loc):
        count.append(1)
        return lax.scan(lambda c, _: (c + sample("x", dist.Normal(loc, 1.0)), None), 0.0, None, length=10)[0]

    for seed in range(2):
        jax.block_until_ready(objective.estimate(jax.random.key(seed), 0.3))
    return len(count)


def main() -> None:
    """Runs all and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json")
    options = parser.parse_args()
    result = {"vae": vae(), "200 sites": many_sites(), "stagings of two eager calls": stagings()}
    result["machine"] = {"platform": platform.platform(), "jax": jax.__version__, "device": str(jax.devices()[0])}
    rows = {"VAE step": result["vae"]} | {f"200 sites, {k}": v for k, v in result["200 sites"].items()}
    print(f"{'ratio to hand-written':28}{'flops':>9}{'time':>9}{'trace':>9}{'compile':>9}")
    for name, r in rows.items():
        ratio = r["ratio"]
        print(f"{name:28}" + "".join(f"{ratio[k]:9.3f}" for k in ("flops", "time_s", "trace_s", "compile_s")))
    print(f"two eager calls of estimate stage {result['stagings of two eager calls']} time(s)")
    if options.json:
        with open(options.json, "w") as file:
            json.dump(result, file, indent=1)


if __name__ == "__main__":
    main()
