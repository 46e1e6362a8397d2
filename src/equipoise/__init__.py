"""equipoise: balanced multi-task training in PyTorch."""

from equipoise.aggregators import IMTLG
from equipoise.balancer import Balancer
from equipoise.gradients import task_gradients
from equipoise.objectives import *  # noqa: F403
from equipoise.optim import MAO
