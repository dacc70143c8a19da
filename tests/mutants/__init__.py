"""Faults that are put into the code on purpose, one patch each: the simulation must find every one of them.

The first lines of a patch say what is wrong. `make mutants` applies each to a copy of the code, and runs seeds until
one fails.
"""
