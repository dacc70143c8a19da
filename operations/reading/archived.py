"""The running totals of archived orders: what orders that were deleted still count for. Pure: their names.

`ordersaga archive` adds to them in the transaction that deletes the orders; `ordersaga audit` adds them to what is in
the databases. The collection `archived` in the database of operations, by `_id`:

    stock:<product or slot>   {units, shipped}    what the orders keep of it, like RESERVED and SHIPPED reservations
    retainer:<id>             {amount, orders}    what the orders took from the retainer and did not return
    addresses                 {count}             addresses of servers that stay the orders' own
    orders                    {CONFIRMED, COMPLETED, CANCELLED}    the number of orders
    files                     {withPersonalData}  files with personal data; each is counted before it is written
"""

COLLECTION = "archived"

ARCHIVE_ACTION = "orders.archive"
"""The action in the log for each file: its orders are verified, and deleted next. The subject is its path."""

STOCK = "stock:"
RETAINER = "retainer:"
ADDRESSES = "addresses"
ORDERS = "orders"
FILES = "files"
WITH_PERSONAL_DATA = "withPersonalData"
