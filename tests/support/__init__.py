"""Support shared by the tests: servers, processes, builders, and the wait for a condition."""
