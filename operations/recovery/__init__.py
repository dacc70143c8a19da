"""After the loss of the broker: publish again what the records say is pending."""

from operations.recovery.recovering import DEFAULT_RATE, preview, recover
from operations.recovery.report import RecoveryReport

__all__ = ["DEFAULT_RATE", "RecoveryReport", "preview", "recover"]
