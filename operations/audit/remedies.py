"""How to fix each kind of violation: a sentence, and a command where one does it. Pure.

Records that no process of ours can have written are corrected by hand, from a backup: only a person can say which of
two numbers is right.
"""

import shlex
from collections.abc import Collection
from dataclasses import dataclass

RUNBOOK = "audit-failed"
"""The runbook about violations; the console shows it at `/runbooks/audit-failed`."""


@dataclass(frozen=True, slots=True)
class Remedy:
    """What to do about some kinds of violations; `command` may contain `{id}`, the id of the violation's subject.

    `subjects` limits a remedy to violations of these subjects; without any, it is for all.
    """

    text: str
    kinds: Collection[str]
    command: str = ""
    subjects: Collection[str] = ()
    page: str = f"docs/runbooks/{RUNBOOK}.md"

    def command_for(self, subject_id: str) -> str | None:
        """Return the command for one subject, quoted for a shell; None if there is none."""
        return self.command.replace("{id}", shlex.quote(subject_id)) if self.command else None

    def fits(self, kind: str, subject: str) -> bool:
        """Return whether the remedy is for such a violation."""
        return kind in self.kinds and (not self.subjects or subject in self.subjects)


_TIMELINE = "ordersaga order timeline {id}"
_BACKUP = "compare it with a backup, and correct the field in the database"

REMEDIES: tuple[Remedy, ...] = (
    Remedy(
        "No order exists for what is held. Return the stock and the money that are held under this id.",
        ("reservation without order", "payment without order", "charge without order"),
        "ordersaga order release {id} --why 'no order exists'",
        page="docs/order-actions.md",
    ),
    Remedy(
        "A message is missing. Send again what the order is owed, from the records.",
        (
            "message lost",
            "order unpublished",
            "payment unpublished",
            "job unpublished",
            "deadline",
            "compensation",
            "shipping",
            "capture",
            "provisioning",
            "refund late",
            "not settled",
        ),
        "ordersaga orders nudge {id} --why 'the audit found it stuck'",
        page="docs/order-actions.md",
    ),
    Remedy(
        "The order does not do its next step. Check that the order service is ready (/readyz) and that no dead letter "
        "names the order, then look at its timeline.",
        ("join", "hold", "settled", "status", "times", "two ends"),
        _TIMELINE,
        subjects=("order",),
    ),
    Remedy(
        "The job does not do its next step. Check that the provisioning service is ready (/readyz), and who holds the "
        "package; then look at the order's timeline.",
        ("job never due", "job overdue"),
        _TIMELINE,
        page="docs/provisioning.md",
    ),
    Remedy(
        "The order and its job disagree. See in the timeline which of them is right. A server without an order is "
        "cancelled at the provider, and an order without its server refunded.",
        (
            "job",
            "job too early",
            "job without order",
            "server without order",
            "no server",
            "no package",
            "wrong package",
            "address",
            "two servers",
        ),
        _TIMELINE,
        page="docs/provisioning.md",
    ),
    Remedy(
        "Ask the provider whose server has this address, correct the order or the address record that is wrong, and "
        "give the other customer another server.",
        ("shared address", "address without order"),
        page="docs/provisioning.md",
    ),
    Remedy(
        "Address records of archived orders were changed. Take them from a backup.",
        ("archived addresses",),
        page="docs/backup.md",
    ),
    Remedy(
        "Clear the lock on the page Packages of the console. If the violation comes back, check that the provisioning "
        "service is ready (/readyz).",
        ("lock without job", "lock without lease", "lock of a finished job", "abandoned lock"),
        page="docs/provisioning.md",
    ),
    Remedy(
        f"The counts of the product or the slot do not add up: something else wrote to it. Look at what was changed "
        f"(the audit log names everybody who set stock), {_BACKUP}.",
        (
            "counts",
            "conservation",
            "negative",
            "shipped",
            "overbooked",
            "unknown product",
            "unknown slot",
            "times",
        ),
        subjects=("product", "slot"),
    ),
    Remedy(
        "A pending move should be gone. Check that the inventory service is ready (/readyz): it clears them every few "
        "seconds. If the move stays and names no order, remove it from the product by hand.",
        ("pending move",),
    ),
    Remedy(
        "The hold does not end. Check that the inventory service is ready (/readyz), then delete the hold with "
        "DELETE /holds/{its id}.",
        (
            "hold without expiry",
            "outcome of the hold",
            "order of the hold",
            "hold without end",
            "hold taken for nothing",
            "hold overdue",
            "hold not returned",
        ),
        page="docs/holds.md",
    ),
    Remedy(
        "Release the assignment that is wrong with DELETE /slots/assignments/{its order id}.",
        ("assignment without slot", "assignment held", "two assignments", "two slots"),
        page="docs/slots.md",
    ),
    Remedy(
        f"Order and reservation disagree about the slot: {_BACKUP}.",
        ("slot", "slot of the order", "slot price"),
        _TIMELINE,
        page="docs/slots.md",
    ),
    Remedy(
        "The customer's money is held although the order has ended. Return it at the gateway, or cancel the "
        "authorisation there; the transaction id is in the timeline.",
        ("money held", "payment held", "captured early", "refund", "part not returned"),
        _TIMELINE,
        page="docs/refunds.md",
    ),
    Remedy(
        "The customer was charged or refunded too much or too little. Compare with the gateway's own book, and "
        "correct the difference there; the transaction id is in the timeline.",
        (
            "charged twice",
            "charge",
            "charge amount",
            "payment amount",
            "payment method",
            "total",
            "money",
            "charge overdrawn",
            "payment overdrawn",
            "part returned",
            "paid twice",
        ),
        _TIMELINE,
        page="docs/refunds.md",
    ),
    Remedy(
        "The order goes on without what it needs. Stop it before it is delivered, look at its timeline, and refund it "
        "if stock or payment is really missing.",
        ("stock", "payment", "reserved units", "stock held"),
        _TIMELINE,
        subjects=("order",),
    ),
    Remedy(
        f"The order and its refunds in part disagree: see in the timeline what was asked for, {_BACKUP}.",
        (
            "refunded too much",
            "refund amounts",
            "refunded amount",
            "refund twice",
            "refund of the wrong order",
            "refunded units",
            "refund without request",
            "refund amount",
            "refund status",
            "returned units",
            "return",
            "return without refund",
            "refund settled",
            "part without payment",
        ),
        _TIMELINE,
        page="docs/refunds.md",
    ),
    Remedy(
        "The balance was changed without an entry. Correct it by entries; the command shows the difference, and "
        "writes it with --write.",
        ("balance", "negative balance", "overpaid invoice", "invoice"),
        "ordersaga accounts repair {id}",
        page="docs/accounts.md",
    ),
    Remedy(
        "The journal has an entry that is wrong, or lacks one. Entries are never changed: restore the journal from a "
        "backup, or correct the accounts by entries.",
        (
            "postings",
            "unbalanced",
            "overdrawn",
            "account",
            "unknown account",
            "currency",
            "unknown payment",
            "payment not completed",
            "completed twice",
            "unknown transfer",
            "transfer made twice",
            "transfer cancelled twice",
            "reversal",
            "reversed twice",
            "payment",
            "transfer",
            "cancelled transfer",
        ),
        subjects=("account", "entry", "payment", "transfer"),
        page="docs/accounts.md",
    ),
    Remedy(
        "Journal and payment of the order disagree. See in the timeline which is right, and correct the retainer by "
        "entries.",
        ("refund entry", "entry without payment", "retainer payment", "part refunded twice", "part entry"),
        _TIMELINE,
        page="docs/accounts.md",
    ),
    Remedy(
        "Payments or totals of archived orders were changed. Take them from a backup.",
        ("archived payments",),
        page="docs/retention.md",
    ),
    Remedy(
        "Somebody wrote to the audit log, which only grows. Keep the database as it is for the investigation, compare "
        "with a backup and with the hashes in the logs, and change the passwords of the database.",
        ("entry inserted", "entry removed", "entry changed", "entry inserted or replaced"),
        page="docs/audit-log.md",
    ),
)


def remedy_of(kind: str, subject: str) -> Remedy:
    """Return what to do about such a violation."""
    return next((each for each in REMEDIES if each.fits(kind, subject)), _UNKNOWN)


_UNKNOWN = Remedy("Look at the records that it names, and at what changed them; take the right ones from a backup.", ())
"""For a violation of another release, such as one in a stored report."""
