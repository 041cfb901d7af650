"""The seam to the machine: the `Backend` protocol and its implementations."""
