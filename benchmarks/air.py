"""Trains attend, infer, repeat with several estimators, and reports ELBO and count accuracy against wall clock.

    python -m benchmarks.air [--estimators ENUM,MVD,REINFORCE] [--epochs 10] [--images 6400] [--learning-rate 1e-4]
                             [--checkpoints FOLDER] [--json OUT] [--picture OUT.png]

A short run takes minutes on two cores; the paper's (41 epochs of 60000 images) is `--epochs 41 --images 60000`, on a
GPU.
With `--checkpoints` a run that was stopped goes on after its last epoch. The images are made from MNIST where
`VIPL_MNIST` names it, else from scikit-learn's digits.

Published after 41 epochs (Becker et al., 2024): count accuracy .984 by ENUM and MVD, .950 by the hybrid of both, .27 by
REINFORCE.
"""

from __future__ import annotations

import argparse
import json
import time
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.machine import machine
from benchmarks.workloads import air

BATCH, HELD_OUT = 64, 1000


def make_epoch(objective: Any, optimizer: Any) -> Any:
    """(params, opt_state, key, batches) -> (params, opt_state, mean objective): one compiled loop over batches."""

    def step(state, inputs):
        params, opt_state = state
        key, batch = inputs
        value, grads = jax.value_and_grad(objective, argnums=1)(key, params, batch)
        updates, opt_state = optimizer.update(jax.tree.map(jnp.negative, grads), opt_state)
        return (optax.apply_updates(params, updates), opt_state), value

    @partial(jax.jit, donate_argnums=(0, 1))
    def epoch(params, opt_state, key, batches):
        keys = jax.random.split(key, len(batches))
        (params, opt_state), values = jax.lax.scan(step, (params, opt_state), (keys, batches))
        return params, opt_state, values.mean()

    return epoch


def save(path: Path, state: Any, log: list[dict[str, float]]) -> None:
    """Leaves and log, replaced as a whole."""
    new = path.with_name("new-" + path.name)
    leaves: dict[str, Any] = {str(i): np.asarray(x) for i, x in enumerate(jax.tree.leaves(state))}
    np.savez(new, log=json.dumps(log), **leaves)
    new.replace(path)


def load(path: Path, state: Any) -> tuple[Any, list[dict[str, float]]]:
    """What `save` saved."""
    with np.load(path) as data:
        leaves = [jnp.asarray(data[str(i)]) for i in range(len(jax.tree.leaves(state)))]
        return jax.tree.unflatten(jax.tree.structure(state), leaves), json.loads(str(data["log"]))


def train(name: str, options: argparse.Namespace, x: Any, held_out: tuple[Any, Any]) -> list[dict[str, float]]:
    """One line of figures for each epoch."""
    objective = air.VARIANTS[name].over_batch()
    optimizer = optax.adam(options.learning_rate)
    params = air.parameters(jax.random.key(0))
    state, log = (params, optimizer.init(params)), []
    path = Path(options.checkpoints) / f"air-{name.replace(' ', '-')}.npz" if options.checkpoints else None
    if path is not None and path.exists():
        state, log = load(path, state)
    epoch = make_epoch(objective, optimizer)
    accuracy = jax.jit(air.count_accuracy)
    steps = len(x) // BATCH
    if len(log) < options.epochs:
        key, like = jax.random.key(1), jnp.zeros((steps, BATCH, *x.shape[1:]))
        epoch = epoch.lower(*state, key, like).compile()  # the clock begins after this
    for number in range(len(log), options.epochs):
        start = time.perf_counter()
        order = np.random.default_rng(number).permutation(len(x))[: steps * BATCH]
        batches = jnp.asarray(x[order].reshape(steps, BATCH, *x.shape[1:]))
        *state, value = epoch(*state, jax.random.key(1000 + number), batches)
        value = float(value)
        seconds = (log[-1]["seconds"] if log else 0.0) + time.perf_counter() - start
        right = float(accuracy(jax.random.key(2), state[0], *held_out))
        log.append({"epoch": number + 1, "seconds": seconds, "objective": value, "accuracy": right})
        print(
            f"{name:22} epoch {number + 1:3}  {seconds:7.1f} s  objective {value:9.2f}  accuracy {right:.3f}",
            flush=True,
        )
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            save(path, state, log)
    return log


def picture(path: str | Path, logs: dict[str, list[dict[str, float]]]) -> None:
    """Objective and accuracy against wall clock."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, 2, figsize=(9, 3.4))
    for panel, what in zip(panels, ("objective", "accuracy"), strict=True):
        for name, log in logs.items():
            panel.plot([e["seconds"] for e in log], [e[what] for e in log], marker=".", label=name)
        panel.set(xlabel="seconds", ylabel={"objective": "objective per image", "accuracy": "count accuracy"}[what])
    panels[1].legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


SHORT = "--estimators ENUM,MVD,REINFORCE --epochs 2 --images 640 --learning-rate 1e-3"


def short(quick: bool) -> dict[str, Any]:
    """The short run that is a part of the suite."""
    options = arguments().parse_args(SHORT.split())
    if quick:
        options.epochs, options.images, options.estimators = 1, 64, "ENUM"
    return run(options)


def arguments() -> argparse.ArgumentParser:
    """What the command takes."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.air", description=__doc__)
    parser.add_argument("--estimators", default="ENUM,MVD,REINFORCE", help=f"some of {', '.join(air.VARIANTS)}")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--images", type=int, default=6400)
    parser.add_argument("--learning-rate", type=float, default=1e-4)
    parser.add_argument("--checkpoints")
    parser.add_argument("--json", help="where all figures go")
    parser.add_argument("--picture", help="where objective and accuracy are drawn")
    parser.add_argument("--note", default="", help="what a reader of the figures should know")
    return parser


def main() -> None:
    """Trains, and keeps what is asked for."""
    parser = arguments()
    options = parser.parse_args()
    for name in options.estimators.split(","):
        if name not in air.VARIANTS:
            parser.error(f"{name} is none of {', '.join(air.VARIANTS)}")
    result = run(options)
    if options.json:
        Path(options.json).write_text(json.dumps(result, indent=1) + "\n")
    if options.picture:
        picture(options.picture, result["logs"])


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Runs one estimator after the other."""
    x, _, data = air.canvases(options.images)
    test_x, test_counts, _ = air.canvases(HELD_OUT, seed=1)
    held_out = jnp.asarray(test_x), jnp.asarray(test_counts)
    print(f"{len(x)} canvases made of {data}; accuracy on {HELD_OUT} others", flush=True)
    logs = {name: train(name, options, x, held_out) for name in options.estimators.split(",")}
    kept = {name: x for name, x in vars(options).items() if name not in ("checkpoints", "json", "picture")}
    return {"machine": machine(), "data": data, "options": kept, "logs": logs}


if __name__ == "__main__":
    main()
