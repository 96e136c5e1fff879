"""From a program to a surrogate, whose derivatives are unbiased."""

from vipl.expectation.expectation import Expectation as Expectation
from vipl.expectation.expectation import expectation as expectation
