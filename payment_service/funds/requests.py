"""The request bodies of the funds API. Their docstrings appear in its OpenAPI document."""

from typing import Annotated, Literal

from pydantic import Field, ValidationInfo, field_validator
from pydantic.alias_generators import to_camel

from shared.contracts.base import Name, Text
from shared.http import Body
from shared.money import JsonMoney, require_whole

DEFAULT_CURRENCY = "USD"

Amount = Annotated[JsonMoney, Field(gt=0)]
AmountOrNothing = Annotated[JsonMoney, Field(ge=0)]
Currency = Annotated[str, Field(pattern=r"^[A-Z]{3}$")]


class _InCurrency(Body):
    """A request with amounts in a currency; rejects decimals that the currency does not have.

    If the currency is omitted, it is that of an account, and the ledger makes this check.
    """

    @field_validator("currency", check_fields=False)
    @classmethod
    def _fits_amounts(cls, currency: str | None, info: ValidationInfo) -> str | None:
        if currency is not None:
            amounts = {to_camel(name): value for name, value in info.data.items() if isinstance(value, int)}
            require_whole(currency, amounts)
        return currency


class NewRetainer(_InCurrency):
    """What a client pays in advance, and for what."""

    client_id: Name
    retainer_type: Name
    initial_amount: AmountOrNothing
    currency: Currency = DEFAULT_CURRENCY


class Consumption(_InCurrency):
    """What is taken from a retainer; with `invoiceId` it pays that invoice. The currency is the retainer's."""

    amount: Amount
    currency: Currency | None = None
    description: Text | None = None
    invoice_id: Name | None = None


class Replenishment(_InCurrency):
    """What is added to a retainer.

    A `paymentId` of ours takes it from the credit that the payment gave its customer; any other is kept as a reference.
    """

    amount: Amount
    currency: Currency | None = None
    payment_id: Name | None = None


class RetainerChange(Body):
    """An inactive retainer takes and gives nothing, but for refunds of orders that were paid from it."""

    status: Literal["active", "inactive"]


class NewInvoice(_InCurrency):
    """What a client owes."""

    client_id: Name
    total_amount: Amount
    currency: Currency = DEFAULT_CURRENCY


class InvoicePayment(_InCurrency):
    """A payment of an invoice, or of a part of it."""

    amount: Amount
    payment_method: Name
    currency: Currency | None = None


class NewPayment(_InCurrency):
    """A payment of a customer, of an invoice or as credit; `completed` is completed at once.

    The currency is that of the invoice, if one is named.
    """

    customer_id: Name
    amount: Amount
    payment_method: Name
    currency: Currency | None = None
    invoice_id: Name | None = None
    status: Literal["pending", "completed"] = "pending"


class NewBankAccount(_InCurrency):
    """A bank account of our own, with what it holds."""

    name: Name
    account_number: Name
    bank_name: Name
    balance: AmountOrNothing
    currency: Currency = DEFAULT_CURRENCY


class BankAccountChange(Body):
    """Only an empty account can be closed; a closed one takes part in nothing."""

    status: Literal["active", "closed"]


class NewTransfer(Body):
    """Money from one bank account to another; the sender pays the fee as well."""

    from_account_id: Name
    to_account_id: Name
    amount: Amount
    fee: AmountOrNothing = 0
    description: Text | None = None

    @field_validator("to_account_id")
    @classmethod
    def _differs_from_sender(cls, value: str, info: ValidationInfo) -> str:
        if value == info.data.get("from_account_id"):
            raise ValueError("must differ from fromAccountId")
        return value


class TransferCancellation(Body):
    """Why a transfer is reversed."""

    reason: Text | None = None
