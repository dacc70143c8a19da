"""The collections of the notification service, checked at its start and by `ordersaga doctor`."""

from notification_service import deliveries, endpoints
from shared import audit_log
from shared.pausing import records as pauses

SCHEMA = {
    endpoints.COLLECTION: endpoints.SCHEMA,
    deliveries.COLLECTION: deliveries.SCHEMA,
    pauses.COLLECTION: pauses.SCHEMA,
    audit_log.COLLECTION: audit_log.SCHEMA,
}
