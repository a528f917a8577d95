"""What every way out of the house promises, whether it speaks SMTP or an ESP's API."""

from collections.abc import Callable, Iterable, Iterator
from datetime import datetime, timedelta
from enum import Enum
from typing import NamedTuple, Protocol

from newsletter.mailing.personalizing import Personalizer, Recipient
from newsletter.mailing.tokens import DeliveryKey


class TransportError(Exception):
    """The transport as a whole does not work (no connection, bad credentials, told to wait).

    Whoever was not reported before it was not sent to. `retry_after` is the wait that the other side asked for; None
    where it asked for none.
    """

    def __init__(self, message: str, *, retry_after: timedelta | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class Result(Enum):
    """What became of one recipient's message."""

    ACCEPTED = "accepted"
    FAILED = "failed"  # permanently refused
    DEFERRED = "deferred"  # refused for now
    NOT_SENT = "not sent"  # safe to try again: the final dot was never handed over
    UNKNOWN = "unknown"  # it may have been accepted; nobody can say


class Report(NamedTuple):
    """The result of one recipient with what the server said."""

    key: DeliveryKey
    result: Result
    code: str = ""  # enhanced status code (RFC 3463) where there is one, else the reply code
    text: str = ""
    is_general: bool = False  # the answer was to the sender or the mail, not to this recipient's address


class Transport(Protocol):
    """Takes a compiled mail and people; says of each person exactly once what became of it."""

    def deliver(
        self,
        personalizer: Personalizer,
        recipients: Iterable[Recipient],
        *,
        until: Callable[[], datetime],
        begins: Callable[[DeliveryKey], None] = lambda key: None,
    ) -> Iterator[Report]:
        """Send to each recipient, in any order; recipients are asked for as they can be taken.

        `begins` is called before each write that could complete a message, so that a journal beside the worker can tell
        afterwards which were never begun. Then `until` is asked: no such write starts after that moment (such people
        come back as NOT_SENT). In this order, since a process may be held up for long right after it has looked. Both
        are called from the caller's own thread. Raises TransportError when nothing can be sent any more, before the
        first report or after some.
        """
        ...

    def close(self) -> None:
        """Give connections back."""
        ...
