"""ESPs by Anymail: the compiled literals once, the slots as the provider's merge fields where it merges inline.

The providers differ (Anymail 15.2). Those in INLINE take one call for many people; the rest are sent one by one over
the backend's kept HTTP session.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import formataddr

from anymail.exceptions import AnymailAPIError, AnymailError, AnymailRecipientsRefused
from anymail.message import AnymailMessage
from django.core.mail import get_connection

from newsletter.mailing.headers import HeaderError, one_line, wire_address
from newsletter.mailing.keys import keyring
from newsletter.mailing.personalizing import PersonalizeError, Personalizer, Recipient
from newsletter.mailing.tokens import DeliveryKey, report_token
from newsletter.mailing.transports.base import Report, Result

METADATA_KEY = "d"  # where the delivery's report token travels; webhooks bring it back
# Anymail's words for one recipient → ours.
STATUSES = {
    "sent": Result.ACCEPTED,
    "queued": Result.ACCEPTED,
    "invalid": Result.FAILED,
    "rejected": Result.FAILED,
    "failed": Result.FAILED,
    "unknown": Result.UNKNOWN,
    None: Result.UNKNOWN,
}


@dataclass(frozen=True)
class InlineMerge:
    """How a provider merges an inline body: the placeholder of a field and the most people in one call."""

    placeholder: str
    limit: int


INLINE: dict[str, InlineMerge] = {"mailgun": InlineMerge("%recipient.{}%", 1_000)}
# A call that timed out leaves all its people unknown, and there is no idempotency key: keep it small.
WITHOUT_KEY_LIMIT = 200


class EspTransport:
    """One provider through its Anymail backend."""

    def __init__(self, scheme: str, backend: str) -> None:
        self._inline = INLINE.get(scheme)
        self._connection = get_connection(backend)

    def deliver(
        self,
        personalizer: Personalizer,
        recipients: Iterable[Recipient],
        *,
        until: Callable[[], datetime],
        begins: Callable[[DeliveryKey], None] = lambda key: None,
    ) -> Iterator[Report]:
        size = min(self._inline.limit, WITHOUT_KEY_LIMIT) if self._inline else 1
        waiting = iter(recipients)
        while group := list(itertools.islice(waiting, size)):
            if datetime.now(UTC) >= until():
                yield from (Report(late.key, Result.NOT_SENT) for late in itertools.chain(group, waiting))
                return
            for recipient in group:
                begins(recipient.key)
            yield from self._call(personalizer, group)

    def close(self) -> None:
        self._connection.close()

    def _call(self, personalizer: Personalizer, recipients: Sequence[Recipient]) -> Iterator[Report]:
        good: list[Recipient] = []
        for recipient in recipients:
            try:
                wire_address(recipient.email)
                good.append(recipient)
            except HeaderError as error:
                yield Report(recipient.key, Result.FAILED, "5.1.3", str(error))
        if not good:
            return
        try:
            message = self._merged(personalizer, good) if self._inline else self._single(personalizer, good[0])
        except PersonalizeError as error:
            if len(good) > 1:
                yield from (report for one in good for report in self._call(personalizer, [one]))
            else:
                yield Report(good[0].key, Result.FAILED, "5.6.0", str(error))
            return
        yield from self._hand_over(personalizer, good, message)

    def _hand_over(
        self, personalizer: Personalizer, recipients: Sequence[Recipient], message: AnymailMessage
    ) -> Iterator[Report]:
        try:
            self._connection.send_messages([message])
        except AnymailRecipientsRefused as error:
            yield from (Report(one.key, Result.FAILED, "5.1.1", str(error)[:500]) for one in recipients)
        except AnymailAPIError as error:
            yield from self._refused_call(personalizer, recipients, error)
        except AnymailError as error:
            yield from (Report(one.key, Result.FAILED, "5.6.0", str(error)[:500]) for one in recipients)
        else:
            statuses = message.anymail_status.recipients
            for one in recipients:
                status = statuses.get(wire_address(one.email))
                yield Report(one.key, STATUSES.get(status.status if status else None, Result.UNKNOWN))

    def _refused_call(
        self, personalizer: Personalizer, recipients: Sequence[Recipient], error: AnymailAPIError
    ) -> Iterator[Report]:
        """An error of the whole call: one bad address of many refuses it all, so it is halved until it is alone."""
        code, text = error.status_code, str(error)[:500]
        if code is None:
            yield from (Report(one.key, Result.UNKNOWN, "", text) for one in recipients)
        elif code == 429 or code >= 500:
            yield from (Report(one.key, Result.DEFERRED, str(code), text) for one in recipients)
        elif len(recipients) > 1 and code in {400, 422}:
            half = len(recipients) // 2
            yield from self._call(personalizer, recipients[:half])
            yield from self._call(personalizer, recipients[half:])
        elif code in {401, 402, 403}:
            # The account, not the recipient: put off, so that the editor can mend it.
            yield from (Report(one.key, Result.DEFERRED, str(code), text) for one in recipients)
        else:
            yield from (Report(one.key, Result.FAILED, str(code), text) for one in recipients)

    # Messages ----------------------------------------------------------------------------------------------------

    def _merged(self, personalizer: Personalizer, recipients: Sequence[Recipient]) -> AnymailMessage:
        """One message for all: literals once, one merge field a slot."""
        assert self._inline is not None
        merge = personalizer.as_merge(self._inline.placeholder)
        message = self._message(personalizer, merge.subject, merge.html, merge.text)
        message.to = [_to(one) for one in recipients]
        message.merge_data = {wire_address(one.email): merge.values(one) for one in recipients}
        message.merge_metadata = {
            wire_address(one.email): {METADATA_KEY: report_token(keyring(), one.key)} for one in recipients
        }
        unsubscribe = f"<{self._inline.placeholder.format(merge.unsubscribe_field)}>"
        message.extra_headers["List-Unsubscribe"] = unsubscribe
        return message

    def _single(self, personalizer: Personalizer, recipient: Recipient) -> AnymailMessage:
        rendered = personalizer.rendered(recipient, with_pixel=True)
        message = self._message(personalizer, rendered.subject, rendered.html, rendered.text)
        message.to = [_to(recipient)]
        message.metadata = {METADATA_KEY: report_token(keyring(), recipient.key)}
        message.extra_headers["List-Unsubscribe"] = f"<{personalizer.unsubscribe_url(recipient)}>"
        return message

    def _message(self, personalizer: Personalizer, subject: str, page: str, text: str) -> AnymailMessage:
        of = personalizer.compiled.headers
        message = AnymailMessage(
            subject=subject,
            body=text,
            from_email=_formatted(of["sender_name"], of["sender_email"]),
            reply_to=[of["reply_to"]] if of.get("reply_to") else None,
            headers={
                "List-Unsubscribe-Post": "List-Unsubscribe=One-Click",
                "List-Id": " ".join(of["list_id"].removeprefix("List-Id:").split()),
                "Precedence": "bulk",
                "Feedback-ID": of["feedback_id"],
            },
        )
        message.attach_alternative(page, "text/html")
        # Ours counts, not both (MAIL.md).
        message.track_opens = False
        message.track_clicks = False
        return message


def _to(recipient: Recipient) -> str:
    return _formatted(recipient.name, wire_address(recipient.email))


def _formatted(name: str, address: str) -> str:
    return formataddr((one_line(name), address))
