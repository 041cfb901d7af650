"""Schedules: policies turned into ordered tasks, and what simulating them gives."""
