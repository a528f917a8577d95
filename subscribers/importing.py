"""A file of subscribers becomes subscribers of a list, by set: COPY into a staging table, then merge in slices.

A row is imported (new to the list), updated, unchanged or refused, and every refused one stands in the report with its
reason. The merge is idempotent and each slice is committed with the place it reached, so an import that was killed
goes on where it ended. Suppressed addresses are refused; who unsubscribed or was pruned stays so.
"""

from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, BinaryIO

from django.db.models import Q
from django.utils import timezone

from subscribers import staging
from subscribers.csvfile import BadFile, CsvFile
from subscribers.models import ImportRun
from subscribers.staging import Counts, Plan

__all__ = ["BadFile", "Counts", "Plan", "abandoned", "import_file", "run_import"]

SILENCE = timedelta(minutes=5)  # after which a worker counts as dead


def _nothing(counts: Counts) -> None:
    """The progress of an import that nobody watches."""


def import_file(
    stream: BinaryIO,
    plan: Plan,
    *,
    report: Path,
    so_far: Counts | None = None,
    beat: Callable[[], None] = lambda: None,
    progress: Callable[[Counts], None] = _nothing,
) -> Counts:
    """Bring a CSV file in and write the report of refused rows. Raises BadFile before anything is changed.

    `so_far` is what an earlier, interrupted import of the same file had merged. `progress` is called inside each
    slice's transaction: what it writes is committed with the slice, and what it raises undoes the slice. `beat` is
    called now and then while the file is read. Memory does not grow with the file.
    """
    rows = CsvFile(stream)
    counts = so_far or Counts()
    with staging.staging():
        last_line = staging.stage(rows, beat)
        staging.judge(with_tags="tags" in rows.columns)
        while counts.line < last_line:
            upto = staging.slice_end(counts.line, last_line)
            staging.merge(plan, counts, upto=upto, progress=progress)
        counts.refused = staging.write_report(report)
    counts.note = rows.note
    return counts


# Uploads: the same, with a row that says how far it got -----------------------------------------------------


def run_import(run_id: int, *, now: datetime) -> bool:
    """Carry an upload out, or go on with one whose worker has died. True if confirmation mails became due.

    Harmless to call twice: only one caller claims the run, and a slice is counted by whoever moves the checkpoint.
    """
    if not _claim(run_id, now):
        return False
    run = ImportRun.objects.select_related("list").get(pk=run_id)
    plan = Plan(list=run.list, welcome=run.welcome, source=run.source or "import", now=now)
    so_far = Counts(run.imported, run.updated, run.unchanged, line=run.checkpoint)
    report = Path(run.file.path).with_suffix(f".{run.pk}.refused.csv")
    try:
        with Path(run.file.path).open("rb") as stream:
            counts = import_file(
                stream,
                plan,
                report=report,
                so_far=so_far,
                beat=lambda: _beat(run_id),
                progress=lambda merged: _remember(run_id, so_far.line, merged),
            )
    except (BadFile, OSError) as error:
        _finish(run_id, state=ImportRun.State.FAILED, message=str(error))
        return False
    except Superseded:
        return False
    name = str(report.relative_to(run.file.storage.path("")))
    _finish(run_id, state=ImportRun.State.DONE, message=counts.note, refused=counts.refused, report=name)
    return run.welcome == ImportRun.Welcome.ASK


def abandoned(*, now: datetime) -> list[int]:
    """Uploads that wait for a worker, or whose worker gave no sign of life for five minutes."""
    return list(ImportRun.objects.filter(_claimable(now)).values_list("pk", flat=True))


class Superseded(Exception):
    """Another worker has taken this import over."""


def _claimable(now: datetime) -> Q:
    return Q(state=ImportRun.State.WAITING) | Q(state=ImportRun.State.RUNNING, heartbeat_at__lt=now - SILENCE)


def _claim(run_id: int, now: datetime) -> bool:
    waiting = ImportRun.objects.filter(_claimable(now), pk=run_id)
    return bool(waiting.update(state=ImportRun.State.RUNNING, heartbeat_at=now))


def _beat(run_id: int) -> None:
    ImportRun.objects.filter(pk=run_id).update(heartbeat_at=timezone.now())


def _remember(run_id: int, before: int, merged: Counts) -> None:
    moved = ImportRun.objects.filter(pk=run_id, state=ImportRun.State.RUNNING, checkpoint=before).update(
        checkpoint=merged.line,
        imported=merged.imported,
        updated=merged.updated,
        unchanged=merged.unchanged,
        heartbeat_at=timezone.now(),
    )
    if not moved:
        raise Superseded


def _finish(run_id: int, *, state: str, message: str, **figures: Any) -> None:
    ImportRun.objects.filter(pk=run_id, state=ImportRun.State.RUNNING).update(
        state=state, message=message, finished_at=timezone.now(), **figures
    )
