"""Whether a problem's tasks need balancing: steps with equal weights are measured, and judged by documented rules."""

from equipoise.monitor.diagnosis.diagnosing import diagnose
from equipoise.monitor.diagnosis.regimes import Regime
from equipoise.monitor.diagnosis.result import Diagnosis, Recommendation

__all__ = ["Diagnosis", "Recommendation", "Regime", "diagnose"]
