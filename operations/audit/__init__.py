"""The audit: whether the books of all services balance, over every order and every product.

`books` reads the databases, a page of orders or one pass over the products at a time and each at one moment, `journal`
the books of funds, whose balances `balances` adds up again; `orders`, `servers`, `stock`, `slots` and `funds` judge
what was read, without I/O, `case` is an order that they judge, and `chart` knows the accounts; `moments` reads at one
moment; `broker` counts what is under way, `letters` the dead letters; `auditing` puts it together, and looks a second
time at whatever seemed wrong; `report` is what comes of it, `command` the command line's `audit`.
"""

from operations.audit.auditing import audit
from operations.audit.report import Report, Violation

__all__ = ["Report", "Violation", "audit"]
