"""A record of each minute of the stack: throughput, latency, failures, dead letters and the age of queues.

The console draws its charts from it, so they need no Prometheus, cost the same however many orders there are, and
survive a restart.
"""
