"""The autograd graphs of a step's losses: what they reach, where they merge, and the wrappers that made them."""
