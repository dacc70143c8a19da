"""The AsyncAPI document: every message, who sends it, who receives it, and over which exchange and queue.

It derives from shared.contracts, shared.topology and shared.broker_rights. The order service serves it at
`/asyncapi.json`, and `make api-samples` writes it to docs/api/asyncapi.json.
"""

from collections.abc import Iterator
from functools import lru_cache
from typing import Any

from pydantic.json_schema import models_json_schema

from shared.broker_rights import VIRTUAL_HOST, sent_by
from shared.contracts import ALL_MESSAGES, DeadLetterHandled, Message
from shared.examples import Examples
from shared.openapi import words_of
from shared.release import VERSION
from shared.services import SERVICES, Service
from shared.topology import EXCHANGE, INBOXES

ASYNCAPI_PATH = "/asyncapi.json"

_BINDING_VERSION = "0.3.0"
_DESCRIPTION = """\
The messages between the services, and the events for anyone who binds a queue to the exchange `ordersaga`.

- Bodies are JSON, persistent. A reader ignores fields that it does not know, and messages may arrive more than once.
- `type` is the routing key, `correlation_id` what the message is about, `message_id` is new for every publication.
- Receivers rely on the body alone, never on headers.
"""
_SECURITY = {"$ref": "#/components/securitySchemes/user"}
_HEADERS = {
    "type": "object",
    "properties": {
        "traceparent": {"type": "string", "description": "W3C Trace Context, where tracing is on"},
        "x-replay-of": {"type": "string", "description": "the id of the dead letter that is sent again"},
    },
}


@lru_cache(maxsize=1)
def asyncapi() -> dict[str, Any]:
    """Return the document."""
    schemas = _schemas()
    examples = Examples(schemas)
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "ordersaga",
            "version": VERSION,
            "description": _DESCRIPTION,
            "license": {"name": "Apache 2.0", "url": "https://www.apache.org/licenses/LICENSE-2.0"},
        },
        "defaultContentType": "application/json",
        "servers": {
            "broker": {
                "host": "127.0.0.1:5672",
                "pathname": f"/{VIRTUAL_HOST}",
                "protocol": "amqp",
                "protocolVersion": "0.9.1",
                "description": "RabbitMQ, where `ORDERSAGA_AMQP_URL` says",
                "security": [_SECURITY],
            }
        },
        "channels": {_name(message): _channel(message) for message in ALL_MESSAGES},
        "operations": dict(_operations()),
        "components": {
            "messages": {message.__name__: _message(message, examples) for message in ALL_MESSAGES},
            "schemas": schemas,
            "securitySchemes": {"user": {"type": "userPassword", "description": "Each service has its own user"}},
            "tags": {
                service.name: {"name": service.name, "description": service.description}
                for service in SERVICES.values()
            },
        },
    }


def _schemas() -> dict[str, Any]:
    _, found = models_json_schema(
        [(message, "validation") for message in ALL_MESSAGES], ref_template="#/components/schemas/{model}"
    )
    return {name: _without_siblings(schema) for name, schema in sorted(found["$defs"].items())}


def _without_siblings(part: Any) -> Any:
    """Give each reference a place of its own: AsyncAPI ignores what stands beside one."""
    if isinstance(part, list):
        return [_without_siblings(each) for each in part]
    if not isinstance(part, dict):
        return part
    if "$ref" in part and len(part) > 1:
        return {"allOf": [{"$ref": part["$ref"]}], **{name: each for name, each in part.items() if name != "$ref"}}
    return {name: _without_siblings(each) for name, each in part.items()}


def _name(message: type[Message]) -> str:
    return message.__name__[0].lower() + message.__name__[1:]


def _channel(message: type[Message]) -> dict[str, Any]:
    return {
        "address": message.routing_key,
        "summary": words_of(message.__doc__)[0],
        "messages": {message.__name__: {"$ref": f"#/components/messages/{message.__name__}"}},
        "bindings": {
            "amqp": {
                "is": "routingKey",
                "exchange": {"name": EXCHANGE, "type": "topic", "durable": True, "vhost": VIRTUAL_HOST},
                "bindingVersion": _BINDING_VERSION,
            }
        },
    }


def _operations() -> Iterator[tuple[str, dict[str, Any]]]:
    for service in SERVICES.values():
        for message in sent_by(service):
            yield f"{service.name}Sends{message.__name__}", _operation("send", service, message)
        for message in INBOXES.get(service.inbox, ()):
            yield f"{service.name}Receives{message.__name__}", _operation("receive", service, message)


def _operation(action: str, service: Service, message: type[Message]) -> dict[str, Any]:
    way = f"over the queue `{service.inbox}`" if action == "receive" else f"to the exchange `{EXCHANGE}`"
    mandatory = action == "send" and message.mandatory
    return {
        "action": action,
        "summary": f"The service {service.name} {action}s `{message.routing_key}` {way}",
        "channel": {"$ref": f"#/channels/{_name(message)}"},
        "messages": [{"$ref": f"#/channels/{_name(message)}/messages/{message.__name__}"}],
        "security": [_SECURITY],
        "tags": [{"$ref": f"#/components/tags/{service.name}"}],
        "bindings": {
            "amqp": {
                **({"deliveryMode": 2, "mandatory": mandatory} if action == "send" else {"ack": True}),
                "bindingVersion": _BINDING_VERSION,
            }
        },
    }


def _message(message: type[Message], examples: Examples) -> dict[str, Any]:
    summary, description = words_of(message.__doc__)
    payload = {"$ref": f"#/components/schemas/{message.__name__}"}
    return {
        "name": message.routing_key,
        "title": message.__name__,
        "summary": summary,
        "description": description,
        "contentType": "application/json",
        "correlationId": {"location": f"$message.payload#/{_subject(message)}"},
        "headers": _HEADERS,
        "payload": payload,
        "examples": [{"payload": _without_null(examples.of(payload, all_fields=True))}],
    }


def _subject(message: type[Message]) -> str:
    """Return the field that a message is correlated by."""
    if message is DeadLetterHandled:
        return "letterId"
    return "orderId" if "order_id" in message.model_fields else "package"


def _without_null(value: Any) -> Any:
    """Leave out absent fields, as the wire does."""
    if isinstance(value, dict):
        return {name: _without_null(each) for name, each in value.items() if each is not None}
    return value
