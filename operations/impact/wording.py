"""Puts an impact into words, for the console and for commands. Pure."""

from collections.abc import Mapping

from operations.impact.impact import Impact
from shared.money import to_json_number


def orders_in_words(impact: Impact) -> str:
    """Return how many orders in which status, and of how many customers; no names, which not everybody may see."""
    orders, customers = impact.total.orders, impact.total.customers
    if not orders:
        return without_order_in_words(impact) or "no orders"
    statuses = ", ".join(f"{number:,} {status}" for status, number in impact.by_status.items())
    text = f"{_at_least(impact)}{_count(orders, 'order')} of {_count(customers, 'customer')}: {statuses}"
    without = without_order_in_words(impact)
    return f"{text}; {without}" if without else text


def money_in_words(impact: Impact) -> str:
    """Return the money at stake; empty if there are no orders."""
    if not impact.total.orders:
        return ""
    if not impact.unsettled.orders:
        return "all settled: no money is at stake" if impact.complete else "what was looked at is settled"
    return f"{_at_least(impact)}{amounts_in_words(impact.unsettled.amounts)} at stake"


def amounts_in_words(amounts: Mapping[str, int]) -> str:
    """Return amounts by currency, such as "1,234.00 EUR + 5.00 USD"."""
    return " + ".join(f"{to_json_number(amount):,.2f} {currency}".strip() for currency, amount in amounts.items())


def without_order_in_words(impact: Impact) -> str:
    """Return how many letters lead to no order; empty if all do."""
    if not impact.unknown:
        return ""
    verb = "leads" if impact.unknown == 1 else "lead"
    return f"{_at_least(impact)}{_count(impact.unknown, 'letter')} {verb} to no known order"


def _at_least(impact: Impact) -> str:
    return "" if impact.complete else "at least "


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"
