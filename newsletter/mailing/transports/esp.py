"""ESPs by Anymail: calls for as many people as the service takes well, several at once over kept HTTP sessions.

What the services can do stands in `providers.py`, how a call is written in `esp_messages.py`, what an answer means in
`esp_answers.py`. The caller's thread asks for people, writes calls and judges answers; other threads wait for them.
"""

import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from anymail.message import AnymailMessage
from django.core.mail import get_connection

from newsletter.env import EmailUrl
from newsletter.mailing.headers import HeaderError, wire_address
from newsletter.mailing.personalizing import Personalizer, Recipient
from newsletter.mailing.slots import PersonalizeError
from newsletter.mailing.tokens import DeliveryKey
from newsletter.mailing.transports import esp_answers
from newsletter.mailing.transports.base import Report, Result, TransportError
from newsletter.mailing.transports.esp_answers import Answer, Meaning
from newsletter.mailing.transports.esp_messages import TooLarge, Writer
from newsletter.mailing.transports.providers import PROVIDERS, Provider

DEFAULT_CONNECTIONS = 8
TIMEOUT = (10, 60)  # seconds to connect, and to wait for an answer: the longer, the fewer are unknown
TRIES_UNDER_A_KEY = 3
AGAIN_SECONDS = 1.0  # before a call is repeated under its key
REFUSED_ALL = 20  # people refused one by one and nobody taken: it is the mail or the account, not they
TROUBLE_IN_A_ROW = 3


class EspTransport:
    """One service through its Anymail backend."""

    def __init__(self, url: EmailUrl) -> None:
        self._provider = PROVIDERS[url.scheme]
        self._sessions = _Sessions(self._provider, max(1, int(url.options.get("connections", DEFAULT_CONNECTIONS))))

    def deliver(
        self,
        personalizer: Personalizer,
        recipients: Iterable[Recipient],
        *,
        until: Callable[[], datetime],
        begins: Callable[[DeliveryKey], None] = lambda key: None,
    ) -> Iterator[Report]:
        call = _Delivery(self._provider, self._sessions, personalizer, recipients, until=until, begins=begins)
        yield from call.reports()

    def close(self) -> None:
        self._sessions.close()


class _Sessions:
    """Kept HTTP sessions, each used by one thread at a time."""

    def __init__(self, provider: Provider, count: int) -> None:
        self.count = count
        self._backend = provider.backend
        self._idle: list[Any] = []
        self._threads: ThreadPoolExecutor | None = None  # made when first needed, since workers are forked

    def start(self, message: AnymailMessage, *, after: float) -> "Future[Answer]":
        if self._threads is None:
            self._threads = ThreadPoolExecutor(self.count, thread_name_prefix="esp")
        return self._threads.submit(self._call, message, after)

    def close(self) -> None:
        if self._threads is not None:
            self._threads.shutdown()
            self._threads = None
        while self._idle:
            self._idle.pop().close()

    def _call(self, message: AnymailMessage, after: float) -> Answer:
        try:
            connection = self._idle.pop() if self._idle else self._opened()
        except Exception as error:  # a setting that is missing or wrong
            return Answer(Meaning.CLOSED, "", str(error))
        try:
            return esp_answers.call(connection, message, after=after)
        finally:
            self._idle.append(connection)

    def _opened(self) -> Any:
        # Whom a service refuses is said in its answer; an exception would hide the others.
        connection = get_connection(self._backend, ignore_recipient_status=True, timeout=TIMEOUT)
        connection.open()
        return connection


@dataclass(frozen=True)
class _Group:
    """People of one call, and how often it was made without anybody knowing what came of it."""

    people: tuple[Recipient, ...]
    tries: int = 0


class _Delivery:
    """One call of deliver: who waits, whose call is out, what has become of whom."""

    def __init__(
        self,
        provider: Provider,
        sessions: _Sessions,
        personalizer: Personalizer,
        recipients: Iterable[Recipient],
        *,
        until: Callable[[], datetime],
        begins: Callable[[DeliveryKey], None],
    ) -> None:
        self._provider = provider
        self._sessions = sessions
        self._writer = Writer(provider, personalizer)
        self._feed = iter(recipients)
        self._until = until
        self._begins = begins
        self._has_more = True
        self._waiting: deque[_Group] = deque()
        self._running: dict[Future[Answer], _Group] = {}
        self._told: list[Report] = []
        self._is_late = False
        self._failure: TransportError | None = None
        # Held back until it is clear whether the people or the service are to blame.
        self._has_taken = False
        self._refused: list[tuple[Recipient, Answer]] = []
        self._troubled: list[tuple[_Group, Answer]] = []
        self._trouble_in_a_row = 0

    def reports(self) -> Iterator[Report]:
        try:
            while True:
                started = self._start_next()
                self._collect(wait_for_one=not started)
                yield from self._taken()
                if not started and not self._running and not self._can_start:
                    break
        finally:
            wait(self._running)  # nobody listens any more; the journal knows whose calls were begun
        self._close()
        yield from self._taken()
        if self._failure:
            raise self._failure

    def _taken(self) -> list[Report]:
        told, self._told = self._told, []
        return told

    # Calls ---------------------------------------------------------------------------------------------------------

    @property
    def _can_start(self) -> bool:
        return not self._failure and not self._is_late and bool(self._waiting or self._has_more)

    def _start_next(self) -> bool:
        """Make a call if a session is free and somebody waits; whether there is more to do at once."""
        if not self._can_start or len(self._running) >= self._sessions.count:
            return False
        if not self._waiting:
            self._pull()
        if not self._waiting:
            return False
        group = self._waiting.popleft()
        message = self._written(group)
        if message is None:
            return True
        # Written down first: a process that is held up right after the look is known to have begun (promise 1).
        for one in group.people:
            self._begins(one.key)
        if datetime.now(UTC) >= self._until():
            self._waiting.appendleft(group)
            self._is_late = True
            return False
        self._running[self._sessions.start(message, after=AGAIN_SECONDS * group.tries)] = group
        return True

    def _pull(self) -> None:
        """Take people for one call: who may not be tracked has other literals, and an address stands once in a call."""
        groups: dict[tuple[bool, int], dict[str, Recipient]] = {}
        taken = list(itertools.islice(self._feed, self._provider.people_a_call))
        self._has_more = len(taken) == self._provider.people_a_call
        for one in taken:
            try:
                address = wire_address(one.email).casefold()
            except HeaderError as error:
                self._told.append(Report(one.key, Result.FAILED, "5.1.3", str(error)))
                continue
            number = 0
            while address in groups.setdefault((one.is_tracked, number), {}):
                number += 1
            groups[one.is_tracked, number][address] = one
        self._waiting.extend(_Group(tuple(group.values())) for group in groups.values() if group)

    def _written(self, group: _Group) -> AnymailMessage | None:
        """The message of a call; None when it had to be taken apart."""
        try:
            return self._writer.message(group.people)
        except (HeaderError, PersonalizeError, TooLarge) as error:
            if len(group.people) > 1:
                self._halve(group)
            else:
                self._told.append(Report(group.people[0].key, Result.FAILED, "5.6.0", str(error)))
            return None

    def _halve(self, group: _Group) -> None:
        half = len(group.people) // 2
        self._waiting.appendleft(_Group(group.people[half:]))
        self._waiting.appendleft(_Group(group.people[:half]))

    # Answers -------------------------------------------------------------------------------------------------------

    def _collect(self, *, wait_for_one: bool) -> None:
        if not self._running:
            return
        done, _ = wait(self._running, timeout=None if wait_for_one else 0, return_when=FIRST_COMPLETED)
        for future in done:
            group = self._running.pop(future)
            self._judge(group, future.result())

    def _judge(self, group: _Group, answer: Answer) -> None:
        if answer.meaning is Meaning.TOLD:
            self._trouble_in_a_row = 0
            reports = list(esp_answers.reports(answer, group.people))
            self._has_taken |= any(report.result is Result.ACCEPTED for report in reports)
            self._told += reports
        elif answer.was_repeated:
            # The key is known to the service: our first try came through, or somebody's before us.
            self._tell(group, Result.ACCEPTED if group.tries else Result.UNKNOWN, answer)
        elif answer.meaning is Meaning.REFUSED:
            self._judge_refused(group, answer)
        elif answer.meaning is Meaning.TROUBLE:
            self._troubled.append((group, answer))
            self._trouble_in_a_row += 1
            if self._trouble_in_a_row >= TROUBLE_IN_A_ROW:
                self._fail(answer)
        elif answer.meaning is Meaning.UNCERTAIN:
            self._judge_uncertain(group, answer)
        else:
            self._waiting.appendleft(group)
            self._fail(answer)

    def _judge_refused(self, group: _Group, answer: Answer) -> None:
        """One bad address of many refuses them all, so the call is halved until that one is alone."""
        if len(group.people) > 1:
            self._halve(group)
            return
        self._refused.append((group.people[0], answer))
        if not self._has_taken and len(self._refused) >= REFUSED_ALL:
            self._fail(answer)

    def _judge_uncertain(self, group: _Group, answer: Answer) -> None:
        if self._provider.key_header and group.tries + 1 < TRIES_UNDER_A_KEY:
            self._waiting.appendleft(replace(group, tries=group.tries + 1))
            return
        # A service that has stopped answering would leave a whole list unknown.
        self._tell(group, Result.UNKNOWN, answer)
        self._fail(answer)

    def _tell(self, group: _Group, result: Result, answer: Answer) -> None:
        self._told += [Report(one.key, result, answer.code, answer.text) for one in group.people]

    def _fail(self, answer: Answer) -> None:
        text = f"{self._provider.name} cannot be used now: {answer.text}"
        waits = [found for found in (answer.wait, self._failure and self._failure.retry_after) if found]
        self._failure = TransportError(text, retry_after=max(waits, default=None))

    def _close(self) -> None:
        """No call is out and none will be made: what is still open is settled."""
        if self._troubled and not self._has_taken and not self._failure:
            self._fail(self._troubled[-1][1])
        is_theirs = self._has_taken or not self._failure
        for person, answer in self._refused:
            self._tell(_Group((person,)), Result.FAILED if is_theirs else Result.NOT_SENT, answer)
        # Others were taken in the meantime: it is something in this call, which is tried again later.
        troubled = Result.NOT_SENT if self._failure else Result.DEFERRED
        for group, answer in self._troubled:
            self._give_back(group, troubled, answer)
        for group in self._waiting:
            self._give_back(group, Result.NOT_SENT, Answer(Meaning.BUSY))

    def _give_back(self, group: _Group, result: Result, answer: Answer) -> None:
        """Nobody of them was sent to, unless an earlier try of the same call may have come through."""
        self._tell(group, Result.UNKNOWN if group.tries else result, answer)
