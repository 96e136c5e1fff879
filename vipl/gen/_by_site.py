"""Log densities by site: where `Trace.log_probs` comes from.

Law: a trace whose log densities by site are not read costs what it cost without them. So a program hands them out only
in the context `vipl._jax.by_site(True)`: a trace that a key made runs its program again there, with the same key; a
program in which one is read is staged again there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp

from vipl.gen._choices import Address, nest
from vipl.gen._weighing import density_path
from vipl.ir.primitives import Path
from vipl.ir.sites import SiteInfo


def log_probs_by_address(found: Sequence[SiteInfo], emits: Mapping[Path, Any]) -> dict[str, Any]:
    """What sites, factors and composites handed out as their log densities; nested as choices are.

    Of branches that share an address one is taken, and the others handed out zeros.
    """
    flat: dict[Address, Any] = {}
    composites: dict[Path, list[Address]] = {}
    for info in found:
        path, address = info.path, info.site.address
        if info.site.distribution is None:
            composites.setdefault(path[:-1], []).append(address)
        elif density_path(path) in emits:
            _add(flat, address, emits[density_path(path)])
    for path, addresses in composites.items():
        _add(flat, joint_address(addresses), emits[density_path(path)])
    return nest(flat)


def _add(flat: dict[Address, Any], address: Address, log_probs: Any) -> None:
    other = flat.get(address)
    if other is not None and other.shape != log_probs.shape:
        other, log_probs = jnp.sum(other), jnp.sum(log_probs)
    flat[address] = log_probs if other is None else other + log_probs


def joint_address(addresses: Sequence[Address]) -> Address:
    """Where the log density that several addresses have together stands.

    Their own, if it is one; otherwise the part that they have in common, and the others joined: ("post", "a, b").
    """
    if len(addresses) == 1:
        return addresses[0]
    common = 0
    while all(len(a) > common + 1 and a[common] == addresses[0][common] for a in addresses):
        common += 1
    return (*addresses[0][:common], ", ".join("/".join(a[common:]) for a in addresses))
