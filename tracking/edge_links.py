"""Where links lead, as the edge knows it: published to Valkey at the freeze, kept in memory and on disk by every edge.

So a redirect has its target with everything else down, and a link works on when its campaign is deleted. What was
frozen does not change, hence nothing here ever expires.
"""

import json
import logging
import os
import tempfile
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import redis
from django.conf import settings

from tracking import stream

log = logging.getLogger(__name__)

CAMPAIGNS_KEY = "links:campaigns"  # the set of those that are published
CAMPAIGNS_IN_MEMORY = 500

Targets = Mapping[int, str]


def key(campaign_id: int) -> str:
    """The hash of a campaign's targets in Valkey, by link index."""
    return f"links:{campaign_id}"


def parse(fields: Mapping[Any, Any]) -> dict[int, str]:
    """Targets from the fields of the hash, or of the file that keeps them."""
    return {int(index): str(url) for index, url in fields.items()}


class LinkStore:
    """The targets that this process knows: the last used campaigns in memory, all of them on disk."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._memory: OrderedDict[int, Targets] = OrderedDict()

    def get(self, campaign_id: int) -> Targets | None:
        """A campaign's targets; None when nothing is known of it."""
        found = self._memory.get(campaign_id)
        if found is not None:
            self._memory.move_to_end(campaign_id)
            return found
        try:
            found = parse(json.loads(self._path(campaign_id).read_bytes()))
        except (OSError, ValueError):
            return None
        self._remember(campaign_id, found)
        return found

    def keep(self, campaign_id: int, targets: Targets) -> None:
        """Remember targets, on disk too; a disk that takes nothing is no reason not to redirect."""
        self._remember(campaign_id, targets)
        try:
            self._write(campaign_id, targets)
        except OSError as error:
            log.warning("the links of campaign %s could not be kept on disk: %s", campaign_id, error)

    def unknown(self, campaign_ids: set[int]) -> list[int]:
        """Those that are not on disk yet."""
        try:
            kept = {int(path.stem) for path in self.folder.glob("*.json") if path.stem.isdigit()}
        except OSError:
            kept = set()
        return sorted(campaign_ids - kept)

    def _path(self, campaign_id: int) -> Path:
        return self.folder / f"{campaign_id}.json"

    def _remember(self, campaign_id: int, targets: Targets) -> None:
        self._memory[campaign_id] = targets
        if len(self._memory) > CAMPAIGNS_IN_MEMORY:
            self._memory.popitem(last=False)

    def _write(self, campaign_id: int, targets: Targets) -> None:
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=self.folder)
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump({str(index): url for index, url in targets.items()}, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, self._path(campaign_id))


def publish(campaign_id: int) -> None:
    """Give a frozen campaign's links to the edges. A stream that is down is no error: publish_missing comes later."""
    try:
        with stream.connect(settings.STREAM_URL) as client:
            _publish(client, campaign_id)
    except redis.RedisError as error:
        log.warning("the links of campaign %s are not published yet: %s", campaign_id, error)


def publish_missing() -> int:
    """Publish what has been frozen and is not known to Valkey (it was down, or lost its data); how many campaigns."""
    from campaigns.models import Link

    frozen = set(
        Link.objects.exclude(campaign__started_at=None).order_by().values_list("campaign_id", flat=True).distinct()
    )
    with stream.connect(settings.STREAM_URL) as client:
        missing = frozen - {int(one) for one in client.smembers(CAMPAIGNS_KEY)}
        for campaign_id in sorted(missing):
            _publish(client, campaign_id)
    return len(missing)


def _publish(client: redis.Redis, campaign_id: int) -> None:
    from campaigns.models import Link

    targets = dict(Link.objects.filter(campaign_id=campaign_id).values_list("index", "url"))
    if not targets:
        return
    with client.pipeline(transaction=True) as pipeline:
        pipeline.hset(key(campaign_id), mapping={str(index): url for index, url in targets.items()})
        pipeline.sadd(CAMPAIGNS_KEY, campaign_id)
        pipeline.execute()
