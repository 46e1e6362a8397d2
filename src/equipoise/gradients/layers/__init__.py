"""The Gramian of the task gradients layer by layer, without the task gradients."""

from equipoise.gradients.layers.acting import what_acts
from equipoise.gradients.layers.gramian import gramian_by_layers
from equipoise.gradients.layers.plan import Unsupported, layers_save

__all__ = ["Unsupported", "gramian_by_layers", "layers_save", "what_acts"]
