"""Gradient estimators, one file each, and `expectation`."""

from vipl.estimators._enumerate import Enumerate as Enumerate
from vipl.estimators._expectation import Expectation as Expectation
from vipl.estimators._expectation import expectation as expectation
from vipl.estimators._measure_valued import MeasureValued as MeasureValued
from vipl.estimators._reparam import Reparam as Reparam
from vipl.estimators._score import LeaveOneOut as LeaveOneOut
from vipl.estimators._score import Score as Score
