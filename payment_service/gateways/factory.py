"""Opens the card gateway that the settings name."""

from typing import Protocol

from pymongo.read_concern import ReadConcern

from payment_service.gateways import simulated
from payment_service.gateways.port import Gateway
from payment_service.gateways.simulated import SimulatedGateway
from payment_service.settings import PaymentSettings
from shared.clock import Clock
from shared.database import Database
from shared.live_settings import live_secret

STRIPE_INTENTS = "stripe_intents"
"""The collection of the Stripe gateway. Its name is here because the gateway's module imports Stripe's library."""


class OpenGateway(Gateway, Protocol):
    """A gateway with connections or calls in flight, which the service ends when it shuts down."""

    async def drain(self) -> None:
        """Finish the calls in flight and close the connections; no call follows."""


def open_gateway(settings: PaymentSettings, database: Database, clock: Clock) -> OpenGateway:
    """Open the gateway that the settings name, with its records in the given database."""
    key = live_secret(settings, "stripe_api_key")
    if settings.card_gateway == "stripe" and key is not None:
        # Importing Stripe's library takes half a second, which the simulated gateway does not need.
        from payment_service.gateways import stripe

        return stripe.StripeGateway(
            # These records decide about money, so a write that a failover could roll back must not be read.
            database.get_collection(STRIPE_INTENTS, read_concern=ReadConcern("majority")),
            api_key=key,
            api_url=settings.stripe_api_url,
            timeout_seconds=settings.gateway_timeout_seconds,
            clock=clock,
        )
    return SimulatedGateway(database[simulated.COLLECTION], failure_rate=settings.payment_failure_rate, clock=clock)
