"""Which images, in which order: pure functions."""
