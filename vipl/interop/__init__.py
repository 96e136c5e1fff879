"""Bridges to other packages; each guest is imported inside the function that needs it."""

from vipl.interop import flax as flax
