"""From batches to a class-balanced student."""
