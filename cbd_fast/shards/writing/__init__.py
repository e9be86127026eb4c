"""A stream of images to tar shards with their index and manifest."""
