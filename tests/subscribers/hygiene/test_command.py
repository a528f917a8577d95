"""manage.py hygiene: the contract for automation."""

import csv
import json
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from django.core.management import CommandError, call_command

from subscribers.models import HygienePolicy
from tests.subscribers.hygiene.building import Letters, make_list, subscribe

pytestmark = pytest.mark.django_db


@pytest.fixture
def letters() -> Letters:
    made = Letters.weekly(make_list(), 30)
    HygienePolicy.objects.create(list=made.to, cap_percent=100)
    reader, *others = subscribe(made.to, "reader", "ann", "ben")
    subscribe(made.to, "private", consent="none")
    made.deliver([reader, *others])
    made.read(reader, *range(1, 31))
    return made


def hygiene(*arguments: str) -> dict[str, Any]:
    out = StringIO()
    call_command("hygiene", *arguments, "--json", stdout=out)
    found: dict[str, Any] = json.loads(out.getvalue())
    return found


def test_preview_run_and_undo(letters: Letters, tmp_path: Path) -> None:
    at, names = letters.end.isoformat(), tmp_path / "names.csv"
    seen = hygiene("preview", "--list", "weekly", "--at", at, "--csv", str(names))
    assert list(seen) == ["preview", "judged", "would_ask", "would_remove", "held_back"]
    assert (seen["judged"], seen["would_ask"], seen["would_remove"], seen["held_back"]) == (3, 0, 2, {"no_consent": 1})
    with names.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["email"] for row in rows] == ["ann@example.org", "ben@example.org"]
    assert rows[0]["reason"].startswith("Got 30 issues")
    made = hygiene("run", "--list", "weekly", "--at", at, "--approve", str(seen["preview"]))
    assert (list(made), made["asked"], made["removed"], made["spared"]) == (
        ["run", "asked", "removed", "spared"],
        0,
        2,
        0,
    )
    assert hygiene("undo", str(made["run"])) == {"restored": 2}
    assert hygiene("undo", str(made["run"])) == {"restored": 0}


def test_without_json_it_speaks_plainly(letters: Letters) -> None:
    out = StringIO()
    call_command("hygiene", "preview", "--list", "weekly", "--at", letters.end.isoformat(), stdout=out)
    assert "3 judged, 2 would no longer be mailed." in out.getvalue()
    assert "1 not judged. They do not want their reading to be tracked" in out.getvalue()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("preview", "--list", "nowhere"), "There is no list called nowhere."),
        (("preview", "--list", "weekly", "--at", "yesterday"), "is not a time such as"),
        (("preview", "--list", "weekly", "--at", "0001-01-01T00:00:00+14:00"), "--at must lie between"),
        (("preview", "--list", "weekly", "--at", "9999-12-31T23:59:59-14:00"), "--at must lie between"),
        (("preview", "--list", "weekly", "--csv", "/no/such/folder/names.csv"), "cannot be written"),
        (("run", "--list", "weekly"), "needs a preview that a person has approved"),
        (("run", "--list", "weekly", "--approve", "12345"), "There is no preview 12345."),
        (("undo", "12345"), "There is no hygiene run 12345."),
    ],
)
def test_bad_input_is_one_sentence_and_exit_2(letters: Letters, arguments: tuple[str, ...], sentence: str) -> None:
    with pytest.raises(CommandError, match=sentence) as refused:
        hygiene(*arguments)
    assert refused.value.returncode == 2
    assert "\n" not in str(refused.value)
