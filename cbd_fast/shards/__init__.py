"""From a dataset on disk to tar shards with an index by class, and back to the bytes of one image."""
