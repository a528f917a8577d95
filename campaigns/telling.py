"""Editors are told by mail when a campaign is finished, did not start, was paused by the system, or has mails in doubt.

An event is a row, made in the transaction of what happened, so that it is not lost; its key makes it one row however
many sweeps see it. Mailing it is claimed by a conditional UPDATE before anything is sent: at most once. A worker killed
in between costs that mail, never a second one; a mail server that is down gives the claim back.
"""

import logging
import re
from dataclasses import dataclass
from datetime import datetime, timedelta
from email.utils import formataddr, make_msgid
from smtplib import SMTPException
from typing import Any

from anymail.exceptions import AnymailError
from django.conf import settings
from django.contrib.auth.models import User
from django.core.mail import EmailMessage, get_connection
from django.db.models import Q
from django.template.loader import render_to_string
from django.urls import reverse
from django.utils import timezone, translation

from campaigns import reporting
from campaigns.models import Campaign, CampaignFigures, CampaignState, EditorEvent, EditorWish
from newsletter.mailing.headers import address_domain

log = logging.getLogger(__name__)
Kind = EditorEvent.Kind

# Of what is older nobody wants to hear, and a history that is loaded (the demo's, an import) tells nobody anything.
FRESH = timedelta(days=1)
# A campaign that is being sent usually ends soon, and then one mail says both.
DOUBT_WAITS = timedelta(minutes=10)
_BLANKS = re.compile(r"\n{3,}")  # what a template's conditions leave
TRY_AGAIN = timedelta(minutes=5)


@dataclass(frozen=True)
class Letter:
    """A mail to one editor."""

    subject: str
    text: str


def note(campaign_id: int, kind: str, *, key: str = "", text: str = "", now: datetime) -> None:
    """Write an event down, once for each key; call it in the transaction of what happened."""
    EditorEvent.objects.bulk_create(
        [EditorEvent(campaign_id=campaign_id, kind=kind, key=key, text=text[:300], at=now, not_before=now)],
        ignore_conflicts=True,
    )


def due(*, now: datetime) -> list[int]:
    """Events of which nobody has been told."""
    still_sending = Q(kind=Kind.DOUBT, campaign__state=CampaignState.SENDING, at__gt=now - DOUBT_WAITS)
    waiting = EditorEvent.objects.filter(told_at=None, at__gt=now - FRESH, not_before__lte=now)
    return list(waiting.exclude(still_sending).order_by("pk").values_list("pk", flat=True))


def tell(event_id: int, *, now: datetime) -> int:
    """Mail an event to whom it concerns; the number of mails. 0 when somebody else does it or has done it."""
    claimed = EditorEvent.objects.filter(pk=event_id, told_at=None).update(told_at=now)
    if not claimed:
        return 0
    event = EditorEvent.objects.select_related("campaign__list__sender", "campaign__sender").get(pk=event_id)
    if event.kind == Kind.FINISHED:  # says how many are in doubt, too
        EditorEvent.objects.filter(campaign=event.campaign, kind=Kind.DOUBT, told_at=None).update(told_at=now)
    if event.kind == Kind.PAUSED and event.campaign.state != CampaignState.PAUSED:
        return 0  # somebody has seen it already
    if event.kind == Kind.DOUBT and not CampaignFigures.objects.filter(pk=event.campaign_id, in_doubt__gt=0).exists():
        event.delete()  # decided, or proved by a reader, meanwhile; whoever comes into doubt later is told of
        return 0
    people = editors(event.campaign)
    if not people:
        return 0
    return _send(event, people, now=now)


def editors(campaign: Campaign) -> list[User]:
    """Who wrote a campaign and who sent it, if they have an address and want such mails."""
    concerned = Q(pk=campaign.created_by_id) | Q(username=campaign.scheduled_by)
    unwilling = EditorWish.objects.filter(wants_mails=False).values("user_id")
    return list(User.objects.filter(concerned, is_active=True).exclude(email="").exclude(pk__in=unwilling))


def wish(user_id: int, *, wants_mails: bool) -> None:
    """Keep whether somebody wants such mails."""
    EditorWish.objects.update_or_create(user_id=user_id, defaults={"wants_mails": wants_mails})


def wants_mails(user_id: int) -> bool:
    return not EditorWish.objects.filter(user_id=user_id, wants_mails=False).exists()


def _send(event: EditorEvent, people: list[User], *, now: datetime) -> int:
    letter = write(event)
    sender = event.campaign.from_identity
    headers = {
        "Auto-Submitted": "auto-generated",
        "X-Auto-Response-Suppress": "All",
        "Message-ID": make_msgid(domain=address_domain(sender.email)),
    }
    from_email = formataddr((sender.name, sender.email))
    sent = 0
    try:
        with get_connection() as server:
            for person in people:
                mail = EmailMessage(letter.subject, letter.text, from_email, [person.email], headers=headers)
                try:
                    sent += server.send_messages([mail]) or 0
                except (SMTPException, AnymailError) as error:  # one address that is refused is not everybody's
                    log.warning("%s was not told of %s: %s", person.username, event, error)
    except (SMTPException, AnymailError, OSError) as error:
        log.warning("nobody could be told of %s: %s", event, error)
    if not sent:
        EditorEvent.objects.filter(pk=event.pk, told_at=now).update(told_at=None, not_before=now + TRY_AGAIN)
    return sent


def write(event: EditorEvent) -> Letter:
    """The mail that an event becomes, in the installation's language and time zone."""
    campaign = event.campaign
    with translation.override(settings.LANGUAGE_CODE), timezone.override(None):
        context = {"campaign": campaign, "event": event, "site": settings.SITE_URL, **_figures(campaign)}
        for name, page in (("report", "report"), ("doubts", "doubts"), ("draft", "change")):
            context[f"{name}_link"] = settings.SITE_URL + reverse(
                f"admin:campaigns_campaign_{page}", args=[campaign.pk]
            )
        context["wish_link"] = settings.SITE_URL + reverse("admin:campaigns_campaign_mails")
        rendered = render_to_string(f"mail/editors/{event.kind}.txt", context)
    subject, _, text = rendered.strip().partition("\n")
    return Letter(subject.strip(), _BLANKS.sub("\n\n", text.strip()) + "\n")


def _figures(campaign: Campaign) -> dict[str, Any]:
    if campaign.started_at is None:
        return {}
    deliveries = reporting.deliveries_by_state(campaign.pk)
    accepted = deliveries.get("accepted", 0)
    took = (campaign.finished_at - campaign.started_at).total_seconds() if campaign.finished_at else 0.0
    rows = [(word, deliveries.get(state, 0)) for state, word in _WORDS]
    return {
        "rows": [(word, f"{people:>11,}") for word, people in rows if people],
        "audience": f"{campaign.audience:>11,}",
        "accepted": accepted,
        "in_doubt": campaign.figures.in_doubt if hasattr(campaign, "figures") else 0,
        "rate": f"{accepted / took:,.0f}" if took >= 1 and accepted > took else "",
    }


_WORDS = (
    ("accepted", "accepted"),
    ("failed", "refused"),
    ("skipped", "left out"),
    ("unknown", "unknown"),
    ("deferred", "put off"),
    ("queued", "waiting"),
)
