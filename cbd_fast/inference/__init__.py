"""A finished model and images to answers."""
