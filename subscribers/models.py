"""Who receives what, what they agreed to, and what we know of their reading.

Nothing here is ever deleted by hygiene: a pruned person is a state of their subscription.
"""

from typing import ClassVar

from django.core.exceptions import ValidationError
from django.db import models
from django.db.models.functions import Now
from django.utils.translation import gettext_lazy as _

from subscribers import validating
from subscribers.bits import BitStringField


class TrackingConsent(models.TextChoices):
    """What we may learn about a person's reading (HYGIENE.md, Privacy)."""

    FULL = "full", _("Opens and clicks")
    HYGIENE = "hygiene", _("Only the date of the last open")
    NONE = "none", _("Nothing")


class SenderIdentity(models.Model):
    """Whom mail comes from, and the postal address that the law wants in it."""

    name = models.CharField(_("name"), max_length=120)
    email = models.EmailField(_("address"))
    reply_to = models.EmailField(_("reply to"), blank=True)
    postal_address = models.CharField(
        _("postal address"),
        max_length=300,
        help_text=_("Stands in every mail's footer; many laws require it."),
    )

    class Meta:
        verbose_name = _("sender")
        verbose_name_plural = _("senders")

    def __str__(self) -> str:
        return f"{self.name} <{self.email}>"

    @property
    def domain(self) -> str:
        """The domain that SPF, DKIM and DMARC speak of."""
        return self.email.rpartition("@")[2].lower()


class List(models.Model):
    """A newsletter that people subscribe to. Its campaigns are numbered issues."""

    slug = models.SlugField(unique=True)
    name = models.CharField(_("name"), max_length=120)
    description = models.TextField(_("description"), blank=True, help_text=_("Shown on the sign-up page."))
    sender = models.ForeignKey(SenderIdentity, on_delete=models.PROTECT, related_name="lists", verbose_name=_("sender"))
    language = models.CharField(_("language"), max_length=12, default="en")
    is_public = models.BooleanField(_("public"), default=True, help_text=_("Has a sign-up page that anybody can find."))
    consent_text = models.TextField(
        _("what people agree to"),
        default="Send me this newsletter by e-mail. I can unsubscribe at any time.",
        help_text=_("Shown at sign-up and kept, word for word, as proof of what was agreed."),
    )
    issues = models.PositiveIntegerField(default=0, editable=False, help_text=_("Numbers given so far."))
    created_at = models.DateTimeField(db_default=Now(), editable=False)

    class Meta:
        verbose_name = _("list")
        ordering = ["name"]

    def __str__(self) -> str:
        return self.name


class Tag(models.Model):
    name = models.CharField(_("name"), max_length=60, unique=True)

    class Meta:
        ordering = ["name"]

    def __str__(self) -> str:
        return self.name


class Subscriber(models.Model):
    """A person, known by an address. The key is unique and case-folded; see validating.normalise."""

    email = models.CharField(_("e-mail address"), max_length=320)
    email_key = models.CharField(max_length=320, unique=True, editable=False)
    duplicate_hint = models.CharField(max_length=320, blank=True, editable=False)
    name = models.CharField(_("name"), max_length=200, blank=True)
    attributes = models.JSONField(
        _("attributes"), default=dict, blank=True, db_default=models.Value({}, models.JSONField())
    )
    language = models.CharField(_("language"), max_length=12, blank=True, db_default="")
    time_zone = models.CharField(_("time zone"), max_length=64, blank=True, db_default="")
    tracking_consent = models.CharField(
        _("tracking"), max_length=8, choices=TrackingConsent.choices, db_default=TrackingConsent.FULL
    )
    is_protected = models.BooleanField(
        _("protected"),
        default=False,
        db_default=False,
        help_text=_("Hygiene never stops mailing this person."),
    )
    # Beside the row in Suppression (the truth, which outlives this one), so that a batch can leave people out by set.
    suppressed_at = models.DateTimeField(null=True, blank=True, editable=False)
    tags = models.ManyToManyField(Tag, blank=True, verbose_name=_("tags"))
    created_at = models.DateTimeField(db_default=Now(), editable=False)

    class Meta:
        verbose_name = _("subscriber")

    def __str__(self) -> str:
        return self.email

    def clean(self) -> None:
        if problem := validating.attributes_problem(self.attributes):
            raise ValidationError({"attributes": problem})


class Subscription(models.Model):
    """One person's relation to one list. Every change of state is a conditional UPDATE (promise 8)."""

    class State(models.TextChoices):
        PENDING = "pending", _("waiting for confirmation")
        ACTIVE = "active", _("active")
        UNSUBSCRIBED = "unsubscribed", _("unsubscribed")
        PRUNED = "pruned", _("no longer mailed (never reads)")

    subscriber = models.ForeignKey(Subscriber, on_delete=models.CASCADE, related_name="subscriptions")
    list = models.ForeignKey(List, on_delete=models.CASCADE, related_name="subscriptions", db_index=False)
    state = models.CharField(_("state"), max_length=12, choices=State.choices, default=State.PENDING)
    state_since = models.DateTimeField(_("since"), db_default=Now())
    # A confirmation link is honoured only if it was made after this, so that an old one cannot revive anybody.
    requested_at = models.DateTimeField(null=True, blank=True, editable=False)
    confirmation_sent_at = models.DateTimeField(null=True, blank=True, editable=False)
    source = models.CharField(_("source"), max_length=40, blank=True, db_default="")
    created_at = models.DateTimeField(_("subscribed"), db_default=Now())
    unsubscribed_by = models.BigIntegerField(
        null=True, blank=True, editable=False, help_text=_("The campaign whose link was used.")
    )

    class Meta:
        verbose_name = _("subscription")
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["list", "subscriber"], name="subscription_once_per_list"),
        ]
        indexes: ClassVar = [
            # The queue of confirmation mails; nearly always empty.
            models.Index(
                fields=["requested_at"],
                condition=models.Q(confirmation_sent_at__isnull=True, requested_at__isnull=False),
                name="subscription_mail_due",
            ),
        ]

    def __str__(self) -> str:
        return f"{self.subscriber_id} → {self.list_id} ({self.state})"


class Engagement(models.Model):
    """What a subscription received and read, as two bit strings over the list's issue numbers (bit 0 = issue 1).

    x, t_x and n of the hygiene model follow from them. Late evidence sets one bit, a late bounce clears one.
    """

    subscription = models.OneToOneField(
        Subscription, on_delete=models.CASCADE, primary_key=True, related_name="engagement"
    )
    delivered = BitStringField()
    engaged = BitStringField()
    opened_at = models.DateTimeField(null=True, help_text=_("Last human open."))
    clicked_at = models.DateTimeField(null=True, help_text=_("Last human click."))
    # A preference change or "keep me": a person, whatever the images say.
    acted_at = models.DateTimeField(null=True)

    class Meta:
        verbose_name = _("engagement")


class ConsentRecord(models.Model):
    """Proof of what a person agreed to or withdrew. Only ever appended."""

    class Kind(models.TextChoices):
        REQUESTED = "requested", _("asked to subscribe")
        CONFIRMED = "confirmed", _("confirmed")
        IMPORTED = "imported", _("imported")
        UNSUBSCRIBED = "unsubscribed", _("unsubscribed")
        RESUBSCRIBED = "resubscribed", _("took the unsubscribing back")
        TRACKING = "tracking", _("changed what may be tracked")

    subscriber = models.ForeignKey(Subscriber, on_delete=models.CASCADE, related_name="consents")
    list = models.ForeignKey(List, on_delete=models.SET_NULL, null=True)
    kind = models.CharField(max_length=12, choices=Kind.choices)
    text = models.TextField(blank=True, db_default="", help_text=_("What they were told, word for word."))
    source = models.CharField(max_length=120, blank=True, db_default="")
    network = models.CharField(max_length=64, blank=True, db_default="", help_text=_("Truncated address."))
    at = models.DateTimeField(db_default=Now())

    class Meta:
        ordering = ["at", "id"]


class Suppression(models.Model):
    """An address that is never mailed again, by keyed hash, so that it outlives the person's data."""

    class Reason(models.TextChoices):
        BOUNCE = "bounce", _("address does not exist")
        COMPLAINT = "complaint", _("complained")
        MANUAL = "manual", _("by hand")
        ERASURE = "erasure", _("asked to be erased")

    address_hash = models.BinaryField(max_length=32, unique=True)
    reason = models.CharField(max_length=12, choices=Reason.choices)
    source = models.CharField(max_length=120, blank=True)
    key_version = models.PositiveSmallIntegerField(default=1)
    since = models.DateTimeField(db_default=Now())

    class Meta:
        verbose_name = _("suppression")


class ImportRun(models.Model):
    """One file of subscribers on its way in, with the report of every refused row."""

    class State(models.TextChoices):
        WAITING = "waiting", _("waiting")
        RUNNING = "running", _("running")
        DONE = "done", _("done")
        FAILED = "failed", _("refused")

    class Welcome(models.TextChoices):
        PENDING = "pending", _("Not confirmed; nobody is mailed")
        CONFIRMED = "confirmed", _("Confirmed: I have proof of their consent")
        ASK = "ask", _("Send each a confirmation mail")

    list = models.ForeignKey(List, on_delete=models.CASCADE, verbose_name=_("list"))
    file = models.FileField(_("file"), upload_to="imports/")
    welcome = models.CharField(_("these people are"), max_length=10, choices=Welcome.choices, default=Welcome.PENDING)
    source = models.CharField(_("where the addresses come from"), max_length=120, blank=True)
    state = models.CharField(max_length=8, choices=State.choices, default=State.WAITING, editable=False)
    imported = models.PositiveIntegerField(default=0, editable=False)
    updated = models.PositiveIntegerField(default=0, editable=False)
    unchanged = models.PositiveIntegerField(default=0, editable=False)
    refused = models.PositiveIntegerField(default=0, editable=False)
    message = models.TextField(blank=True, editable=False)
    report = models.FileField(upload_to="imports/", blank=True, editable=False)
    heartbeat_at = models.DateTimeField(null=True, editable=False)
    checkpoint = models.PositiveBigIntegerField(
        default=0, db_default=0, editable=False, help_text=_("Line of the file up to which rows are merged.")
    )
    created_at = models.DateTimeField(db_default=Now(), editable=False)
    finished_at = models.DateTimeField(null=True, editable=False)

    class Meta:
        verbose_name = _("import")
        ordering = ["-id"]

    def __str__(self) -> str:
        return f"{self.list} #{self.pk}"


class HygienePolicy(models.Model):
    """When a list stops mailing somebody. Figures count issues that were delivered and had time to be read."""

    list = models.OneToOneField(List, on_delete=models.CASCADE, related_name="policy", verbose_name=_("list"))
    min_campaigns = models.PositiveSmallIntegerField(_("at least this many issues without a sign"), default=8)
    min_days = models.PositiveSmallIntegerField(_("and at least this many days"), default=90)
    engaged_factor = models.DecimalField(
        _("longer for people who once read"), max_digits=3, decimal_places=1, default=1.5
    )
    cap_percent = models.DecimalField(
        _("at most this share of the list a run (%)"), max_digits=4, decimal_places=1, default=5
    )
    is_scheduled = models.BooleanField(_("run by itself"), default=True)

    class Meta:
        verbose_name = _("hygiene policy")
        verbose_name_plural = _("hygiene policies")

    def __str__(self) -> str:
        return f"{self.list}"


class HygieneRun(models.Model):
    """A preview, or a run that carried one out. The entries hold the evidence as it was seen."""

    class Kind(models.TextChoices):
        PREVIEW = "preview", _("preview")
        RUN = "run", _("run")

    class State(models.TextChoices):
        OPEN = "open", _("waits for approval")
        RUNNING = "running", _("running")
        DONE = "done", _("done")
        UNDONE = "undone", _("undone")
        STOPPED = "stopped", _("stopped")

    list = models.ForeignKey(List, on_delete=models.CASCADE, related_name="hygiene_runs")
    kind = models.CharField(max_length=8, choices=Kind.choices)
    state = models.CharField(max_length=8, choices=State.choices)
    preview = models.ForeignKey("self", on_delete=models.SET_NULL, null=True, related_name="runs")
    at = models.DateTimeField(help_text=_("The moment the evidence was judged for."))
    policy = models.JSONField(default=dict, help_text=_("The policy as it was."))
    judged = models.PositiveIntegerField(default=0)
    asked = models.PositiveIntegerField(default=0)
    removed = models.PositiveIntegerField(default=0)
    spared = models.PositiveIntegerField(default=0)
    held_back = models.JSONField(default=dict, help_text=_("Reason → number of people."))
    message = models.TextField(blank=True)
    created_at = models.DateTimeField(db_default=Now())
    created_by = models.CharField(max_length=150, blank=True)

    class Meta:
        verbose_name = _("hygiene run")
        ordering = ["-id"]


class HygieneEntry(models.Model):
    """One person of a preview or run: what would happen or happened, and why, frozen."""

    class Action(models.TextChoices):
        ASK = "ask", _("ask")
        REMOVE = "remove", _("stop mailing")

    class Outcome(models.TextChoices):
        PROPOSED = "proposed", _("proposed")
        DONE = "done", _("done")
        SPARED = "spared", _("spared")
        RESTORED = "restored", _("restored")

    run = models.ForeignKey(HygieneRun, on_delete=models.CASCADE, related_name="entries")
    subscription = models.ForeignKey(Subscription, on_delete=models.CASCADE, related_name="hygiene_entries")
    action = models.CharField(max_length=6, choices=Action.choices)
    outcome = models.CharField(max_length=8, choices=Outcome.choices, default=Outcome.PROPOSED)
    reason = models.TextField()
    evidence = models.JSONField(default=dict)

    class Meta:
        constraints: ClassVar = [models.UniqueConstraint(fields=["run", "subscription"], name="hygiene_entry_once")]


class AuditEntry(models.Model):
    """Who did what in the admin or by command."""

    at = models.DateTimeField(db_default=Now())
    actor = models.CharField(max_length=150)
    action = models.CharField(max_length=60)
    subject = models.CharField(max_length=200, blank=True)
    details = models.JSONField(default=dict)

    class Meta:
        ordering = ["-id"]
