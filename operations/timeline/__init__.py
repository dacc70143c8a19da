"""One order's timeline, from the records of all services; needs no tracing backend."""
