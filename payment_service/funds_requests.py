"""What clients post to the funds API."""

from typing import Annotated, Literal

from pydantic import Field, ValidationInfo, field_validator

from shared.contracts.base import Name, Text
from shared.http import Body
from shared.money import JsonMoney

DEFAULT_CURRENCY = "USD"

Amount = Annotated[JsonMoney, Field(gt=0)]
AmountOrNothing = Annotated[JsonMoney, Field(ge=0)]
Currency = Annotated[str, Field(pattern=r"^[A-Z]{3}$")]


class NewRetainer(Body):
    """What a client pays in advance, and for what."""

    client_id: Name
    retainer_type: Name
    initial_amount: AmountOrNothing
    currency: Currency = DEFAULT_CURRENCY


class Consumption(Body):
    """What is taken from a retainer; with `invoiceId` it pays that invoice. The currency is the retainer's."""

    amount: Amount
    currency: Currency | None = None
    description: Text | None = None
    invoice_id: Name | None = None


class Replenishment(Body):
    """What is added to a retainer.

    A `paymentId` of ours takes it from the credit that the payment gave its customer; any other is kept as a reference.
    """

    amount: Amount
    currency: Currency | None = None
    payment_id: Name | None = None


class RetainerChange(Body):
    """An inactive retainer takes and gives nothing, but for refunds of orders that were paid from it."""

    status: Literal["active", "inactive"]


class NewInvoice(Body):
    """What a client owes."""

    client_id: Name
    total_amount: Amount
    currency: Currency = DEFAULT_CURRENCY


class InvoicePayment(Body):
    """A payment of an invoice, or of a part of it."""

    amount: Amount
    payment_method: Name
    currency: Currency | None = None


class NewPayment(Body):
    """A payment of a customer, of an invoice or as credit; `completed` is completed at once.

    The currency is that of the invoice, if one is named.
    """

    customer_id: Name
    amount: Amount
    payment_method: Name
    currency: Currency | None = None
    invoice_id: Name | None = None
    status: Literal["pending", "completed"] = "pending"


class NewBankAccount(Body):
    """A bank account of our own, with what it holds."""

    name: Name
    account_number: Name
    bank_name: Name
    currency: Currency = DEFAULT_CURRENCY
    balance: AmountOrNothing


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
    def _goes_somewhere(cls, value: str, info: ValidationInfo) -> str:
        if value == info.data.get("from_account_id"):
            raise ValueError("is where the money comes from; a transfer goes to another account")
        return value


class TransferCancellation(Body):
    """Why a transfer is reversed."""

    reason: Text | None = None
