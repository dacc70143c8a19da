"""Filters of a list that the team keeps under a name."""
