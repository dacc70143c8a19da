"""The collections of operations; its process and `ordersaga doctor` check them."""

from operations.approvals.schema import SCHEMA as APPROVAL_SCHEMA
from operations.audit.schema import SCHEMA as AUDIT_SCHEMA
from operations.dead_letters.schema import SCHEMA as DEAD_LETTER_SCHEMA
from operations.incidents.schema import SCHEMA as INCIDENT_SCHEMA
from operations.notifications.schema import SCHEMA as NOTIFICATION_SCHEMA
from operations.order_actions.schema import SCHEMA as ORDER_ACTIONS_SCHEMA
from operations.reading.archived import COLLECTION as ARCHIVED
from operations.reading.archived_totals import SCHEMA as ARCHIVED_SCHEMA
from operations.samples.schema import SCHEMA as SAMPLE_SCHEMA
from operations.saved_views.schema import SCHEMA as SAVED_VIEW_SCHEMA
from operations.sign_in.schema import SCHEMA as SIGN_IN_SCHEMA
from shared import audit_log

SCHEMA = {
    **DEAD_LETTER_SCHEMA,
    **SIGN_IN_SCHEMA,
    **APPROVAL_SCHEMA,
    **ORDER_ACTIONS_SCHEMA,
    **AUDIT_SCHEMA,
    **INCIDENT_SCHEMA,
    **NOTIFICATION_SCHEMA,
    **SAMPLE_SCHEMA,
    **SAVED_VIEW_SCHEMA,
    ARCHIVED: ARCHIVED_SCHEMA,
    audit_log.COLLECTION: audit_log.SCHEMA,
}
