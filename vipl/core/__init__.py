"""The primitive `sample`, the equation loop, keys, `seed`. Knows nothing of densities."""

from vipl.core._seed import seed as seed
