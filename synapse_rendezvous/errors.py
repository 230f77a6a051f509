"""What can be wrong with a request. Each error carries its status and Matrix errcode; a dialect words the answer."""

from collections.abc import Iterable

from synapse.api.errors import Codes, LimitExceededError, SynapseError

from synapse_rendezvous.limits import LimitName
from synapse_rendezvous.session import Session


class SessionNotFound(SynapseError):
    """No session has this id: it never existed, was deleted or expired. The answer does not say which."""

    def __init__(self) -> None:
        super().__init__(404, "No such rendezvous session, or it has ended", Codes.NOT_FOUND)


class PreconditionFailed(SynapseError):
    """The request's preconditions do not hold for the current revision (RFC 9110 section 15.5.13).

    Attributes:
        session: the current revision.
    """

    def __init__(self, session: Session) -> None:
        super().__init__(412, "The payload has been changed since it was read", Codes.UNKNOWN)
        self.session = session


class ReadRefused(LimitExceededError):
    """A session that exists was read too often.

    Attributes:
        session: the current revision. Clients keep the tag that they know only if a refusal carries it.
    """

    def __init__(self, refusal: LimitExceededError, session: Session) -> None:
        super().__init__(refusal.limiter_name, retry_after_ms=refusal.retry_after_ms)
        self.session = session


class StoreFull(LimitExceededError):
    """The server holds as much as it may; what it holds stays.

    Args:
        limit: the quota that is met. It goes to the log, not to the client.
    """

    # Room comes when sessions expire, which no client can foresee: half a minute is a tenth of the default ttl.
    RETRY_AFTER_MS = 30_000

    def __init__(self, limit: LimitName) -> None:
        super().__init__(limit.value, retry_after_ms=self.RETRY_AFTER_MS, pause=0.5)


class StoreUnavailable(SynapseError):
    """The sessions cannot be reached now. Whether they exist, or whether a write took place, is not known."""

    RETRY_AFTER_S = 1

    def __init__(self) -> None:
        super().__init__(
            503,
            "The rendezvous sessions cannot be reached at the moment; try again",
            Codes.UNKNOWN,
            headers={"Retry-After": str(self.RETRY_AFTER_S)},
        )


class WriteContended(SynapseError):
    """Others replaced the payload each time between a look at it and the write, which did not take place."""

    def __init__(self) -> None:
        super().__init__(
            503, "Other writes came first each time; try again", Codes.UNKNOWN, headers={"Retry-After": "1"}
        )


class PayloadTooLarge(SynapseError):
    """The payload is longer than it may be."""

    def __init__(self, max_bytes: int) -> None:
        super().__init__(413, f"The payload is larger than {max_bytes} bytes", Codes.TOO_LARGE)


class MissingHeader(SynapseError):
    """A header field that the protocol requires is not there."""

    def __init__(self, name: str) -> None:
        super().__init__(400, f"Missing required header: {name}", Codes.MISSING_PARAM)


class InvalidContentType(SynapseError):
    """The Content-Type is none that can be stored."""

    def __init__(self, rule: str) -> None:
        super().__init__(400, f"Content-Type {rule}", Codes.INVALID_PARAM)


class InvalidTimeout(SynapseError):
    """The `timeout` parameter says no time."""

    def __init__(self) -> None:
        super().__init__(
            400, "timeout must be given once, as a whole number of milliseconds such as 10000", Codes.INVALID_PARAM
        )


class InvalidTransactionId(SynapseError):
    """The transaction id is no opaque identifier (Matrix specification, appendices)."""

    def __init__(self) -> None:
        super().__init__(
            400, "The transaction id must be 1 to 255 of the characters 0-9 A-Z a-z - . _ ~", Codes.INVALID_PARAM
        )


class TransactionConflict(SynapseError):
    """A write under a transaction id expected another revision than the current one, now or when it came first."""

    def __init__(self) -> None:
        super().__init__(409, "The payload has been changed since it was read", Codes.UNKNOWN)


class InvalidBody(SynapseError):
    """The body is not the JSON that the protocol requires."""

    def __init__(self, rule: str) -> None:
        super().__init__(400, f"Invalid JSON in request body: {rule}", Codes.INVALID_PARAM)


class CreationForbidden(SynapseError):
    """The operator does not let anybody create sessions."""

    def __init__(self) -> None:
        super().__init__(403, "This server does not create rendezvous sessions", Codes.FORBIDDEN)


class ClientDenied(SynapseError):
    """The operator serves this address nothing."""

    def __init__(self) -> None:
        super().__init__(403, "This server does not serve rendezvous sessions to your address", Codes.FORBIDDEN)


class NotForDisplay(SynapseError):
    """A browser asks for a payload in order to show it or to run it, not on behalf of a script that reads it."""

    def __init__(self) -> None:
        super().__init__(403, "Rendezvous payloads are for clients, not for display in a browser", Codes.FORBIDDEN)


class NoSuchEndpoint(SynapseError):
    """No protocol has anything at this path."""

    def __init__(self) -> None:
        super().__init__(404, "Unrecognized request", Codes.UNRECOGNIZED)


class MethodNotAllowed(SynapseError):
    """The resource does not know this method (RFC 9110 section 15.5.6)."""

    def __init__(self, allowed: Iterable[bytes]) -> None:
        allow = ", ".join([method.decode("ascii") for method in allowed] + ["OPTIONS"])
        super().__init__(405, f"Method not allowed; try one of {allow}", Codes.UNRECOGNIZED, headers={"Allow": allow})
