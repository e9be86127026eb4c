"""Before a run: will it work, how fast is it, and what limits it."""
