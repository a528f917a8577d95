"""Programs under one process: order of the end, restarts, patience; and what a killed start leaves is found again."""

import io
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from newsletter import orphans, supervising
from newsletter.supervising import Program, Supervisor

LOOP = "import time\nwhile True: time.sleep(60)"
STUBBORN = f"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True)\n{LOOP}"


def program(name: str, code: str, **options: float) -> Program:
    found = Program(name, [sys.executable, "-c", code])
    return replace(found, **options)  # type: ignore[arg-type]


def supervisor() -> Supervisor:
    return Supervisor(lambda running: None, output=io.StringIO())


def printed(found: Supervisor) -> list[str]:
    output = found._printer.output
    assert isinstance(output, io.StringIO)
    return [line.split("| ", 1)[1] for line in output.getvalue().splitlines() if "| " in line]


def pump_until(found: Supervisor, condition: Callable[[], bool], seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, printed(found)
        found.pump()


def test_programs_stop_in_stages_and_their_last_words_are_printed() -> None:
    code = "import signal, sys\nsignal.signal(signal.SIGTERM, lambda *_: sys.exit(print('bye', '{0}')))\nprint('up', '{0}', flush=True)\nsignal.pause()"  # noqa: E501
    with supervisor() as running:
        for name, stage in (("late", 1), ("early", 0)):
            running.start(program(name, code.format(name), stop_stage=stage))
        pump_until(running, lambda: {"up late", "up early"} <= set(printed(running)))
    assert printed(running)[-4:] == ["stopping early", "bye early", "stopping late", "bye late"]


def test_a_program_that_does_not_end_is_killed_with_its_children() -> None:
    spawn = f"import subprocess, sys\nprint(subprocess.Popen([sys.executable, '-c', {LOOP!r}]).pid, flush=True)"
    code = f"{spawn}\n{STUBBORN}"
    with supervisor() as running:
        running.start(program("deaf", code, stop_seconds=0.2))
        pump_until(running, lambda: "deaf" in printed(running))
        child = psutil.Process(int(printed(running)[0]))
    assert "deaf does not end; killing it" in printed(running)
    assert psutil.wait_procs([child], timeout=5)[1] == []


def test_a_second_wish_ends_the_patience_and_a_repeated_signal_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    running = supervisor()
    with running.signals(), running:
        running.start(program("deaf", STUBBORN, stop_seconds=60))
        pump_until(running, lambda: "deaf" in printed(running))
        for _ in range(3):  # the group's and the one that make hands on
            os.kill(os.getpid(), signal.SIGTERM)
        assert running._signals == 1
        monkeypatch.setattr(supervising, "SAME_WISH_SECONDS", 0.0)
        signal.setitimer(signal.ITIMER_REAL, 0.3)
        before = signal.signal(signal.SIGALRM, lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    signal.signal(signal.SIGALRM, before)
    assert "deaf does not end; killing it" in printed(running)


def test_what_falls_over_is_started_again_and_what_falls_at_once_ends_everything(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with supervisor() as running:
        one = program("one", f"print('up', flush=True)\n{LOOP}")
        running.start(one)
        pump_until(running, lambda: printed(running) == ["up"])
        monkeypatch.setattr(supervising, "SHORTEST_LIFE", 0.0)
        os.kill(one.pid or 0, signal.SIGKILL)
        pump_until(running, lambda: printed(running).count("up") == 2)
        assert "one ended (killed by SIGKILL); starting it again" in printed(running)

        monkeypatch.setattr(supervising, "SHORTEST_LIFE", 60.0)
        os.kill(one.pid or 0, signal.SIGKILL)
        pump_until(running, lambda: running.asked_to_stop)
        assert running.returncode == 1


def test_a_failed_engine_ends_everything_with_a_word() -> None:
    with supervisor() as running:
        assert running.run(watch=lambda: "PostgreSQL has ended") == 1
    assert printed(running) == ["PostgreSQL has ended; stopping everything"]


def test_a_program_that_is_meant_to_end_gives_its_exit_status() -> None:
    with supervisor() as running:
        assert running.finish(program("once", "raise SystemExit(3)")) == 3
        assert not running.asked_to_stop


@pytest.fixture
def leader() -> Iterator[tuple[subprocess.Popen[bytes], psutil.Process]]:
    """A session's leader and its child, as a supervisor would have started them."""
    code = f"import subprocess, sys\nsubprocess.Popen([sys.executable, '-c', {LOOP!r}])\nprint(flush=True)\n{LOOP}"
    environment = {**os.environ, orphans.MARK: "start-1"}
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, env=environment, start_new_session=True
    )
    assert process.stdout is not None
    process.stdout.readline()
    yield process, psutil.Process(process.pid).children()[0]
    orphans.end_group(process.pid)
    process.wait()


def gone(process: psutil.Process) -> bool:
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


def test_what_was_written_down_is_ended_with_its_children(
    leader: tuple[subprocess.Popen[bytes], psutil.Process], tmp_path: Path
) -> None:
    process, child = leader
    identity = orphans.remember("web", process.pid, "start-1")
    assert identity is not None
    orphans.write(tmp_path / "processes.json", [identity])
    assert orphans.end(orphans.read(tmp_path / "processes.json"), kill_after=0.5) == ["web"]
    assert process.poll() is not None or process.wait(2) is not None
    assert gone(child)


def test_children_whose_leader_is_gone_are_ended_by_the_mark_that_they_carry(
    leader: tuple[subprocess.Popen[bytes], psutil.Process],
) -> None:
    process, child = leader
    identity = orphans.remember("web", process.pid, "start-1")
    assert identity is not None
    process.kill()
    process.wait()
    assert orphans.end([replace(identity, mark="another")]) == []
    assert not gone(child)
    assert orphans.end([identity]) == ["web"]
    assert gone(child)


def test_a_stranger_with_the_same_number_and_a_process_of_another_boot_are_left_alone(
    leader: tuple[subprocess.Popen[bytes], psutil.Process],
) -> None:
    process, _ = leader
    identity = orphans.remember("web", process.pid, "start-1")
    assert identity is not None
    assert orphans.end([replace(identity, started=identity.started - 5), replace(identity, boot="before")]) == []
    assert process.poll() is None


def test_an_unreadable_memory_is_no_memory(tmp_path: Path) -> None:
    (tmp_path / "processes.json").write_text('[{"pid": 1', encoding="utf-8")
    assert orphans.read(tmp_path / "processes.json") == orphans.read(tmp_path / "missing") == []
