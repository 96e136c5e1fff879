"""Statistical tests of estimators."""

from vipl.testing._unbiased import Check as Check
from vipl.testing._unbiased import assert_unbiased as assert_unbiased
