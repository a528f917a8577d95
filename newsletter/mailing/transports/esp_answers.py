"""What a service's answer to one call means: for each person, for the call, for the service as a whole."""

import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from enum import Enum
from typing import Any

from anymail.exceptions import AnymailAPIError, AnymailError
from anymail.message import AnymailMessage
from botocore import exceptions as boto
from requests import exceptions as web
from urllib3 import exceptions as urllib

from newsletter.mailing.bounces import enhanced_code
from newsletter.mailing.headers import wire_address
from newsletter.mailing.personalizing import Recipient
from newsletter.mailing.transports.base import Report, Result

log = logging.getLogger(__name__)

_REFUSED = "5.1.0"  # something about the address (RFC 3463)
TEXT_LIMIT = 500  # characters of what a service said
LONGEST_WAIT = timedelta(hours=6)


class Meaning(Enum):
    TOLD = "each person has a result"
    REFUSED = "the call as it stands: somebody in it, or its content"
    BUSY = "not now, nobody"
    TROUBLE = "the service broke down over it: the call's fault, or the service's"
    CLOSED = "not with this account, key, sender or address of the API"
    UNREACHED = "it never got the call"
    UNCERTAIN = "it may have taken it"


@dataclass(frozen=True)
class Answer:
    """What came of one call."""

    meaning: Meaning
    code: str = ""
    text: str = ""
    wait: timedelta | None = None
    results: dict[str, tuple[Result, str]] = field(default_factory=dict)  # folded address → result and reason
    is_for_all: bool = False  # TOLD, and everybody was accepted
    was_repeated: bool = False  # an earlier call under the same key was taken


# Anymail's words for one recipient → ours.
_STATUSES = {
    "sent": Result.ACCEPTED,
    "queued": Result.ACCEPTED,
    "invalid": Result.FAILED,
    "rejected": Result.FAILED,
    "failed": Result.FAILED,
}
_ACCEPTED = {word for word, result in _STATUSES.items() if result is Result.ACCEPTED}
_MEANINGS: dict[int, Meaning] = {
    400: Meaning.REFUSED,
    409: Meaning.UNCERTAIN,  # Resend: the key is being worked on, or was used
    413: Meaning.REFUSED,  # too large: half of it may not be
    422: Meaning.REFUSED,
    408: Meaning.BUSY,  # the service did not get all of the call in time
    429: Meaning.BUSY,
    503: Meaning.BUSY,
    504: Meaning.UNCERTAIN,  # a gateway waited for somebody who may have taken it
}
# Amazon's words for its 4xx.
_AMAZON: dict[str, Meaning] = {
    "TooManyRequestsException": Meaning.BUSY,
    "ThrottlingException": Meaning.BUSY,
    "Throttling": Meaning.BUSY,
    "LimitExceededException": Meaning.BUSY,
    "MessageRejected": Meaning.REFUSED,
    "BadRequestException": Meaning.REFUSED,
    "ValidationException": Meaning.REFUSED,
}
_UNREACHED = (
    web.ConnectTimeout,
    web.ProxyError,
    web.InvalidURL,
    web.MissingSchema,
    boto.EndpointConnectionError,
    boto.ConnectTimeoutError,
    boto.ProxyConnectionError,
    boto.NoCredentialsError,
    boto.PartialCredentialsError,
    boto.NoRegionError,
)


def of_message(message: AnymailMessage) -> Answer:
    """A call that was taken: what it says of each person."""
    status = message.anymail_status
    if status.status and status.status <= _ACCEPTED and len(status.recipients) == len(message.to):
        return Answer(Meaning.TOLD, is_for_all=True)
    results: dict[str, tuple[Result, str]] = {}
    for address, found in status.recipients.items():
        result = _STATUSES.get(found.status, Result.UNKNOWN)
        # Some services write an address in another case, and Anymail then has it twice.
        if results.get(address.casefold(), (None,))[0] is not Result.ACCEPTED:
            reason = "" if result is Result.ACCEPTED else message.reasons.get(address) or f"the service: {found.status}"
            results[address.casefold()] = (result, reason[:TEXT_LIMIT])
    return Answer(Meaning.TOLD, results=results)


def of_error(error: Exception) -> Answer:
    """A call that raised."""
    text = " ".join(str(error).split())[:TEXT_LIMIT]
    if not isinstance(error, AnymailAPIError):
        if isinstance(error, AnymailError):
            # Before anything was sent: what Anymail cannot put into the service's words.
            return Answer(Meaning.REFUSED, "5.6.0", text)
        log.exception("a mail service's answer could not be read")
        return Answer(Meaning.UNCERTAIN, "", text or type(error).__name__)
    cause = error.__cause__
    if isinstance(cause, boto.ClientError):
        return _of_amazon(cause, text)
    status = error.status_code
    if status is None:
        return Answer(Meaning.UNREACHED if _never_arrived(cause) else Meaning.UNCERTAIN, "", text)
    headers = getattr(error.response, "headers", None) or {}
    wait = wait_asked_for(headers, now=datetime.now(UTC))
    meaning = _meaning(status, has_wait=wait is not None)
    return Answer(meaning, str(status), text, wait, was_repeated=status == 400 and "duplicate_parameter" in text)


def _meaning(status: int, *, has_wait: bool) -> Meaning:
    if status in _MEANINGS:
        return _MEANINGS[status]
    if status >= 500:
        return Meaning.BUSY if has_wait else Meaning.TROUBLE
    # Told that all is well in words that Anymail cannot read: it may be.
    return Meaning.UNCERTAIN if 200 <= status < 300 else Meaning.CLOSED


def _of_amazon(error: boto.ClientError, text: str) -> Answer:
    about: dict[str, Any] = error.response.get("ResponseMetadata", {})
    status = int(about.get("HTTPStatusCode", 0))
    word = str(error.response.get("Error", {}).get("Code", ""))
    wait = wait_asked_for(about.get("HTTPHeaders", {}), now=datetime.now(UTC))
    if status >= 500 or status in {408, 429}:
        return Answer(_meaning(status, has_wait=wait is not None), str(status), text, wait)
    return Answer(_AMAZON.get(word, Meaning.CLOSED), str(status or ""), text, wait)


def _never_arrived(cause: BaseException | None) -> bool:
    """Whether no connection came about, so that nothing can have been taken."""
    if isinstance(cause, _UNREACHED):
        return True
    if isinstance(cause, web.ConnectionError) and cause.args:
        reason = getattr(cause.args[0], "reason", None)
        return isinstance(reason, urllib.NewConnectionError | urllib.ConnectTimeoutError | urllib.NameResolutionError)
    return False


def wait_asked_for(headers: Any, *, now: datetime) -> timedelta | None:
    """The wait that an answer asks for: Retry-After (RFC 9110), or the rate limit's end in a service's own header."""
    found = {str(name).lower(): str(value).strip() for name, value in headers.items()}
    for name in ("retry-after", "ratelimit-reset", "x-sib-ratelimit-reset", "x-ratelimit-reset"):
        wait = _wait(found.get(name, ""), now)
        if wait is not None:
            return max(timedelta(seconds=1), min(wait, LONGEST_WAIT))
    return None


def _wait(value: str, now: datetime) -> timedelta | None:
    try:
        number = float(value)
    except ValueError:
        try:
            return parsedate_to_datetime(value) - now if value else None
        except (ValueError, TypeError):
            return None
    if not 0 <= number < 1e15:  # NaN is not either
        return None
    if number > 1e9:  # a moment, in seconds or milliseconds since 1970
        number = (number / 1000 if number > 1e12 else number) - now.timestamp()
    return timedelta(seconds=max(0.0, min(number, LONGEST_WAIT.total_seconds())))


def reports(answer: Answer, people: Sequence[Recipient]) -> Iterator[Report]:
    """What an answer says of each person."""
    if answer.is_for_all:
        yield from (Report(one.key, Result.ACCEPTED) for one in people)
        return
    for one in people:
        result, reason = answer.results.get(wire_address(one.email).casefold(), (Result.UNKNOWN, "it says nothing"))
        # A service's "rejected" may be its own list, a rule, or a full mailbox: only a code says that nobody is there.
        code = (enhanced_code(reason) or _REFUSED) if result is Result.FAILED else ""
        yield Report(one.key, result, code, reason)


def call(connection: Any, message: AnymailMessage, *, after: float = 0) -> Answer:
    """Make one call and say what came of it; never raises."""
    if after:
        time.sleep(after)
    try:
        connection.send_messages([message])
    except Exception as error:  # whatever it is, it must not cost what became of the people
        return of_error(error)
    return of_message(message)
