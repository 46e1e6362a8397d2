"""What balancing did: gradient magnitudes, contributions, conflict and weights over training; `pictures` draws them."""

from equipoise.monitor.balance_monitor import BalanceMonitor
from equipoise.monitor.diagnosis import Diagnosis, diagnose
from equipoise.monitor.recording import Recording, read_monitor

__all__ = ["BalanceMonitor", "Diagnosis", "Recording", "diagnose", "read_monitor"]
