"""Which policy to run: the search over policies."""

from solver.grid import make_plan, solve
from solver.space import Problem

__all__ = ["Problem", "make_plan", "solve"]
