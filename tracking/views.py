"""The edge's answers from within Django, so that a small installation needs no second process."""

import logging
import time

import redis
from django.conf import settings
from django.db import DatabaseError
from django.http import HttpRequest, HttpResponse
from django.views.decorators.csrf import csrf_exempt

from campaigns.models import Link
from newsletter.env import DATA_DIR
from newsletter.mailing.keys import keyring
from newsletter.mailing.tokens import DeliveryKey
from newsletter.ratelimit import client_address
from tracking import answers, edge_links, recording, stream
from tracking.answers import Click, Pixel, Reply

log = logging.getLogger(__name__)

_links = edge_links.LinkStore(DATA_DIR / "links")
_follower = edge_links.Follower()


@csrf_exempt
def edge(request: HttpRequest) -> HttpResponse:
    """Pixel and links, as tracking.edge answers them (promise 4)."""
    method = request.method or ""
    wanted = answers.read(method, request.path, len(request.META.get("QUERY_STRING", "")), keyring())
    match wanted:
        case Reply():
            return _response(wanted)
        case Pixel(delivery=delivery):
            if delivery:
                _record(request, stream.OPEN, delivery, None)
            return _response(answers.PIXEL)
        case Click(delivery=delivery, link=link):
            reply = _redirect(delivery.campaign_id, link)
            if reply.status == 302:
                _record(request, stream.CLICK, delivery, link)
            return _response(reply)


def _record(request: HttpRequest, kind: int, delivery: DeliveryKey, link: int | None) -> None:
    sighting = answers.sighting(
        kind=kind,
        delivery=delivery,
        link=link,
        at_ms=time.time_ns() // 1_000_000,
        method=request.method or "",
        ip=client_address(request),
        user_agent=request.headers.get("User-Agent", ""),
    )
    try:
        recording.record(sighting)
    except OSError:
        # Nothing durable is left; answering still comes first.
        log.exception("an open or click is lost: stream and spool both refuse it")


def _redirect(campaign_id: int, link: int) -> Reply:
    _follower.follow(_links)
    targets = _links.get(campaign_id)
    if targets is None:
        try:
            targets = _fetch(campaign_id)
        except (redis.RedisError, DatabaseError):
            return answers.UNAVAILABLE
    target = targets.get(link)
    return answers.redirect(target) if target else answers.NOT_FOUND


def _fetch(campaign_id: int) -> edge_links.Targets:
    """A campaign's targets from the database, or from Valkey when the campaign was deleted. Empty: there are none."""
    targets: edge_links.Targets = dict(Link.objects.filter(campaign_id=campaign_id).values_list("index", "url"))
    if not targets:
        with stream.connect(settings.STREAM_URL) as client:
            targets = edge_links.parse(client.hgetall(edge_links.key(campaign_id)))
    if targets:
        _links.keep(campaign_id, targets)
    return targets


def _response(reply: Reply) -> HttpResponse:
    response = HttpResponse(reply.body, status=reply.status)
    del response["Content-Type"]
    for name, value in reply.headers:
        response[name] = value
    return response
