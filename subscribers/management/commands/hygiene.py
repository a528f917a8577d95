"""manage.py hygiene preview | run | undo: whom a list would stop mailing, doing it, and taking it back."""

import csv
import json
from datetime import datetime
from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from newsletter.commands import moment, one_line_errors
from subscribers import csvfile
from subscribers.hygiene import policies, pruning
from subscribers.hygiene.errors import HygieneError
from subscribers.models import HygieneEntry, HygieneRun, List

ACTOR = "command line"


class Command(BaseCommand):
    help = "Show whom a list would stop mailing and why (preview), stop mailing them (run), or take that back (undo)."

    def add_arguments(self, parser: CommandParser) -> None:
        one_line_errors(parser)
        what = parser.add_subparsers(dest="what", required=True, metavar="preview|run|undo")
        preview = what.add_parser("preview", help="show who would be removed and why; changes nothing")
        preview.add_argument("--csv", type=Path, metavar="OUT.csv", help="write the names with reason and evidence")
        run = what.add_parser("run", help="stop mailing them; a list's first run needs an approved preview")
        run.add_argument("--approve", type=int, metavar="PREVIEW_ID", help="act on the names of this preview")
        run.add_argument("--direct", action="store_true", help="judge and remove at once")
        run.add_argument("--cap", type=float, metavar="PERCENT", help="remove at most this share of the active people")
        for one in (preview, run):
            one.add_argument("--list", dest="slug", required=True, metavar="SLUG")
            one.add_argument("--at", metavar="ISO-TIME", help="judge as of this moment instead of now")
        undo = what.add_parser("undo", help="mail again everybody whom a run removed")
        undo.add_argument("run_id", type=int, metavar="RUN_ID")
        for one in (preview, run, undo):
            one.add_argument("--json", action="store_true", help="print one JSON object")

    def handle(self, *args: Any, **options: Any) -> None:
        try:
            getattr(self, f"_{options['what']}")(options)
        except HygieneError as error:
            raise CommandError(str(error), returncode=2) from error

    def _preview(self, options: dict[str, Any]) -> None:
        made = pruning.preview(_list(options["slug"]).pk, at=self._moment(options["at"]), actor=ACTOR)
        if options["csv"]:
            _write_csv(made, options["csv"])
        figures = {"preview": made.pk, "judged": made.judged, "would_ask": made.asked, "would_remove": made.removed}
        self._tell(options, {**figures, "held_back": made.held_back}, _preview_summary(made))

    def _run(self, options: dict[str, Any]) -> None:
        made = pruning.run(
            _list(options["slug"]).pk,
            at=self._moment(options["at"]),
            approve=options["approve"],
            direct=options["direct"],
            cap=options["cap"],
            actor=ACTOR,
        )
        if made.message:
            self.stderr.write(made.message)
        figures = {"run": made.pk, "asked": made.asked, "removed": made.removed, "spared": made.spared}
        summary = [f"Run {made.pk}: {made.removed} removed, {made.spared} of those named spared or waiting."]
        summary.append(f"To take it back: manage.py hygiene undo {made.pk}")
        self._tell(options, figures, summary)

    def _undo(self, options: dict[str, Any]) -> None:
        restored = pruning.undo(options["run_id"], actor=ACTOR)
        self._tell(options, {"restored": restored}, [f"{restored} people are mailed again."])

    def _moment(self, text: str | None) -> datetime | None:
        if text is None:
            return None
        found = moment(text, stderr=self.stderr)
        # Beyond these years the sums of days with it would leave the calendar.
        if not 1990 <= found.year < 9999:
            raise HygieneError(f"--at must lie between 1990 and 9998, not {text}.")
        return found

    def _tell(self, options: dict[str, Any], figures: dict[str, Any], summary: list[str]) -> None:
        self.stdout.write(json.dumps(figures) if options["json"] else "\n".join(summary))


def _list(slug: str) -> List:
    found = List.objects.filter(slug=slug).first()
    if found is None:
        raise HygieneError(f"There is no list called {slug}.")
    return found


def _preview_summary(made: HygieneRun) -> list[str]:
    lines = [f"Preview {made.pk}: {made.judged} judged, {made.removed} would no longer be mailed."]
    for reason, count in made.held_back.items():
        lines.append(f"  {count:>7} not judged. {policies.HELD_BACK.get(reason, reason)}")
    lines.append(f"To act on it: manage.py hygiene run --list {made.list.slug} --approve {made.pk}")
    return lines


def _write_csv(made: HygieneRun, path: Path) -> None:
    try:
        with path.open("w", encoding="utf-8", newline="") as out:
            writer = csv.writer(out)
            writer.writerow(["email", "list", "action", "reason", "silent_since", "silent_issues", "evidence"])
            for entry in made.entries.order_by("pk").iterator():
                writer.writerow(_csv_row(made, entry))
    except OSError as error:
        raise HygieneError(f"{path} cannot be written: {error.strerror}") from error


def _csv_row(made: HygieneRun, entry: HygieneEntry) -> list[Any]:
    found = entry.evidence
    shown = [
        csvfile.harmless(found["email"]),
        made.list.slug,
        entry.action,
        entry.reason,
        found["since"],
        found["silent"],
    ]
    return [*shown, json.dumps(found)]
