"""From a compiled mail and people to one call's message, in the form that the service takes best."""

import hashlib
import secrets
from collections.abc import Sequence
from uuid import UUID

from anymail.message import AnymailMessage

from newsletter.mailing.headers import NAME_LIMIT, ORDINARY_NAME, one_line, wire_address
from newsletter.mailing.keys import keyring
from newsletter.mailing.merging import merged
from newsletter.mailing.personalizing import Personalizer, Recipient, Rendered
from newsletter.mailing.tokens import DeliverySigner
from newsletter.mailing.transports.providers import METADATA_KEY, Provider, Way


class TooLarge(Exception):
    """Somebody's values are more than the service takes in a call for many."""


class Writer:
    """Writes the calls of one mail for one service."""

    def __init__(self, provider: Provider, personalizer: Personalizer) -> None:
        self._provider = provider
        self._personalizer = personalizer
        self._signer = DeliverySigner(keyring())
        of = personalizer.compiled.headers
        found = {
            "List-Unsubscribe-Post": "List-Unsubscribe=One-Click",
            "List-Id": " ".join(of["list_id"].removeprefix("List-Id:").split()),
            "Precedence": "bulk",
            "Feedback-ID": of["feedback_id"],
        }
        self._headers = {name: value for name, value in found.items() if name in provider.headers}

    def message(self, people: Sequence[Recipient]) -> AnymailMessage:
        """The message of one call. Raises PersonalizeError and TooLarge; nobody is to blame alone but a single person.

        All are tracked, or none is, and no address stands twice.
        """
        if self._provider.way is Way.MERGE:
            try:
                return self._merged(people)
            except TooLarge:
                if len(people) > 1:
                    raise
        if self._provider.way is Way.OWN:
            return self._own(people)
        return self._alone(people[0])

    def _merged(self, people: Sequence[Recipient]) -> AnymailMessage:
        """Literals once, one merge field a value."""
        syntax = self._provider.syntax
        assert syntax is not None
        merge = merged(self._personalizer, syntax, tracked=people[0].is_tracked)
        message = self._message(people, merge.subject, merge.html, merge.text)
        message.merge_data = {wire_address(one.email): merge.values(one) for one in people}
        limit = self._provider.values_limit
        if limit and any(_size(values) > limit for values in message.merge_data.values()):
            raise TooLarge
        message.merge_metadata = self._metadata(people)
        if self._provider.merges_headers:
            message.extra_headers["List-Unsubscribe"] = f"<{merge.unsubscribe_url}>"
        else:
            message.merge_headers = self._headers_of_each(people)
        self._set_key(message, people, merge.subject, merge.html, merge.text, message.merge_data)
        return message

    def _own(self, people: Sequence[Recipient]) -> AnymailMessage:
        """A batch in which each message has its own texts (esp_backends.py puts them there)."""
        message = self._message(people, "", "", "")
        message.own_texts = {wire_address(one.email): self._rendered(one) for one in people}
        message.merge_metadata = self._metadata(people)
        message.merge_headers = self._headers_of_each(people)
        self._set_key(message, people, message.own_texts)
        return message

    def _alone(self, recipient: Recipient) -> AnymailMessage:
        """A message that is nobody else's."""
        if self._provider.takes_raw:
            message = self._message([recipient], "", "", "")
            # The service signs: it writes headers anew that ours would cover.
            message.raw = self._personalizer.message(recipient, is_signed=False).content
        else:
            rendered = self._rendered(recipient)
            message = self._message([recipient], rendered.subject, rendered.html, rendered.text)
            message.extra_headers.update(self._own_headers(recipient))
        token = self._signer.report(recipient.key)
        if self._provider.knows_metadata:
            message.metadata = {METADATA_KEY: token}
        else:
            message.tags = [token]
        if self._provider.unsubscribe_field:
            unsubscribe = f"<{self._personalizer.unsubscribe_url(recipient)}>"
            message.esp_extra = {**self._provider.extra, self._provider.unsubscribe_field: unsubscribe}
        return message

    # Parts -----------------------------------------------------------------------------------------------------------

    def _message(self, people: Sequence[Recipient], subject: str, page: str, text: str) -> AnymailMessage:
        of = self._personalizer.compiled.headers
        message = AnymailMessage(
            subject=subject,
            body=text,
            from_email=_mailbox(of["sender_name"], of["sender_email"]),
            to=[_mailbox(one.name, wire_address(one.email)) for one in people],
            reply_to=[of["reply_to"]] if of.get("reply_to") else None,
            headers=dict(self._headers),
        )
        if page:
            message.attach_alternative(page, "text/html")
        if self._provider.sets_tracking:
            # Ours counts, not both (MAIL.md).
            message.track_opens = False
            message.track_clicks = False
        if self._provider.extra:
            message.esp_extra = dict(self._provider.extra)
        message.reasons = {}  # address → what the service said of it
        return message

    def _rendered(self, recipient: Recipient) -> Rendered:
        rendered = self._personalizer.rendered(recipient, with_pixel=True)
        return Rendered(one_line(rendered.subject), rendered.html, rendered.text)

    def _metadata(self, people: Sequence[Recipient]) -> dict[str, dict[str, str]]:
        report = self._signer.report
        return {wire_address(one.email): {METADATA_KEY: report(one.key)} for one in people}

    def _headers_of_each(self, people: Sequence[Recipient]) -> dict[str, dict[str, str]]:
        shared = self._headers if self._provider.are_headers_whole else {}
        return {wire_address(one.email): {**shared, **self._own_headers(one)} for one in people}

    def _own_headers(self, recipient: Recipient) -> dict[str, str]:
        """The headers that differ from person to person."""
        headers: dict[str, str] = {}
        if "List-Unsubscribe" in self._provider.headers:
            headers["List-Unsubscribe"] = f"<{self._personalizer.unsubscribe_url(recipient)}>"
        if self._provider.keeps_message_id:
            headers["Message-ID"] = f"<{self._personalizer.message_id(recipient)}>"
            headers["X-PM-KeepID"] = "true"
        return headers

    def _set_key(self, message: AnymailMessage, people: Sequence[Recipient], *content: object) -> None:
        """The key under which the very same call may be repeated."""
        if not self._provider.key_header:
            return
        # Test mails belong to no campaign: each is meant, also when its text is that of the last.
        salt = "" if people[0].key.campaign_id else secrets.token_hex(8)
        digest = hashlib.sha256(repr((salt, people, content)).encode()).digest()
        message.idempotency_key = str(UUID(bytes=digest[:16], version=5))
        if self._provider.is_key_in_message:
            message.extra_headers[self._provider.key_header] = message.idempotency_key


def _size(values: dict[str, str]) -> int:
    return sum(len(name) + 2 + len(value.encode()) for name, value in values.items())


def _mailbox(name: str, address: str) -> str:
    """`"Name" <address>` with the name as it is, since services encode it themselves."""
    if len(name) < NAME_LIMIT and ORDINARY_NAME.fullmatch(name):
        return f"{name} <{address}>"
    shown = one_line(name)[:NAME_LIMIT].rstrip()
    if not shown:
        return address
    escaped = shown.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}" <{address}>'
