"""Pausing the consumption of a service's inbox: the record, the loop that follows it, and the routes. See ADR 19."""
