"""From an index by class to batches on the device."""
