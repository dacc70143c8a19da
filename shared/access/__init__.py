"""Who calls, and what that caller may do.

A request carries an API key (`keys`) or a JWT of an OpenID Connect issuer in its header Authorization. Either becomes a
`Principal` (`principal`), whose roles grant permissions (`permissions`). A middleware authenticates before the body is
read (`middleware`), and each route declares the permission that it needs:

    @router.get("/orders/{order_id}")
    @requires(Permission.ORDERS_READ)
    async def get_order(order_id: str, caller: Caller) -> Response: ...

A route that declares none is refused to everybody. Which records a caller may see is part of the query
(`Principal.visible`), so that records of other owners are not found instead of refused.
"""
