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
    reasons = models.JSONField(default=list, db_default=models.Value([], models.JSONField()))
    detail = models.CharField(max_length=200, db_default="", help_text=_("Status code of a bounce, and the like."))

    class Meta:
        verbose_name = _("event")
        indexes: ClassVar = [models.Index(fields=["campaign_id", "subscriber_id"], name="event_delivery")]


class IngestCursor(models.Model):
    """The last stream entry whose rows are stored, written in the transaction that stored them."""

    stream = models.CharField(max_length=60, primary_key=True)
    last_id = models.CharField(max_length=40, default="0-0")
    updated_at = models.DateTimeField(db_default=Now())
