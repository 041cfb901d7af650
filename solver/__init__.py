"""Which policy to run: the search over policies."""
