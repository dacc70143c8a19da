"""The tests: `unit` needs no server, `integration` real servers, `end_to_end` whole processes, `faults` both."""
