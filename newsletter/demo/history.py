"""A year of the demo's readers, hit by hit: what their clients and the machines in between fetch of each issue.

Nothing here says what is human: the hits are judged by tracking.verdicts like any others, so the demo's figures show
what the product's rules make of them. Pure, and the same for the same seed.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from random import Random

from newsletter.demo.people import Person
from newsletter.demo.personas import Client
from tracking.verdicts import Hit

SENT_AT_HOUR = 7  # UTC, on a Thursday
THURSDAY = 3
SETTLED = timedelta(hours=12)  # the newest issue is at least so old, so that there is something to see
SCANNERS_NETWORK = "102.54.94.7"
APPLES_NETWORK = "17.58.101."


@dataclass(frozen=True)
class Sent:
    """An issue as it went out."""

    place: int  # 0 is the oldest
    at: datetime
    links: int


@dataclass(frozen=True)
class Received:
    """One person's copy of an issue and everything that was fetched of it, oldest first."""

    person: Person
    issue: Sent
    accepted_at: datetime
    hits: list[Hit]


def sending_times(now: datetime, *, weeks: int) -> list[datetime]:
    """The last Thursdays, oldest first; the newest at least half a day ago."""
    last = (now - SETTLED).replace(hour=SENT_AT_HOUR, minute=0, second=0, microsecond=0)
    last -= timedelta(days=(last.weekday() - THURSDAY) % 7)
    if last > now - SETTLED:
        last -= timedelta(days=7)
    return [last - timedelta(weeks=weeks - 1 - place) for place in range(weeks)]


def year_of(person: Person, issues: Sequence[Sent], *, seed: int, now: datetime) -> Iterator[Received]:
    """Every issue that was sent to somebody, with the hits that came before `now`."""
    random = Random(f"{seed}:{person.email}")  # noqa: S311  a story, no secret
    habits = _Habits(person, random)
    for issue in issues:
        if not person.receives(issue.place):
            continue
        accepted = issue.at + timedelta(seconds=person.place % 40, milliseconds=random.randrange(1000))
        hits = sorted(habits.hits(issue, accepted), key=lambda hit: hit.at)
        if person.bounces == issue.place or person.consent == "none":
            hits = []
        yield Received(person, issue, accepted, [hit for hit in hits if hit.at < now])


class _Habits:
    """One person's own chances, devices and networks."""

    def __init__(self, person: Person, random: Random) -> None:
        self.person = person
        self.random = random
        self.reads = random.uniform(*person.persona.reads)
        self.clicks = random.uniform(*person.persona.clicks)
        self.reader = random.choice(person.persona.readers or (Client.WEBMAIL,))
        self.browser = random.choice(person.persona.browsers)
        self.home = f"86.{random.randrange(256)}.{random.randrange(256)}.{random.randrange(1, 255)}"

    def hits(self, issue: Sent, accepted: datetime) -> Iterator[Hit]:
        persona = self.person.persona
        if self.random.random() < persona.prefetches:
            yield from self._prefetched(accepted)
        if issue.links and self.random.random() < persona.scans:
            yield from self._scanned(issue, accepted)
        gone = self.person.drifts is not None and issue.place >= self.person.drifts
        away = issue.place in self.person.pauses
        # Drawn in any case, so that a person's later weeks do not depend on it.
        reads = self.random.random() < self.reads
        delay = self._reading_delay()
        if reads and not gone and not away:
            yield from self._read(issue, accepted, accepted + delay)

    def _hit(self, kind: str, at: datetime, accepted: datetime, client: str, **more: str | int | None) -> Hit:
        return Hit(
            kind="click" if kind == "click" else "open",
            at=at,
            method=str(more.get("method", "GET")),
            user_agent=client,
            ip=str(more.get("ip", self.home)),
            link=int(more["link"] or 0) if "link" in more else None,
            delay_seconds=(at - accepted).total_seconds(),
        )

    def _reading_delay(self) -> timedelta:
        """Most within the day (median four hours), some at the weekend."""
        hours = self.random.lognormvariate(1.4, 1.1)
        return timedelta(hours=min(hours, 140), seconds=self.random.randrange(3600))

    def _prefetched(self, accepted: datetime) -> Iterator[Hit]:
        """Apple's proxy, some time after delivery, whether anybody reads or not."""
        at = accepted + timedelta(minutes=self.random.lognormvariate(3.5, 1.2))
        ip = f"{APPLES_NETWORK}{self.random.randrange(1, 255)}"
        yield self._hit("open", at, accepted, Client.APPLE_PROXY, ip=ip)

    def _scanned(self, issue: Sent, accepted: datetime) -> Iterator[Hit]:
        """A security gateway: every link within about a second, most often 20–60 s after delivery (HYGIENE.md)."""
        late = self.random.random() < 0.3
        start = accepted + timedelta(seconds=self.random.uniform(60, 300) if late else self.random.uniform(20, 60))
        if self.random.random() < 0.5:
            yield self._hit("open", start, accepted, Client.SCANNER, ip=SCANNERS_NETWORK)
        asks = "HEAD" if self.random.random() < 0.25 else "GET"
        step = 0.8 / issue.links
        for link in range(issue.links):
            at = start + timedelta(seconds=link * step)
            yield self._hit("click", at, accepted, Client.SCANNER, ip=SCANNERS_NETWORK, link=link, method=asks)

    def _read(self, issue: Sent, accepted: datetime, at: datetime) -> Iterator[Hit]:
        if self.person.persona.shows_images:
            yield self._hit("open", at, accepted, self.reader)
            if self.random.random() < 0.15:  # came back to it
                again = at + timedelta(hours=self.random.uniform(1, 48))
                yield self._hit("open", again, accepted, self.reader)
        if issue.links and self.random.random() < self.clicks:
            for link in self._followed(issue.links):
                at += timedelta(seconds=self.random.uniform(25, 240))
                yield self._hit("click", at, accepted, self.browser, link=link)

    def _followed(self, links: int) -> list[int]:
        """One link, sometimes two; the first in the text most often."""
        weights = [1 / (place + 1) for place in range(links)]
        first = self.random.choices(range(links), weights)[0]
        second = self.random.choices(range(links), weights)[0]
        return [first, second] if second != first and self.random.random() < 0.25 else [first]
