"""The ledger under any order of events: each person at most once, and nobody left in a state that is not final.

Hypothesis chooses what happens: launches, workers that claim, die, hang and come back, sweeps, pauses, people who
leave, hours that pass. HYPOTHESIS_PROFILE=long looks for longer.
"""

import os
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import datetime, timedelta
from typing import Any

import pytest
from django.conf import settings as site
from django.db import connection, connections
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from campaigns import batching, composing, delivering, doubting, freezing, journal, scheduling, states
from campaigns.errors import CampaignError
from campaigns.models import Batch, Campaign, CampaignState, Delivery, DeliveryState
from subscribers import suppressing, unsubscribing
from subscribers.models import List, SenderIdentity, Subscriber, Subscription
from tests.campaigns.stepping import Step, Wire, Worker, hearts_by_hand
from tests.conftest import NOW

pytestmark = pytest.mark.django_db(transaction=True)

PEOPLE, BATCH, WINDOW = 6, 3, 2
D = DeliveryState
FINAL = {D.ACCEPTED, D.FAILED, D.SKIPPED, D.UNKNOWN}
ENDED = {CampaignState.SENT, CampaignState.CANCELLED}
TAKE, BEGIN, CHECK, DOT, ANSWER = Step.TAKE, Step.BEGIN, Step.CHECK, Step.DOT, Step.ANSWER
# What a transport does mostly, up to any point of it, and whatever else may come.
PLAYS = [
    [TAKE], [TAKE, TAKE, TAKE], [TAKE, BEGIN], [TAKE, BEGIN, CHECK], [TAKE, BEGIN, CHECK, DOT],
    [TAKE, BEGIN, CHECK, DOT, ANSWER], [TAKE, BEGIN, CHECK, DOT, Step.LOSE], [TAKE, BEGIN, CHECK, DOT, Step.DEFER],
    [BEGIN], [CHECK], [DOT], [ANSWER], [Step.LOSE], [TAKE, Step.DROP], [TAKE, Step.REFUSE], [Step.DEFER], [Step.BREAK],
]  # fmt: skip
STEPS = st.lists(st.sampled_from(PLAYS), min_size=1, max_size=3).map(lambda plays: [s for play in plays for s in play])
AMONG = st.integers(0, 7)
BOOL = st.booleans()


def pause(campaign_id: int, *, now: datetime) -> None:
    scheduling.pause(campaign_id, reason="", now=now)


def event(what: str, *arguments: st.SearchStrategy[Any]) -> st.SearchStrategy[tuple[Any, ...]]:
    return st.tuples(st.just(what), *arguments)


# As often as each is worth it.
EVENTS = st.one_of(
    event("work", AMONG, STEPS),
    event("work", AMONG, STEPS),
    event("work", AMONG, STEPS),
    event("claim", AMONG, STEPS),
    event("kill", AMONG, BOOL),
    event("sweep", BOOL),
    event("wait", st.sampled_from([30, 125, 400])),
    event("leave", AMONG, BOOL),
    st.one_of(event("finish", AMONG), event("stop", AMONG), event("beat", AMONG), event("beat", AMONG)),
    st.one_of(event("resend", AMONG, BOOL), event("launch", BOOL), event("wait", st.sampled_from([1, 4_000, 90_000]))),
    event("order", st.sampled_from([pause, pause, scheduling.resume, scheduling.resume, scheduling.cancel])),
    event("order", st.sampled_from([scheduling.resume, scheduling.unschedule, scheduling.send_now])),
)

# A failure found by the suite is not made smaller, which takes minutes: run the long profile for that.
settings.register_profile("suite", max_examples=120, stateful_step_count=30, phases=(Phase.explicit, Phase.generate))
settings.register_profile("long", max_examples=3_000, stateful_step_count=50)


class Ledger(RuleBasedStateMachine):
    """One campaign to six people, in batches of three and windows of two."""

    def __init__(self) -> None:
        super().__init__()
        self.now = NOW
        self.wire = Wire(on_dot=self.before_a_dot)
        self.workers: list[Worker] = []
        self.left: dict[int, int | None] = {}  # who left → the lease that had marked them by then
        self.may_be_unknown: set[int] = set()
        self.lost_journals: set[int] = set()
        self.resent: Counter[int] = Counter()

    @initialize(is_launched=st.sampled_from([True, True, True, False]))
    def begin(self, is_launched: bool) -> None:
        sender = SenderIdentity.objects.get()
        number = List.objects.count()
        self.list = List.objects.create(slug=f"list{number}", name="A list", sender=sender)
        self.people = Subscriber.objects.bulk_create(
            Subscriber(email=f"{number}.{i}@mail.example", email_key=f"{number}.{i}@mail.example")
            for i in range(PEOPLE)
        )
        Subscription.objects.bulk_create(
            Subscription(list=self.list, subscriber=person, state=Subscription.State.ACTIVE) for person in self.people
        )
        self.campaign = composing.create(list=self.list, subject="Rain", body="Hello").pk
        scheduling.schedule(self.campaign, self.now, now=self.now)
        if is_launched:
            self.launch(at_once=False)

    # What happens ------------------------------------------------------------------------------------------------

    @rule(event=EVENTS)
    def then(self, event: tuple[Any, ...]) -> None:
        """One rule for all, since Hypothesis leaves out rules at random, and without work nothing can go wrong."""
        what, *arguments = event
        self.note_doubt()
        getattr(self, what)(*arguments)
        self.note_doubt()

    def launch(self, at_once: bool) -> None:
        if at_once:
            assert sum(in_threads(lambda: scheduling.launch(self.campaign, now=self.now))) <= 1
        else:
            scheduling.launch(self.campaign, now=self.now)

    def claim(self, which: int, steps: list[Step]) -> None:
        """A message of the broker arrives, perhaps once more, perhaps for a batch that is done."""
        batches = list(Batch.objects.filter(campaign=self.campaign).order_by("pk").values_list("pk", flat=True))
        if batches:
            worker = self.work_on(batches[which % len(batches)])
            for step in steps:
                worker.step(step)

    def work(self, which: int, steps: list[Step]) -> None:
        if self.alive:
            worker = self.alive[which % len(self.alive)]
            for step in steps:
                worker.step(step)
        else:
            self.claim(which, steps)

    def finish(self, which: int) -> None:
        if self.alive:
            self.alive[which % len(self.alive)].run_out()

    def kill(self, which: int, keeps_journal: bool) -> None:
        if self.alive:
            worker = self.alive[which % len(self.alive)]
            worker.die()
            if not keeps_journal and worker.lease:
                journal.forget(worker.lease)
                self.lost_journals.add(worker.lease)

    def stop(self, which: int) -> None:
        """SIGTERM."""
        if self.alive:
            worker = self.alive[which % len(self.alive)]
            worker.is_told_to_stop = worker.must_end = True

    def beat(self, which: int) -> None:
        worker = self.alive[which % len(self.alive)] if self.alive else None
        heart = worker.heartbeat if worker else None
        if worker and heart:
            heart.look()
            heart.renew()
            worker.must_end = Campaign.objects.get(pk=self.campaign).state != CampaignState.SENDING

    def wait(self, seconds: int) -> None:
        self.now += timedelta(seconds=seconds)

    def sweep(self, at_once: bool) -> None:
        if at_once:
            in_threads(self.do_sweep)
        else:
            self.do_sweep()

    def order(self, what: Callable[..., None]) -> None:
        """An editor presses a button, perhaps too late."""
        with suppress(CampaignError):
            what(self.campaign, now=self.now)

    def leave(self, which: int, suppressed: bool) -> None:
        person = self.people[which % PEOPLE]
        row = Delivery.objects.filter(campaign_id=self.campaign, subscriber_id=person.pk).first()
        self.left.setdefault(person.pk, row.lease if row and row.state in {D.SENDING, D.UNKNOWN} else None)
        if suppressed:
            suppressing.suppress(person.email_key, reason="bounce", source="test", now=self.now)
        else:
            unsubscribing.unsubscribe(
                list_id=self.list.pk, subscriber_id=person.pk, campaign_id=None, source="test", now=self.now
            )

    def resend(self, which: int, everybody: bool) -> None:
        """An editor sends again to those in doubt."""
        doubted = [person for person, state, _, _ in self.rows() if state == D.UNKNOWN]
        people = None if everybody else doubted[which % len(doubted) :][:1] if doubted else []
        with suppress(CampaignError):
            doubting.resend(self.campaign, people=people, actor="", now=self.now)
            self.resent.update(doubted if people is None else people)

    # What must hold ----------------------------------------------------------------------------------------------

    def before_a_dot(self, worker: Worker, person: int) -> None:
        if person in self.left:
            assert self.left[person] == worker.lease, "somebody who had left was mailed"

    @invariant()
    def the_ledger_and_the_server_agree(self) -> None:
        for person, count in self.wire.taken.items():
            assert count <= 1 + self.resent[person], "somebody was mailed twice"
        for person, state, _lease, is_held in self.rows():
            if state == D.ACCEPTED:
                assert self.wire.taken[person], "the server has never seen this message"
            if self.wire.taken[person] and not self.resent[person]:
                assert state in {D.SENDING, D.ACCEPTED, D.UNKNOWN}, "somebody who has the mail may get it again"
            if state == D.UNKNOWN:
                assert person in self.may_be_unknown, "no crash left this doubt"
            if state == D.SENDING:
                assert is_held, "somebody is marked by a lease that is over"

    def teardown(self) -> None:
        if hasattr(self, "campaign"):
            try:
                self.work_off()
                self.judge_the_end()
            finally:
                for worker in self.workers:
                    worker.die()

    def work_off(self) -> None:
        """Everything that is due is done, as workers and sweeps do it."""
        self.note_doubt()
        for worker in self.alive:
            worker.run_out()
        for _ in range(60):
            campaign = Campaign.objects.get(pk=self.campaign)
            if campaign.state in {*ENDED, CampaignState.DRAFT} and not self.open_rows():
                return
            if campaign.state == CampaignState.PAUSED:
                scheduling.resume(self.campaign, now=self.now)
            scheduling.launch(self.campaign, now=self.now)
            self.note_doubt()
            self.do_sweep()
            for batch in Batch.objects.filter(campaign=self.campaign, state=Batch.State.ASIDE):
                batching.release(batch.pk, now=self.now)
            for batch_id in Batch.objects.filter(campaign=self.campaign, state="ready").values_list("pk", flat=True):
                worker = self.work_on(batch_id)
                worker.run_out()
            self.now += timedelta(minutes=2)

    def judge_the_end(self) -> None:
        campaign = Campaign.objects.get(pk=self.campaign)
        if campaign.state == CampaignState.DRAFT:
            assert not self.rows()
            return
        assert campaign.state in ENDED
        self.the_ledger_and_the_server_agree()
        assert not self.open_rows(), "somebody was left behind"
        with connection.cursor() as cursor:
            cursor.execute("WITH gone AS (DELETE FROM seen_move RETURNING *) SELECT DISTINCT was, now FROM gone")
            moves = {(D(was), D(now)) for was, now in cursor.fetchall()}
        assert all(now in states.DELIVERY_MOVES[was] for was, now in moves)

    # Bookkeeping -------------------------------------------------------------------------------------------------

    @property
    def alive(self) -> list[Worker]:
        return [worker for worker in self.workers if worker.is_alive]

    def work_on(self, batch_id: int) -> Worker:
        worker = Worker(batch_id, wire=self.wire, clock=lambda: self.now, name=f"worker {len(self.workers)}")
        self.workers.append(worker)
        return worker

    def do_sweep(self) -> None:
        batching.take_back_expired(now=self.now)
        batching.settle_ended()
        batching.finish_campaigns(now=self.now)

    def note_doubt(self) -> None:
        """Whom the next sweep may not be able to answer for."""
        for worker in self.workers:
            self.may_be_unknown |= worker.in_doubt
        self.may_be_unknown |= {person for person, _state, lease, _ in self.rows() if lease in self.lost_journals}

    def rows(self) -> list[tuple[int, int, int | None, bool]]:
        """The ledger: person, state, lease, and whether that lease is held now."""
        with connection.cursor() as cursor:
            cursor.execute(ROWS, [self.campaign])
            return list(cursor.fetchall())

    def open_rows(self) -> list[int]:
        return [person for person, state, _, _ in self.rows() if state not in FINAL]


ROWS = """
SELECT d.subscriber_id, d.state, d.lease, b.lease = d.lease AND b.state = 'leased'
  FROM campaigns_delivery d JOIN campaigns_batch b ON b.id = d.batch_id WHERE d.campaign_id = %s
"""


def in_threads(what: Callable[[], Any]) -> list[Any]:
    """Two at the same moment."""

    def once(_: int) -> Any:
        try:
            return what()
        finally:
            connections.close_all()

    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(once, range(2)))


def test_each_person_at_most_once_and_nobody_left_behind(
    sender: SenderIdentity, monkeypatch: pytest.MonkeyPatch, seen_moves: object
) -> None:
    monkeypatch.setattr(site, "BATCH_SIZE", BATCH)
    monkeypatch.setattr(freezing, "LEAST_IN_A_BATCH", BATCH)
    monkeypatch.setattr(delivering, "WINDOW", WINDOW)
    chosen = settings.get_profile(os.environ.get("HYPOTHESIS_PROFILE", "suite"))
    with hearts_by_hand():
        run_state_machine_as_test(
            Ledger,
            settings=settings(chosen, deadline=None, suppress_health_check=list(HealthCheck), print_blob=True),
        )
