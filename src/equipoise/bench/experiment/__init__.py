"""Training by a method, comparing methods, and what is written about it."""
