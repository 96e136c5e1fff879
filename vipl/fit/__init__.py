"""Optimization of objectives."""

from vipl.fit._fit import Fit as Fit
from vipl.fit._fit import fit as fit
