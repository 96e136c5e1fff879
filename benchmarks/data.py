"""Images for benchmarks: MNIST where it is given, scikit-learn's digits otherwise.

MNIST is the .npz file that `VIPL_MNIST` (or `--mnist`) names, with `train_images` u8[n, 28, 28], `train_labels` u8[n]
and the same for `test`. To make one: download the four files of http://yann.lecun.com/exdb/mnist/ (or any mirror),
read them, and `numpy.savez("mnist.npz", train_images=..., train_labels=..., test_images=..., test_labels=...)`.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np


def images() -> tuple[np.ndarray, np.ndarray, str]:
    """f[n, pixels] in [0, 1], labels, and the name of the data."""
    path = os.environ.get("VIPL_MNIST")
    if path:
        if not os.path.exists(path):
            raise SystemExit(f"VIPL_MNIST names {path}, which is not there; see benchmarks/data.py for what it holds")
        with np.load(path) as data:
            x = data["train_images"].reshape(-1, 784).astype(np.float32) / 255.0
            return x, data["train_labels"], "MNIST"
    from sklearn.datasets import load_digits

    digits: Any = load_digits()
    return (digits.data / 16.0).astype(np.float32), digits.target, "digits (scikit-learn)"


def binary_images(n: int, seed: int = 0) -> tuple[np.ndarray, str]:
    """i[n, pixels], drawn with the grey levels as probabilities, and the name of the data."""
    x, _, name = images()
    rng = np.random.default_rng(seed)
    x = x[rng.permutation(len(x))[:n]]
    return (rng.uniform(size=x.shape) < x).astype(np.int32), name
