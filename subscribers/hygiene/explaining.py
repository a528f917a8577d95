"""Why somebody would no longer be mailed, in plain sentences, from evidence that is frozen with the decision."""

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any

from django.utils.formats import date_format
from django.utils.timezone import localtime
from django.utils.translation import gettext as _
from django.utils.translation import ngettext

from subscribers.hygiene.opportunities import Opportunities
from subscribers.hygiene.policies import Person
from subscribers.models import TrackingConsent

STRIP_LENGTH = 52  # issues that a page shows of somebody: a year of a weekly
APPLE, MACHINE = "a", "m"


def _no_fetches(list_id: int, subscriber_ids: Sequence[int]) -> Mapping[int, Mapping[int, str]]:
    return {}


# Registry, filled by tracking: what machines fetched, as subscriber id → issue number → APPLE or MACHINE.
machine_fetches: Callable[[int, Sequence[int]], Mapping[int, Mapping[int, str]]] = _no_fetches


def explained(person: Person, chances: Opportunities, fetches: Mapping[int, str]) -> tuple[str, str]:
    """A person's reason and evidence, the latter as JSON."""
    found = evidence(person, chances=chances, fetches=fetches)
    return reason(found), json.dumps(found)


def evidence(person: Person, *, chances: Opportunities, fetches: Mapping[int, str]) -> dict[str, Any]:
    """What is kept of a person with a decision: enough to explain it, draw it and take it back."""
    fetched = _fetched_since(person, chances, fetches) if fetches else []
    return {
        "email": person.email,
        "since": _iso(person.since),
        "silent": person.silent,
        "ever_read": person.ever_read,
        "opened_at": _iso(person.opened_at),
        "clicked_at": _iso(person.clicked_at),
        "acted_at": _iso(person.acted_at),
        # What the removal compares with, so that a sign that comes in between spares them.
        "sign_at": _iso(max(filter(None, (person.opened_at, person.clicked_at, person.acted_at)), default=None)),
        "subscribed_at": _iso(person.created_at),
        "state_since": _iso(person.state_since),
        "consent": person.tracking_consent,
        "apple": fetched.count(APPLE),
        "machines": fetched.count(MACHINE),
        "strip": _strip(person, chances, fetches),
    }


def _fetched_since(person: Person, chances: Opportunities, fetches: Mapping[int, str]) -> list[str]:
    """What machines fetched in the time of silence that the sentence speaks of."""
    later = (issue.number for issue in chances.issues if issue.sent_at > person.since or not person.ever_read)
    return [fetches[number] for number in later if number in fetches and _bit(person.delivered, number)]


def reason(found: Mapping[str, Any]) -> str:
    """The sentence for one person: what was sent, what was seen, and what it proves."""
    sentences = [_dated(found) if found["consent"] == TrackingConsent.HYGIENE else _silence(found)]
    if found["apple"]:
        sentences.append(
            ngettext(
                "%(n)d was fetched by Apple Mail, which proves nothing either way.",
                "%(n)d were fetched by Apple Mail, which proves nothing either way.",
                found["apple"],
            )
            % {"n": found["apple"]}
        )
    if found["machines"]:
        sentences.append(
            ngettext(
                "%(n)d was fetched by a scanner, which proves nothing.",
                "%(n)d were fetched by a scanner, which proves nothing.",
                found["machines"],
            )
            % {"n": found["machines"]}
        )
    return " ".join(sentences)


def _silence(found: Mapping[str, Any]) -> str:
    facts = {"n": found["silent"], "day": _day(found["since"]), "sign": _last_sign(found)}
    if found["ever_read"]:
        return (
            ngettext(
                "%(sign)s on %(day)s. Got %(n)d issue since; it was not opened or clicked by a person.",
                "%(sign)s on %(day)s. Got %(n)d issues since; none was opened or clicked by a person.",
                found["silent"],
            )
            % facts
        )
    return (
        ngettext(
            "Got %(n)d issue since %(day)s; it was not opened or clicked by a person.",
            "Got %(n)d issues since %(day)s; none was ever opened or clicked by a person.",
            found["silent"],
        )
        % facts
    )


def _dated(found: Mapping[str, Any]) -> str:
    facts = {"n": found["silent"], "day": _day(found["since"])}
    if found["opened_at"]:
        return _("Last opened on %(day)s, the only thing they let us keep; %(n)d issues went out since.") % facts
    return _("No open since %(day)s, the only thing they let us keep; %(n)d issues went out since.") % facts


def _last_sign(found: Mapping[str, Any]) -> str:
    if found["clicked_at"] == found["since"]:
        return _("Last clicked a link")
    if found["acted_at"] == found["since"]:
        return _("Last changed something on their page")
    return _("Last opened an issue")


def _strip(person: Person, chances: Opportunities, fetches: Mapping[int, str]) -> str:
    """One character an issue, the latest last: r read, a Apple, m machine, s silent, n not sent, x tracking broken."""
    if person.tracking_consent != TrackingConsent.FULL:
        return ""
    return "".join(_mark(person, number, chances.broken_numbers, fetches) for number in chances.numbers[-STRIP_LENGTH:])


def _mark(person: Person, number: int, broken: frozenset[int], fetches: Mapping[int, str]) -> str:
    if _bit(person.engaged, number):
        return "r"
    if not _bit(person.delivered, number):
        return "n"
    if number in broken:
        return "x"
    return fetches.get(number, "s")


def _bit(bits: str, number: int) -> bool:
    return bits[number - 1 : number] == "1"


def _iso(moment: datetime | None) -> str | None:
    return moment.isoformat() if moment else None


def _day(moment: str) -> str:
    return date_format(localtime(datetime.fromisoformat(moment)), "j F Y")
