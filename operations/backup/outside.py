"""What happened outside since a backup, and no record says: servers that were bought, and charges of cards.

The provider lists what is for sale, not what it has sold. So a backup notes the free addresses, and what was free then,
is not free now and belongs to no order is looked up. What was bought from stock that came later is not found.

Stripe lists charges, each with its order, so those of orders that the backup does not know are found. The simulated
gateway needs nothing: its records are in the database of payments, and go back with the backup.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from pymongo import AsyncMongoClient

from operations.backup.manifest import Manifest, Outside
from operations.reading.connection import open_mongodb
from operations.reading.provider import open_provider
from operations.settings import Stack
from operations.stack.environment import with_values
from operations.stack.layout import Layout
from operations.stack.provider import PASSWORD_VARIABLE, USERNAME_VARIABLE, configured_provider
from operations.stack.state import read_state_if_readable
from payment_service.gateways.factory import STRIPE_INTENTS
from payment_service.gateways.port import GatewayTimeoutError, HeldCharge
from provisioning_service.provider import Provider, ProviderError
from shared.clock import utc_now
from shared.database import Document
from shared.services import PAYMENT, PROVISIONING, SIMULATOR
from shared.setting_files import SettingFileError

MOST_LOOKED_UP = 1000
"""The addresses that are looked up at most, one call each."""
GROUP = 1000
"""The charges that are compared with one query."""
STRIPE_SECONDS = 30.0
STRIPE_KEY_VARIABLE = "ORDERSAGA_STRIPE_API_KEY"
STRIPE_URL_VARIABLE = "ORDERSAGA_STRIPE_API_URL"
STRIPE_URL = "https://api.stripe.com"
NOT_CONFIGURED = "no provider of servers is configured here"


@dataclass(slots=True)
class OutsideSince:
    """What belongs to no order here: servers, charges of cards; and what could not be found out."""

    servers: list[str] = field(default_factory=list)
    charges: list[HeldCharge] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


async def note_for_sale(stack: Stack, environment: Mapping[str, str]) -> Outside:
    """Return what the provider has for sale, or the reason for which it cannot be told. Never raises."""
    try:
        login = _provider(stack, with_values(environment))
        if login is None:
            return Outside(reason=NOT_CONFIGURED)
        async with open_provider(*login) as provider:
            return Outside(free_addresses={found.name: list(found.ips) for found in await provider.packages()})
    except (ProviderError, SettingFileError) as error:
        return Outside(reason=str(error))


async def find_since(stack: Stack, manifest: Manifest, environment: Mapping[str, str]) -> OutsideSince:
    """Return what happened outside since the backup was made. Raises UnreachableError when MongoDB does not answer."""
    found = OutsideSince()
    try:
        environment = with_values(environment)
    except SettingFileError as error:
        return OutsideSince(notes=[f"what happened outside since the backup is not known: {error}"])
    async with open_mongodb(stack.mongodb_url, purpose="the restore", name="ordersaga-restore") as client:
        looking = _Looking(stack, manifest, client, found)
        try:
            await looking.for_servers(environment)
        except ProviderError as error:
            found.notes.append(f"servers bought since the backup are not known: {error}")
        try:
            await looking.for_charges(environment)
        except GatewayTimeoutError as error:
            found.notes.append(f"charges since the backup are not known: {error}")
    return found


@dataclass(frozen=True, slots=True)
class _Looking:
    """The search, which adds to what was found."""

    stack: Stack
    manifest: Manifest
    client: AsyncMongoClient[Document]
    found: OutsideSince

    async def for_servers(self, environment: Mapping[str, str]) -> None:
        """Find the servers that were sold since the backup and belong to no order. Raises ProviderError."""
        before = self.manifest.outside.free_addresses
        login = _provider(self.stack, environment)
        if before is None:
            if login is not None:
                raise ProviderError(f"the backup does not have its stock: {self.manifest.outside.reason}")
            return
        if login is None:
            raise ProviderError(NOT_CONFIGURED)
        async with open_provider(*login) as provider:
            free = {ip for package in await provider.packages() for ip in package.ips}
            gone = {ip: package for package, ips in before.items() for ip in ips if ip not in free}
            known = await self._known_addresses(list(gone))
            await self._look_up(provider, {ip: gone[ip] for ip in sorted(gone.keys() - known)})

    async def _look_up(self, provider: Provider, unknown: Mapping[str, str]) -> None:
        """Add those of these addresses, each with its package, that the provider has sold to us."""
        asked = list(unknown)[:MOST_LOOKED_UP]
        self.found.servers += [f"{ip} ({unknown[ip]})" for ip in asked if await provider.access(ip) is not None]
        if left := len(unknown) - len(asked):
            self.found.notes.append(f"{left:,} more addresses are not for sale any more and were not looked up")

    async def _known_addresses(self, ips: Sequence[str]) -> set[str]:
        """Return those of these addresses that belong to an order, or to the job of one."""
        database = self.client[PROVISIONING.database_in(self.stack.database_prefix)]
        among = {"$in": ips}
        owned = {found["_id"] async for found in database["addresses"].find({"_id": among}, {"_id": True})}
        return owned | {found["ip"] async for found in database["jobs"].find({"ip": among}, {"ip": True})}

    async def for_charges(self, environment: Mapping[str, str]) -> None:
        """Find the charges at Stripe of orders without a payment here. Raises GatewayTimeoutError."""
        payments = self.client[PAYMENT.database_in(self.stack.database_prefix)]
        key = environment.get(STRIPE_KEY_VARIABLE)
        if not key:
            if await payments[STRIPE_INTENTS].find_one({}, {"_id": True}) is not None:
                raise GatewayTimeoutError(f"{STRIPE_KEY_VARIABLE} is not set here")
            return
        # Importing Stripe's library takes half a second.
        from payment_service.gateways import stripe

        gateway = stripe.StripeGateway(
            payments[STRIPE_INTENTS],
            api_key=key,
            api_url=environment.get(STRIPE_URL_VARIABLE) or STRIPE_URL,
            timeout_seconds=STRIPE_SECONDS,
            clock=utc_now,
        )
        try:
            charges = await gateway.held_since(self.manifest.cluster_time.at)
        finally:
            await gateway.drain()
        for start in range(0, len(charges), GROUP):
            group = charges[start : start + GROUP]
            among = {"_id": {"$in": [charge.key for charge in group]}}
            known = {payment["_id"] async for payment in payments["payments"].find(among, {"_id": True})}
            self.found.charges += [charge for charge in group if charge.key not in known]


def _provider(stack: Stack, environment: Mapping[str, str]) -> tuple[str, str, str] | None:
    """Return URL, user and password of the provider, None if none is configured."""
    configured = configured_provider(_simulator_url(stack), environment)
    if configured is None:
        return None
    url, login = configured
    return url, login[USERNAME_VARIABLE], login[PASSWORD_VARIABLE]


def _simulator_url(stack: Stack) -> str | None:
    if stack.data_dir is None:
        return None
    state = read_state_if_readable(Layout(stack.data_dir))
    return next((process.url for process in state.processes if process.name == SIMULATOR.name), None)
