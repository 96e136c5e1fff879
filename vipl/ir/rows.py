"""Tables of an enumerated site's values, one row for each: making them, taking a row, and what lanes make of them."""

import jax.numpy as jnp
from jax import lax

from vipl import _jax

rows_p = _jax.define_stack_primitive("vipl_rows")
"""`(*rows) -> [n, ...]`; lanes of a `vmap` stand behind the rows."""

row_p = _jax.define_row_primitive("vipl_row")
"""`(table, number, axis=) -> table[number]`, which looks nothing up in the `vmap` over all rows."""

anywhere_p = _jax.define_over_lanes_primitive("vipl_anywhere", lambda x, axis: jnp.any(x, axis=axis))
"""`(bool[...], but=) -> bool[...]`, whether it holds in any lane of the `vmap`s around, but for one of them."""

first_p = _jax.define_over_lanes_primitive("vipl_first", lambda x, axis: lax.index_in_dim(x, 0, axis, keepdims=False))
"""`(f[...], but=) -> f[...]`, what it is in the first lane of the `vmap`s around; held by `stop_gradient`."""
