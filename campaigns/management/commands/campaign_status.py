"""`manage.py campaign_status ID`: where a campaign stands."""

from typing import Any

from django.core.management.base import CommandParser

from campaigns import reporting
from campaigns.models import Campaign, CampaignState
from newsletter.commands import JsonCommand, Refusal


class Command(JsonCommand):
    help = "Say where a campaign stands: state, deliveries, opens and clicks (raw, human, hits)."

    def add_arguments(self, parser: CommandParser) -> None:
        super().add_arguments(parser)
        parser.add_argument("campaign", type=int, metavar="ID")

    def run(self, **options: Any) -> dict[str, Any]:
        if not Campaign.objects.filter(pk=options["campaign"]).exists():
            raise Refusal(f"There is no campaign {options['campaign']}.")
        return reporting.status(options["campaign"])

    def summary(self, result: dict[str, Any]) -> str:
        deliveries = ", ".join(f"{count:,} {state}" for state, count in result["deliveries"].items()) or "none yet"
        opens, clicks = result["opens"], result["clicks"]
        return (
            f"{CampaignState(result['state']).label}. Deliveries: {deliveries}.\n"
            f"Opened by {opens['human']:,} people ({opens['raw']:,} with machines, {opens['hits']:,} hits); "
            f"clicked by {clicks['human']:,} ({clicks['raw']:,}, {clicks['hits']:,}); "
            f"{result['unsubscribed']:,} unsubscribed."
        )
