"""Which payment gateway takes the cards: the settings say."""

from typing import Protocol

from pymongo.read_concern import ReadConcern

from payment_service.gateways import simulated
from payment_service.gateways.port import Gateway
from payment_service.gateways.simulated import SimulatedGateway
from payment_service.settings import PaymentSettings
from shared.clock import Clock
from shared.database import Database


class OpenGateway(Gateway, Protocol):
    """A gateway with connections or calls of its own, which the service ends in order."""

    async def drain(self) -> None:
        """Finish what is in hand and close what is open; nothing is asked after that."""


def open_gateway(settings: PaymentSettings, database: Database, clock: Clock) -> OpenGateway:
    """Return the gateway that the settings name; what it has to remember is kept in this database."""
    if settings.card_gateway == "stripe" and settings.stripe_api_key is not None:
        # Stripe's library takes half a second to import, which only those who use it should pay for.
        from payment_service.gateways import stripe

        return stripe.StripeGateway(
            # Money follows from these records: one that a failover could take back must not be read.
            database.get_collection(stripe.COLLECTION, read_concern=ReadConcern("majority")),
            api_key=settings.stripe_api_key.get_secret_value(),
            api_url=settings.stripe_api_url,
            timeout_seconds=settings.gateway_timeout_seconds,
            clock=clock,
        )
    return SimulatedGateway(database[simulated.COLLECTION], failure_rate=settings.payment_failure_rate, clock=clock)
