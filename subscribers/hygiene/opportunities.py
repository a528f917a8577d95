"""Which issues of a list count: sent, tracked, and long enough ago to have been read.

The campaigns stand above this app; what is needed of them is handed down through `issues_of_list`, which the
campaigns' AppConfig fills in.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cached_property
from statistics import quantiles

from django.conf import settings

# Below so many recipients a share of opens says nothing about whether tracking worked.
ENOUGH_RECIPIENTS = 50
# Tracking counts as broken for an issue that was seen at under a fifth of what the list's better issues reach.
COLLAPSE = 0.2
SOMETHING = 0.05


@dataclass(frozen=True, slots=True)
class Issue:
    """One issue of a list, as its campaign tells it."""

    number: int
    sent_at: datetime  # when the last mail of it went out
    tracked: bool
    delivered: int = 0
    seen: int = 0  # deliveries whose pixel was fetched at all, by a person or a machine


def _no_campaigns(list_id: int) -> Sequence[Issue]:
    return ()


# Registry: the issues of a list that went out, with the moment of sending. Issues still on their way are left out.
issues_of_list: Callable[[int], Sequence[Issue]] = _no_campaigns


@dataclass(frozen=True)
class Opportunities:
    """The issues of one list that count as chances to see somebody read, in the order of their sending."""

    issues: tuple[Issue, ...]
    broken: tuple[Issue, ...]  # sent while tracking did not work: no opportunity
    width: int  # of the bit strings

    @property
    def closed_mask(self) -> str:
        """The opportunities as a bit string over issue numbers."""
        return self._mask(self.issues)

    @cached_property
    def broken_numbers(self) -> frozenset[int]:
        """The issues that were sent while tracking did not work."""
        return frozenset(issue.number for issue in self.broken)

    @cached_property
    def numbers(self) -> list[int]:
        """All issues that had their time, broken ones included."""
        return sorted({issue.number for issue in self.issues} | self.broken_numbers)

    @property
    def masks_after(self) -> list[str]:
        """For k = 0, 1, … the opportunities that came after the first k: where silence counts once k have passed."""
        return [self._mask(self.issues[k:]) for k in range(len(self.issues) + 1)]

    @property
    def passed(self) -> list[int]:
        """For each issue number from 1 to `width`, how many opportunities have passed with it."""
        return [sum(issue.number <= number for issue in self.issues) for number in range(1, self.width + 1)]

    def _mask(self, issues: Sequence[Issue]) -> str:
        numbers = {issue.number for issue in issues}
        return "".join("1" if number in numbers else "0" for number in range(1, self.width + 1))


def at(list_id: int, moment: datetime) -> Opportunities:
    """The opportunities of a list at a moment: what was sent later, or too shortly before, is left out."""
    settled = moment - timedelta(hours=settings.OPPORTUNITY_HOURS)
    known = sorted(issues_of_list(list_id), key=lambda issue: (issue.sent_at, issue.number))
    closed = [issue for issue in known if issue.tracked and issue.sent_at <= settled]
    broken = _broken(closed)
    width = max((issue.number for issue in known), default=0)
    return Opportunities(tuple(issue for issue in closed if issue not in broken), tuple(broken), width)


def _broken(issues: Sequence[Issue]) -> list[Issue]:
    """Issues whose pixel was hardly fetched at all, on a list where it commonly is.

    Raw fetches, not human opens, since scanners and Apple Mail fetch the pixel too: where they all fall silent at
    once, it is the tracking that broke and not the readers who left.
    """
    large = [issue for issue in issues if issue.delivered >= ENOUGH_RECIPIENTS]
    if len(large) < 2:
        return []
    usual = quantiles([issue.seen / issue.delivered for issue in large], n=4)[-1]
    if usual < SOMETHING:
        return []
    return [issue for issue in large if issue.seen / issue.delivered < COLLAPSE * usual]
