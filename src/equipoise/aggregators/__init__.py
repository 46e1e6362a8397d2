"""Aggregators: K task gradients to one."""

from equipoise.aggregators._base import Aggregator, GramianAggregator
from equipoise.aggregators.imtl_g import IMTLG

__all__ = ["IMTLG", "Aggregator", "GramianAggregator"]
