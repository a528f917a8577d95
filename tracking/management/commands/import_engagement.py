"""manage.py import_engagement FILE.ndjson --list SLUG [--json]"""

import json
from pathlib import Path
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.utils import timezone

from newsletter.commands import one_line_errors
from subscribers.models import List
from tracking import history


class Command(BaseCommand):
    help = (
        "Bring in who was sent what on another platform, and what was seen of it, so that hygiene has a past to judge "
        "by. Import the subscribers first: lines about addresses that are not on the list are refused, with a report."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        one_line_errors(parser)
        parser.add_argument("file", type=Path, help="one JSON object a line, of type sent, open, click or bounce")
        parser.add_argument("--list", dest="slug", required=True, metavar="SLUG")
        parser.add_argument("--json", action="store_true", help="print one JSON object")

    def handle(self, *args: Any, **options: Any) -> None:
        path: Path = options["file"]
        to = List.objects.filter(slug=options["slug"]).first()
        if to is None:
            raise CommandError(f"There is no list called {options['slug']}.", returncode=2)
        now = timezone.now()
        report = Path(settings.MEDIA_ROOT) / "imports" / f"{path.stem}-{now:%Y%m%d-%H%M%S-%f}.refused.csv"
        try:
            with path.open("rb") as file:
                counts = history.import_history(file, to=to, report=report, now=now)
        except OSError as error:
            raise CommandError(f"{error.filename or path}: {error.strerror or error}", returncode=2) from error
        figures = {"imported": counts.imported, "duplicate": counts.duplicate, "refused": counts.refused}
        if options["json"]:
            self.stdout.write(json.dumps({**figures, "report": str(report) if counts.refused else ""}))
            return
        self.stdout.write(", ".join(f"{number} {name}" for name, number in figures.items()) + ".")
        if counts.refused:
            self.stdout.write(f"Why lines were refused: {report}")
