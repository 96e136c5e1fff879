"""The workloads: each module has `cases(quick) -> list[Case]`."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp


def log_normal(x: Any, loc: Any, scale: Any) -> Any:
    """f[...], for the hand-written programs."""
    return -0.5 * ((x - loc) / scale) ** 2 - jnp.log(scale) - 0.5 * jnp.log(2 * jnp.pi)
