"""What each mail service of Anymail 15.2 can do, as its backend's source and the service's own documentation say.

`docs/mail-services.md` is the same table for operators; a test holds the two together.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from newsletter.mailing.merging import Syntax

# A call that nobody answered leaves all its people unknown, unless it can be repeated under a key: keep it small.
WITHOUT_KEY_LIMIT = 200

METADATA_KEY = "d"  # where a delivery's report token travels; webhooks bring it back
_OURS = "newsletter.mailing.transports.esp_backends"
_ANYMAIL = "anymail.backends"

LIST_HEADERS = frozenset({"List-Unsubscribe", "List-Unsubscribe-Post", "List-Id", "Precedence", "Feedback-ID"})

# A run of braces is a template's syntax, and a single one may stand next to a placeholder and lengthen it.
_BRACES = r"[{}]{2,}|\A\}|\{\Z"
_BRACES_AND_TAGS = rf"{_BRACES}|\{{[%#]|[%#]\}}"
# A word between percent signs; a placeholder's own sign may be the one before it, or after it.
_PERCENTS = r"%[A-Za-z_][\w.:-]*%?(?:[\w.:-]+%)*|\A(?:[\w.:-]+%)+|%\Z"


class Way(Enum):
    """How people reach the service."""

    MERGE = "one text a call, values beside it"
    OWN = "a batch of messages, each with its own text"
    ONE = "one by one"


@dataclass(frozen=True)
class Provider:
    """One service."""

    name: str  # as it writes itself
    backend: str  # Anymail's, or ours where the service can do more than Anymail asks of it
    way: Way
    limit: int = 1  # the most people that it takes in one call
    syntax: Syntax | None = None  # where it merges
    values_limit: int = 0  # bytes of one person's values; whoever has more is sent to alone (0: no limit)
    takes_raw: bool = False  # a whole message as SMTP would carry it
    key_header: str = ""  # where the key stands under which a call may be repeated; empty where there is none
    is_key_in_message: bool = False  # that header is one of the message, not one of the call
    headers: frozenset[str] = LIST_HEADERS  # those of ours that it lets us set
    merges_headers: bool = False  # placeholders are filled in headers too; else each person has headers of their own
    are_headers_whole: bool = False  # a person's headers replace those of the call, so all of them go there
    unsubscribe_field: str = ""  # in the service's own words, where List-Unsubscribe is no header to it
    keeps_message_id: bool = False
    sets_tracking: bool = True  # its own counting is switched off in each call; else in its settings, by the operator
    knows_metadata: bool = True  # else a report token travels as a tag
    extra: Mapping[str, Any] = field(default_factory=dict)  # of each call, in its own words

    @property
    def people_a_call(self) -> int:
        return self.limit if self.key_header else min(self.limit, WITHOUT_KEY_LIMIT)


PROVIDERS: dict[str, Provider] = {
    # messageVersions: 1,000 a call; values are escaped unless a block says otherwise. The key is a UUID among the
    # message's headers, known for 30 minutes; a repeated call is refused as duplicate_parameter. Tracking is the
    # account's setting.
    "brevo": Provider(
        "Brevo",
        f"{_ANYMAIL}.brevo.EmailBackend",
        Way.MERGE,
        limit=1_000,
        syntax=Syntax(
            "{% autoescape off %}{{ params.{} }}{% endautoescape %}",
            re.compile(_BRACES_AND_TAGS),
        ),
        key_header="idempotencyKey",
        is_key_in_message=True,
        are_headers_whole=True,
        sets_tracking=False,
    ),
    # Its bulk endpoint names no message and says of nobody what became of them, and it knows no metadata: one by one
    # with the token as a tag. Free headers are for enterprise accounts, List-Unsubscribe has a field of its own.
    "mailersend": Provider(
        "MailerSend",
        f"{_ANYMAIL}.mailersend.EmailBackend",
        Way.ONE,
        headers=frozenset({"Precedence"}),
        unsubscribe_field="list_unsubscribe",
        knows_metadata=False,
    ),
    # recipient-variables: 1,000 a call, put in raw everywhere, headers too. One bad address refuses the call. No key.
    # `%unsubscribe_url%` and its like are syntax as well.
    "mailgun": Provider(
        "Mailgun",
        f"{_OURS}.MailgunBackend",
        Way.MERGE,
        limit=1_000,
        syntax=Syntax("%recipient.{}%", re.compile(_PERCENTS)),
        merges_headers=True,
    ),
    # Send API v3.1: 50 messages a call; the template language is read only where a call asks for it, a mail with an
    # error in it is not delivered. No key (DeduplicateCampaign goes by address and is none).
    "mailjet": Provider(
        "Mailjet",
        f"{_OURS}.MailjetBackend",
        Way.MERGE,
        limit=50,
        syntax=Syntax("{{var:{}}}", re.compile(_BRACES_AND_TAGS)),
        are_headers_whole=True,
        extra={"Globals": {"TemplateLanguage": True}},
    ),
    # Batches of 500, in which each request may have its own subject and texts. No key. The domain's settings track.
    "mailtrap": Provider("Mailtrap", f"{_OURS}.MailtrapBackend", Way.OWN, limit=500, sets_tracking=False),
    # merge_vars would merge, but Anymail gives no person a header of their own there: one by one, nothing merged.
    "mandrill": Provider("Mandrill", f"{_ANYMAIL}.mandrill.EmailBackend", Way.ONE, extra={"message": {"merge": False}}),
    # No batch, no merge, no metadata, no key: the token is the message's tag. Tracking is the server's setting.
    "postal": Provider("Postal", f"{_ANYMAIL}.postal.EmailBackend", Way.ONE, sets_tracking=False, knows_metadata=False),
    # /email/batch: 500 messages and 50 MB a call, an answer for each. No key. X-PM-KeepID keeps our Message-ID.
    "postmark": Provider("Postmark", f"{_OURS}.PostmarkBackend", Way.OWN, limit=500, keeps_message_id=True),
    # /emails/batch: 100 messages a call; one bad address refuses the call. Idempotency-Key of 1 to 256 characters,
    # known for 24 hours; 409 where it is still being worked on. Tracking is the domain's setting.
    "resend": Provider(
        "Resend",
        f"{_OURS}.ResendBackend",
        Way.OWN,
        limit=100,
        key_header="Idempotency-Key",
        sets_tracking=False,
    ),
    # No batch, no merge, no key; it tracks nothing, and Anymail has no webhooks of it.
    "scaleway": Provider("Scaleway", f"{_ANYMAIL}.scaleway.EmailBackend", Way.ONE, sets_tracking=False),
    # personalizations: 1,000 a call, 10,000 bytes of substitutions each; any text may be a substitution's tag, so ours
    # holds a random word and nothing else is syntax. No key. Its unsubscribe footer and Analytics tags are off too.
    "sendgrid": Provider(
        "SendGrid",
        f"{_ANYMAIL}.sendgrid.EmailBackend",
        Way.MERGE,
        limit=1_000,
        syntax=Syntax("-{}-"),
        values_limit=10_000,
        extra={
            "merge_field_format": "-{}-",
            "tracking_settings": {"subscription_tracking": {"enable": False}, "ganalytics": {"enable": False}},
        },
    ),
    # SendEmail of API v2: raw MIME for one message; templates would have to be stored there. No key (boto's own
    # repeating is off, env.py). It writes Message-ID and Date itself. Tracking is the configuration set's.
    "ses": Provider(
        "Amazon SES",
        "newsletter.mailing.transports.esp_amazon.AmazonBackend",
        Way.ONE,
        takes_raw=True,
        sets_tracking=False,
    ),
    # Transmissions: 2,000 recipients, as it advises; three braces put a value in raw. No key. It says how many it
    # refused, not whom.
    "sparkpost": Provider(
        "SparkPost",
        f"{_ANYMAIL}.sparkpost.EmailBackend",
        Way.MERGE,
        limit=2_000,
        syntax=Syntax("{{{{}}}}", re.compile(_BRACES)),
        merges_headers=True,
    ),
    # substitutions would merge, but whether they are escaped is not documented: one by one, its templates off.
    # List-Unsubscribe is the one header of ours that it passes on.
    "unisender-go": Provider(
        "Unisender Go",
        f"{_ANYMAIL}.unisender_go.EmailBackend",
        Way.ONE,
        headers=frozenset({"List-Unsubscribe"}),
        extra={"template_engine": "none"},
    ),
}
