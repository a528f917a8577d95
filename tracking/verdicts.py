"""Evidence in, verdict with reasons out. Pure: no Django, no database, so that today's rules can judge old events.

All hits of one delivery are judged together, because a scanner shows itself only in company: ten links within a
second. What is judged is the event, never the person: behind a scanner sits a reader too. The tables hold what mail
brings and nothing else; crawler lists made for web sites call Gmail's image proxy a bot and miss Apple's.
"""

import ipaddress
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import IntEnum
from functools import lru_cache
from typing import Literal, NamedTuple

Kind = Literal["open", "click"]

# (distinct links, seconds): a person follows links one by one. 836 scanner bursts had 9–10 links within a second
# (craft-campaign issue 546); the slower pairs catch scanners that pause between links.
BURSTS = ((2, 1.0), (3, 2.0), (5, 10.0))
NEIGHBOURHOOD = timedelta(seconds=10)

# Flags by which a provider tells what fetched (receivers.py maps its words to these).
FLAG_MACHINE = "machine"
FLAG_APPLE = "apple"
FLAG_IMAGE_PROXY = "image-proxy"


class Verdict(IntEnum):
    """The values are those of models.Verdict."""

    UNKNOWN = 0
    HUMAN = 1
    MACHINE = 2


@dataclass(frozen=True)
class Hit:
    """One fetch of a pixel or link, as it came in."""

    kind: Kind
    at: datetime
    method: str
    user_agent: str | None  # None: not reported (a provider, an import); "" was really empty
    ip: str
    link: int | None
    delay_seconds: float | None  # since the delivery was accepted
    flags: frozenset[str] = frozenset()


class Judgement(NamedTuple):
    verdict: Verdict
    reasons: list[str]


@dataclass(frozen=True)
class Evidence:
    """What is kept of a hit, or of several of the same minute: facts that no longer name an address."""

    kind: Kind
    at: datetime
    last_at: datetime
    method: str
    client: str  # client_at()
    network: str  # something that is equal for equal addresses; "" when not known
    link: int | None
    delay_seconds: float | None
    flags: frozenset[str] = frozenset()


# Clients ---------------------------------------------------------------------------------------------------------
# The first pattern that is found names the class; what stands before the colon decides the rules.
_CLIENTS: tuple[tuple[str, str], ...] = (
    ("proxy:google", r"googleimageproxy"),
    ("proxy:yahoo", r"yahoomailproxy"),
    (
        "scanner:mail",
        r"barracuda|mimecast|proofpoint|urldefense|safelinks|messagelabs|symantec|fireeye|trendmicro|sophos|forcepoint"
        r"|ironport|zscaler|mailscanner|virustotal|urlscan|checkpoint|bitdefender|avanan|cloudmark",
    ),
    ("headless:browser", r"headless|phantomjs|puppeteer|playwright|selenium|electron/.*test"),
    (
        "library:http",
        r"^(curl|wget|python|aiohttp|httpx|go-http|java/|jakarta|apache-httpclient|okhttp|libwww|lwp|ruby|php|guzzle"
        r"|node|axios|got |undici|restsharp|winhttp|powershell|perl|httpie|postman|scrapy|faraday|dart/)"
        r"|python-requests|python-urllib|go-http-client|windowspowershell",
    ),
    (
        "preview:chat",
        r"facebookexternalhit|slackbot|slack-imgproxy|telegrambot|whatsapp/|twitterbot|discordbot|linkedinbot"
        r"|skypeuripreview|bingpreview|google-pagerenderer|applebot",
    ),
    # CUBOT is a maker of phones.
    ("bot:other", r"(?<!cu)bot\b|crawler|spider|monitor(ing)?\b|scanner|link-?check"),
    ("apple:mpp", r"^mozilla/5\.0$"),
    ("app:outlook", r"microsoft outlook|ms-office|msoffice"),
    ("app:thunderbird", r"thunderbird"),
    ("app:apple-mail", r"applewebkit/[\d.]+ \(khtml, like gecko\)(\s+mobile/\w+)?$"),
    ("browser:edge", r"edg(e|a|ios)?/"),
    ("browser:opera", r"opr/|opera"),
    ("browser:samsung", r"samsungbrowser"),
    ("browser:firefox", r"firefox/|fxios"),
    ("browser:chrome", r"chrome/|crios/"),
    ("browser:safari", r"safari/"),
)
_CLIENT_PATTERNS = tuple((name, re.compile(pattern)) for name, pattern in _CLIENTS)
_SYSTEMS = tuple(
    (name, re.compile(pattern))
    for name, pattern in (
        ("android", r"android"),
        ("ios", r"iphone|ipad|ipod"),
        ("windows", r"windows"),
        ("mac", r"mac os x|macintosh"),
        ("linux", r"linux|x11"),
    )
)


@lru_cache(maxsize=4_096)  # clients are few, hits are many
def client_class(user_agent: str | None) -> str:
    """The class of a client, at most 32 characters, such as `browser:chrome-windows`, `proxy:google` or `library:http`.

    "" stands for a client that was not reported, `empty` for one that gave no name.
    """
    if user_agent is None:
        return ""
    text = user_agent.strip().lower()
    if not text:
        return "empty"
    name = next((name for name, pattern in _CLIENT_PATTERNS if pattern.search(text)), "other")
    if not name.startswith(("browser:", "app:", "other")):
        return name
    system = next((system for system, pattern in _SYSTEMS if pattern.search(text)), "")
    return f"{name}-{system}" if system else name


def client_at(user_agent: str | None, ip: str) -> str:
    """The class of a client that came from an address.

    A headless browser on the edge's own machine is somebody who tries the product out, not a scanner behind a mail
    gateway: there it counts as the browser that it is.
    """
    if user_agent and "headless" in user_agent.lower() and _is_loopback(ip):
        user_agent = re.sub("headless", "", user_agent, flags=re.IGNORECASE)
    return client_class(user_agent)


def _is_loopback(ip: str) -> bool:
    try:
        return ipaddress.ip_address(ip).is_loopback
    except ValueError:
        return False


def network_class(ip: str) -> str:
    """`private`, `ipv4`, `ipv6`, or "" when the address is not known."""
    try:
        address = ipaddress.ip_address(ip)
    except ValueError:
        return ""
    if address.is_private:
        return "private"
    return f"ipv{address.version}"


# Rules -----------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Rule:
    """The first rule that holds for an event gives its verdict; every machine rule that holds is named as a reason."""

    name: str
    source: str
    verdict: Verdict
    holds: Callable[[Evidence], bool]


def _client(*prefixes: str) -> Callable[[Evidence], bool]:
    return lambda evidence: evidence.client.startswith(prefixes)


# What one event shows by itself; bursts and their neighbours are found by _scans.
RULES: tuple[Rule, ...] = (
    Rule(
        "provider-says-machine",
        "Mailgun client-info.bot, Brevo proxy_open, SparkPost prefetch",
        Verdict.MACHINE,
        lambda evidence: FLAG_MACHINE in evidence.flags,
    ),
    Rule(
        "provider-says-apple",
        "SendGrid sg_machine_open, Mailgun client-info.bot = apple",
        Verdict.MACHINE,
        lambda evidence: FLAG_APPLE in evidence.flags,
    ),
    Rule("head-request", "no mail client asks so", Verdict.MACHINE, lambda evidence: evidence.method == "HEAD"),
    Rule(
        "apple-privacy",
        "Mail Privacy Protection fetches with exactly Mozilla/5.0, read or not (Litmus 2022)",
        Verdict.MACHINE,
        lambda evidence: evidence.kind == "open" and evidence.client == "apple:mpp",
    ),
    Rule(
        "bare-client",
        "no browser calls itself Mozilla/5.0 and nothing else",
        Verdict.MACHINE,
        lambda evidence: evidence.kind == "click" and evidence.client == "apple:mpp",
    ),
    Rule("security-scanner", "the client names itself", Verdict.MACHINE, _client("scanner:")),
    Rule("http-library", "the client names itself", Verdict.MACHINE, _client("library:")),
    Rule("headless-browser", "the client names itself", Verdict.MACHINE, _client("headless:")),
    Rule("link-preview", "the client names itself", Verdict.MACHINE, _client("preview:")),
    Rule("self-named-bot", "the client names itself", Verdict.MACHINE, _client("bot:")),
    Rule("no-client-name", "every mail client and browser sends one", Verdict.MACHINE, _client("empty")),
    Rule(
        "image-proxy",
        "Gmail and Yahoo fetch when the mail is displayed",
        Verdict.HUMAN,
        lambda evidence: evidence.kind == "open" and (evidence.client.startswith("proxy:") or _proxy_flag(evidence)),
    ),
    Rule(
        "images-displayed",
        "a client fetched the pixel and nothing speaks against it",
        Verdict.HUMAN,
        lambda evidence: evidence.kind == "open",
    ),
    Rule("link-followed", "one link, followed by itself", Verdict.HUMAN, lambda evidence: evidence.kind == "click"),
)
# What an event shows only in company.
LINK_BURST = "link-burst"
NEAR_SCANNER = "near-scanner"
_SCANNERS = ("scanner:", "library:", "headless:")


def _proxy_flag(evidence: Evidence) -> bool:
    return FLAG_IMAGE_PROXY in evidence.flags


def evidence_of(hit: Hit) -> Evidence:
    """The facts of a hit."""
    return Evidence(
        hit.kind, hit.at, hit.at, hit.method.upper(), client_at(hit.user_agent, hit.ip), hit.ip, hit.link,
        hit.delay_seconds, hit.flags,
    )  # fmt: skip


def judge(hits: Sequence[Hit]) -> list[Judgement]:
    """A judgement for each of the hits of ONE delivery, in their order."""
    return judge_evidence([evidence_of(hit) for hit in hits])


def judge_evidence(events: Sequence[Evidence]) -> list[Judgement]:
    """As judge(), from the facts that are kept."""
    scans = _scans(events)
    return [_judge_one(event, scans) for event in events]


def _judge_one(event: Evidence, scans: list["_Scan"]) -> Judgement:
    machine = [rule.name for rule in RULES if rule.verdict is Verdict.MACHINE and rule.holds(event)]
    machine += _company(event, scans)
    if machine:
        return Judgement(Verdict.MACHINE, machine)
    rule = next(rule for rule in RULES if rule.verdict is Verdict.HUMAN and rule.holds(event))
    return Judgement(Verdict.HUMAN, [rule.name])


class _Scan(NamedTuple):
    """A stretch of time in which a scanner was at work, and by what it is known."""

    first: datetime
    last: datetime
    clients: frozenset[str]
    networks: frozenset[str]
    is_burst: bool


class _Point(NamedTuple):
    at: datetime
    event: Evidence


def _scans(events: Sequence[Evidence]) -> list[_Scan]:
    """Bursts: more distinct links than a person can follow. And whatever asked by HEAD or named itself a scanner."""
    points = sorted(
        (_Point(at, event) for event in events for at in {event.at, event.last_at}), key=lambda point: point.at
    )
    clicks = [point for point in points if point.event.kind == "click"]
    found = [
        _scan([point], is_burst=False)
        for point in points
        if point.event.method == "HEAD" or point.event.client.startswith(_SCANNERS)
    ]
    for wanted, seconds in BURSTS:
        start = 0
        for end, point in enumerate(clicks):
            while point.at - clicks[start].at > timedelta(seconds=seconds):
                start += 1
            inside = clicks[start : end + 1]
            if len({one.event.link for one in inside}) >= wanted:
                found.append(_scan(inside, is_burst=True))
    return found


def _scan(points: Sequence[_Point], *, is_burst: bool) -> _Scan:
    clients = frozenset(point.event.client for point in points)
    networks = frozenset(point.event.network for point in points)
    return _Scan(points[0].at, points[-1].at, clients, networks, is_burst)


def _company(event: Evidence, scans: list[_Scan]) -> list[str]:
    """Why an event belongs to a scan. A minute's row is a machine's only if its first and its last hit both are."""
    reasons = [_near(event, event.at, scans), _near(event, event.last_at, scans)]
    return sorted(set(reasons)) if all(reasons) else []


def _near(event: Evidence, at: datetime, scans: list[_Scan]) -> str:
    neighbour = ""
    for scan in scans:
        if scan.is_burst and event.kind == "click" and scan.first <= at <= scan.last:
            return LINK_BURST
        if scan.first - NEIGHBOURHOOD <= at <= scan.last + NEIGHBOURHOOD and _is_like(event, scan):
            neighbour = NEAR_SCANNER
    return neighbour


def _is_like(event: Evidence, scan: _Scan) -> bool:
    """Whether the event came from an address or a kind of client of the scan."""
    if event.network and event.network in scan.networks:
        return True
    return event.client in scan.clients and (bool(event.client) or event.kind == "click")
