"""Why mail was refused or put off: what servers said, grouped by cause, each with what it means and some examples.

Servers word the same cause in many ways, so the enhanced status code (RFC 3463 and IANA's registry of them) decides
where there is one, and otherwise the text without its addresses and numbers.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from django.db import connection

from campaigns import sharing
from campaigns.models import DeliveryError
from subscribers.models import Subscriber

MOST_CAUSES = 12
_ADDRESS = re.compile(r"[^\s<>\"'(),:;]+@[^\s<>\"'(),:;]+")

# One row a cause, by the index on the campaign. The first, the last and the latest person are examples at no cost.
CAUSES = r"""
SELECT code, cause, count(DISTINCT subscriber_id) AS people,
       count(DISTINCT subscriber_id) FILTER (WHERE is_permanent) AS refused,
       max(id) AS latest, min(subscriber_id), max(subscriber_id)
  FROM (SELECT id, subscriber_id, code, is_permanent,
               CASE WHEN code ~ '^[245]\.\d+\.\d+$' THEN ''
                    ELSE left(regexp_replace(regexp_replace(lower(text), '\S+@\S+', '…', 'g'),
                                             '[0-9a-f]*\d[0-9a-f]*', '#', 'g'), 100) END AS cause
          FROM campaigns_deliveryerror WHERE campaign_id = %s) AS said
 GROUP BY code, cause ORDER BY people DESC, latest DESC LIMIT %s
"""


@dataclass(frozen=True)
class Cause:
    """One cause: how many people it met, how many of them for good, what it means, and the latest answer."""

    code: str
    meaning: str
    people: int
    refused: int
    text: str
    examples: Sequence[str] = ()  # addresses

    @property
    def put_off(self) -> int:
        """People who met it and were not refused for good."""
        return self.people - self.refused


def causes(campaign_id: int, *, with_addresses: bool) -> list[Cause]:
    """What servers said of a campaign's mails, the most frequent first, at most some seconds old."""
    key = f"campaigns:causes:{campaign_id}:{with_addresses:d}"
    return sharing.shared(key, lambda: count(campaign_id, with_addresses=with_addresses))


def count(campaign_id: int, *, with_addresses: bool) -> list[Cause]:
    """The same, of this moment; 250 ms where 50,000 answers were kept."""
    with connection.cursor() as cursor:
        cursor.execute(CAUSES, [campaign_id, MOST_CAUSES])
        rows = cursor.fetchall()
    latest = DeliveryError.objects.in_bulk([row[4] for row in rows])
    known = {pk for row in rows for pk in (row[5], row[6], latest[row[4]].subscriber_id)} if with_addresses else set()
    addresses = dict(Subscriber.objects.filter(pk__in=known).values_list("pk", "email"))
    found = []
    for code, _cause, people, refused, newest, first, last in rows:
        ids = dict.fromkeys((first, last, latest[newest].subscriber_id))
        examples = [addresses[pk] for pk in ids if pk in addresses]
        said = latest[newest].text
        text = said if with_addresses else without_addresses(said)
        found.append(Cause(code, meaning(code, said), people, refused, text, examples))
    return found


def without_addresses(text: str) -> str:
    """What a server said, for somebody who may not see whom it was about; servers like to repeat the address."""
    return _ADDRESS.sub("…", text)


# RFC 3463 and the registry of enhanced status codes; 5.7.515 and 5.7.26 are Microsoft's and Google's.
MEANINGS = {
    "1.1": "The mailbox does not exist.",
    "1.2": "The domain of the address does not exist.",
    "1.3": "The address is not written as an address can be.",
    "1.6": "The mailbox has moved and left no new address.",
    "1.8": "The sender’s domain could not be found: check its DNS.",
    "1.10": "The domain says that it takes no mail.",
    "2.1": "The mailbox is switched off and takes no mail.",
    "2.2": "The mailbox is full.",
    "2.3": "The mail is larger than this mailbox allows.",
    "3.1": "The receiving server has no room left.",
    "3.2": "The receiving server takes no mail just now.",
    "3.4": "The mail is larger than the receiving server allows.",
    "4.1": "The receiving server did not answer.",
    "4.2": "The connection to the receiving server broke.",
    "4.4": "No way to the receiving server was found: check the domain’s DNS.",
    "4.6": "The mail went in a circle between servers.",
    "4.7": "It could not be delivered in time.",
    "5.3": "Too many recipients at once.",
    "7.1": "The receiving server’s policy refuses it: often the sender’s reputation or a block list.",
    "7.20": "No valid DKIM signature was found.",
    "7.21": "The DKIM signature does not suit the sender’s domain.",
    "7.22": "The DKIM signature does not suit the sender’s domain.",
    "7.23": "The sender’s SPF record does not allow this server.",
    "7.25": "The sending server’s address has no name in the DNS (reverse DNS).",
    "7.26": "SPF or DKIM did not prove the sender.",
    "7.27": "The sender’s domain takes no mail itself.",
    "7.28": "Too much mail at once from this sender.",
    "7.515": "The sender’s domain lacks SPF, DKIM or DMARC, which this receiver demands.",
}
SUBJECTS = {
    "0": "The receiving server gave no reason that has a name.",
    "1": "Something is wrong with the address.",
    "2": "Something is wrong with the mailbox.",
    "3": "The receiving server has a problem of its own.",
    "4": "The network or the route to the receiving server has a problem.",
    "5": "The two servers did not understand each other.",
    "6": "The receiving server does not take this content.",
    "7": "The receiving server’s rules or its security forbid it.",
}
PLAIN = {
    "421": "The receiving server is busy or limits how much it takes.",
    "450": "The mailbox cannot be reached just now.",
    "451": "The receiving server has a problem of its own, or wants a second attempt.",
    "452": "The receiving server has no room left, or limits how much it takes.",
    "550": "The mailbox does not exist, or the server refuses mail for it.",
    "551": "The mailbox is not on this server.",
    "552": "The mailbox is full, or the mail is too large.",
    "553": "The address is not allowed there.",
    "554": "The receiving server refuses this mail.",
    "400": "The mail service did not accept the request.",
    "401": "The mail service did not accept the key.",
    "402": "The mail service asks for payment.",
    "403": "The mail service forbids it: check the key and the sender’s domain.",
    "413": "The mail is larger than the mail service allows.",
    "422": "The mail service did not accept the address or the mail.",
    "429": "The mail service limits how much it takes.",
}
GREYLISTED = "Put off on purpose: the receiver takes unknown senders at a second attempt, or limits how much it takes."


def meaning(code: str, text: str = "") -> str:
    """A code, and what stands beside it, in a sentence; "" where they say nothing."""
    kind, _, rest = code.partition(".")
    if "greylist" in text.lower() or "graylist" in text.lower():
        return GREYLISTED
    if not rest:
        if code in PLAIN:
            return PLAIN[code]
        return "The mail service has a problem of its own." if code.startswith("5") and len(code) == 3 else ""
    if kind == "4" and rest in {"7.0", "7.1"}:
        return GREYLISTED
    return MEANINGS.get(rest) or SUBJECTS.get(rest.partition(".")[0], "")
