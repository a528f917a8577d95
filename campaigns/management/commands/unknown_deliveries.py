"""`manage.py unknown_deliveries ID [--resend | --close] [--only ADDRESS …]`: recipients in doubt, and what to do."""

from datetime import UTC, datetime
from typing import Any

from django.core.management.base import CommandParser

from campaigns import doubting, scheduling
from campaigns.errors import CampaignError
from campaigns.models import Campaign
from newsletter.commands import JsonCommand, Refusal
from subscribers.models import Subscriber

ACTOR = "command"
ALL = 2**31


class Command(JsonCommand):
    help = "List the recipients of a campaign of whom nobody can say whether they got it; send again, or ask no more."
    refusals = (CampaignError,)

    def add_arguments(self, parser: CommandParser) -> None:
        super().add_arguments(parser)
        parser.add_argument("campaign", type=int, metavar="ID")
        what = parser.add_mutually_exclusive_group()
        what.add_argument("--resend", action="store_true", help="send again; who had the mail already has it twice")
        what.add_argument("--close", action="store_true", help="leave it at that: they stay unknown and ask no more")
        parser.add_argument("--only", nargs="+", metavar="ADDRESS", help="not all of them, but these")

    def run(self, **options: Any) -> dict[str, Any]:
        campaign = scheduling.get(options["campaign"])
        found = doubting.listed(campaign.pk, limit=ALL)
        people = Subscriber.objects.in_bulk([doubt.subscriber_id for doubt in found])
        if options["only"]:
            wanted = {address.casefold() for address in options["only"]}
            people = {pk: person for pk, person in people.items() if person.email.casefold() in wanted}
            missing = wanted - {person.email.casefold() for person in people.values()}
            if missing:
                raise Refusal(f"{min(missing)} is not among those in doubt.")
            found = [doubt for doubt in found if doubt.subscriber_id in people]
        result: dict[str, Any] = {
            "campaign": campaign.pk,
            "unknown": [
                {
                    "subscriber": doubt.subscriber_id,
                    "email": people[doubt.subscriber_id].email if doubt.subscriber_id in people else None,
                    "since": doubt.since.isoformat() if doubt.since else None,
                    "known": doubt.known,
                }
                for doubt in found
            ],
        }
        chosen = [doubt.subscriber_id for doubt in found]
        if options["resend"]:
            result["resent"] = doubting.resend(campaign.pk, people=chosen, actor=ACTOR, now=datetime.now(UTC))
        if options["close"]:
            result["closed"] = doubting.let_be(campaign.pk, people=chosen, actor=ACTOR)
        result["state"] = str(Campaign.objects.values_list("state", flat=True).get(pk=campaign.pk))
        return result

    def summary(self, result: dict[str, Any]) -> str:
        if "resent" in result:
            return f"{result['resent']:,} are sent the campaign again; workers pick it up."
        if "closed" in result:
            return f"{result['closed']:,} stay unknown and ask no more."
        lines = [f"{one['since'] or '–':32}  {one['email'] or 'erased'}  {one['known']}" for one in result["unknown"]]
        return "\n".join([*lines, f"{len(lines):,} in doubt."])
