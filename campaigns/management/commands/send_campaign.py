"""`manage.py send_campaign ID [--at TIME] [--local-time HH:MM] [--wait]`: queue a campaign; workers send it."""

import time
from datetime import UTC, datetime
from datetime import time as clock_time
from typing import Any

from django.core.management.base import CommandParser
from django.utils.dateparse import parse_datetime, parse_time
from django.utils.timezone import is_naive, make_aware

from campaigns import preflight, reporting, scheduling
from campaigns.errors import CampaignError
from campaigns.models import Campaign, CampaignState
from newsletter.commands import JsonCommand, Refusal

ENDED = {CampaignState.SENT, CampaignState.CANCELLED, CampaignState.PAUSED, CampaignState.DRAFT}


class Command(JsonCommand):
    help = "Queue a campaign, now or for a time. Workers must be running: celery -A newsletter worker."
    refusals = (CampaignError,)

    def add_arguments(self, parser: CommandParser) -> None:
        super().add_arguments(parser)
        parser.add_argument("campaign", type=int, metavar="ID")
        parser.add_argument("--at", metavar="ISO-TIME", help="for example 2027-03-01T08:00+01:00")
        parser.add_argument(
            "--local-time",
            metavar="HH:MM",
            help="let each reader get it at this hour where they live, on the day of --at",
        )
        parser.add_argument("--wait", action="store_true", help="return when the campaign has ended")

    def run(self, **options: Any) -> dict[str, Any]:
        now = datetime.now(UTC)
        campaign_id = options["campaign"]
        at = now if options["at"] is None else _moment(options["at"])
        # A script has nobody to ask: what the admin refuses for the law's sake is said aloud here and kept on record.
        hour = None if options["local_time"] is None else _hour(options["local_time"])
        scheduling.schedule(
            campaign_id, at, actor="command", overrides=[preflight.NO_POSTAL_ADDRESS], local_time=hour, now=now
        )
        if not scheduling.get(campaign_id).from_identity.postal_address:
            self.stderr.write("Warning: the sender has no postal address, which many laws require in every mail.")
        if options["wait"]:
            self._wait(campaign_id)
        return {"campaign": campaign_id, "state": _state(campaign_id)}

    def _wait(self, campaign_id: int) -> None:
        """Look twice a second; on a terminal, show how many of how many."""
        while _state(campaign_id) not in ENDED:
            if self.stderr.isatty():
                counts = reporting.deliveries_by_state(campaign_id)
                done = sum(counts.values()) - counts.get("queued", 0) - counts.get("sending", 0)
                self.stderr.write(f"\r{done:,} of {sum(counts.values()):,} …", ending="")
            time.sleep(0.5)

    def summary(self, result: dict[str, Any]) -> str:
        return f"Campaign {result['campaign']} is {CampaignState(result['state']).label}."


def _state(campaign_id: int) -> str:
    return Campaign.objects.values_list("state", flat=True).get(pk=campaign_id)


def _moment(text: str) -> datetime:
    try:
        moment = parse_datetime(text)
    except ValueError:
        moment = None
    if moment is None:
        raise Refusal(f"“{text}” is not a time such as 2027-03-01T08:00+01:00.")
    return make_aware(moment) if is_naive(moment) else moment


def _hour(text: str) -> clock_time:
    try:
        hour = parse_time(text)
    except ValueError:
        hour = None
    if hour is None or hour.tzinfo:
        raise Refusal(f"“{text}” is not an hour such as 09:00.")
    return hour
