"""Messages a second from real Celery workers with the full ledger, against a constant message by the same SMTP code.

    python -m benchmarks.send --recipients 100000 --workers 2 [--sink-delay-ms 20] [--json]

A message is 5 KB of HTML and its text, 5 links, 3 merge tags. The rate counts from the first message at the sink to the
last. The limit: as many processes as workers send one constant message, without database or personalisation. Beside
it, a plain Django loop: render, EmailMultiAlternatives, send.
"""

import argparse
import contextlib

from benchmarks.campaign import Servers, by_blast, by_workers, rate_of, servers
from benchmarks.harness import Result, free_port, installation, last_json, say

# With a layout of its own the HTML has 5 KB; the letter that comes with the product would make it 9.
LAYOUT = """<mjml><mj-body><mj-section><mj-column>{{ content }}
<mj-text><a href="{{ unsubscribe_url }}">Unsubscribe</a>, {{ postal_address }}</mj-text>
</mj-column></mj-section></mj-body></mjml>"""
BODY = """# Hello {{ first_name | default: "reader" }}

It rains in {{ city }}. """ + "\n\n".join(
    f"[Link {i}](https://shed.example/{i}) leads to {'a shed, some tools and a quiet corner, ' * 6}all of them dry."
    for i in range(5)
)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.send", description=__doc__)
    parser.add_argument("--recipients", type=int, default=100_000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--connections", type=int, default=8)
    parser.add_argument("--sink-delay-ms", type=float, default=0)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    port = free_port()
    with installation(EMAIL_URL=f"smtp://127.0.0.1:{port}?connections={options.connections}") as engines:
        result = measure(options, port, database=engines.postgres.pid)
    result.show(as_json=options.json)


def measure(options: argparse.Namespace, port: int, *, database: int | None) -> Result:
    campaign_id = prepare(options.recipients)
    say("sending by workers …")
    with sinks(port, options.sink_delay_ms) as running:
        sent = by_workers(campaign_id, options, running, database=database)
    rate = rate_of(sent.figures, options.recipients)
    limit_count = max(2_000, min(options.recipients, 60_000))
    if options.sink_delay_ms:
        limit = options.connections * options.workers / (options.sink_delay_ms / 1000)
        loop = None
    else:
        say("the limit …")
        with sinks(port) as running:
            figures = by_blast("benchmarks.blast", campaign_id, options.workers, limit_count, running)
        limit = rate_of(figures, limit_count // options.workers * options.workers)
        say("a plain Django loop …")
        loop = by_django_loop(min(2_000, options.recipients), port)
    return Result(
        claim="send",
        value=round(rate, 1),
        unit="messages/s",
        limit=round(limit, 1),
        peak_rss_mb=round(sent.memory, 1),
        details={
            "recipients": options.recipients,
            "workers": options.workers,
            "launch to end, s": round(sent.took, 2),
            "µs of processor a message": sent.shares,
            "limit is": "connections / round trip" if options.sink_delay_ms else "a constant message, same SMTP code",
            "django loop/s": round(loop, 1) if loop else None,
            "times the loop": round(rate / loop, 1) if loop else None,
        },
    )


def prepare(recipients: int) -> int:
    """A list with so many people, and a draft that may go out."""
    from django.db import connection

    from campaigns import composing
    from campaigns.models import MailTemplate
    from subscribers.models import List, SenderIdentity

    sender = SenderIdentity.objects.create(name="Ann", email="ann@shed.example", postal_address="1 Garden Row, Bath")
    garden = List.objects.create(slug="garden", name="The Shed", sender=sender)
    with connection.cursor() as cursor:
        cursor.execute(
            """INSERT INTO subscribers_subscriber (email, email_key, duplicate_hint, name, attributes, is_protected)
               SELECT 'p' || i || '@mail.example', 'p' || i || '@mail.example', '', 'Ada Green ' || i,
                      jsonb_build_object('city', 'Bath'), false FROM generate_series(1, %s) AS i""",
            [recipients],
        )
        cursor.execute(
            """INSERT INTO subscribers_subscription (subscriber_id, list_id, state)
               SELECT id, %s, 'active' FROM subscribers_subscriber""",
            [garden.pk],
        )
        cursor.execute("ANALYZE")
    layout = MailTemplate.objects.create(slug="bench", name="Bench", mjml=LAYOUT)
    return composing.create(list=garden, subject="Rain in {{ city }}", body=BODY, layout=layout).pk


def sinks(port: int, delay_ms: float = 0, log: str = "") -> contextlib.AbstractContextManager[Servers]:
    return servers(["-m", "benchmarks.sink", "--port", str(port), "--delay-ms", str(delay_ms), "--log", log])


def by_django_loop(count: int, port: int) -> float:
    """What everybody writes first: a template rendered and a message built and sent for each person."""
    from django.core.mail import EmailMultiAlternatives, get_connection
    from django.template import Context, Template

    from campaigns import composing
    from campaigns.models import Campaign
    from subscribers.models import Subscriber

    campaign = Campaign.objects.select_related("list__sender", "layout").get()
    page = composing.preview(campaign).html.replace("Robin", "{{ name }}")
    template, text = Template(page), Template("Hello {{ name }}, it rains in {{ city }}. " * 40)
    connection = get_connection("django.core.mail.backends.smtp.EmailBackend", host="127.0.0.1", port=port)
    with sinks(port) as running:
        connection.open()
        for person in Subscriber.objects.order_by("pk")[:count].iterator():
            context = Context({"name": person.name, **person.attributes})
            message = EmailMultiAlternatives(
                f"Rain in {person.attributes['city']}", text.render(context), "ann@shed.example", [person.email]
            )
            message.attach_alternative(template.render(context), "text/html")
            connection.send_messages([message])
        connection.close()
        figures = [last_json(server) for server in running]
    return rate_of(figures, count)


if __name__ == "__main__":
    main()
