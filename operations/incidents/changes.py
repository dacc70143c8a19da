"""Decides what an observation of the stack means: the incidents, and what to remember. Pure.

Every subject, such as a service or a package, has one state, and a change of it is an incident. Something that changes
again and again would flood the list: after MOST_CHANGES changes within CALM, one incident says so, and then nothing is
recorded until the state has been the same for CALM.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import NamedTuple

from operations.incidents.incident import Incident

CALM = timedelta(minutes=10)
MOST_CHANGES = 4

UP, DOWN, NOT_READY, AWAY = "up", "down", "not ready", "away"
RUNNING, PAUSED = "running", "paused"
CLOSED, OPEN = "closed", "open"
ENOUGH, LOW = "enough", "low"
BALANCED, VIOLATED = "balanced", "violated"


class Words(NamedTuple):
    """The kind of an incident, and its text: `{name}` is the subject's, `{why}` what the observer adds."""

    kind: str
    text: str


class Family(NamedTuple):
    """Subjects of one sort: the state that needs no words when it is seen first, and the words for each state.

    Without such a state (`normal` is None) whatever is seen first is normal, and `words[""]` is for every other one.
    """

    normal: str | None
    words: Mapping[str, Words]


FAMILIES: Mapping[str, Family] = {
    "server": Family(
        UP,
        {
            DOWN: Words("server-away", "{name} is away: {why}"),
            UP: Words("server-back", "{name} is back"),
        },
    ),
    "service": Family(
        UP,
        {
            DOWN: Words("process-down", "{name} does not answer: {why}"),
            NOT_READY: Words("process-not-ready", "{name} is not ready: {why}"),
            UP: Words("process-back", "{name} works again"),
        },
    ),
    "member": Family(
        UP,
        {
            AWAY: Words("member-away", "The member {name} of MongoDB's replica set is away"),
            UP: Words("member-back", "The member {name} of MongoDB's replica set is back"),
        },
    ),
    "node": Family(
        UP,
        {
            AWAY: Words("member-away", "The node {name} of RabbitMQ is away: {why}"),
            UP: Words("member-back", "The node {name} of RabbitMQ is back"),
        },
    ),
    "primary": Family(None, {"": Words("failover", "MongoDB has another primary: {state}, after {before}")}),
    "consumer": Family(
        RUNNING,
        {
            PAUSED: Words("paused", "{name} does not take messages: an operator has paused it"),
            RUNNING: Words("resumed", "{name} takes messages again"),
        },
    ),
    "breaker": Family(
        CLOSED,
        {
            OPEN: Words("breaker-open", "{name} only tests single messages, because all failed: {why}"),
            CLOSED: Words("breaker-closed", "{name} handles messages again: its breaker is closed"),
        },
    ),
    "package": Family(
        ENOUGH,
        {
            LOW: Words("package-low", "Package {name} is running out of addresses: {why}"),
            ENOUGH: Words("package-ok", "Package {name} has enough addresses again: {why}"),
        },
    ),
    "audit": Family(
        BALANCED,
        {
            VIOLATED: Words("audit-failed", "The books do not balance: {why}"),
            BALANCED: Words("audit-ok", "The books balance again"),
        },
    ),
}
"""How a subject is judged, by what its id begins with."""


class Seen(NamedTuple):
    """What an observer saw of one subject: `<family>/<name>`, its state, and why, in words without personal data."""

    subject: str
    state: str
    why: str = ""
    service: str | None = None
    link: str | None = None

    @property
    def family(self) -> Family:
        """How the subject is judged."""
        return FAMILIES[self.subject.partition("/")[0]]

    @property
    def name(self) -> str:
        """The subject's name for people."""
        name = self.subject.partition("/")[2]
        return f"The {name} service" if self.service == name else name


@dataclass(frozen=True, slots=True)
class Known:
    """What is remembered of a subject: its state, its latest changes, and whether it is flapping."""

    state: str
    changes: tuple[datetime, ...] = ()
    flapping: bool = False


class Decision(NamedTuple):
    """What to remember, and what to record."""

    known: Known
    incidents: tuple[Incident, ...] = ()


def decide(known: Known | None, seen: Seen, at: datetime) -> Decision:
    """Judge what was seen of a subject at a time, by what was known of it.

    An observation from before the last change is ignored: another process has seen more since.
    """
    if known is None:
        known = Known(seen.family.normal or seen.state)
    last = known.changes[-1] if known.changes else None
    if last is not None and at <= last:
        return Decision(known)
    if seen.state == known.state:
        if known.flapping and last is not None and at - last >= CALM:
            return Decision(Known(known.state), (_incident(seen, known.state, at, note=_CALM_AGAIN),))
        return Decision(known)
    changes = (*known.changes, at)[-MOST_CHANGES - 1 :]
    changed = replace(known, state=seen.state, changes=changes)
    if known.flapping:
        return Decision(changed)
    if len(changes) > MOST_CHANGES and at - changes[0] < CALM:
        return Decision(replace(changed, flapping=True), (_flapping(seen, at),))
    return Decision(changed, (_incident(seen, known.state, at),))


_CALM_AGAIN = f"No change for {CALM.seconds // 60} minutes: "


def _incident(seen: Seen, before: str, at: datetime, note: str = "") -> Incident:
    words = seen.family.words.get(seen.state) or seen.family.words[""]
    text = words.text.format(name=seen.name, why=seen.why, state=seen.state, before=before)
    return _new(seen, at, words.kind, note + text)


def _flapping(seen: Seen, at: datetime) -> Incident:
    minutes = CALM.seconds // 60
    text = f"{seen.name} changes again and again. No change is listed until there was none for {minutes} minutes"
    return _new(seen, at, "flapping", text)


def _new(seen: Seen, at: datetime, kind: str, text: str) -> Incident:
    return Incident(f"{seen.subject}@{at.isoformat()}", at, kind, text, seen.subject, seen.service, seen.link)


class Release(NamedTuple):
    """When the youngest known process of a service was started, and the release that it runs."""

    started_at: datetime
    version: str


def decide_release(known: Release | None, seen: Release, service: str) -> tuple[Release, tuple[Incident, ...]]:
    """Judge which process of a service answered: one that is younger than all before it was started meanwhile.

    Of several processes behind one address any may answer, so an older one says nothing.
    """
    if known is None or seen.started_at <= known.started_at:
        return known or seen, ()
    kind, text = "restarted", f"A process of the {service} service was started, with release {seen.version}"
    if seen.version != known.version:
        kind, text = "deployed", f"The {service} service runs release {seen.version}, after {known.version}"
    at = seen.started_at
    return seen, (Incident(f"release/{service}@{at.isoformat()}", at, kind, text, f"release/{service}", service),)
