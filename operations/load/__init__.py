"""The load test: how many orders a second a stack carries from HTTP to their end, and what each costs.

`plan` says what is placed, `connection` and `placing` place it as cheaply as they can, `settling` waits for the end and
measures by the services' own times, `cost` reads what the stack's processes used, `report` is what comes of it,
`running` puts it together, `command` is the command line's `load`.
"""

from operations.load.plan import Plan
from operations.load.report import LoadReport
from operations.load.running import Watch, run_load

__all__ = ["LoadReport", "Plan", "Watch", "run_load"]
