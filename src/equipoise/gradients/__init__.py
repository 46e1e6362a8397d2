"""Task gradients: what was given, what the losses share, the rows, products with the Jacobian, and `.grad`."""
