"""Task gradients: what was given, what the losses share, the rows, products with the Jacobian, and `.grad`."""

from equipoise.gradients.gramian import combine, gramian
from equipoise.gradients.graph.walk import reached_leaves
from equipoise.gradients.jacobian import task_gradients

__all__ = ["combine", "gramian", "reached_leaves", "task_gradients"]
