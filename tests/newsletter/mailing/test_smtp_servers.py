"""Several servers: their shares, what happens when one does not work, and when it comes back."""

import contextlib
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
from django.conf import LazySettings
from django.core.mail import EmailMessage

from newsletter.env import BASE_DIR, email_url
from newsletter.mailing.transports import smtp_server
from newsletter.mailing.transports.base import Report, Result, TransportError
from newsletter.mailing.transports.smtp import SHORTEST_WAIT, SmtpTransport
from newsletter.mailing.transports.smtp_server import Server
from tests.conftest import MailServer
from tests.newsletter.mailing.test_smtp import FOREVER, MAIL, Dialogue, people, server, takes_all

NOWHERE = "smtp://127.0.0.1:1"
ACCEPTED = Result.ACCEPTED


class Tally:
    """Servers that take all, and count by name."""

    def __init__(self) -> None:
        self.taken: Counter[str] = Counter()
        self._lock = threading.Lock()

    def by(self, name: str, *, until: int = 1_000_000) -> Callable[[Dialogue], None]:
        def answer(dialogue: Dialogue) -> None:
            dialogue.ehlo("PIPELINING")
            while dialogue.envelope():
                dialogue.body()
                with self._lock:
                    if self.taken[name] >= until:
                        return
                    self.taken[name] += 1
                dialogue.say("250 2.0.0 taken")

        return answer


def deliver(transport: SmtpTransport, count: int) -> list[Report]:
    reports = list(transport.deliver(MAIL, people(count), until=lambda: FOREVER))
    assert len({report.key for report in reports}) == len(reports), "each exactly once"
    return reports


@contextlib.contextmanager
def transport_to(*urls: str) -> Iterator[SmtpTransport]:
    transport = SmtpTransport(email_url(" ".join(urls)))
    yield transport
    transport.close()


def all_accepted(reports: list[Report], count: int) -> bool:
    return Counter(report.result for report in reports) == {ACCEPTED: count}


# Shares ------------------------------------------------------------------------------------------------------------


def test_messages_are_shared_by_weight() -> None:
    tally = Tally()
    with (
        server(tally.by("one")) as one,
        server(tally.by("two")) as two,
        transport_to(f"{one}?weight=3&connections=2", f"{two}?connections=2") as transport,
    ):
        assert all_accepted(deliver(transport, 800), 800)
    assert tally.taken.total() == 800
    assert 560 <= tally.taken["one"] <= 640


def test_a_silent_server_is_not_waited_for_by_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(smtp_server, "SLOW_SECONDS", 0.1)
    tally, over = Tally(), threading.Event()

    def silent(dialogue: Dialogue) -> None:
        dialogue.ehlo("PIPELINING")
        dialogue.line()
        over.wait(30)

    with (
        server(tally.by("one")) as one,
        server(silent) as two,
        transport_to(f"{one}?connections=1", f"{two}?connections=1&weight=9") as transport,
    ):
        for number, report in enumerate(transport.deliver(MAIL, people(100), until=lambda: FOREVER), start=1):
            assert report.result is ACCEPTED
            if number == 99:  # the silent one holds one
                over.set()
    assert tally.taken["one"] == 100


def test_a_server_that_was_away_has_nothing_to_make_up_for() -> None:
    one, two = (Server(email_url(f"smtp://{name}.example?connections=1")) for name in ("one", "two"))
    for _ in range(100):
        assert one.may_take([one, two])
        one.share += 1
    assert two.share >= 99


def test_the_log_can_tell_by_which_server_each_message_went(caplog: pytest.LogCaptureFixture) -> None:
    tally = Tally()
    with (
        server(tally.by("one")) as one,
        server(tally.by("two")) as two,
        transport_to(one, two) as transport,
        caplog.at_level(logging.DEBUG, logger="newsletter.mailing.transports.smtp"),
    ):
        deliver(transport, 40)
    lines = [record.getMessage() for record in caplog.records]
    for url, name in ((one, "one"), (two, "two")):
        assert sum(url.removeprefix("smtp://") in line for line in lines) == tally.taken[name]


# Fail-over ---------------------------------------------------------------------------------------------------------


def test_a_server_that_cannot_be_reached_is_left_out(caplog: pytest.LogCaptureFixture) -> None:
    tally = Tally()
    with server(tally.by("two")) as two, transport_to(NOWHERE, two) as transport, caplog.at_level(logging.WARNING):
        for _ in range(3):
            assert all_accepted(deliver(transport, 40), 40)
        assert transport._servers[0].is_resting(alone=False)
    warnings = [record.getMessage() for record in caplog.records if record.name.startswith("newsletter.mailing")]
    assert warnings == ["The mail server 127.0.0.1:1 cannot be used: Connection refused."], "tried once"


def test_a_server_that_says_that_it_is_out_of_service_is_left_out() -> None:
    tally = Tally()

    def out_of_service(dialogue: Dialogue) -> None:
        dialogue.say("421 4.3.2 out of service")

    with server(out_of_service) as one, server(tally.by("two")) as two, transport_to(one, two) as transport:
        assert all_accepted(deliver(transport, 40), 40)
        assert "421 4.3.2 out of service" in transport._servers[0].why


def test_a_black_hole_holds_nobody_up() -> None:
    """A server whose greeting never comes takes its thirty seconds beside the loop, not in it."""
    tally = Tally()
    with socket.create_server(("127.0.0.1", 0)) as hole, server(tally.by("two")) as two:
        port = hole.getsockname()[1]
        with transport_to(f"smtp://127.0.0.1:{port}", two) as transport:
            assert all_accepted(deliver(transport, 40), 40)
            assert transport._servers[0].opening == 1


def test_a_server_that_stops_in_the_middle_leaves_the_rest_to_the_other() -> None:
    tally = Tally()
    with (
        server(tally.by("one", until=30)) as one,
        server(tally.by("two")) as two,
        transport_to(f"{one}?connections=2", f"{two}?connections=2") as transport,
    ):
        reports = deliver(transport, 300)
    results = Counter(report.result for report in reports)
    # It takes every further message without an answer: each connection leaves one in doubt, until it is left out.
    assert results[Result.UNKNOWN] <= smtp_server.LOSSES + 2 * 2
    assert results[ACCEPTED] == 300 - results[Result.UNKNOWN]
    assert results[ACCEPTED] <= tally.taken.total() <= 300
    assert tally.taken["one"] == 30


def test_a_server_that_drops_connections_before_the_final_dot_costs_nobody() -> None:
    tally, dropped = Tally(), threading.Event()

    def drops(dialogue: Dialogue) -> None:
        dialogue.ehlo("PIPELINING")
        dialogue.line()
        if dialogue.number > smtp_server.LOSSES:
            dropped.set()

    def waits(dialogue: Dialogue) -> None:
        dropped.wait(10)
        tally.by("two")(dialogue)

    with server(drops) as one, server(waits) as two, transport_to(f"{one}?connections=1", two) as transport:
        assert all_accepted(deliver(transport, 300), 300)
        assert "ends one connection after the other" in transport._servers[0].why


def test_a_server_that_comes_back_in_mid_campaign_is_used_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(smtp_server, "REST_SECONDS", (0.0, 0.0))
    monkeypatch.setattr(smtp_server, "REST_ALONE_SECONDS", (0.0, 0.0))
    tally, is_up = Tally(), threading.Event()

    def sometimes(dialogue: Dialogue) -> None:
        if not is_up.is_set():
            dialogue.say("421 4.3.2 out of service")
            return
        tally.by("one")(dialogue)

    with (
        server(sometimes) as one,
        server(tally.by("two")) as two,
        transport_to(f"{one}?connections=2", f"{two}?connections=2") as transport,
    ):
        for number, report in enumerate(transport.deliver(MAIL, people(1_000), until=lambda: FOREVER), start=1):
            assert report.result is ACCEPTED
            if number == 100:
                assert not tally.taken["one"]
                is_up.set()
    assert tally.taken.total() == 1_000
    assert tally.taken["one"] > 100


def test_only_when_no_server_works_is_it_said_with_the_reason_of_each() -> None:
    def out_of_service(dialogue: Dialogue) -> None:
        dialogue.say("554 5.3.2 no service")

    with server(out_of_service) as one, transport_to(one, NOWHERE) as transport:
        with pytest.raises(TransportError) as refused:
            deliver(transport, 3)
        assert "“554 5.3.2 no service”" in str(refused.value)
        assert "Connection refused" in str(refused.value)
        waiting = iter(people(3))
        with pytest.raises(TransportError, match="Connection refused") as resting:
            list(transport.deliver(MAIL, waiting, until=lambda: FOREVER))
        # Asked to wait: that counts as no further failure of the transport.
        assert (refused.value.retry_after, resting.value.retry_after) == (None, SHORTEST_WAIT)
        assert len(list(waiting)) == 3, "while all rest nobody is marked as being sent"


def test_two_threads_at_once_hurt_neither(mail_server: MailServer) -> None:
    with transport_to(f"{mail_server.url}?connections=2") as transport:
        under_way = transport.deliver(MAIL, people(20), until=lambda: FOREVER)
        first = next(under_way)
        with ThreadPoolExecutor(2) as pool:
            for reports in pool.map(lambda _: deliver(transport, 20), range(2)):
                assert all_accepted(reports, 20)
        assert all_accepted([first, *under_way], 20)
        assert all_accepted(deliver(transport, 20), 20)
    assert len(mail_server.received) == 80


# Rests -------------------------------------------------------------------------------------------------------------


def test_rests_grow_to_a_limit_and_end_with_an_answer() -> None:
    now = 0.0
    one = Server(email_url("smtp://one.example"), clock=lambda: now)

    def rest(*, alone: bool) -> float:
        """How long it rests from now on, to a second."""
        nonlocal now
        begun = now
        while one.is_resting(alone=alone):
            now += 1
        found, now = now - begun, begun
        return found

    rests, rests_alone = [], []
    for _ in range(7):
        one.failed("It is down.")
        rests.append(rest(alone=False))
        rests_alone.append(rest(alone=True))
    assert rests == [30, 60, 120, 240, 480, 600, 600]
    assert rests_alone == [1, 2, 4, 8, 16, 30, 30]
    one.answered()
    assert not one.is_resting(alone=False)
    one.failed("It is down again.")
    assert rest(alone=False) == 30


def test_one_that_allows_fewer_connections_is_not_asked_again_at_once() -> None:
    refused: list[int] = []

    def answer(dialogue: Dialogue) -> None:
        if dialogue.number > 0:
            refused.append(dialogue.number)
            dialogue.say("421 4.7.0 too many connections")
            return
        takes_all("PIPELINING")(dialogue)

    with server(answer) as url, transport_to(f"{url}?connections=4") as transport:
        assert all_accepted(deliver(transport, 300), 300)
        first = len(refused)
        assert first <= 3
        assert all_accepted(deliver(transport, 300), 300)
        assert len(refused) == first
        assert not transport._servers[0].is_resting(alone=True)


# A server killed in mid-campaign -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sink:
    process: "subprocess.Popen[str]"
    url: str
    log: Path

    @property
    def taken(self) -> list[str]:
        return self.log.read_text(encoding="utf-8").split() if self.log.exists() else []


@contextlib.contextmanager
def sink(log: Path, *, connections: int) -> Iterator[Sink]:
    """A server that takes everything, in a process of its own; its log says whose mail it took."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "benchmarks.sink", "--port", str(port), "--log", str(log)]
    with subprocess.Popen(command, cwd=BASE_DIR, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stdout.readline() == "ready\n"
        yield Sink(process, f"smtp://127.0.0.1:{port}?connections={connections}", log)
        process.kill()


@pytest.mark.parametrize("connections", [1, 4])
def test_a_server_killed_in_mid_campaign_loses_nobody_and_nobody_gets_two(tmp_path: Path, connections: int) -> None:
    with (
        sink(tmp_path / "one", connections=connections) as one,
        sink(tmp_path / "two", connections=connections) as two,
        transport_to(one.url, two.url) as transport,
    ):
        reports: list[Report] = []
        for report in transport.deliver(MAIL, people(2_000), until=lambda: FOREVER):
            reports.append(report)
            if len(reports) == 500:
                os.kill(one.process.pid, signal.SIGKILL)
        results = Counter(report.result for report in reports)
        assert set(results) <= {ACCEPTED, Result.UNKNOWN}
        assert results.total() == 2_000 == len({report.key for report in reports})
        assert results[Result.UNKNOWN] <= connections
        taken = one.taken + two.taken
        assert len(taken) == len(set(taken)), "nobody twice"
        accepted = {f"p{report.key.subscriber_id}@mail.example" for report in reports if report.result is ACCEPTED}
        assert accepted <= set(taken), "nobody is called accepted who was not"
        assert one.taken
        assert len(two.taken) > 1_000


# Django's own mail -------------------------------------------------------------------------------------------------


def test_djangos_own_mail_takes_the_first_server_that_works(mail_server: MailServer, settings: LazySettings) -> None:
    settings.MAIL_TRANSPORT = email_url(f"{NOWHERE} {mail_server.url} smtp://127.0.0.1:2")
    assert EmailMessage("Hello", "Text", "ann@shed.example", ["bea@mail.example"]).send() == 1
    assert mail_server.recipients == ["bea@mail.example"]
    settings.MAIL_TRANSPORT = email_url(f"{NOWHERE} smtp://127.0.0.1:2")
    with pytest.raises(ConnectionRefusedError):
        EmailMessage("Hello", "Text", "ann@shed.example", ["bea@mail.example"]).send()
    assert EmailMessage("Hello", "Text", "ann@shed.example", ["bea@mail.example"]).send(fail_silently=True) == 0
