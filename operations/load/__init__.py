"""The load test: how many orders per second a stack completes over HTTP, and what each order costs.

`plan` generates the orders, `connection` and `placer` post them with as little CPU time as possible, `outcomes` waits
until they are settled and evaluates the services' own timestamps, `cost` reads the resources that the stack's processes
used, `report` is the result, `run` puts it together.
"""

from operations.load.plan import LoadPlan
from operations.load.report import LoadReport
from operations.load.run import LoadProgress, run_load

__all__ = ["LoadPlan", "LoadProgress", "LoadReport", "run_load"]
