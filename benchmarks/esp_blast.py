"""One process of benchmarks.esp's limit: a ready call, Anymail's own sessions, no database and no personalisation."""

import sys
from concurrent.futures import ThreadPoolExecutor

SESSIONS = 2  # more of them only wait for the processors


def main() -> None:
    import django

    django.setup()
    from campaigns import composing
    from newsletter.mailing.transports.esp_backends import MailgunBackend
    from newsletter.mailing.transports.esp_messages import Writer
    from newsletter.mailing.transports.providers import PROVIDERS
    from subscribers.models import Subscriber

    campaign_id, count = int(sys.argv[1]), int(sys.argv[2])
    provider = PROVIDERS["mailgun"]
    people = [
        composing.recipient_of(person, campaign_id)
        for person in Subscriber.objects.order_by("pk")[: provider.people_a_call]
    ]
    message = Writer(provider, composing.revision(campaign_id)).message(people)

    def blast(_: int) -> None:
        backend = MailgunBackend()
        backend.open()
        ready = backend.build_message_payload(message, {}).get_request_params(backend.api_url)
        for _ in range(max(1, count // len(people) // SESSIONS)):
            backend.session.request(**ready).raise_for_status()
        backend.close()

    with ThreadPoolExecutor(SESSIONS) as pool:
        list(pool.map(blast, range(SESSIONS)))


if __name__ == "__main__":
    main()
