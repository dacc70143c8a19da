"""The errors of the product. Those below are for everyone; a package has its own under one of these branches.

    OrdersagaError
    ├── TransientError                     passes by itself: a consumer repeats the call, HTTP answers 503
    │   ├── IssuerUnavailableError             the issuer of tokens has not told its keys
    │   ├── SessionsUnavailableError           the sessions of people cannot be read
    │   ├── AuditUnavailableError              what must be recorded in the audit log cannot be
    │   ├── DatabaseUnavailableError           MongoDB does not answer, or has no primary
    │   ├── NotStartedError                    a write has not been sent in time, and will not be
    │   ├── BusUnavailableError                RabbitMQ does not answer, or does not confirm in time
    │   │   ├── BrokerRefusedError                 it refuses the login or the virtual host
    │   │   ├── MessageRefusedError                it refuses a message, as a queue is full or has no leader
    │   │   └── UnroutableError                    a message that must arrive reached no queue
    │   ├── BatchAbandonedError                a batch cannot be finished here; it is delivered again
    │   ├── ContentionError                    a transaction lost against others too often
    │   └── UnknownCommitError                 it is unknown whether a transaction was committed
    ├── PoisonError                        never succeeds: the message is dead-lettered at once, with this reason
    ├── NewerReleaseError                  a newer release can do it, which this process may be upgraded to: waits
    │   ├── UnknownTypeError                   the type of a message is not known
    │   ├── UnknownValueError                  a value is none of those that are known
    │   └── NewerOrderError                    the order began under a newer saga
    ├── AuthenticationError                a request does not say who calls, or not in a way to be believed: 401
    │   └── CredentialMissingError             it has no credential at all
    ├── TooManyRequestsError               a caller has sent more requests than its limit allows: 429
    ├── StartError                         the process cannot start: one line on stderr, exit status 1
    │   ├── SettingFileError                   a file that has a setting's value cannot be used
    │   └── EventStreamDiffersError            the stream of events keeps them for another time than the setting says
    ├── ProblemError                       a route answers with this problem
    │   └── CallFailedError                    a call of gRPC ends with it
    ├── RefusalError                       a rule or the present state forbids it: nothing has changed, no retry helps
    │   ├── KindConflictError                  a product is of the other kind
    │   ├── TooManyUnitsError                  a product would have more units than can be counted
    │   ├── RestockKeyReusedError              the key of a restock is that of another quantity
    │   ├── LedgerRefusalError                 the ledger does not allow it
    │   │   ├── MissingRecordError                 something that is named does not exist
    │   │   ├── WrongStateError                    something that is named is inactive, closed or not completed
    │   │   ├── MismatchError                      the things that are named do not fit together
    │   │   ├── InsufficientBalanceError           an account holds too little
    │   │   │   └── OverpaymentError                   more than is due on an invoice
    │   │   ├── AlreadyCompletedError              a payment was completed before
    │   │   └── AlreadyCancelledError              a transfer was cancelled before
    │   ├── IdempotencyKeyReusedError          the Idempotency-Key belongs to another request
    │   ├── AmountRefusedError                 Stripe cannot charge exactly this amount
    │   ├── SoldOutError                       the simulated provider has no address left
    │   ├── NotPossibleError                   dead letters are in another state than the action needs
    │   ├── InvalidBodyError                   an edited dead letter would not be a valid message
    │   │   └── ChangedIdentityError               it would be about something else
    │   ├── InvalidPatchError                  a patch for dead letters cannot be read, or touches what is locked
    │   ├── NotDecidableError                  an act that needs a second person cannot be decided by this one, or now
    │   ├── NotReleasableError                 what an order holds must not be released by hand
    │   ├── NotNudgeableError                  an order is owed nothing that could be sent again
    │   └── UncorrectableError                 an account has an error that no correction can fix
    ├── OwnershipLostError                 another worker has taken the work over: this one stops
    │   ├── JobClaimLostError                  the job of an order
    │   ├── JobLeaseLostError                  the job or the lock of its package may have expired
    │   └── ReplayLeaseLostError               the replay of dead letters
    ├── ExternalSystemError                a card gateway or server provider gave no usable answer
    │   ├── GatewayTimeoutError                it is unknown whether the gateway carried out the call
    │   │   └── GatewayMisconfiguredError          it rejects the configuration
    │   ├── GatewayKeyReusedError              the gateway knows the key from another charge
    │   ├── ProviderError                      the provider gave no usable answer
    │   │   └── ProviderUnansweredError            it may still process the request
    │   └── UnusableAnswerError                an answer of the provider cannot be read, or is ambiguous
    ├── UnreadableSecretError              no key decrypts a stored secret
    │   └── UnreadableCredentialsError         the credentials of a server
    ├── MemberNotReadyError                a member that was added has not copied the data in time
    └── CommandError                       a command cannot do its work: a message for the operator
        ├── UnreachableError                   a server does not answer, or no stack is known: exit status 3
        ├── RefusedError                       the operations API refuses a request
        │   └── InvalidRequestError                it does not take the request: exit status 2
        ├── UnfinishedRestoreError             the databases hold a part of a backup only
        ├── DataDirectoryError                 the path cannot be a data directory: exit status 2
        ├── StackStartError                    a program of the stack cannot be started
        ├── ServerMissingError                 MongoDB or RabbitMQ is not installed
        ├── PortTakenError                     another process uses a port
        ├── AlreadyRunsError                   a stack runs in this data directory
        ├── MovedError                         a data directory was copied or moved
        ├── UnreadableStateError               the record of a stack is damaged
        ├── ExchangeDiffersError               the broker has an exchange in another form, which cannot be replaced
        ├── MigrationRunsError                 another migration runs on this broker
        ├── StepRefusedError                   the broker refuses a step of a migration
        ├── KeyFileError                       the file of API keys is damaged, or does not have the key
        ├── ArchiveError                       an archive cannot be written, or is damaged
        ├── BackupError                        a backup cannot be made or restored
        │   ├── DamagedError                       files of it are missing, damaged or not its own
        │   └── UnreadableError                    the content of a file is not as it was written
        ├── StepFailedError                    a step of the smoke test failed
        ├── NotPermittedError                  the key of a command does not grant what it needs
        ├── NothingToDoError                   no order matches that the action is possible for
        ├── NoEventStreamError                 the broker has no stream of events, or does not let this user read it
        ├── ExportFormatError                  the library that writes this format is not installed
        ├── LinkRefusedError                   the console does not create a link that signs a person in
        ├── NotSentError                       the load test could not send a request
        ├── NoAnswerError                      the load test got no answer to a request
        └── NotSettledError                    orders of the demo have not settled in time

What is none of these is a defect: a message is retried after 1 s, 5 s, 30 s and 2 min, then dead-lettered; HTTP answers
500. A refusal that belongs to the saga (no stock, a declined card) is no error but an answer, a message like any other.
An error whose name begins with an underscore does not leave its module. `SimulatedCrashError`
(shared.failpoints) is outside the tree, so that nothing catches it.
"""

from typing import ClassVar


class OrdersagaError(Exception):
    """Root of the product's own errors."""


class TransientError(OrdersagaError):
    """A server is away or too slow; the same call will succeed later.

    Clients read `for_clients` where a class has one: its text may be a driver's, with addresses and time-outs.
    """

    for_clients: ClassVar[str | None] = None


class DatabaseUnavailableError(TransientError):
    """MongoDB did not answer in time, refused the connection or has no primary."""

    for_clients = "The database (MongoDB) does not answer at the moment, try again"


class BusUnavailableError(TransientError):
    """RabbitMQ is not connected, or did not confirm a publication in time."""

    for_clients = "The message broker (RabbitMQ) does not answer at the moment, try again"


class PoisonError(OrdersagaError):
    """A message that can never be handled: not JSON, the wrong shape, an order that does not exist."""


class NewerReleaseError(OrdersagaError):
    """Only a newer release can do it, which others may run already. A message waits for it, HTTP answers 503."""


class UnknownTypeError(NewerReleaseError):
    """A message of a type that this release does not know: its sender may have been upgraded first."""


class UnknownValueError(NewerReleaseError):
    """A message with a value, such as a status, that this release does not know."""


class NewerOrderError(NewerReleaseError):
    """An order that began under a newer version of the saga, so that this process cannot decide about it."""


class StartError(OrdersagaError):
    """The process cannot start; the message is the one line that its operator reads."""


class RefusalError(OrdersagaError):
    """A rule or the present state forbids what was asked for. Nothing has changed, and a retry changes nothing."""


class OwnershipLostError(OrdersagaError):
    """Another worker has taken the work over, or may have: this one must not continue with it."""


class ExternalSystemError(OrdersagaError):
    """A system that is not ours, such as a card gateway or a server provider, gave no usable answer."""
