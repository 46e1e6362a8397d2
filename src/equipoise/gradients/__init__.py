"""Task gradients: finding what the losses share, computing the rows, products with the Jacobian."""

from equipoise.gradients.gramian import combine, gramian
from equipoise.gradients.graph import reached_leaves
from equipoise.gradients.jacobian import task_gradients, task_rows

__all__ = ["combine", "gramian", "reached_leaves", "task_gradients", "task_rows"]
