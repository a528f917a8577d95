"""Where links lead, as the edge knows it: published to Valkey at the freeze, kept in memory and on disk by every edge.

So a redirect has its target with everything else down, and a link works on when its campaign is deleted. Nothing here
ever expires. A target that an editor changes after the freeze is published again, under a higher version: every edge
asks once a second whether there is one, and takes anew what it has older.
"""

import json
import logging
import os
import tempfile
import time
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import redis
from django.conf import settings
from django.db import transaction
from django.db.models import Max

from tracking import stream

log = logging.getLogger(__name__)

CAMPAIGNS_KEY = "links:campaigns"  # the set of those that are published
CHANGES_KEY = "links:changes"  # of campaigns whose targets were changed since the freeze: the version of the last one
NEWS_KEY = "links:news"  # counts publications of changed targets, so that an edge need not read them all each second
CAMPAIGNS_IN_MEMORY = 500
CHECK_SECONDS = 1.0
CHECK_AGAIN_SECONDS = 10.0  # when Valkey did not answer

Targets = Mapping[int, str]


def key(campaign_id: int) -> str:
    """The hash of a campaign's targets in Valkey, by link index."""
    return f"links:{campaign_id}"


def parse(fields: Mapping[Any, Any]) -> dict[int, str]:
    """Targets from the fields of the hash, or of the file that keeps them."""
    return {int(index): str(url) for index, url in fields.items()}


class Changes:
    """Which changed targets this process has taken."""

    def __init__(self) -> None:
        self._news: object = self  # like no count there can be: the first look takes all that were ever changed
        self._taken: dict[int, int] = {}

    def is_news(self, count: object) -> bool:
        return count != self._news

    def older(self, published: Mapping[Any, Any]) -> dict[int, int]:
        """Campaigns, with their versions, whose targets are to be taken anew."""
        versions = parse_versions(published)
        return {one: version for one, version in versions.items() if self._taken.get(one) != version}

    def take(self, versions: Mapping[int, int], count: object) -> None:
        self._taken.update(versions)
        self._news = count


def parse_versions(fields: Mapping[Any, Any]) -> dict[int, int]:
    """Versions from the fields of the hash of changes."""
    return {int(campaign_id): int(version) for campaign_id, version in fields.items()}


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


class Follower:
    """Keeps a store up with changed targets in a process without a loop of its own (Django's view of the edge)."""

    def __init__(self) -> None:
        self._changes = Changes()
        self._next = 0.0

    def follow(self, store: LinkStore) -> None:
        """Look for changes, at most once a second; Valkey being down costs a while's news, nothing else."""
        now = time.monotonic()
        if now < self._next:
            return
        self._next = now + CHECK_SECONDS
        try:
            with stream.connect(settings.STREAM_URL) as client:
                count = client.get(NEWS_KEY)
                if self._changes.is_news(count):
                    older = self._changes.older(client.hgetall(CHANGES_KEY))
                    for campaign_id in older:
                        store.keep(campaign_id, parse(client.hgetall(key(campaign_id))))
                    self._changes.take(older, count)
        except redis.RedisError as error:
            log.warning("changed links wait for the stream: %s", error)
            self._next = time.monotonic() + CHECK_AGAIN_SECONDS


def publish(campaign_id: int) -> None:
    """Give a campaign's links to the edges, frozen or changed. A stream that is down is no error: publish_missing comes
    later."""
    try:
        with stream.connect(settings.STREAM_URL) as client:
            _publish(client, campaign_id)
    except redis.RedisError as error:
        log.warning("the links of campaign %s are not published yet: %s", campaign_id, error)


def publish_missing() -> int:
    """Publish what has been frozen or changed and is not known to Valkey (it was down, or lost its data); how many
    campaigns."""
    from campaigns.models import FormerTarget, Link

    frozen = set(
        Link.objects.exclude(campaign__started_at=None).order_by().values_list("campaign_id", flat=True).distinct()
    )
    changed = dict(FormerTarget.objects.order_by().values_list("link__campaign_id").annotate(version=Max("pk")))
    with stream.connect(settings.STREAM_URL) as client:
        missing = frozen - {int(one) for one in client.smembers(CAMPAIGNS_KEY)}
        published = parse_versions(client.hgetall(CHANGES_KEY))
        missing |= {one for one, version in changed.items() if published.get(one) != version}
        for campaign_id in sorted(missing):
            _publish(client, campaign_id)
    return len(missing)


def _publish(client: redis.Redis, campaign_id: int) -> None:
    from campaigns import retargeting
    from campaigns.models import Campaign, Link

    # Held until Valkey has it, so that of two changes at once the later one is published last.
    with transaction.atomic():
        Campaign.objects.select_for_update(of=("self",)).filter(pk=campaign_id).values_list("pk").first()
        targets = dict(Link.objects.filter(campaign_id=campaign_id).values_list("index", "url"))
        version = retargeting.version(campaign_id)
        if not targets:
            return
        with client.pipeline(transaction=True) as pipeline:
            pipeline.hset(key(campaign_id), mapping={str(index): url for index, url in targets.items()})
            pipeline.sadd(CAMPAIGNS_KEY, campaign_id)
            if version:
                pipeline.hset(CHANGES_KEY, str(campaign_id), str(version))
                pipeline.incr(NEWS_KEY)
            pipeline.execute()
