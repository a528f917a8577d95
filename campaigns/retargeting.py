"""A link's target changed after sending: a typing mistake in a mail that cannot be called back.

Mails hold a link's number, so whoever follows it from now on is led to the new target, from mails that have left and
from those that have not. Who declined tracking has the target itself in the mail: theirs stays as it was sent, unless
it has not left yet. Former targets are kept, with who changed them.
"""

from collections.abc import Callable
from datetime import datetime

from django.core.exceptions import ValidationError
from django.core.validators import URLValidator
from django.db import transaction
from django.db.models import Max

from campaigns.errors import CampaignError
from campaigns.models import FormerTarget, Link
from subscribers.models import AuditEntry

LONGEST = 2_000  # characters; some mail programs and servers cut off longer ones
_validate = URLValidator(schemes=["http", "https"])

# Filled by upper apps (tracking publishes the new target to the edge); called after the change is committed.
on_retargeted: list[Callable[[int], None]] = []


def retarget(campaign_id: int, index: int, url: str, *, shown: str, actor: str, now: datetime) -> None:
    """Let a link lead elsewhere from now on; `shown` is the target that the editor saw. Raises CampaignError.

    Two editors who change the same link do not undo each other unseen: the target must still be the one shown.
    """
    url = checked(url)
    with transaction.atomic():
        link = Link.objects.select_for_update(of=("self",)).filter(campaign_id=campaign_id, index=index).first()
        if link is None:
            raise CampaignError("There is no such link in this campaign.")
        if link.url == url:
            raise CampaignError("The link leads there already.")
        if link.url != shown:
            raise CampaignError(f"Nothing was changed: somebody else has just let this link lead to {link.url}.")
        FormerTarget.objects.create(link=link, url=link.url, until=now, changed_by=actor)
        Link.objects.filter(pk=link.pk, url=shown).update(url=url)
        AuditEntry.objects.create(
            actor=actor,
            action="campaign.retarget",
            subject=f"campaign {campaign_id}",
            details={"link": index, "from": shown, "to": url},
        )
        transaction.on_commit(lambda: _tell(campaign_id))


def _tell(campaign_id: int) -> None:
    for tell in on_retargeted:
        tell(campaign_id)


def checked(url: str) -> str:
    """A target as it is kept. Raises CampaignError with a sentence."""
    url = url.strip()
    if len(url) > LONGEST:
        raise CampaignError(f"The address is longer than {LONGEST:,} characters.")
    if "{{" in url or "{%" in url:
        raise CampaignError("A merge tag cannot stand in the target of a link that has been sent.")
    try:
        _validate(url)
    except ValidationError as error:
        raise CampaignError("A link leads to an address that begins with https:// or http://.") from error
    return url


def version(campaign_id: int) -> int:
    """What grows when a link of a campaign is changed; 0 as long as all lead where they were frozen to."""
    newest = FormerTarget.objects.filter(link__campaign_id=campaign_id).aggregate(newest=Max("pk"))["newest"]
    return newest or 0
