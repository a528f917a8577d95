"""The child of `sandbox`: reads a job, does it, answers, until its parent is gone.

Run as `python -m newsletter.mailing.sandboxed PARENT`. See `sandbox` for the frames and the limits.
"""

import ctypes
import json
import os
import resource
import signal
import sys
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from typing import Any, BinaryIO

from newsletter.mailing import sandbox
from newsletter.mailing.compiling import Compiled, CompileError, Source, compile_source
from newsletter.mailing.headers import HeaderError
from newsletter.mailing.mergetags import MergeTagError
from newsletter.mailing.personalizing import Addresses, Personalizer, Recipient
from newsletter.mailing.slots import PersonalizeError
from newsletter.mailing.tokens import DeliveryKey, Keyring

_PR_SET_PDEATHSIG = 1
# Good for looking at a mail, for nothing else: the real keys stay in the parent.
_NO_KEYS = Keyring.parse(["1:nobody-is-let-in-by-this"])


def main() -> None:
    _die_with_parent(int(sys.argv[1]))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever a library prints is not an answer
    limit = _memory() + sandbox.MEMORY_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    while frame := _frame(sys.stdin.buffer):
        used = resource.getrusage(resource.RUSAGE_SELF)
        seconds = int(used.ru_utime + used.ru_stime) + 1 + sandbox.CPU_SECONDS
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, resource.RLIM_INFINITY))
        answer = _answer(json.loads(frame))
        answers.write(len(answer).to_bytes(sandbox.HEADER, "big") + answer)
        answers.flush()
        if b'"memory"' in answer[:40]:
            return  # what was left half done is not worth keeping


def _die_with_parent(parent: int) -> None:
    """On Linux the kernel sees to it; elsewhere the pipe's end does."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit()


def _memory() -> int:
    """Bytes of address space that this process has by now."""
    try:
        with open("/proc/self/statm", encoding="ascii") as statm:
            return int(statm.read().split()[0]) * resource.getpagesize()
    except OSError:
        return 1 << 30


def _frame(stream: BinaryIO) -> bytes:
    header = stream.read(sandbox.HEADER)
    return stream.read(int.from_bytes(header, "big")) if len(header) == sandbox.HEADER else b""


def _answer(job: dict[str, Any]) -> bytes:
    """The answer as JSON: what came of the job, or which error in which words."""
    try:
        answer = json.dumps({"answer": _JOBS[job.pop("kind")](job)}).encode()
        return answer if len(answer) <= sandbox.MOST_ANSWER else _refusal("memory", "")
    except (CompileError, MergeTagError, HeaderError) as error:
        return _refusal("compile", str(error))
    except PersonalizeError as error:
        return _refusal("fill", str(error))
    except MemoryError:
        return _refusal("memory", "")
    except RecursionError:
        return _refusal("compile", "The text is nested too deep to become a mail.")
    except Exception as error:  # a defect of ours or of a library; the parent writes it down
        return _refusal(f"{type(error).__name__}: {error}", "This text cannot become a mail; please tell us about it.")


def _refusal(error: str, sentence: str) -> bytes:
    return json.dumps({"error": error, "sentence": sentence}).encode()


def _compile(job: Mapping[str, Any]) -> dict[str, Any]:
    given = {**job["source"], "fields": frozenset(job["source"]["fields"])}
    date = datetime.fromisoformat(job["date"]) if job["date"] else None
    return compile_source(Source(**given), headers=job["headers"], date=date).to_json()


def _render(job: Mapping[str, Any]) -> list[dict[str, str]]:
    compiled = Compiled.from_json(job["compiled"])
    mail = _personalizer(compiled, job["addresses"])
    preheader = _personalizer(replace(compiled, subject=compiled.preheader, html=[], text=[]), job["addresses"])
    people = [Recipient(**{**one, "key": DeliveryKey(*one["key"])}) for one in job["recipients"]]
    return [{**vars(mail.rendered(person)), "preheader": preheader.rendered(person).subject} for person in people]


def _personalizer(compiled: Compiled, addresses: list[str]) -> Personalizer:
    return Personalizer(
        compiled,
        keyring=_NO_KEYS,
        addresses=Addresses(*addresses),
        mail_from="nobody@example.org",
        boundary="preview",
    )


_JOBS = {"compile": _compile, "render": _render}

if __name__ == "__main__":
    main()
