"""Memory that is used again: images that are kept decoded, and buffers of batches."""
