"""Receives webhooks: WEBHOOK_SECRET=whsec_… python examples/webhook_receiver.py."""

import os
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock

from ordersaga_client import WebhookVerificationError
from ordersaga_client.webhooks import verify

SECRETS = [secret for secret in os.environ["WEBHOOK_SECRET"].split(",") if secret]  # while one is replaced: both
handled: set[str] = set()  # in a real shop, a table: an event may come again after a restart
lock = Lock()


class Receiver(BaseHTTPRequestHandler):
    timeout = 15  # seconds without a byte

    def do_POST(self) -> None:
        try:
            event = verify(self.body(), dict(self.headers.items()), SECRETS)
        except (ValueError, WebhookVerificationError) as error:
            self.log_error("refused: %s", error)
            self.send_error(400)
            return
        with lock:
            if event.webhook_id not in handled:
                print(event.type, event.order_id, event.order and event.order.status, flush=True)
                handled.add(event.webhook_id)
        self.send_response(204)  # only now: what is not answered is sent again
        self.end_headers()

    def body(self) -> bytes:
        length = int(self.headers.get("Content-Length", ""))
        if not 0 <= length <= 1 << 20:
            raise ValueError(f"the length is {length}")
        return self.rfile.read(length)


server = ThreadingHTTPServer(("127.0.0.1", int(os.environ.get("PORT", "8000"))), Receiver)
print(f"listening on {server.server_port}", flush=True)
server.serve_forever()
