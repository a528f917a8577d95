"""Celery's edge of this app. Each task may run twice, late, or on two machines at once: advisory locks decide."""

import logging
import time

import redis
from celery import shared_task
from django.db import OperationalError
from django.utils import timezone

from tracking import edge_links, ingesting, retention

log = logging.getLogger(__name__)

INGEST_SECONDS = 20.0  # then the next run goes on, so that no worker is held for ever


@shared_task(name="tracking.ingest")
def ingest() -> int:
    """Periodic, every two seconds: from the streams into events and figures, until they are empty."""
    taken = 0
    deadline = time.monotonic() + INGEST_SECONDS
    try:
        ingesting.replay_spool()
        while time.monotonic() < deadline:
            batch = ingesting.ingest_once(timezone.now())
            if not batch:
                break
            taken += batch
    except (redis.RedisError, OperationalError) as error:
        # A server is away, or two writers met (a deadlock's victim): nothing was committed, the next run takes it.
        log.warning("ingest waits: %s", error)
    return taken


@shared_task(name="tracking.settle")
def settle() -> int:
    """Periodic, every half minute: verdicts whose settling time has passed become final."""
    judged = 0
    deadline = time.monotonic() + INGEST_SECONDS
    while time.monotonic() < deadline:
        batch = ingesting.settle(now=timezone.now())
        if not batch:
            break
        judged += batch
    return judged


@shared_task(name="tracking.publish_links")
def publish_links() -> int:
    """Periodic, every minute: links that the edges do not know yet, because the stream was down or lost them."""
    try:
        return edge_links.publish_missing()
    except redis.RedisError as error:
        log.warning("links wait for the stream: %s", error)
        return 0


@shared_task(name="tracking.make_partitions")
def make_partitions() -> int:
    """Periodic, daily: partitions for the months ahead, and an end to what proves nothing any more."""
    now = timezone.now()
    retention.forget(now=now)
    return retention.make_partitions(now=now)
