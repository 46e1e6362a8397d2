"""Objectives and weightings: K losses to one scalar."""

from equipoise.objectives._base import GeometricMean, Objective, WeightedSum, Weighting
from equipoise.objectives.ema import EMA
from equipoise.objectives.equal import Equal

__all__ = ["EMA", "Equal", "GeometricMean", "Objective", "WeightedSum", "Weighting"]
