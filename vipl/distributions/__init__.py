"""Distributions that NumPyro lacks: chains whose states are summed or integrated out exactly."""

from vipl.distributions._hidden_markov import HiddenMarkov as HiddenMarkov
from vipl.distributions._linear_gaussian import LinearGaussian as LinearGaussian
