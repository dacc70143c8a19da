"""The collections of the provisioning service, checked at its start and by `ordersaga doctor`."""

from provisioning_service import jobs, locks, ownership, packages
from shared import audit_log
from shared.pausing import records as pauses
from shared.schema import CollectionSchema

SCHEMA = {
    jobs.COLLECTION: jobs.SCHEMA,
    locks.COLLECTION: CollectionSchema(),
    ownership.COLLECTION: ownership.SCHEMA,
    packages.COLLECTION: packages.SCHEMA,
    pauses.COLLECTION: pauses.SCHEMA,
    audit_log.COLLECTION: audit_log.SCHEMA,
}
