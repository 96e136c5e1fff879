"""Names of types, for signatures.

Public signatures say shapes and kinds in jaxtyping's words (`Float[Array, "*batch"]`); inside, a value of JAX is an
`Array`, whether concrete or traced.
"""

from __future__ import annotations

from jaxtyping import Array, ArrayLike, Bool, Float, Int, Num, PRNGKeyArray, PyTree, Shaped

__all__ = ["Array", "ArrayLike", "Bool", "Float", "Int", "Num", "PRNGKeyArray", "PyTree", "Shaped"]
