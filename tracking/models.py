"""What was seen: events as facts, not addresses, and where ingest stands in each stream."""

from typing import ClassVar

from django.db import models
from django.db.models.functions import Now
from django.utils.translation import gettext_lazy as _


class EventKind(models.IntegerChoices):
    OPEN = 1, _("open")
    CLICK = 2, _("click")
    DELIVERED = 3, _("delivered")
    DEFERRED = 4, _("deferred")
    BOUNCE = 5, _("bounce")
    COMPLAINT = 6, _("complaint")
    UNSUBSCRIBE = 7, _("unsubscribe")


class Verdict(models.IntegerChoices):
    UNKNOWN = 0, _("unknown")
    HUMAN = 1, _("human")
    MACHINE = 2, _("machine")


class Event(models.Model):
    """One row for (delivery, kind, link, client class, minute); partitioned by the month of `at`.

    What `reclassify` may use stays here; the address of the client does not.
    """

    pk = models.CompositePrimaryKey("at", "id")
    at = models.DateTimeField(help_text=_("First hit."))
    id = models.BigIntegerField()
    campaign_id = models.BigIntegerField()
    subscriber_id = models.BigIntegerField()
    last_at = models.DateTimeField(help_text=_("Last hit of the same minute."))
    network_hash = models.BinaryField(max_length=8, null=True, help_text=_("Salted daily; emptied after thirty days."))
    delay_ms = models.BigIntegerField(null=True, help_text=_("Since the server accepted this delivery."))
    hits = models.IntegerField(db_default=1)
    kind = models.SmallIntegerField(choices=EventKind.choices)
    link = models.SmallIntegerField(null=True)
    verdict = models.SmallIntegerField(choices=Verdict.choices, db_default=0)
    is_final = models.BooleanField(db_default=False, help_text=_("The settling time has passed."))
    method = models.CharField(max_length=8, db_default="GET")
    client = models.CharField(
        max_length=32, db_default="", help_text=_("Class of the client, by verdicts.client_class.")
    )
    network = models.CharField(max_length=32, db_default="", help_text=_("Class of the network."))
    source = models.CharField(max_length=16, db_default="edge", help_text=_("edge, an ESP's name, or history."))
    flags = models.CharField(max_length=64, db_default="", help_text=_("What a provider said of the client."))
    reasons = models.JSONField(default=list, db_default=models.Value([], models.JSONField()))
    detail = models.CharField(max_length=200, db_default="", help_text=_("Status code of a bounce, and the like."))

    class Meta:
        verbose_name = _("event")
        indexes: ClassVar = [
            models.Index(fields=["campaign_id", "subscriber_id"], name="event_delivery"),
            models.Index(fields=["at"], name="event_unsettled", condition=models.Q(is_final=False)),
        ]


class IngestCursor(models.Model):
    """The last stream entry whose rows are stored, written in the transaction that stored them."""

    stream = models.CharField(max_length=60, primary_key=True)
    last_id = models.CharField(max_length=40, default="0-0")
    updated_at = models.DateTimeField(db_default=Now())
    # Counted so that nothing disappears without a trace.
    stored = models.BigIntegerField(db_default=0, help_text=_("Hits that became events."))
    duplicates = models.BigIntegerField(db_default=0, help_text=_("Groups that came a second time."))
    foreign = models.BigIntegerField(db_default=0, help_text=_("Hits of deliveries that are not in the ledger."))
    unwanted = models.BigIntegerField(db_default=0, help_text=_("Hits of people who agreed to less tracking."))
    set_aside = models.BigIntegerField(db_default=0, help_text=_("Entries that could not be read."))


class StreamWriter(models.Model):
    """Which groups of one writer (an event loop of an edge, a web process) are stored.

    A writer numbers its groups for each stream from 1, and a group keeps its number on its way through the spool. So a
    group that may or may not have reached the stream can be sent again: the second one finds its number taken.
    """

    pk = models.CompositePrimaryKey("stream", "writer")
    stream = models.CharField(max_length=60)
    writer = models.CharField(max_length=40)
    highest = models.BigIntegerField(help_text=_("The greatest number stored."))
    missing = models.JSONField(default=list, help_text=_("Ranges below it that have not come yet."))
    updated_at = models.DateTimeField(db_default=Now())


class SetAside(models.Model):
    """A stream entry that could not be read. It is kept for a person to look at and does not stop the others."""

    stream = models.CharField(max_length=60)
    entry = models.CharField(max_length=40)
    reason = models.CharField(max_length=200)
    payload = models.TextField()
    at = models.DateTimeField(db_default=Now())


class ReceivedReport(models.Model):
    """A provider's webhook event that is done, by a key of our own: providers send again after any error."""

    key = models.CharField(max_length=64, primary_key=True)
    at = models.DateTimeField(db_default=Now())
