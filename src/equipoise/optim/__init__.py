"""Optimizers that balance by themselves, and what goes with them."""

from equipoise.optim._base import BalancingOptimizer
from equipoise.optim.adatask import AdaTask
from equipoise.optim.mao import MAO
from equipoise.optim.mtadam import MTAdam
from equipoise.optim.muon import MuonAndAdamW
from equipoise.optim.per_task import PerTask

__all__ = ["MAO", "AdaTask", "BalancingOptimizer", "MTAdam", "MuonAndAdamW", "PerTask"]
