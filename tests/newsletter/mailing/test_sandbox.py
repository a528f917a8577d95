"""The child process: the same mail as in ours, cut off when it runs away, and gone when we are."""

import os
import resource
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from newsletter.mailing import sandbox
from newsletter.mailing.compiling import CompileError, compile_source
from newsletter.mailing.slots import PersonalizeError
from tests.conftest import NOW
from tests.newsletter.mailing.building import HEADERS, LETTER, SITE, compiled, person, source

# A thousandfold of itself: each of many elements gets each of many declarations.
MANY_STYLES = "<style>" + "".join(f"p{{a{i}:1}}" for i in range(3_000)) + "</style>" + "<p>" * 200_000
# Looked for to the end from each place.
MANY_COMMENTS = "<!--" * 240_000
LETTERS = source("Hi {{ name }}", layout=LETTER, preheader="For {{ name }}", subject="To {{ first_name }}")


def child() -> psutil.Process:
    """The child that waits for work."""
    return psutil.Process(sandbox._children._idle[-1]._process.pid)


def test_it_makes_the_same_mail() -> None:
    mail = sandbox.compile_source(LETTERS, headers=HEADERS, date=NOW)
    assert mail == compile_source(LETTERS, headers=HEADERS, date=NOW)
    ada, ben = sandbox.render(mail, [person(), person(name="", fields={"city": "Bath"})], addresses=SITE)
    assert (ada.subject, ada.preheader) == ("To Ada", "For Ada Green")
    assert "Hi Ada Green" in ada.html
    assert "Hi Ada Green" in ada.text
    assert ben.subject == "To"


def test_its_refusals_are_ours() -> None:
    with pytest.raises(CompileError, match="but never closed with"):
        sandbox.compile_source(source("{{ name"), headers=HEADERS)
    with pytest.raises(PersonalizeError, match="cannot be filled in"):
        sandbox.render(compiled("{{ 1 | divided_by: nothing }}"), [person()], addresses=SITE)
    loop = "{% for a in (1..1000) %}" + "{% if a %}{% endif %}" * 400 + "{% endfor %}"
    with pytest.raises(PersonalizeError, match="too much to do"):
        sandbox.render(compiled(loop), [person()], addresses=SITE)


def test_it_is_kept_for_the_next_job() -> None:
    sandbox.compile_source(LETTERS, headers=HEADERS)
    before = child().pid
    sandbox.render(compiled(), [person()], addresses=SITE)
    assert child().pid == before


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        pytest.param(MANY_COMMENTS, "This mail takes more than 2 seconds to compute", id="time"),
        pytest.param(MANY_STYLES, "This mail takes too much memory to compute", id="memory"),
    ],
)
def test_what_runs_away_is_cut_off_with_a_sentence_and_costs_us_nothing(body: str, sentence: str) -> None:
    sandbox.compile_source(LETTERS, headers=HEADERS)
    before, peak = child(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(sandbox.RunawayError, match=sentence):
        sandbox.compile_source(source(body, format="html"), headers=HEADERS)
    assert not before.is_running()
    begun = time.monotonic()
    with pytest.raises(sandbox.RunawayError, match=sentence):  # at once: a page asks more than once
        sandbox.compile_source(source(body, format="html"), headers=HEADERS)
    assert time.monotonic() - begun < 1
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak < 30_000  # kilobytes
    assert sandbox.compile_source(LETTERS, headers=HEADERS).links == []


def test_it_has_none_of_our_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SECRET_KEY", "TOKEN_KEYS", "DATABASE_URL"):
        monkeypatch.setenv(name, "not-for-children")
    monkeypatch.setattr(sandbox, "_children", sandbox._Children())
    sandbox.compile_source(LETTERS, headers=HEADERS)
    assert "not-for-children" not in str(child().environ())
    assert not [one for one in child().open_files() if "tmp" in one.path]
    child().kill()


def test_one_that_was_killed_while_it_waited_is_replaced() -> None:
    sandbox.compile_source(LETTERS, headers=HEADERS)
    child().send_signal(signal.SIGKILL)
    assert sandbox.compile_source(LETTERS, headers=HEADERS).links == []


def test_many_threads_share_a_few_children() -> None:
    with ThreadPoolExecutor(8) as pool:
        mails = list(pool.map(lambda _: sandbox.compile_source(LETTERS, headers=HEADERS, date=NOW), range(24)))
    assert all(mail == mails[0] for mail in mails)
    assert len(sandbox._children._idle) <= sandbox.CHILDREN


def test_a_fork_starts_a_child_of_its_own() -> None:
    sandbox.compile_source(LETTERS, headers=HEADERS)
    before = child().pid
    forked = os.fork()
    if not forked:
        sandbox.compile_source(LETTERS, headers=HEADERS)
        os._exit(0 if child().pid != before else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(forked, 0)[1]) == 0
    assert child().pid == before
    assert sandbox.compile_source(LETTERS, headers=HEADERS).links == []


def test_it_does_not_outlive_a_parent_that_was_killed_not_even_in_mid_job() -> None:
    program = (
        "from newsletter.mailing import sandbox\n"
        "from tests.newsletter.mailing.building import HEADERS, source\n"
        "sandbox.compile_source(source(), headers=HEADERS)\n"
        "print(sandbox._children._idle[-1]._process.pid, flush=True)\n"
        "endless = source('<!--' * 240_000, format='html')\n"
        "sandbox.compile_source(endless, headers=HEADERS)\n"
    )
    root = Path(__file__).parents[3]
    with subprocess.Popen([sys.executable, "-c", program], cwd=root, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout
        orphan = psutil.Process(int(parent.stdout.readline()))
        parent.kill()
    left = psutil.wait_procs([orphan], timeout=1.5)[1]
    assert [one for one in left if one.status() != psutil.STATUS_ZOMBIE] == []
