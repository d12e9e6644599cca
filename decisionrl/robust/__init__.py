"""Distributionally robust linear MDPs: worst-case operators, exact dynamic programming, and demand shift."""
