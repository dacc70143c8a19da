"""Receives webhooks: WEBHOOK_SECRET=whsec_… python examples/webhook_receiver.py."""

import os
from http.server import BaseHTTPRequestHandler, HTTPServer

from ordersaga_client import WebhookVerificationError
from ordersaga_client.webhooks import verify

SECRETS = os.environ["WEBHOOK_SECRET"].split(",")  # while one is replaced: both
handled: set[str] = set()  # in a real shop, a table: an event may come again after a restart


class Receiver(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        try:
            event = verify(body, dict(self.headers.items()), SECRETS)
        except WebhookVerificationError as error:
            self.send_error(400, str(error))
            return
        if event.webhook_id not in handled:
            print(event.type, event.order_id, event.order and event.order.status, flush=True)
            handled.add(event.webhook_id)
        self.send_response(204)  # only now: what is not answered is sent again
        self.end_headers()


server = HTTPServer(("127.0.0.1", int(os.environ.get("PORT", "8000"))), Receiver)
print(f"listening on {server.server_port}", flush=True)
server.serve_forever()
