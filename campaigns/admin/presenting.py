"""How states and figures look to people: the words, the colours and the shares."""

from dataclasses import dataclass
from typing import Any

from django.conf import settings
from django.db.models import QuerySet
from django.utils import timezone
from django.utils.formats import date_format
from django.utils.functional import Promise
from django.utils.html import format_html
from django.utils.safestring import SafeString, mark_safe
from django.utils.text import capfirst
from django.utils.translation import gettext_lazy as _

from campaigns.models import Campaign, CampaignFigures, CampaignState

# The colour of a state's badge, by the names that admin.css knows.
TONES: dict[str, str] = {
    CampaignState.DRAFT: "quiet",
    CampaignState.SCHEDULED: "info",
    CampaignState.SENDING: "busy",
    CampaignState.PAUSED: "warning",
    CampaignState.SENT: "good",
    CampaignState.CANCELLED: "quiet",
}
# States whose page shows figures; the others are still being written.
STARTED = (CampaignState.SENDING, CampaignState.PAUSED, CampaignState.SENT, CampaignState.CANCELLED)


# A figure that does not exist yet; a phone leaves the line away.
NOTHING = mark_safe('<span class="nl-none">–</span>')


def share(part: int, whole: int) -> str:
    """A share for people: "42 %", a decimal near the ends, a dash where there is nothing to divide by.

    Only nobody is "0 %" and only everybody "100 %".
    """
    if not whole:
        return "–"
    percent = 100 * part / whole
    if 0 < percent < 0.1:
        return "< 0.1 %"
    if percent < 10 and part:
        return f"{percent:.1f} %"
    if 99 < percent < 100:
        return f"{min(percent, 99.9):.1f} %"
    return f"{percent:.0f} %"


def with_figures(campaigns: QuerySet[Campaign]) -> QuerySet[Campaign]:
    """The campaigns with everything that a line about one of them shows."""
    return campaigns.select_related("list", "figures")


def figures_of(campaign: Campaign) -> CampaignFigures:
    """The figures of a campaign; zeros for one that has none yet."""
    try:
        return campaign.figures
    except CampaignFigures.DoesNotExist:
        return CampaignFigures(campaign=campaign)


def number(value: int) -> str:
    """A count as people write it: 1,943."""
    return f"{value:,}"


def is_starting(campaign: Campaign) -> bool:
    """Whether a campaign's time has come and a worker is about to freeze its audience."""
    return bool(
        campaign.state == CampaignState.SCHEDULED and campaign.scheduled_at and campaign.scheduled_at <= timezone.now()
    )


def seconds_held(campaign: Campaign) -> float:
    """In how many seconds a campaign leaves that can be taken back until then; 0 for any other."""
    if campaign.state != CampaignState.SCHEDULED or campaign.scheduled_at is None:
        return 0.0
    left = (campaign.scheduled_at - timezone.now()).total_seconds()
    return left if 0 < left <= settings.UNDO_SEND_SECONDS else 0.0


def has_report(campaign: Campaign) -> bool:
    """Whether a campaign's page is its report: it has left the house or is at the door."""
    return campaign.state in STARTED or is_starting(campaign) or seconds_held(campaign) > 0


def badge(campaign: Campaign) -> SafeString:
    """The state as a coloured word, with the reason of a pause behind it."""
    tone = TONES[campaign.state]
    word: str | Promise = capfirst(campaign.get_state_display())
    if is_starting(campaign):
        tone, word = "busy", _("Starting")
    elif seconds_held(campaign):
        word = _("About to leave")
    return format_html('<span class="nl-badge nl-badge-{}" title="{}">{}</span>', tone, campaign.state_reason, word)


def when(campaign: Campaign) -> str:
    """The moment that matters in a campaign's state, with the word that says which one it is."""
    moment, words = campaign.created_at, _("written %(at)s")
    if campaign.state == CampaignState.SCHEDULED and campaign.scheduled_at:
        moment, words = campaign.scheduled_at, _("goes out %(at)s")
    elif campaign.finished_at:
        moment, words = campaign.finished_at, _("%(at)s")
    elif campaign.started_at:
        moment, words = campaign.started_at, _("since %(at)s")
    said = words % {"at": date_format(timezone.localtime(moment), "j M Y, H:i")}
    if campaign.local_time and campaign.state == CampaignState.SCHEDULED:
        said += _(" and at %(hour)s where each reader lives") % {"hour": campaign.local_time.strftime("%H:%M")}
    return said


def human_and_raw(campaign: Campaign, human: int, raw: int) -> SafeString:
    """A human figure, its share of the audience, and beside it the raw one, smaller."""
    if not campaign.started_at:
        return NOTHING
    return format_html(
        '<span class="nl-figure">{} <span class="nl-share">{}</span></span><span class="nl-raw" title="{}">{}</span>',
        number(human),
        share(human, campaign.audience),
        _("With machines: any fetch at all"),
        _("%(raw)s raw") % {"raw": number(raw)},
    )


@dataclass(frozen=True)
class Figure:
    """One figure of a report: a number of people, beside it any fetch at all, and in words what is counted."""

    name: str
    label: str | Promise
    value: int
    share: str
    counts: str | Promise
    raw: int | None = None
    bad: bool = False


def funnel(campaign: Campaign, status: dict[str, Any]) -> list[Figure]:
    """The figures of a report, the four that people look for first, from `reporting.status`.

    Shares are of the mails that a server accepted and that have not bounced.
    """
    deliveries, outcomes = status["deliveries"], status["outcomes"]
    accepted = deliveries.get("accepted", 0)
    bounced, complained = outcomes.get("bounced", 0), outcomes.get("complained", 0)
    arrived = max(accepted - bounced, 0)
    opens, clicks = status["opens"], status["clicks"]
    return [
        Figure(
            "recipients",
            _("Recipients"),
            campaign.audience,
            "",
            _("people on the list and reachable when sending began"),
        ),
        Figure(
            "arrived",
            _("Delivered"),
            arrived,
            share(arrived, campaign.audience),
            _("accepted, and no bounce has come back"),
        ),
        Figure(
            "opened",
            _("Opened"),
            opens["human"],
            share(opens["human"], arrived),
            _("people, with machines left out; readers who block images are not seen"),
            raw=opens["raw"],
        ),
        Figure(
            "clicked",
            _("Clicked"),
            clicks["human"],
            share(clicks["human"], arrived),
            _("people, with link scanners left out"),
            raw=clicks["raw"],
        ),
        Figure(
            "accepted",
            _("Accepted"),
            accepted,
            share(accepted, campaign.audience),
            _("mails that the receiving servers took"),
        ),
        Figure(
            "unsubscribed",
            _("Unsubscribed"),
            status["unsubscribed"],
            share(status["unsubscribed"], arrived),
            _("people who left the list by this mail"),
        ),
        Figure(
            "bounced",
            _("Bounced"),
            bounced,
            share(bounced, accepted),
            _("mails sent back after they were accepted"),
            bad=bounced > 0,
        ),
        Figure(
            "complained",
            _("Complaints"),
            complained,
            share(complained, arrived),
            _("people who reported this mail as spam"),
            bad=complained > 0,
        ),
    ]
