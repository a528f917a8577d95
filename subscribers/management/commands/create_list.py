"""manage.py create_list SLUG --name NAME [--from ADDRESS] [--json]"""

import json
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from newsletter.commands import one_line_errors
from subscribers import listing


class Command(BaseCommand):
    help = "Make a list that people can subscribe to; one that exists is left as it is."

    def add_arguments(self, parser: CommandParser) -> None:
        one_line_errors(parser)
        parser.add_argument("slug", help="short name, as it stands in the sign-up page's address")
        parser.add_argument("--name", required=True, help="the newsletter's name")
        parser.add_argument("--from", dest="sender", default="", metavar="ADDRESS", help="whom its mail comes from")
        parser.add_argument("--postal-address", default="", help="stands in every mail's footer, as many laws require")
        parser.add_argument("--json", action="store_true", help="print one JSON object")

    def handle(self, *args: Any, **options: Any) -> None:
        try:
            newsletter, created = listing.create_list(
                options["slug"],
                name=options["name"],
                sender=options["sender"],
                postal_address=options["postal_address"],
            )
        except listing.BadList as error:
            raise CommandError(str(error), returncode=2) from error
        if options["json"]:
            self.stdout.write(json.dumps({"list": newsletter.slug, "created": created}))
        else:
            self.stdout.write(f"{'Made' if created else 'Kept'} the list {newsletter.name} ({newsletter.slug}).")
