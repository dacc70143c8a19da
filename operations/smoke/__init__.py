"""The smoke test after a deployment: does one of everything that customers do, and undoes it."""
