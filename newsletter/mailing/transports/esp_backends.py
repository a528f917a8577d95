"""Anymail's backends, where a service can do more than they ask of it.

They read attributes of our messages beside Anymail's own: `own_texts` (address → Rendered), where each message of a
batch has its own subject and texts, and `idempotency_key`. What a service says of one address goes into `reasons`.
"""

import secrets
from typing import Any, NamedTuple

from anymail.backends import mailgun, mailjet, mailtrap, postmark, resend
from anymail.exceptions import AnymailRequestsAPIError
from anymail.message import AnymailRecipientStatus

from newsletter.mailing.merging import NONCE
from newsletter.mailing.transports.providers import METADATA_KEY

# Postmark's codes of an account or a sender, in a batch where every message got one of them.
_POSTMARK_ACCOUNT = frozenset({10, 400, 401, 405, 412, 413})
_POSTMARK_STATUSES = {0: "sent", 300: "invalid", 406: "rejected"}


class _Addressed(NamedTuple):
    """As much of Anymail's address as is read of a recipient."""

    addr_spec: str


class _MailgunPayload(mailgun.MailgunPayload):
    """A call for people whose addresses and values we have made ourselves; taking them apart again cost 50 µs a person.

    The form is multipart, which costs a copy; in Anymail's each byte of the variables would be quoted.
    """

    headers: dict[str, str]
    base_message_attrs = tuple(
        ("to", None, None) if attr[0] == "to" else attr for attr in mailgun.MailgunPayload.base_message_attrs
    )
    anymail_message_attrs = tuple(
        (attr[0], None, None) if attr[0] in {"merge_data", "merge_metadata"} else attr
        for attr in mailgun.MailgunPayload.anymail_message_attrs
    )

    def set_to(self, emails: list[str]) -> None:
        self.data["to"] = emails
        self.to_emails = list(self.message.merge_data)
        self.all_recipients = [_Addressed(address) for address in self.to_emails]

    def populate_recipient_variables(self) -> None:
        """Values and metadata of each person; where the metadata is to be found has a name that nobody can guess."""
        field = f"{NONCE}v"
        self.data[f"v:{METADATA_KEY}"] = f"%recipient.{field}%"
        variables = {
            address: {**values, field: self.merge_metadata[address][METADATA_KEY]}
            for address, values in self.merge_data.items()
        }
        self.data["recipient-variables"] = self.serialize_json(variables)

    def serialize_data(self) -> bytes:
        boundary = secrets.token_hex(16)
        self.headers["Content-Type"] = f"multipart/form-data; boundary={boundary}"
        head = f'--{boundary}\r\nContent-Disposition: form-data; name="'
        written: list[str] = []
        for name, value in super().serialize_data().items():
            for one in value if isinstance(value, list) else (value,):
                written += (head, name, '"\r\n\r\n', str(one), "\r\n")
        written.append(f"--{boundary}--\r\n")
        return "".join(written).encode("utf-8")


class MailgunBackend(mailgun.EmailBackend):
    def build_message_payload(self, message: Any, defaults: Any) -> _MailgunPayload:
        return _MailgunPayload(message, defaults, self)


class _PostmarkPayload(postmark.PostmarkPayload):
    """Messages of /email/batch with their own texts."""

    def data_for_recipient(self, to: Any) -> dict[str, Any]:
        own = self.message.own_texts[to.addr_spec]
        data: dict[str, Any] = super().data_for_recipient(to)
        return {**data, "Subject": own.subject, "HtmlBody": own.html, "TextBody": own.text}


class PostmarkBackend(postmark.EmailBackend):
    def build_message_payload(self, message: Any, defaults: Any) -> _PostmarkPayload:
        return _PostmarkPayload(message, defaults, self)

    def parse_recipient_status(self, response: Any, payload: Any, message: Any) -> dict[str, AnymailRecipientStatus]:
        """The answers of a batch by their order. Anymail would forget all of them for one that it does not know."""
        answers = self.deserialize_json_response(response, payload, message)
        if not isinstance(answers, list):
            error = AnymailRequestsAPIError(email_message=message, payload=payload, response=response, backend=self)
            if isinstance(answers, dict) and answers.get("ErrorCode") in _POSTMARK_ACCOUNT:
                error.status_code = 403
            raise error
        codes = [answer.get("ErrorCode", 0) for answer in answers]
        if codes and set(codes) <= _POSTMARK_ACCOUNT:
            error = AnymailRequestsAPIError(email_message=message, payload=payload, response=response, backend=self)
            error.status_code = 403
            raise error
        statuses: dict[str, AnymailRecipientStatus] = {}
        for to, code, answer in zip(payload.to_emails, codes, answers, strict=True):
            status = _POSTMARK_STATUSES.get(code, "failed")
            statuses[to.addr_spec] = AnymailRecipientStatus(answer.get("MessageID"), status)
            if code:
                message.reasons[to.addr_spec] = f"{code} {answer.get('Message', '')}"
        return statuses


class _ResendPayload(resend.ResendPayload):
    """Messages of /emails/batch with their own texts, under a key."""

    def serialize_data(self) -> Any:
        self.headers["Idempotency-Key"] = self.message.idempotency_key
        addresses = self.data.pop("to")
        messages = []
        for written, to in zip(addresses, self.to_recipients, strict=True):
            own = self.message.own_texts[to.addr_spec]
            headers = {
                **self.data.get("headers", {}),
                **self.merge_headers[to.addr_spec],
                "X-Metadata": self.serialize_json(self.merge_metadata[to.addr_spec]),
            }
            texts = {"subject": own.subject, "html": own.html, "text": own.text}
            messages.append({**self.data, **texts, "to": [written], "headers": headers})
        return self.serialize_json(messages)


class ResendBackend(resend.EmailBackend):
    def build_message_payload(self, message: Any, defaults: Any) -> _ResendPayload:
        return _ResendPayload(message, defaults, self)


class _MailjetPayload(mailjet.MailjetPayload):
    """Anymail 15.2 takes a batch of one apart again for each of its parts, and so loses the variables and headers."""

    _is_burst = False

    def _burst_for_batch_send(self) -> None:
        if not self._is_burst:
            super()._burst_for_batch_send()
            self._is_burst = True


class MailjetBackend(mailjet.EmailBackend):
    def build_message_payload(self, message: Any, defaults: Any) -> _MailjetPayload:
        return _MailjetPayload(message, defaults, self)


class _MailtrapPayload(mailtrap.MailtrapPayload):
    """Requests of a batch with their own texts."""

    def burst_for_batch(self) -> Any:
        batch = super().burst_for_batch()
        for request, address in zip(batch["requests"], self.recipients_to, strict=True):
            own = self.message.own_texts[address]
            request.update(subject=own.subject, html=own.html, text=own.text)
        return batch


class MailtrapBackend(mailtrap.EmailBackend):
    def build_message_payload(self, message: Any, defaults: Any) -> _MailtrapPayload:
        return _MailtrapPayload(message, defaults, self)
