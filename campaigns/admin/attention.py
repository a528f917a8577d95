"""What about the campaigns waits for a person: on the first page and above the list of campaigns."""

from collections.abc import Iterator
from dataclasses import dataclass

from django.urls import reverse
from django.utils.translation import gettext as _
from django.utils.translation import ngettext

from campaigns.admin import presenting
from campaigns.models import Batch, Campaign, CampaignFigures, CampaignState

LATEST = 5


@dataclass(frozen=True)
class Notice:
    """Something that waits for a person: what it is, and where to see to it."""

    title: str
    text: str
    link: str
    label: str


def notices() -> Iterator[Notice]:
    """Campaigns that are paused, were not sent, are stuck, or have recipients in doubt; each by rows that are few."""
    look = _("Look at it")
    for campaign in Campaign.objects.filter(state=CampaignState.PAUSED):
        yield Notice(_("“%s” is paused") % campaign.subject, campaign.state_reason, _page("report", campaign.pk), look)
    for campaign in Campaign.objects.filter(state=CampaignState.DRAFT).exclude(state_reason=""):
        title = _("“%s” was not sent") % campaign.subject
        yield Notice(title, campaign.state_reason, _page("change", campaign.pk), _("Mend it"))
    for batch in Batch.objects.filter(state=Batch.State.ASIDE).select_related("campaign"):
        text = _("A part of it ended three workers in a row and was set aside. To try it again, pause and resume it.")
        title = _("“%s” is stuck") % batch.campaign.subject
        yield Notice(title, text, _page("report", batch.campaign_id), look)
    yield from _doubtful()


def _doubtful() -> Iterator[Notice]:
    """Campaigns with deliveries of which nobody can say whether they arrived, and nobody has decided."""
    for figures in CampaignFigures.objects.filter(in_doubt__gt=0).select_related("campaign").order_by("-pk")[:LATEST]:
        people = figures.in_doubt
        title = ngettext("“%(subject)s”: %(people)s mail in doubt", "“%(subject)s”: %(people)s mails in doubt", people)
        title %= {"subject": figures.campaign.subject, "people": presenting.number(people)}
        text = _("The connection broke before the server answered; send again, or leave it at that.")
        yield Notice(title, text, _page("doubts", figures.pk), _("Decide"))


def _page(name: str, campaign_id: int) -> str:
    return reverse(f"admin:campaigns_campaign_{name}", args=[campaign_id])
