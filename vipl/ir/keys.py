"""Keys follow the path of a site.

    key(site) = fold_in(key, hash(address, occurrence)).

In loops, of which the samples of an estimate are the outermost, the bits of all passes are drawn at once from this key
(`vipl.interpret.noise`). Where a pass has to have a key of its own, it is made for each loop, outermost first, by

    fold_in(fold_in(key, hash(kind of loop)), index).

Adding a site leaves the draws of all others alone. Kinds of loop are tagged because `split(key, n)[i]` and
`fold_in(key, i)` are the same bits. The index of a reversed `scan` is that of the x, not of the iteration.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from vipl._types import ArrayLike, PRNGKeyArray
from vipl.errors import AddressError, ProgramError, shortened, show_address, show_aval
from vipl.ir.frames import user_frame
from vipl.ir.sites import Loop, SiteInfo


def digest(*parts: object) -> int:
    """A 32-bit hash that is the same in every process."""
    text = "\x1f".join(str(p) for p in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=4).digest(), "big")


def site_digest(info: SiteInfo) -> int:
    """The hash of a site's address and occurrence."""
    return digest("site", *info.site.address, info.occurrence)


def check_digests(found: Sequence[SiteInfo]) -> None:
    """Raises where two addresses of one program have the same 32-bit hash: they would draw the same noise."""
    seen: dict[int, SiteInfo] = {}
    for info in found:
        other = seen.setdefault(site_digest(info), info)
        if (other.site.address, other.occurrence) != (info.site.address, info.occurrence):
            raise AddressError(
                "two addresses have the same hash, so that their sites would draw the same noise.",
                at=info.site.at(),
                got=f"{show_address(info.site.address)} and {show_address(other.site.address)}",
                expected="addresses with different 32-bit hashes",
                fix="rename one of them",
            )


def key_or_first(key: Any) -> Any:
    """A PRNG key, checked; for None the key of seed 0, where the same answer each time is what is wanted."""
    return as_key(jax.random.key(0) if key is None else key)


def as_key(key: object) -> PRNGKeyArray:
    """Checks a PRNG key; raw uint32 keys of the default generator are wrapped."""
    if isinstance(key, jax.Array) and is_key(key) and key.ndim == 0:
        return key
    if isinstance(key, (jax.Array, np.ndarray)) and key.dtype == np.uint32 and key.ndim == 1:
        with contextlib.suppress(TypeError, ValueError):  # of another length than this generator's keys
            return jax.random.wrap_key_data(jnp.asarray(key))
    raise ProgramError(
        "the key is not one PRNG key.",
        at=user_frame(),
        got=show_aval(key) if hasattr(key, "dtype") else shortened(key),
        expected="one key, as jax.random.key(0) makes it",
        fix="pass jax.random.key(seed); map over several keys with jax.vmap",
    )


def is_key(x: Any) -> bool:
    """Says whether something is a typed PRNG key, or an array of them."""
    return hasattr(x, "dtype") and jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


def fold_loop(keys: PRNGKeyArray, loop: Loop) -> PRNGKeyArray:
    """Keys for all indices of one loop: adds an axis at the end.

    They are new keys; `clone` says so to JAX's checker of key reuse, which takes a transposed key for a used one.
    """
    tagged = fold_tag(keys, loop.kind)
    fold = jax.random.fold_in
    for _ in range(tagged.ndim):
        fold = jax.vmap(fold, (0, None))
    return jax.random.clone(jax.vmap(fold, (None, 0), tagged.ndim)(tagged, jnp.arange(loop.size, dtype=jnp.uint32)))


def fold_tag(keys: PRNGKeyArray, kind: str, index: ArrayLike | None = None) -> PRNGKeyArray:
    """Folds a tag, and then an index if there is one, into an array of keys."""
    fold = jax.random.fold_in
    for _ in range(keys.ndim):
        fold = jax.vmap(fold, (0, None))
    tagged = fold(keys, np.uint32(digest("tag", kind)))
    return tagged if index is None else fold(tagged, index)


_F = TypeVar("_F", bound=Callable)


def key_by_keyword(fn: _F, before: int = 0) -> _F:
    """A function whose first argument is a key, so that it takes it as `key=` as well: `fn(*args, key=key)`.

    Args:
      fn: the function.
      before: how many arguments stand before the key; 1 for a method.
    """

    @functools.wraps(fn)
    def called(*args, **kwargs):
        if "key" in kwargs and len(args) > before:
            args = (*args[:before], kwargs.pop("key"), *args[before:])
        return fn(*args, **kwargs)

    return called  # type: ignore[return-value]
