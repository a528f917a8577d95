"""The edge: pixel and links answered by a small ASGI callable, without a database and without Django's models.

    granian --interface asgi tracking.edge:application

Promise 4 is kept here: whatever is down behind it, a pixel or a known link is answered within about a second, and what
was answered is not lost. A request waits for its group's append to the stream (group commit: all that came in during
one append go with the next); when the stream is down or slow, for the same group's sync to the spool on disk.
"""

import asyncio
import contextlib
import json
import logging
import os
import time
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import redis.asyncio
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "newsletter.settings")

from django.conf import settings

from newsletter.env import DATA_DIR
from newsletter.mailing.keys import keyring
from newsletter.mailing.tokens import DeliveryKey
from tracking import answers, edge_links, spool, stream
from tracking.answers import Click, Pixel, Reply
from tracking.stream import Group, Sighting

log = logging.getLogger(__name__)

Message = MutableMapping[str, Any]
Send = Callable[[Message], Awaitable[None]]
Receive = Callable[[], Awaitable[Message]]

GROUP_LIMIT = 500  # sightings of one commit
WATCH_SECONDS = 1.0
UNKNOWN_CAMPAIGN_SECONDS = 2.0  # how long the stream's "no such campaign" is believed
UNKNOWN_CAMPAIGNS = 10_000

DOWN = (redis.RedisError, OSError, TimeoutError)


class Recorder:
    """Group commit of one event loop: what waits goes in one pipeline, and only then is anybody answered."""

    def __init__(self, client: redis.asyncio.Redis) -> None:
        self.client = client
        self.writer = stream.Writer()
        self.spool = spool.Spool(DATA_DIR / "spool")
        self.is_up = True  # until an append fails; the watch finds out when it is up again
        self._waiting: list[tuple[int, str, asyncio.Future[None]]] = []
        self._wake = asyncio.Event()
        self._disk = asyncio.Lock()

    async def record(self, sighting: Sighting) -> None:
        """Return when the sighting is durable."""
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        number = stream.stream_of(sighting.campaign_id, sighting.subscriber_id)
        self._waiting.append((number, sighting.encode(), done))
        self._wake.set()
        await done

    async def run(self) -> None:
        """Commit group after group, for ever."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._waiting:
                taken, self._waiting = self._waiting[:GROUP_LIMIT], self._waiting[GROUP_LIMIT:]
                try:
                    await self._commit(self.writer.groups((number, encoded) for number, encoded, _done in taken))
                finally:
                    for _number, _encoded, done in taken:
                        if not done.done():
                            done.set_result(None)

    async def _commit(self, groups: list[Group]) -> None:
        if self.is_up:
            try:
                async with asyncio.timeout(stream.TIMEOUT_SECONDS):
                    await self._append(groups)
                return
            except DOWN as error:
                self.is_up = False
                log.warning("the stream does not answer, opens and clicks go to the spool: %s", error)
        try:
            async with self._disk:
                await asyncio.to_thread(self.spool.append, groups)
        except OSError:
            # Nothing durable is left; answering still comes first.
            log.exception("%s groups of opens and clicks are lost: stream and spool both refuse them", len(groups))

    async def _append(self, groups: Sequence[Group]) -> None:
        async with self.client.pipeline(transaction=False) as pipeline:
            for group in groups:
                pipeline.xadd(stream.name(group.stream), group.fields())
            await pipeline.execute()

    async def replay(self) -> None:
        """Send what waits on disk. Raises when the stream is down again."""
        if not spool.waiting(self.spool.folder):
            return
        async with self._disk:
            self.spool.close()
        sent = await asyncio.to_thread(_replay)
        if sent:
            log.info("%s groups went from the spool to the stream", sent)


def _replay() -> int:
    with stream.connect(settings.STREAM_URL) as client:
        return spool.replay(DATA_DIR / "spool", lambda groups: stream.append(client, groups))


class Edge:
    """Everything that one event loop holds: granian may run several."""

    def __init__(self) -> None:
        self.client = redis.asyncio.Redis.from_url(
            settings.STREAM_URL,
            socket_timeout=stream.TIMEOUT_SECONDS,
            socket_connect_timeout=stream.TIMEOUT_SECONDS,
            retry=Retry(NoBackoff(), 0),
            decode_responses=True,
        )
        self.keyring = keyring()
        self.proxies = int(settings.TRUSTED_PROXIES)
        self.links = edge_links.LinkStore(DATA_DIR / "links")
        self.recorder = Recorder(self.client)
        self._published = -1
        self._changes = edge_links.Changes()
        self._unknown: dict[int, float] = {}
        self._tasks = [asyncio.create_task(self.recorder.run()), asyncio.create_task(self._watch())]

    async def answer(self, scope: MutableMapping[str, Any]) -> Reply:
        method, path = scope["method"], scope["path"]
        if path == "/healthz":
            return self._health()
        wanted = answers.read(method, path, len(scope.get("query_string", b"")), self.keyring)
        match wanted:
            case Reply():
                return wanted
            case Pixel(delivery=None):
                return answers.PIXEL
            case Pixel(delivery=delivery):
                await self.recorder.record(self._sighting(scope, stream.OPEN, delivery, None))
                return answers.PIXEL
            case Click(delivery=delivery, link=link):
                reply = await self._redirect(delivery.campaign_id, link)
                if reply.status == 302:
                    await self.recorder.record(self._sighting(scope, stream.CLICK, delivery, link))
                return reply

    def _sighting(
        self, scope: MutableMapping[str, Any], kind: int, delivery: DeliveryKey | None, link: int | None
    ) -> Sighting:
        assert delivery is not None
        agent = forwarded = ""
        for name, value in scope["headers"]:
            if name == b"user-agent":
                agent = value.decode("latin-1")
            elif name == b"x-forwarded-for":
                forwarded = f"{forwarded},{value.decode('latin-1')}" if forwarded else value.decode("latin-1")
        return answers.sighting(
            kind=kind,
            delivery=delivery,
            link=link,
            at_ms=time.time_ns() // 1_000_000,
            method=scope["method"],
            ip=answers.client_address((scope.get("client") or [""])[0], forwarded, self.proxies),
            user_agent=agent,
        )

    async def _redirect(self, campaign_id: int, link: int) -> Reply:
        targets = self.links.get(campaign_id)
        if targets is None:
            try:
                targets = await self._fetch(campaign_id)
            except DOWN:
                return answers.UNAVAILABLE
        target = targets.get(link) if targets else None
        return answers.redirect(target) if target else answers.NOT_FOUND

    async def _fetch(self, campaign_id: int) -> edge_links.Targets | None:
        """A campaign's targets from Valkey, None when it has none there. Raises when Valkey is down."""
        if self._unknown.get(campaign_id, 0) > time.monotonic():
            return None
        async with asyncio.timeout(stream.TIMEOUT_SECONDS):
            targets = edge_links.parse(await self.client.hgetall(edge_links.key(campaign_id)))
        if targets:
            await asyncio.to_thread(self.links.keep, campaign_id, targets)
            return targets
        if len(self._unknown) >= UNKNOWN_CAMPAIGNS:
            self._unknown.clear()
        self._unknown[campaign_id] = time.monotonic() + UNKNOWN_CAMPAIGN_SECONDS
        return None

    def _health(self) -> Reply:
        state = {"edge": "up", "stream": "up" if self.recorder.is_up else "down", "spooled": len(self._spooled())}
        return Reply(200, (("content-type", "application/json"), ("cache-control", "no-store")), _json(state))

    def _spooled(self) -> list[Any]:
        return spool.waiting(self.recorder.spool.folder)

    async def _watch(self) -> None:
        """Once a second: is the stream up and not too full, are there new links, does something wait on disk?"""
        while True:
            try:
                await self._look()
            except DOWN as error:
                if self.recorder.is_up:
                    log.warning("the stream does not answer: %s", error)
                self.recorder.is_up = False
            except Exception:
                log.exception("the edge's watch failed; it goes on")
            await asyncio.sleep(WATCH_SECONDS)

    async def _look(self) -> None:
        async with asyncio.timeout(5 * stream.TIMEOUT_SECONDS):
            async with self.client.pipeline(transaction=False) as pipeline:
                pipeline.scard(edge_links.CAMPAIGNS_KEY)
                pipeline.get(edge_links.NEWS_KEY)
                for number in range(stream.STREAMS):
                    pipeline.xlen(stream.name(number))
                published, news, *lengths = await pipeline.execute()
            if published != self._published:
                await self._fetch_links()
                self._published = published
            if self._changes.is_news(news):
                await self._fetch_changes(news)
        has_room = max(lengths) < stream.WAITING_LIMIT
        if has_room:
            await self.recorder.replay()
        self.recorder.is_up = has_room

    async def _fetch_links(self) -> None:
        """Keep a copy of every published campaign's links, so that they lead on when Valkey is gone."""
        published = {int(one) for one in await self.client.smembers(edge_links.CAMPAIGNS_KEY)}
        for campaign_id in await asyncio.to_thread(self.links.unknown, published):
            targets = edge_links.parse(await self.client.hgetall(edge_links.key(campaign_id)))
            if targets:
                await asyncio.to_thread(self.links.keep, campaign_id, targets)
        self._unknown.clear()

    async def _fetch_changes(self, news: object) -> None:
        """Take targets anew that were changed after their freeze."""
        older = self._changes.older(await self.client.hgetall(edge_links.CHANGES_KEY))
        for campaign_id in older:
            targets = edge_links.parse(await self.client.hgetall(edge_links.key(campaign_id)))
            await asyncio.to_thread(self.links.keep, campaign_id, targets)
        self._changes.take(older, news)

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        self.recorder.spool.close()
        await self.client.aclose()


def _json(value: object) -> bytes:
    return json.dumps(value).encode()


_edges: "WeakKeyDictionary[asyncio.AbstractEventLoop, Edge]" = WeakKeyDictionary()


def _edge() -> Edge:
    loop = asyncio.get_running_loop()
    found = _edges.get(loop)
    if found is None:
        found = _edges[loop] = Edge()
    return found


async def application(scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
    """The ASGI callable."""
    if scope["type"] == "lifespan":
        await _lifespan(receive, send)
    elif scope["type"] == "http":
        reply = await _edge().answer(scope)
        body = b"" if scope["method"] == "HEAD" else reply.body
        headers = [(name.encode("ascii"), value.encode("latin-1")) for name, value in reply.headers]
        headers.append((b"content-length", str(len(reply.body)).encode("ascii")))
        await send({"type": "http.response.start", "status": reply.status, "headers": headers})
        await send({"type": "http.response.body", "body": body})
    elif scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1000})


async def _lifespan(receive: Receive, send: Send) -> None:
    while True:
        message = await receive()
        if message["type"] == "lifespan.startup":
            _edge()
            await send({"type": "lifespan.startup.complete"})
        elif message["type"] == "lifespan.shutdown":
            edge = _edges.pop(asyncio.get_running_loop(), None)
            if edge:
                await edge.close()
            await send({"type": "lifespan.shutdown.complete"})
            return
