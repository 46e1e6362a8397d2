"""Optimizers that balance by themselves, and what goes with them."""

from equipoise.optim.mao import MAO
from equipoise.optim.muon import MuonAndAdamW

__all__ = ["MAO", "MuonAndAdamW"]
