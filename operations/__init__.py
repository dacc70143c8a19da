"""The operator's side of the product: the command line `ordersaga` and the console.

It runs a local stack (MongoDB, RabbitMQ and the services as processes of this machine), checks prerequisites and books,
handles dead letters and measures load. It reads the services' databases directly and changes orders through their HTTP
APIs. No service imports it.
"""
