"""Compiling a 60 KB MJML document once, and filling it in for each recipient.

    python -m benchmarks.compile [--kilobytes 60] [--recipients 20000] [--json]

The document is an issue of articles: a picture, a heading, three paragraphs and a button each, with three merge tags, a
condition and a style sheet to inline. The limits of the same run: mrml alone (MJML to HTML, without inlining, links,
checks, text part or pieces), and for a recipient joining ready bytes of the same sizes into one message.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable

import mrml
import psutil

from benchmarks.harness import Result, say
from newsletter.mailing.compiling import Compiled, Source, compile_source
from newsletter.mailing.headers import list_id
from newsletter.mailing.personalizing import Addresses, Personalizer, Recipient
from newsletter.mailing.tokens import DeliveryKey, Keyring

PARAGRAPH = (
    "<p>The ground is warm enough for beans now and still too cold for basil. Water in the evening, mulch in the "
    "morning, and leave one corner wild: half of what eats your aphids lives there. Whoever sows in rows should sow "
    "every fortnight; whoever broadcasts should thin by hand, and eat what was thinned.</p>"
)
ARTICLE = """
<mj-section padding="12px 0">
  <mj-column width="35%">
    <mj-image src="https://images.shed.example/{n}.jpg" alt="A picture of bed {n}" />
  </mj-column>
  <mj-column width="65%" css-class="card">
    <mj-text font-size="20px"><h2>What to sow in bed {n}</h2></mj-text>
    <mj-text>{paragraphs}</mj-text>
    <mj-button href="https://shed.example/{n}?from=letter&amp;bed={n}">Read on</mj-button>
  </mj-column>
</mj-section>"""
DOCUMENT = """<mjml><mj-head><mj-title>{{{{ subject }}}}</mj-title>
<mj-style>.card p {{ margin: 0 0 12px }} .card a {{ color: #167f42 }}
@media (max-width: 480px) {{ .card p {{ margin: 0 0 8px }} }}</mj-style></mj-head>
<mj-body background-color="#f3f6f4"><mj-section><mj-column><mj-text>
<h1>Hello {{{{ first_name | default: "gardener" }}}}</h1><p>It rains in {{{{ city }}}}.</p>
{{% if city == "Bath" %}}<p>See you at the pump room.</p>{{% endif %}}</mj-text></mj-column></mj-section>{articles}
<mj-section><mj-column><mj-text><a href="{{{{ unsubscribe_url }}}}">Unsubscribe</a>, {{{{ email }}}},
{{{{ postal_address }}}}</mj-text></mj-column></mj-section></mj-body></mjml>"""
HEADERS = {
    "sender_name": "Ann",
    "sender_email": "ann@shed.example",
    "reply_to": "",
    "list_id": list_id("The Shed", "garden", "shed.example").decode("ascii"),
    "feedback_id": "1:garden:issue:1",
    "verp": "1",
}
CONSTANTS = {"list_name": "The Shed", "sender_name": "Ann", "postal_address": "1 Garden Row, Bath", "language": "en"}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compile", description=__doc__)
    parser.add_argument("--kilobytes", type=int, default=60)
    parser.add_argument("--recipients", type=int, default=20_000)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    measure(options).show(as_json=options.json)


def measure(options: argparse.Namespace) -> Result:
    body = document(options.kilobytes * 1_000)
    source = Source("Rain in {{ city }}", body, "", constants=CONSTANTS, fields=frozenset({"city"}), format="mjml")
    say("compiling …")
    compiled = compile_source(source, headers=HEADERS)
    took = milliseconds(lambda: compile_source(source, headers=HEADERS))
    limit = milliseconds(lambda: mrml.to_html(body.replace("{{", "(").replace("}}", ")")))
    say("filling in …")
    personalizer = Personalizer(
        compiled,
        keyring=Keyring.parse(["1:benchmark"]),
        addresses=Addresses("https://news.shed.example", "https://t.shed.example"),
        mail_from="bounce@shed.example",
        boundary="=_nl-1",
    )
    people = [
        Recipient(DeliveryKey(1, n), f"p{n}@mail.example", f"Ada Green {n}", "en", {"city": "Bath"})
        for n in range(1, options.recipients + 1)
    ]
    waiting = iter(people)
    each = microseconds(lambda: personalizer.message(next(waiting)), times=len(people))
    join = microseconds_of_a_join(compiled, len(personalizer.message(people[0]).content), len(people))
    return Result(
        claim="compile",
        value=round(took, 2),
        unit="ms",
        limit=round(limit, 2),
        peak_rss_mb=round(psutil.Process().memory_full_info().pss / 1_000_000, 1),
        details={
            "limit is": "mrml alone",
            "recipient, µs": round(each, 2),
            "a join of the same bytes, µs": round(join, 2),
            "recipient over join": round(each / join, 2),
            "source, bytes": len(body),
            "message, bytes": len(personalizer.message(people[0]).content),
            "links": len(compiled.links),
            "slots": holes(compiled),
            "recipients": options.recipients,
        },
    )


def document(size: int) -> str:
    """An issue of about so many bytes."""
    articles = ""
    number = 0
    while len(articles) + len(DOCUMENT) < size:
        number += 1
        articles += ARTICLE.format(n=number, paragraphs=PARAGRAPH * 6)
    return DOCUMENT.format(articles=articles)


def holes(compiled: Compiled) -> int:
    return sum(isinstance(piece, list) for part in (compiled.html, compiled.text) for piece in part)


def milliseconds(work: Callable[[], object]) -> float:
    """A call, the median of 25."""
    times = []
    for _ in range(25):
        begun = time.perf_counter()
        work()
        times.append(time.perf_counter() - begun)
    return statistics.median(times) * 1_000


def microseconds(work: Callable[[], object], *, times: int) -> float:
    """A call, by the best of twenty runs that make so many calls together: other programs disturb the rest."""
    runs = []
    for _ in range(20):
        begun = time.perf_counter()
        for _ in range(times // 20):
            work()
        runs.append(time.perf_counter() - begun)
    return min(runs) / (times // 20) * 1_000_000


def microseconds_of_a_join(compiled: Compiled, size: int, times: int) -> float:
    parts = holes(compiled) * 2 + 1
    pieces = [os.urandom(size // parts) for _ in range(parts)]
    return microseconds(lambda: b"".join(pieces), times=times)


if __name__ == "__main__":
    main()
