"""One order's timeline, built from the records of all services; no tracing backend is needed."""
