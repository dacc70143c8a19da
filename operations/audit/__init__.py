"""The audit: whether the books of all services balance, over every order and every product.

`service_databases` reads the databases, each read at one moment: a page of orders, or one pass over the products.
`journal` reads the books of funds. `orders`, `servers`, `stock`, `slots` and `funds` judge what was read, without I/O;
`order_records` is an order that they judge. `auditing` puts it together and checks again what seemed wrong; `report`
is the result.
"""

from operations.audit.auditing import audit
from operations.audit.report import Report, Violation

__all__ = ["Report", "Violation", "audit"]
