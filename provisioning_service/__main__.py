"""Puts the provisioning service together: `python -m provisioning_service`."""

from provisioning_service.api import create_router
from provisioning_service.handlers import handlers
from provisioning_service.jobs import COLLECTION, INDEXES, Jobs
from provisioning_service.settings import ProvisioningSettings
from shared.clock import utc_now
from shared.service import Connections, Definition, Parts, run
from shared.topology import PROVISIONING_INBOX

DEFINITION = Definition(
    name="provisioning",
    description="Buys the servers that orders ask for",
    database="provisioning",
    inbox=PROVISIONING_INBOX,
    port=3011,
)


def assemble(_settings: ProvisioningSettings, connections: Connections) -> Parts:
    """Wire the parts to the connections."""
    jobs = Jobs(connections.database[COLLECTION])
    return Parts(
        handlers=handlers(jobs, utc_now),
        router=create_router(jobs),
        indexes={COLLECTION: INDEXES},
    )


def main() -> None:
    """Run the service."""
    run(DEFINITION, ProvisioningSettings, assemble)


if __name__ == "__main__":
    main()
