"""`manage.py create_campaign`: a draft from a file, in each of the three ways to write."""

import json
from io import StringIO
from pathlib import Path

import pytest
from django.core.management import CommandError, call_command

from campaigns.models import Campaign
from subscribers.models import List

pytestmark = pytest.mark.django_db
TEXTS = {
    "markdown": "# Hello {{ name }}",
    "mjml": "<mj-text>Hello {{ name }}</mj-text>",
    "html": "<p>Hello {{ name }}</p>",
}


def create(file: Path, *flags: str) -> Campaign:
    out = StringIO()
    arguments = ["--list", "garden", "--subject", "Rain", "--body", str(file), "--json", *flags]
    call_command("create_campaign", *arguments, stdout=out)
    return Campaign.objects.get(pk=json.loads(out.getvalue())["campaign"])


@pytest.mark.parametrize("kind", TEXTS)
def test_a_draft_is_made_of_each_kind_of_file(garden: List, tmp_path: Path, kind: str) -> None:
    file = tmp_path / "text.txt"
    file.write_text(TEXTS[kind])
    assert create(file, "--format", kind).format == kind


@pytest.mark.parametrize(
    ("name", "kind"), [("a.md", "markdown"), ("a.MJML", "mjml"), ("a.htm", "html"), ("a", "markdown")]
)
def test_the_kind_is_known_by_the_files_ending(garden: List, tmp_path: Path, name: str, kind: str) -> None:
    (tmp_path / name).write_text(TEXTS[kind])
    assert create(tmp_path / name).format == kind


@pytest.mark.parametrize(
    ("body", "kind", "sentence"),
    [
        ("<mj-text>a\n<script></script></mj-text>", "mjml", r"The text holds <script> \(line 2\)"),
        ("x" * 1_000_001, "markdown", "The text has 1.0 MB; more than 1 MB cannot become a mail."),
        ("{%" * 20_000, "html", "opened with {% but never closed"),
    ],
)
def test_a_text_that_is_no_mail_leaves_no_draft(
    garden: List, tmp_path: Path, body: str, kind: str, sentence: str
) -> None:
    (tmp_path / "a").write_text(body)
    with pytest.raises(CommandError, match=sentence) as caught:
        create(tmp_path / "a", "--format", kind)
    assert caught.value.returncode == 2
    assert not Campaign.objects.exists()
