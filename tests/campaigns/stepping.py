"""Workers that a test drives step by step: each is the real `send_batch` on the real database, over a wire of ours.

A worker is a greenlet that stops before every step of its transport, so that anything may happen in between, as between
processes: a sweep, a pause, hours, or its death. The wire notes every message whose final dot was handed over, which is
the truth that the ledger is held against.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from contextvars import copy_context
from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum, auto

from django.db import connection
from greenlet import greenlet

from campaigns import batching, delivering
from campaigns.models import Batch
from newsletter.mailing.personalizing import Personalizer, Recipient
from newsletter.mailing.tokens import DeliveryKey
from newsletter.mailing.transports.base import Report, Result, TransportError

CONNECTIONS = 3  # messages that a worker may have on the wire at once


class Step(Enum):
    """What a transport does next. A step that makes no sense now is passed over."""

    TAKE = auto()  # ask for the next person
    BEGIN = auto()  # write it into the journal
    CHECK = auto()  # ask whether a message may still be completed
    DOT = auto()  # hand over the final dot; the server takes the message
    ANSWER = auto()  # the answer arrives
    LOSE = auto()  # the connection is lost after the final dot
    DROP = auto()  # the connection is lost before
    REFUSE = auto()  # the server refuses the recipient
    DEFER = auto()  # the server puts the recipient off
    BREAK = auto()  # the transport as a whole fails, with nothing on the wire


class Killed(BaseException):
    """The process is gone: nothing of it runs any more."""


@dataclass
class Wire:
    """What the mail server has seen."""

    taken: Counter[int] = field(default_factory=Counter)  # messages that it accepted, by subscriber
    refused: set[int] = field(default_factory=set)
    on_dot: Callable[["Worker", int], None] = lambda worker, person: None


class Worker:
    """One call of send_batch, stopped before each step."""

    def __init__(self, batch_id: int, *, wire: Wire, clock: Callable[[], datetime], name: str) -> None:
        self.wire, self.name, self._clock = wire, name, clock
        self.taken: list[int] = []
        self.begun: list[int] = []
        self.cleared: list[int] = []
        self.out: list[int] = []  # the final dot is handed over, the answer is not there yet
        self.in_doubt: set[int] = set()  # begun at some time, and never told of
        self.is_told_to_stop = False
        self.must_end = False  # it has heard that nothing more is to be begun
        self.outcome: delivering.Outcome | None = None
        self.error: Exception | None = None
        self.heartbeat: batching.Heartbeat | None = None
        self._greenlet = greenlet(lambda: self._run(batch_id))
        # A browser test leaves an event loop in this thread, and then Django keeps connections by context: all workers
        # are to go by the one of the test.
        self._greenlet.gr_context = copy_context()
        _workers[self._greenlet] = self
        self._greenlet.switch()
        self.lease = Batch.objects.filter(pk=batch_id, worker=name).values_list("lease", flat=True).first()

    @property
    def is_alive(self) -> bool:
        return not self._greenlet.dead

    def step(self, step: Step) -> None:
        """Do one step, up to the moment before the next."""
        if self.is_alive:
            self._greenlet.switch(step)

    def die(self) -> None:
        """Be killed by -9."""
        if self.is_alive:
            with suppress(Killed), connection.execute_wrapper(_of_the_dead):
                self._greenlet.throw(Killed)

    def run_out(self) -> None:
        """Work on without disturbance until the batch is let go of."""
        for _ in range(200):
            for step in (Step.TAKE, Step.BEGIN, Step.CHECK, Step.DOT, Step.ANSWER):
                self.step(step)
            if not self.is_alive:
                return
        raise AssertionError("the batch does not end")

    def _run(self, batch_id: int) -> None:
        try:
            self.outcome = delivering.send_batch(
                batch_id, transport=self, worker=self.name, clock=self._clock, stopping=lambda: self.is_told_to_stop
            )
        except AssertionError:
            raise
        except Exception as error:
            self.error = error

    # The transport -------------------------------------------------------------------------------------------------

    def deliver(
        self,
        personalizer: Personalizer,
        recipients: Iterable[Recipient],
        *,
        until: Callable[[], datetime],
        begins: Callable[[DeliveryKey], None] = lambda key: None,
    ) -> Iterator[Report]:
        people = iter(recipients)
        keys: dict[int, DeliveryKey] = {}
        has_ended = False
        while not (has_ended and not self._held):
            step: Step = greenlet.getcurrent().parent.switch()
            if step is Step.BREAK and not (self.begun or self.cleared or self.out):
                raise TransportError("The mail server cannot be used.")
            if step is Step.TAKE and not has_ended and self._held < CONNECTIONS:
                recipient = next(people, None)
                has_ended = recipient is None
                if recipient:
                    keys[recipient.key.subscriber_id] = recipient.key
                    self.taken.append(recipient.key.subscriber_id)
            if step in {Step.TAKE, Step.BREAK}:
                continue
            done = self._act(step, keys, until=until, begins=begins)
            if done:
                yield done
                if done.result is not Result.UNKNOWN:
                    self.in_doubt.discard(done.key.subscriber_id)

    def close(self) -> None:
        """Nothing is kept."""

    @property
    def _held(self) -> int:
        return len(self.taken) + len(self.begun) + len(self.cleared) + len(self.out)

    def _act(
        self,
        step: Step,
        keys: dict[int, DeliveryKey],
        *,
        until: Callable[[], datetime],
        begins: Callable[[DeliveryKey], None],
    ) -> Report | None:
        source = {
            Step.BEGIN: self.taken, Step.CHECK: self.begun, Step.DOT: self.cleared, Step.ANSWER: self.out,
            Step.LOSE: self.out, Step.DROP: self.taken, Step.REFUSE: self.taken, Step.DEFER: self.out,
        }[step]  # fmt: skip
        if not source:
            return None
        person = source.pop(0)
        if step is Step.BEGIN:
            self.in_doubt.add(person)
            begins(keys[person])
            self.begun.append(person)
            return None
        if step is Step.CHECK and self._clock() < until():
            assert not self.must_end, "a message was begun after the worker had heard of the end"
            self.cleared.append(person)
            return None
        if step is Step.DOT:
            self.wire.on_dot(self, person)
            self.wire.taken[person] += 1
            self.out.append(person)
            return None
        if step is Step.DEFER:
            self.wire.taken[person] -= 1  # the server did not take it after all
        return Report(keys[person], _RESULTS[step], *_WORDS.get(step, ()))


_RESULTS = {
    Step.CHECK: Result.NOT_SENT,
    Step.DROP: Result.NOT_SENT,
    Step.ANSWER: Result.ACCEPTED,
    Step.LOSE: Result.UNKNOWN,
    Step.REFUSE: Result.FAILED,
    Step.DEFER: Result.DEFERRED,
}
_WORDS = {Step.REFUSE: ("5.2.2", "552 full"), Step.DEFER: ("4.7.1", "451 later")}

_workers: dict[greenlet, Worker] = {}


def _of_the_dead(*_: object) -> None:
    raise AssertionError("a killed worker writes nothing")


@contextmanager
def hearts_by_hand() -> Iterator[None]:
    """No threads: a worker's heartbeat beats when the test says so."""

    def start(self: batching.Heartbeat) -> None:
        _workers[greenlet.getcurrent()].heartbeat = self

    def stop(self: batching.Heartbeat) -> None:
        """There is no thread to end."""

    kept = batching.Heartbeat.start, batching.Heartbeat.stop
    batching.Heartbeat.start, batching.Heartbeat.stop = start, stop  # type: ignore[method-assign]
    try:
        yield
    finally:
        batching.Heartbeat.start, batching.Heartbeat.stop = kept  # type: ignore[method-assign]
        _workers.clear()
