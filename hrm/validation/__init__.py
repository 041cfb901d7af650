"""Judging predictions, and the decisions made with them, by runs on the machine at hand. `hrm.cli` makes the runs."""
