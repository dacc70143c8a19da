"""What tests share: servers, processes, builders, and the wait for a condition."""
