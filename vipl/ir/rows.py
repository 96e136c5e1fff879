"""Tables of an enumerated site's values, one row for each: making them, and taking a row of them."""

from vipl import _jax

rows_p = _jax.define_stack_primitive("vipl_rows")
"""`(*rows) -> [n, ...]`; lanes of a `vmap` stand behind the rows."""

row_p = _jax.define_row_primitive("vipl_row")
"""`(table, number, axis=) -> table[number]`, which looks nothing up in the `vmap` over all rows."""
