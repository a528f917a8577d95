"""Merge tags: read in linear time, bounded in what they cost, and blind for everything they are not given."""

import contextlib
import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from newsletter.mailing import bounds, mergetags
from newsletter.mailing.mergetags import Lifted, MergeTagError
from newsletter.mailing.slots import PersonalizeError
from tests.newsletter.mailing.building import compiled, person, personalizer


@pytest.mark.parametrize(
    "piece",
    ["{%", "{{", "{{}", "{% ", "(...", "{", "{% raw %}", "{{ '(..' }}", "{% comment %}", "{{ x['", "{{  ", "<b>x</b>"],
)
def test_a_megabyte_of_anything_is_read_in_a_moment(piece: str) -> None:
    source = (piece * (1_000_000 // len(piece)))[:1_000_000]
    begun = time.process_time()
    with contextlib.suppress(MergeTagError):
        mergetags.check(source, where="text")
    Lifted().lift(source)
    assert time.process_time() - begun < 3  # what is quadratic takes hours


@given(st.text(alphabet="{}% ab\n", max_size=60))
def test_tags_are_found_where_a_regular_expression_finds_them(source: str) -> None:
    slow = re.compile(r"\{\{.*?\}\}|\{%.*?%\}", re.DOTALL)
    assert list(mergetags.spans(source)) == [found.span() for found in slow.finditer(source)]
    lifted = Lifted()
    put_back = lifted.pattern.sub(lambda word: lifted.tags[int(word.group(1))], lifted.lift(source))
    assert put_back == source


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        ("a\n\n{{ name | shout }}", "use a filter that does not exist: shout"),
        ("a\n\n{{ name | }}", "in the text (line 3) cannot be read"),
        ("{{ a }}\n{% raw %}{{ x }}{% endraw %}", "in the text (line 2) cannot be read: there is no {% raw %}"),
        ("{% ! %}", "cannot be read: there is no {% … %}"),
        ("{{ " + "a" * 1_000 + " }}", "longer than 1,000 characters"),
        ("{{ a" + " " * 100 + "}}", "a hundred blanks in a row"),
        ("{{ a }}" * 1_001, "The text holds more than 1,000 merge tags."),
        ("{% for i in (1..2000) %}{% endfor %}", "The range (1..2000) in the text is too long"),
        ("{% for i in (a..b) %}{% endfor %}", "The range (a..b) in the text is too long"),
        ("{{ x | default: '(1..2' | append: (1..9999) }}", "The range (1..9999) in the text is too long"),
    ],
)
def test_what_cannot_be_used_is_one_sentence_with_its_line(source: str, sentence: str) -> None:
    with pytest.raises(MergeTagError) as caught:
        mergetags.check(source, where="text")
    assert sentence in str(caught.value)


def test_the_fields_that_tags_name_are_known() -> None:
    names = mergetags.check("{{ fields.city.size }}{% if age %}{{ name | default: nick }}{% endif %}", where="text")
    assert names == {"fields", "fields.city", "age", "name", "nick"}


@pytest.mark.parametrize(
    "source",
    [
        pytest.param(
            "".join(f"{{% for a in (1..{n}) %}}{{{{ a }}}}{{% endfor %}}" for n in range(500, 600)), id="loops in a row"
        ),
        pytest.param(
            "{% for a in (1..30) %}"
            + "{% for b in (1..30) %}{% if a == b %}{{ b }}{% endif %}{% endfor %}" * 60
            + "{% endfor %}",
            id="loops in a loop",
        ),
        pytest.param("{% for a in (1..1000) %}" + "{% if a %}{% endif %}" * 400 + "{% endfor %}", id="a long round"),
        pytest.param(
            "".join(f"{{{{ long | split: '' | sort | join: '' | size | plus: {n} }}}}" for n in range(300)),
            id="filters in a row",
        ),
        pytest.param("{% for a in (1..1000) %}{{ long | upcase | size }}{% endfor %}", id="a filter in a loop"),
    ],
)
def test_what_one_recipients_tags_may_do_together_is_bounded(source: str) -> None:
    mail = personalizer(compiled(source))
    begun = time.process_time()
    with pytest.raises(PersonalizeError, match="have too much to do"):
        mail.message(person(fields={"long": "a" * 9_000}))
    assert time.process_time() - begun < 3
    harmless = personalizer(compiled("{% for a in (1..1000) %}{{ a }} {% endfor %}"))
    assert "999 1000" in harmless.rendered(person()).text


def test_an_everyday_loop_is_far_from_the_limit() -> None:
    source = "{% for p in plants %}- [{{ p | capitalize }}](https://shed.example/{{ p }})\n{% endfor %}"
    text = personalizer(compiled(source)).rendered(person(fields={"plants": ["rose"] * 500})).text
    assert text.count("Rose") == 500


def test_a_long_attribute_is_cut_and_a_long_list_left_out() -> None:
    values = bounds.bounded({"city": "Bath", "bio": "ü" * 9_999, "all": ["x" * 100] * 200, "n": 3, "few": ["a"]})
    assert values == {"city": "Bath", "bio": "ü" * 5_000, "all": "", "n": 3, "few": ["a"]}
    assert bounds.read_values("{}") == {}
    assert bounds.read_values('{"city": "Bath"}') == {"city": "Bath"}
    assert len(bounds.read_values('{"bio": "' + "x" * 1_000_000 + '"}')["bio"]) == bounds.VALUE_LIMIT


@pytest.mark.parametrize(
    "path",
    [
        "settings.SECRET_KEY",
        "request.user",
        "name.__class__",
        "name.__class__.__mro__",
        "fields.__init__",
        "fields.keys",
        "fields.items",
        "name.format",
        "email.encode",
        "self",
        "_links.__class__",
        "_links._link",
        "subscriber",
        "subscribers",
        "campaign.list",
        "env",
        "forloop.parentloop",
        "os",
        "constants",
        "work",
        "fields['__class__']",
        "name['__class__']",
        "recipient.key",
        "_pixel",
        "globals",
        "template.env",
    ],
)
def test_a_path_to_anything_but_the_given_values_is_empty(path: str) -> None:
    mail = personalizer(
        compiled(f"[{{{{ {path} }}}}]{{% if {path} %}}reached{{% endif %}}", subject=f"<{{{{ {path} }}}}>")
    )
    shown = mail.rendered(person(fields={"city": "Bath"}))
    assert "[]" in shown.text
    assert "reached" not in shown.text
    assert shown.subject == "<>"


@pytest.mark.parametrize("filter_name", sorted(bounds.ALLOWED_FILTERS))
def test_every_filter_takes_a_field_that_nobody_has(filter_name: str) -> None:
    arguments = {"append": ": ''", "prepend": ": ''", "remove": ": 'x'", "remove_first": ": 'x'", "slice": ": 0, 1"}
    arguments |= {"replace": ": 'x', 'y'", "replace_first": ": 'x', 'y'", "split": ": ' '", "date": ": '%Y'"}
    arguments |= dict.fromkeys(("divided_by", "minus", "modulo", "plus", "times"), ": 3")
    arguments |= {"default": ": 'x'", "concat": ": nobody", "map": ": 'x'", "where": ": 'x'"}
    source = f"a {{{{ nobody | {filter_name}{arguments.get(filter_name, '')} }}}} b"
    text = personalizer(compiled(source)).rendered(person()).text
    assert text.startswith("a ")
