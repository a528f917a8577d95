"""Hygiene's rows as the admin's pages show them: figures, bars, words and strips of issues."""

from collections import Counter
from dataclasses import dataclass
from typing import Any

from django.utils import timezone
from django.utils.functional import Promise, cached_property
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy, ngettext

from subscribers.hygiene import policies, pruning
from subscribers.hygiene.errors import HygieneError
from subscribers.models import HygieneEntry, HygieneRun, List, Subscription

Kind, State, Outcome = HygieneRun.Kind, HygieneRun.State, HygieneEntry.Outcome

STATE_BADGES: dict[str, tuple[str, str | Promise]] = {
    State.OPEN: ("warning", gettext_lazy("waits for approval")),
    State.RUNNING: ("busy", gettext_lazy("running")),
    State.DONE: ("good", gettext_lazy("done")),
    State.UNDONE: ("quiet", gettext_lazy("undone")),
    State.STOPPED: ("quiet", gettext_lazy("replaced")),
}
OUTCOME_WORDS: dict[str, str | Promise] = {
    Outcome.SPARED: gettext_lazy("spared"),
    Outcome.RESTORED: gettext_lazy("mailed again"),
}
# Characters of a strip (explaining._strip): CSS class and what a legend calls them.
MARKS: dict[str, tuple[str, str | Promise]] = {
    "r": ("read", gettext_lazy("read by a person")),
    "s": ("silent", gettext_lazy("nothing came back")),
    "a": ("machine", gettext_lazy("fetched by Apple Mail or a scanner: proves nothing")),
    "m": ("machine", gettext_lazy("fetched by Apple Mail or a scanner: proves nothing")),
    "n": ("none", gettext_lazy("not sent or not delivered")),
    "x": ("broken", gettext_lazy("tracking did not work")),
}


@dataclass(frozen=True)
class Standing:
    """Where a list's hygiene stands."""

    newsletter: List
    active: int
    pruned: int
    waiting: HygieneRun | None  # the newest preview that may be approved
    last_run: HygieneRun | None
    needs_approval: bool
    is_scheduled: bool


def standing(newsletter: List) -> Standing:
    """Where a list's hygiene stands now."""
    runs = HygieneRun.objects.filter(list=newsletter)
    people = Subscription.objects.filter(list=newsletter)
    waiting = runs.filter(kind=Kind.PREVIEW, state=State.OPEN, removed__gt=0).first()
    return Standing(
        newsletter,
        active=people.filter(state=Subscription.State.ACTIVE, subscriber__suppressed_at=None).count(),
        pruned=people.filter(state=Subscription.State.PRUNED).count(),
        waiting=waiting if waiting and not _why_not(waiting) else None,
        last_run=runs.filter(kind=Kind.RUN).first(),
        needs_approval=pruning.needs_approval(newsletter.pk),
        is_scheduled=policies.policy_of(newsletter.pk).is_scheduled,
    )


@dataclass(frozen=True)
class Line:
    """One preview or run in a list's log."""

    run: HygieneRun

    @property
    def is_preview(self) -> bool:
        return self.run.kind == Kind.PREVIEW

    @property
    def badge(self) -> tuple[str, str | Promise]:
        if self.run.state == State.OPEN and _why_not(self.run):
            return "quiet", _("out of date")
        if self.is_preview and self.run.state == State.DONE:
            return "good", _("carried out")
        return STATE_BADGES[self.run.state]


@dataclass(frozen=True)
class Part:
    """A part of the bar over the whole list."""

    name: str
    label: str
    count: int
    percent: float


class Shown:
    """A preview or run as its page shows it."""

    def __init__(self, run: HygieneRun) -> None:
        self.run = run
        self.is_preview = run.kind == Kind.PREVIEW
        self.badge = Line(run).badge

    @cached_property
    def active(self) -> int:
        """Whom the list mailed when it was judged."""
        held: dict[str, int] = self.run.held_back
        return self.run.judged + sum(held.values())

    @cached_property
    def headline(self) -> str:
        facts = {"n": f"{self.run.removed:,}", "all": f"{self.active:,}"}
        if self.is_preview:
            words = ngettext(
                "%(n)s of %(all)s people would no longer be mailed",
                "%(n)s of %(all)s people would no longer be mailed",
                self.run.removed,
            )
        elif self.run.state == State.UNDONE:
            return _("This run was undone: everybody it removed is mailed again")
        else:
            words = ngettext(
                "%(n)s of %(all)s people is no longer mailed",
                "%(n)s of %(all)s people are no longer mailed",
                self.run.removed,
            )
        return words % facts

    @cached_property
    def parts(self) -> list[Part]:
        """The whole list in three: who reads, who would go, who is not judged."""
        held = sum(self.run.held_back.values())
        removed = self.run.removed
        going = _("silent: would go") if self.is_preview else _("removed")
        counts = [
            ("stay", _("judged and kept"), self.run.judged - removed),
            ("go", going, removed),
            ("held", _("not judged"), held),
        ]
        return [Part(name, label, n, 100 * n / self.active if self.active else 0) for name, label, n in counts]

    @cached_property
    def held_back(self) -> list[tuple[int, str | Promise]]:
        """Why people were not judged, the most frequent reason first."""
        reasons = sorted(self.run.held_back.items(), key=lambda item: -item[1])
        return [(count, policies.HELD_BACK.get(name, name)) for name, count in reasons]

    @cached_property
    def cap(self) -> float:
        return float(policies.policy_of(self.run.list_id).cap_percent)

    @cached_property
    def acts_on(self) -> int:
        """How many a run would remove now, within the cap."""
        return min(self.run.removed, pruning.cap_of(self.active, self.cap))

    @property
    def waiting(self) -> int:
        return self.run.removed - self.acts_on

    @cached_property
    def why_not(self) -> str:
        """Why this preview cannot be approved any more; empty when it can."""
        return _why_not(self.run)

    @property
    def can_be_approved(self) -> bool:
        return self.is_preview and not self.why_not and self.acts_on > 0

    @property
    def can_be_undone(self) -> bool:
        return not self.is_preview and self.run.state != State.UNDONE and self.run.removed > 0

    @property
    def legend(self) -> list[tuple[str, str | Promise]]:
        return [MARKS[mark] for mark in "rsan"]


class Named:
    """One person of a preview or run."""

    def __init__(self, entry: HygieneEntry) -> None:
        self.entry = entry
        self.subscriber = entry.subscription.subscriber
        self.outcome = OUTCOME_WORDS.get(entry.outcome, "")

    @property
    def marks(self) -> list[str]:
        """CSS classes of the issues, the oldest first."""
        return [MARKS[mark][0] for mark in self.entry.evidence.get("strip", "")]

    @property
    def strip_words(self) -> str:
        """The strip for who cannot see it."""
        strip: str = self.entry.evidence.get("strip", "")
        counts = Counter("a" if mark == "m" else mark for mark in strip)
        parts = [f"{counts[mark]} {MARKS[mark][1]}" for mark in "rsanx" if counts[mark]]
        return _("The last %(n)d issues: %(parts)s") % {"n": len(strip), "parts": ", ".join(parts)}


def _why_not(run: HygieneRun) -> str:
    if run.kind != Kind.PREVIEW:
        return ""
    try:
        pruning.approvable(run.pk, list_id=run.list_id, at=max(timezone.now(), run.at))
    except HygieneError as error:
        return str(error)
    return ""


def rule_words(policy: dict[str, Any]) -> str:
    """The rule as it was for a run, in a sentence."""
    return _(
        "At least %(min_campaigns)d issues and %(min_days)d days without a sign of a person; "
        "%(long_campaigns)d issues and %(long_days)d days for who once read."
    ) % {name: policy.get(name, 0) for name in ("min_campaigns", "min_days", "long_campaigns", "long_days")}
