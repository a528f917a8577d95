"""Campaigns and the ledger: who was to get what, and what became of it.

`Delivery` is partitioned by range of campaign and its key is (campaign, subscriber): no foreign keys into it, no
index that mentions its state, so that updates stay HOT (DESIGN, data model).
"""

import builtins
from decimal import Decimal
from typing import ClassVar

from django.conf import settings
from django.core.validators import MaxValueValidator, MinValueValidator
from django.db import models
from django.db.models.functions import Now
from django.utils.translation import gettext_lazy as _

from subscribers.models import List, SenderIdentity


class MailTemplate(models.Model):
    """An MJML layout. Its slots are written `{{ content }}` (the body) and the merge tags of the mail."""

    slug = models.SlugField(unique=True)
    name = models.CharField(_("name"), max_length=120)
    mjml = models.TextField(_("MJML"))

    class Meta:
        verbose_name = _("layout")
        ordering = ["name"]

    def __str__(self) -> str:
        return self.name


class CampaignState(models.TextChoices):
    DRAFT = "draft", _("draft")
    SCHEDULED = "scheduled", _("scheduled")
    SENDING = "sending", _("sending")
    PAUSED = "paused", _("paused")
    SENT = "sent", _("sent")
    CANCELLED = "cancelled", _("cancelled")


class Campaign(models.Model):
    """One issue of a list. States move by states.move, never by save()."""

    class Origin(models.TextChoices):
        HERE = "here", _("written here")
        IMPORTED = "imported", _("brought from another platform")

    class Format(models.TextChoices):
        """How `body` is written (mailing.compiling.FORMATS)."""

        MARKDOWN = "markdown", "Markdown"
        MJML = "mjml", "MJML"
        HTML = "html", "HTML"

    State = CampaignState

    list = models.ForeignKey(List, on_delete=models.PROTECT, related_name="campaigns", verbose_name=_("list"))
    number = models.PositiveIntegerField(_("issue"), null=True, editable=False)
    subject = models.CharField(_("subject"), max_length=250)
    preheader = models.CharField(
        _("preheader"),
        max_length=250,
        blank=True,
        help_text=_("The grey line that mail clients show beside the subject."),
    )
    body = models.TextField(_("text"), help_text=_("With merge tags such as {{ name | default: 'friend' }}."))
    format = models.CharField(
        _("written in"), max_length=8, choices=Format.choices, default=Format.MARKDOWN, db_default=Format.MARKDOWN
    )
    layout = models.ForeignKey(MailTemplate, on_delete=models.PROTECT, verbose_name=_("layout"), null=True, blank=True)
    sender = models.ForeignKey(
        SenderIdentity, on_delete=models.PROTECT, verbose_name=_("sender"), null=True, blank=True
    )
    state = models.CharField(max_length=10, choices=CampaignState.choices, default=CampaignState.DRAFT, editable=False)
    state_reason = models.CharField(max_length=300, blank=True, editable=False)
    origin = models.CharField(max_length=8, choices=Origin.choices, default=Origin.HERE, editable=False)
    external_key = models.CharField(max_length=200, blank=True, editable=False)
    overrides = models.JSONField(
        default=builtins.list, editable=False, help_text=_("Codes of preflight's blockers that somebody let pass.")
    )
    scheduled_at = models.DateTimeField(_("send at"), null=True, blank=True, editable=False)
    scheduled_by = models.CharField(max_length=150, blank=True, db_default="", editable=False)
    local_time = models.TimeField(
        null=True, blank=True, editable=False, help_text=_("The hour at which each reader gets it where they live.")
    )
    started_at = models.DateTimeField(null=True, blank=True, editable=False)
    finished_at = models.DateTimeField(
        null=True, blank=True, editable=False, help_text=_("The first end: sending a few again does not move it.")
    )
    closed_at = models.DateTimeField(
        null=True, blank=True, editable=False, help_text=_("When all that is owed at the end had been done.")
    )
    audience = models.PositiveIntegerField(default=0, editable=False, help_text=_("Recipients at the freeze."))
    created_at = models.DateTimeField(db_default=Now(), editable=False)
    created_by = models.ForeignKey(
        settings.AUTH_USER_MODEL, on_delete=models.SET_NULL, null=True, blank=True, editable=False
    )

    class Meta:
        verbose_name = _("campaign")
        ordering = ["-id"]
        # Writing and letting mail go out are two rights; tests are mail too.
        permissions: ClassVar = [("send_campaign", "Can send campaigns")]
        constraints: ClassVar = [
            models.UniqueConstraint(
                fields=["list", "number"], name="campaign_number_once", deferrable=models.Deferrable.DEFERRED
            ),
            models.UniqueConstraint(
                fields=["list", "external_key"],
                condition=~models.Q(external_key=""),
                name="campaign_external_key_once",
            ),
        ]

    def __str__(self) -> str:
        return self.subject

    @property
    def from_identity(self) -> SenderIdentity:
        """The sender of this campaign, or else its list's."""
        return self.sender or self.list.sender


class CampaignFigures(models.Model):
    """What became of a campaign, kept up to date by delivering and by tracking; nobody scans events for it.

    Opens and clicks count distinct deliveries (raw: any event, human: at least one human event) and hits.
    """

    campaign = models.OneToOneField(Campaign, on_delete=models.CASCADE, primary_key=True, related_name="figures")
    opens_raw = models.PositiveIntegerField(db_default=0, default=0)
    opens_human = models.PositiveIntegerField(db_default=0, default=0)
    open_hits = models.PositiveBigIntegerField(db_default=0, default=0)
    clicks_raw = models.PositiveIntegerField(db_default=0, default=0)
    clicks_human = models.PositiveIntegerField(db_default=0, default=0)
    click_hits = models.PositiveBigIntegerField(db_default=0, default=0)
    unsubscribed = models.PositiveIntegerField(db_default=0, default=0)
    bounced = models.PositiveIntegerField(db_default=0, default=0)
    complained = models.PositiveIntegerField(db_default=0, default=0)
    in_doubt = models.PositiveIntegerField(
        db_default=0, default=0, help_text=_("Recipients in doubt of whom nobody has decided; see doubting.recount.")
    )


class EditorEvent(models.Model):
    """Something that the editors of a campaign are told of by mail, once (telling.py)."""

    class Kind(models.TextChoices):
        FINISHED = "finished", _("finished")
        REFUSED = "refused", _("did not start")
        PAUSED = "paused", _("paused by the system")
        DOUBT = "doubt", _("has recipients in doubt")

    campaign = models.ForeignKey(Campaign, on_delete=models.CASCADE, related_name="events", db_index=False)
    kind = models.CharField(max_length=8, choices=Kind.choices)
    key = models.CharField(max_length=40, blank=True, help_text=_("Tells events of a kind apart: when it was paused."))
    text = models.CharField(max_length=300, blank=True)
    at = models.DateTimeField()
    not_before = models.DateTimeField()
    told_at = models.DateTimeField(null=True)

    class Meta:
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["campaign", "kind", "key"], name="editor_event_once"),
        ]
        indexes: ClassVar = [
            models.Index(fields=["not_before"], condition=models.Q(told_at=None), name="editor_event_due"),
        ]

    def __str__(self) -> str:
        return f"{self.campaign_id} {self.kind}"


class EditorWish(models.Model):
    """Whether somebody wants mails about their campaigns; who has no row does."""

    user = models.OneToOneField(settings.AUTH_USER_MODEL, on_delete=models.CASCADE, primary_key=True)
    wants_mails = models.BooleanField()


class CompiledRevision(models.Model):
    """A campaign compiled once (mailing.compiling): every worker, retry, preview and web version uses it."""

    campaign = models.ForeignKey(Campaign, on_delete=models.CASCADE, related_name="revisions")
    content = models.JSONField()
    created_at = models.DateTimeField(db_default=Now())


class Link(models.Model):
    """Where a tracked link leads. Redirects come only from here (no open redirect)."""

    campaign = models.ForeignKey(Campaign, on_delete=models.CASCADE, related_name="links", db_index=False)
    index = models.PositiveSmallIntegerField()
    url = models.TextField()

    class Meta:
        constraints: ClassVar = [models.UniqueConstraint(fields=["campaign", "index"], name="link_index_once")]


class FormerTarget(models.Model):
    """Where a link led before somebody changed it (retargeting.py)."""

    link = models.ForeignKey(Link, on_delete=models.CASCADE, related_name="former")
    url = models.TextField()
    until = models.DateTimeField()
    changed_by = models.CharField(max_length=150)

    class Meta:
        ordering = ["-pk"]


class Batch(models.Model):
    """The unit of work of one Celery task: the deliveries of a range of subscribers that name this batch."""

    class State(models.TextChoices):
        READY = "ready", _("ready")
        LEASED = "leased", _("being sent")
        DONE = "done", _("done")
        ASIDE = "aside", _("set aside: it ended three workers")

    campaign = models.ForeignKey(Campaign, on_delete=models.CASCADE, related_name="batches", db_index=False)
    first_id = models.BigIntegerField()
    last_id = models.BigIntegerField()
    state = models.CharField(max_length=6, choices=State.choices, default=State.READY)
    not_before = models.DateTimeField(db_default=Now())
    lease = models.BigIntegerField(null=True, help_text=_("From the sequence campaigns_lease; rows carry it too."))
    leased_until = models.DateTimeField(null=True)
    worker = models.CharField(max_length=120, blank=True, db_default="")
    attempts = models.PositiveSmallIntegerField(default=0, db_default=0, help_text=_("Workers that ended holding it."))
    enqueued_at = models.DateTimeField(null=True, help_text=_("When a broker message was last sent for it."))
    throttle = models.CharField(
        max_length=120, blank=True, db_default="", help_text=_("The limits that it waits for, by throttling.label.")
    )

    class Meta:
        indexes: ClassVar = [
            models.Index(fields=["campaign", "state"], name="batch_campaign_state"),
            models.Index(fields=["not_before"], condition=models.Q(state__in=("ready", "leased")), name="batch_due"),
        ]


class DeliveryState(models.IntegerChoices):
    """The legal moves between these stand in states.DELIVERY_MOVES."""

    QUEUED = 0, _("queued")
    DEFERRED = 1, _("deferred")
    SENDING = 2, _("sending")
    ACCEPTED = 3, _("accepted")
    FAILED = 4, _("failed")
    SKIPPED = 5, _("skipped")
    UNKNOWN = 6, _("unknown")


class Outcome(models.IntegerChoices):
    """What came after a server accepted a message."""

    NONE = 0, _("none")
    DELIVERED = 1, _("delivered")
    BOUNCED = 2, _("bounced")
    COMPLAINED = 3, _("complained")


class SkipReason(models.IntegerChoices):
    """Why somebody of the frozen audience was not mailed after all, or why a delivery in doubt asks no more."""

    UNSUBSCRIBED = 1, _("unsubscribed since")
    PRUNED = 2, _("pruned since")
    SUPPRESSED = 3, _("suppressed")
    GONE = 4, _("erased")
    CANCELLED = 5, _("campaign cancelled")
    LEFT_IN_DOUBT = 6, _("nobody asks any more")  # the only reason of a state other than skipped


class Delivery(models.Model):
    """One recipient of one campaign. Message-ID and tokens are derived from the key, not stored."""

    SEEN_OPEN = 1  # bits of `seen`: some event of the kind came, human or not
    SEEN_CLICK = 2

    pk = models.CompositePrimaryKey("campaign_id", "subscriber_id")
    campaign_id = models.BigIntegerField()
    subscriber_id = models.BigIntegerField()
    batch_id = models.BigIntegerField()
    lease = models.BigIntegerField(null=True)
    sent_at = models.DateTimeField(null=True, help_text=_("When a server took it, or when it came into doubt."))
    opened_at = models.DateTimeField(null=True, help_text=_("First human open."))
    clicked_at = models.DateTimeField(null=True, help_text=_("First human click."))
    state = models.SmallIntegerField(choices=DeliveryState.choices, db_default=0)
    attempts = models.SmallIntegerField(db_default=0)
    outcome = models.SmallIntegerField(choices=Outcome.choices, db_default=0)
    seen = models.SmallIntegerField(db_default=0)
    reason = models.SmallIntegerField(choices=SkipReason.choices, null=True)
    variant = models.SmallIntegerField(db_default=0)

    class Meta:
        verbose_name = _("delivery")
        verbose_name_plural = _("deliveries")


class DeliveryError(models.Model):
    """What a server said when it refused or put off a message."""

    campaign_id = models.BigIntegerField()
    subscriber_id = models.BigIntegerField()
    at = models.DateTimeField(db_default=Now())
    code = models.CharField(max_length=12, blank=True)
    text = models.TextField()
    is_permanent = models.BooleanField()

    class Meta:
        indexes: ClassVar = [models.Index(fields=["campaign_id", "subscriber_id"], name="delivery_error_of")]


class SendingLimit(models.Model):
    """How much mail may go to some domains, for all campaigns together. Without any, mail goes as fast as it can."""

    name = models.CharField(_("name"), max_length=60, unique=True, help_text=_("Shown when mail waits because of it."))
    domains = models.TextField(
        _("domains"),
        blank=True,
        help_text=_("One a line, with * for anything: hotmail.*. Empty: all mail."),
    )
    sender = models.ForeignKey(
        SenderIdentity,
        on_delete=models.CASCADE,
        null=True,
        blank=True,
        verbose_name=_("only mail from"),
        help_text=_("Empty: mail from every sender."),
    )
    per_second = models.DecimalField(
        _("mails a second"),
        max_digits=8,
        decimal_places=2,
        null=True,
        blank=True,
        validators=[MinValueValidator(Decimal("0.1"))],
    )
    per_day = models.PositiveIntegerField(
        _("mails a day"), null=True, blank=True, validators=[MinValueValidator(1), MaxValueValidator(10**9)]
    )
    warm_up_start = models.DateField(
        _("warm-up from"),
        null=True,
        blank=True,
        help_text=_("A new sender begins with few mails a day, and more each day."),
    )
    warm_up_first = models.PositiveIntegerField(
        _("mails on the first day"), default=200, validators=[MinValueValidator(1), MaxValueValidator(10**9)]
    )
    warm_up_growth = models.PositiveSmallIntegerField(
        _("more each day (%)"), default=50, validators=[MinValueValidator(1), MaxValueValidator(900)]
    )

    class Meta:
        verbose_name = _("sending limit")
        ordering = ["name"]

    def __str__(self) -> str:
        return self.name


class SendingHealth(models.Model):
    """What breaking.py judges a campaign by: what batches saw, and how it stood when somebody last resumed."""

    campaign = models.OneToOneField(Campaign, on_delete=models.CASCADE, primary_key=True, related_name="health")
    accepted = models.PositiveIntegerField(db_default=0, default=0)
    refused = models.PositiveIntegerField(
        db_default=0, default=0, help_text=_("Mailboxes that a server refused for good.")
    )
    failures = models.PositiveIntegerField(
        db_default=0, default=0, help_text=_("Failures of the transport or sender since the last acceptance.")
    )
    last_failure = models.CharField(max_length=200, blank=True, db_default="", default="")
    seen_accepted = models.PositiveIntegerField(db_default=0, default=0)
    seen_refused = models.PositiveIntegerField(db_default=0, default=0)
    seen_bounced = models.PositiveIntegerField(db_default=0, default=0)
    seen_complained = models.PositiveIntegerField(db_default=0, default=0)
