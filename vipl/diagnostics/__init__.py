"""Checks of a whole inference: is it right on average over data that the model itself makes?"""

from vipl.diagnostics._calibrate import Calibration as Calibration
from vipl.diagnostics._calibrate import calibrate as calibrate
