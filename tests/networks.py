"""The network that methods are tested on, and what is compared of it; the same that other people's methods meet."""

from equipoise.testing._comparing import assert_same, gradients, snapshot
from equipoise.testing._subject import TASKS, Network, batch

__all__ = ["TASKS", "Network", "assert_same", "batch", "gradients", "snapshot"]
