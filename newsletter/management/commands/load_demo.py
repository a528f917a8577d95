"""manage.py load_demo [--json]: the demo's newsletter, its people and their year, once."""

from dataclasses import asdict
from typing import Any

from django.utils import timezone

from newsletter.commands import JsonCommand
from newsletter.demo import loading


class Command(JsonCommand):
    help = "Load the demo: a weekly letter on gardening, 2,000 readers, a year of history; only once."
    refusals = (loading.DemoRefused,)

    def run(self, **options: Any) -> dict[str, Any]:
        return asdict(loading.load(now=timezone.now()))

    def summary(self, result: dict[str, Any]) -> str:
        found = "is loaded" if result["is_new"] else "was there already"
        return (
            f"The demo {found}: {result['subscribers']} people, {result['campaigns']} campaigns, "
            f"{result['deliveries']} deliveries, {result['events']} events."
        )
