"""How the bus talks to RabbitMQ. Most readers may skip this package: shared.bus says what a bus does.

aio-pika runs the connection: the handshake, heartbeats, channels and declarations. The frames that carry messages are
ours, for two reasons:

- Safety. A message whose type is not UTF-8, whose timestamp is in the year 292278994 or whose headers are nested a
  thousand deep ends aio-pika's reader, and with it the connection, again after every redelivery. Anyone who may
  publish could stop a service for good. Here such a message is decoded as far as possible and becomes a dead letter.
- Cost. aio-pika spends a task, a future and several locks on every message. In batches of 100, publishing one takes
  87 µs of CPU with aio-pika and 6 µs here, consuming one 59 µs and 8 µs. At 800 orders per second the whole bus takes
  8 % of one core instead of 47 % (docs/adr/0002-bus.md has the measurements).

    link          one connection with its two channels and the declared topology; lost as a whole, never repaired
    publications  the channel that messages are published on, which a link may replace
    wire          the socket: takes frames with messages out of the stream and leaves the rest to aio-pika
    confirms      which publications of a channel the broker has confirmed, refused or returned (no I/O)
    frames        the frames as bytes (no I/O)

`link` uses the others, and `RabbitBus` (shared.bus.rabbitmq) alone uses `link`: it opens the next one when one is
lost. To debug a connection, begin with `link`; its docstring says what ends a link and what does not. Change `frames`
only with the AMQP specification at hand: tests/unit/test_bus_frames.py compares it with pamqp, and
tests/unit/test_bus_wire.py feeds the stream in arbitrary pieces.
"""
