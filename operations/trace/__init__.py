"""One order's story on the command line, from the records of all services; needs no tracing backend."""
