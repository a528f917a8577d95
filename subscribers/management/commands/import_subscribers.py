"""manage.py import_subscribers FILE.csv --list SLUG [--confirmed | --send-confirmations] [--json]"""

import json
from pathlib import Path
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.utils import timezone

from newsletter.commands import one_line_errors
from subscribers import importing, tasks
from subscribers.models import ImportRun, List


class Command(BaseCommand):
    help = "Bring subscribers in from a CSV file whose first line names the columns, one of them email."

    def add_arguments(self, parser: CommandParser) -> None:
        one_line_errors(parser)
        parser.add_argument("file", type=Path)
        parser.add_argument("--list", dest="slug", required=True, metavar="SLUG")
        parser.add_argument("--confirmed", action="store_true", help="I hold proof of their consent: mail them")
        parser.add_argument("--send-confirmations", action="store_true", help="ask each by mail to confirm")
        parser.add_argument("--json", action="store_true", help="print one JSON object")

    def handle(self, *args: Any, **options: Any) -> None:
        path: Path = options["file"]
        newsletter = List.objects.filter(slug=options["slug"]).first()
        if newsletter is None:
            raise CommandError(f"There is no list called {options['slug']}.", returncode=2)
        if options["confirmed"] and options["send_confirmations"]:
            raise CommandError("Choose one of --confirmed and --send-confirmations.", returncode=2)
        welcome = ImportRun.Welcome.PENDING
        if options["confirmed"]:
            welcome = ImportRun.Welcome.CONFIRMED
        elif options["send_confirmations"]:
            welcome = ImportRun.Welcome.ASK
        plan = importing.Plan(list=newsletter, welcome=welcome, source=f"import: {path.name}", now=timezone.now())
        report = Path(settings.MEDIA_ROOT) / "imports" / f"{path.stem}-{plan.now:%Y%m%d-%H%M%S-%f}.refused.csv"
        try:
            with path.open("rb") as stream:
                counts = importing.import_file(stream, plan, report=report)
        except importing.BadFile as error:
            raise CommandError(f"{path}: {error}", returncode=2) from error
        except OSError as error:
            raise CommandError(f"{error.filename or path}: {error.strerror or error}", returncode=2) from error
        if welcome == ImportRun.Welcome.ASK:
            tasks.enqueue(tasks.send_due_confirmations)
        self._tell(counts, report, as_json=options["json"])

    def _tell(self, counts: importing.Counts, report: Path, *, as_json: bool) -> None:
        figures = {
            "imported": counts.imported,
            "updated": counts.updated,
            "unchanged": counts.unchanged,
            "refused": counts.refused,
        }
        if as_json:
            if counts.note:
                self.stderr.write(counts.note)
            self.stdout.write(json.dumps({**figures, "report": str(report)}))
            return
        self.stdout.write(", ".join(f"{number} {name}" for name, number in figures.items()) + ".")
        if counts.note:
            self.stdout.write(counts.note)
        if counts.refused:
            self.stdout.write(f"Why rows were refused: {report}")
