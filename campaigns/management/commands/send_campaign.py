"""`manage.py send_campaign ID [--at TIME] [--local-time HH:MM] [--wait]`: queue a campaign; workers send it."""

import time
from datetime import UTC, datetime
from datetime import time as clock_time
from typing import Any

from django.core.management.base import CommandParser
from django.utils.dateparse import parse_time
from django.utils.timezone import localtime

from campaigns import preflight, progressing, scheduling
from campaigns.errors import CampaignError
from campaigns.models import Campaign, CampaignState
from newsletter.commands import Bar, JsonCommand, Refusal, moment

LOOK_SECONDS = 0.5
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
        parser.add_argument(
            "--wait",
            action="store_true",
            help="return when the campaign has ended, or only retries of those who were put off are left",
        )

    def run(self, **options: Any) -> dict[str, Any]:
        now = datetime.now(UTC)
        campaign_id = options["campaign"]
        at = now if options["at"] is None else moment(options["at"], stderr=self.stderr)
        # A script has nobody to ask: what the admin refuses for the law's sake is said aloud here and kept on record.
        hour = None if options["local_time"] is None else _hour(options["local_time"])
        scheduling.schedule(
            campaign_id, at, actor="command", overrides=[preflight.NO_POSTAL_ADDRESS], local_time=hour, now=now
        )
        if not scheduling.get(campaign_id).from_identity.postal_address:
            self.stderr.write("Warning: the sender has no postal address, which many laws require in every mail.")
        retries = self._wait(campaign_id) if options["wait"] else None
        result: dict[str, Any] = {"campaign": campaign_id, "state": _state(campaign_id)}
        if retries:
            result |= {"deferred": retries.people, "until": retries.until.isoformat()}
        return result

    def _wait(self, campaign_id: int) -> progressing.Retries | None:
        """Look twice a second; on a terminal, show how far it is. What is left when only retries are."""
        bar = Bar(self.stderr)
        try:
            while (state := _state(campaign_id)) not in ENDED:
                now = datetime.now(UTC)
                if state == CampaignState.SENDING and (left := progressing.only_retries(campaign_id, now=now)):
                    return left
                if bar.is_shown:
                    self._show(bar, campaign_id, now)
                time.sleep(LOOK_SECONDS)
        finally:
            bar.clear()
        return None

    def _show(self, bar: Bar, campaign_id: int, now: datetime) -> None:
        progress = progressing.progress(campaign_id, now=now)
        total = sum(progress.status["deliveries"].values())
        left = progress.seconds_left
        pace = f"{progress.rate:,.0f}/s, {left:,.0f} s left" if left is not None else "waiting"
        bar.show(progress.done, total, pace)

    def summary(self, result: dict[str, Any]) -> str:
        if "deferred" in result:
            until = localtime(datetime.fromisoformat(result["until"]))
            return (
                f"Campaign {result['campaign']} is sent but for {result['deferred']:,} whom their servers put off "
                f"and who are tried again until {until:%a %d %b, %H:%M %Z}."
            )
        return f"Campaign {result['campaign']} is {CampaignState(result['state']).label}."


def _state(campaign_id: int) -> str:
    return Campaign.objects.values_list("state", flat=True).get(pk=campaign_id)


def _hour(text: str) -> clock_time:
    try:
        hour = parse_time(text)
    except ValueError:
        hour = None
    if hour is None or hour.tzinfo:
        raise Refusal(f"“{text}” is not an hour such as 09:00.")
    return hour
