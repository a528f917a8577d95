"""What spans the apps: the periodic tasks of beat, each a name, a period and nothing else.

Each may run twice, late or on two machines at once: what they do is decided by rows, not by the clock here. A run that
has not begun when the next is due is dropped (`expires`), so that a stopped worker finds no pile of them.
"""

from typing import Any

from celery.schedules import crontab

from newsletter.celery import app


def _every(seconds: float, task: str) -> dict[str, Any]:
    return {"task": task, "schedule": seconds, "options": {"expires": seconds}}


app.conf.beat_schedule = {
    "due campaigns and batches": _every(5, "campaigns.sweep"),
    "events from the stream": _every(2, "tracking.ingest"),
    "verdicts that have settled": _every(30, "tracking.settle"),
    "links the edge has not seen": _every(60, "tracking.publish_links"),
    "partitions ahead": {"task": "tracking.make_partitions", "schedule": crontab(hour="3", minute="10")},
    "confirmations that were not sent": _every(60, "subscribers.send_due_confirmations"),
    "imports left behind": _every(60, "subscribers.sweep_imports"),
    "hygiene": {"task": "subscribers.hygiene", "schedule": crontab(minute="20")},
}
