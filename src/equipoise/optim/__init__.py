"""Optimizers that balance by themselves."""

from equipoise.optim.mao import MAO

__all__ = ["MAO"]
