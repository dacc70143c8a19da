"""The audit: checks whether the books of all services balance, over every order and every product.

`service_databases`, `journal` and `chains` read the databases in consistent snapshots. `orders`, `servers`, `stock`,
`slots`, `refunds` and `funds` judge what was read, without I/O; `paused` excuses what waits for a paused service;
`chains` also verifies the audit logs. `order_records` is everything recorded about one order. `auditing` runs an audit
and checks every suspicion a second time; `report` is the result.
"""

from operations.audit.auditing import audit
from operations.audit.report import Report, Violation

__all__ = ["Report", "Violation", "audit"]
