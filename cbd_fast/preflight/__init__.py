"""Before a run: will it go, how fast, and what limits it?"""
