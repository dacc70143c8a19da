"""Incidents: what happens to the stack itself, such as a process that is down, a failover or a failed audit.

They are not the events of orders (`operations.events`), which clients read. `incident` has the kinds, `changes` decides
what an observation means, `records` keeps incidents and what was last observed. The console observes.
"""
