"""Celery's edge of this app. Messages are hints: what must happen stands in rows, and a sweep finds it again."""

import logging
from typing import Any

from celery import Task, shared_task
from django.utils import timezone
from kombu.exceptions import OperationalError

log = logging.getLogger(__name__)

CONFIRMATIONS_AT_ONCE = 500


def enqueue(task: Task[Any, Any], *arguments: Any) -> None:
    """Hint at work that stands in a row. A broker that is down costs time until the next sweep, nothing else."""
    try:
        task.delay(*arguments)
    except OperationalError as error:
        log.warning("%s waits for the sweep: %s", task.name, error)


# Confirmations ---------------------------------------------------------------------------------------------


@shared_task(name="subscribers.send_confirmation")
def send_confirmation(subscription_id: int) -> None:
    """One confirmation mail, right after its request."""
    from subscribers import confirming

    try:
        confirming.send_confirmation(subscription_id, now=timezone.now())
    except confirming.ConfirmationDelayed as error:
        log.warning("%s", error)


@shared_task(name="subscribers.send_due_confirmations")
def send_due_confirmations() -> int:
    """Periodic, every minute: mails whose hint was lost, whose server was down, or that an import asked for."""
    from subscribers import confirming

    try:
        sent = confirming.send_due(limit=CONFIRMATIONS_AT_ONCE, now=timezone.now())
    except confirming.ConfirmationDelayed as error:
        log.warning("%s", error)
        return 0
    if sent == CONFIRMATIONS_AT_ONCE:
        enqueue(send_due_confirmations)
    return sent


# Imports ---------------------------------------------------------------------------------------------------


@shared_task(name="subscribers.import_file")
def import_file(run_id: int) -> None:
    """One uploaded file. Running it again goes on where the last one ended."""
    from subscribers import importing

    if importing.run_import(run_id, now=timezone.now()):
        enqueue(send_due_confirmations)


@shared_task(name="subscribers.sweep_imports")
def sweep_imports() -> None:
    """Periodic, every minute: uploads whose hint was lost and imports whose worker has died."""
    from subscribers import importing

    for run_id in importing.abandoned(now=timezone.now()):
        enqueue(import_file, run_id)


# Hygiene ---------------------------------------------------------------------------------------------------


@shared_task(name="subscribers.hygiene")
def hygiene() -> None:
    """Periodic, hourly: each list's weekly preview or run, when it is due, and whatever a killed run left undone."""
    from subscribers.hygiene import pruning
    from subscribers.hygiene.errors import HygieneError
    from subscribers.models import List

    for list_id in List.objects.values_list("pk", flat=True).order_by("pk"):
        try:
            pruning.run_scheduled(list_id, now=timezone.now())
        except HygieneError as error:
            log.warning("hygiene of list %s: %s", list_id, error)
