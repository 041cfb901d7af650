"""Which policy to run: the search over policies."""

from solver.grid import make_plan
from solver.problem import Objective, Problem
from solver.search import Method, solve

__all__ = ["Method", "Objective", "Problem", "make_plan", "solve"]
