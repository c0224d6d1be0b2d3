"""Retention as users ask for it: mark as deleted what no rule keeps. Collection frees the space after the grace period."""

from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from lab_backup.errors import NotFoundError, UsageError
from lab_backup.operations.lifecycle import who
from lab_backup.policy.cron import parse_zone
from lab_backup.policy.retention import Decision, Outcome, Point, Policy, select
from lab_backup.repository.backups import Backup, Backups
from lab_backup.repository.marks import fold
from lab_backup.repository.repository import Repository


@dataclass(frozen=True, slots=True)
class PruneDecision:
    """What happens to one backup: `keep`, `remove` or (before) `deleted`; `reasons` are all that keep it, or the one against it."""

    backup: str
    time: str
    source: str
    source_kind: str
    source_id: str
    outcome: Outcome
    reasons: tuple[str, ...]
    bytes_stored: int


@dataclass(frozen=True, slots=True)
class PruneResult:
    """All decisions, oldest backup first. `bytes_removed` is what the removed ones had stored when they were made, not what becomes free.

    `unreadable` are objects (path → what is wrong) that nothing can be decided about; they stay.
    """

    decisions: tuple[PruneDecision, ...]
    kept: int
    removed: int
    deleted_before: int
    bytes_removed: int
    dry_run: bool
    unreadable: dict[str, str]


def make_policy(
    *,
    last: int = 0,
    hourly: int = 0,
    daily: int = 0,
    weekly: int = 0,
    monthly: int = 0,
    yearly: int = 0,
    within: timedelta = timedelta(0),
) -> Policy:
    """Return the policy. Raises UsageError for one that keeps nothing, or makes no sense."""
    try:
        policy = Policy(last, hourly, daily, weekly, monthly, yearly, within)
    except ValueError as error:
        raise UsageError("a --keep option cannot be negative", hint="give 0 or more") from error
    if policy.empty:
        raise UsageError(
            "no rule keeps anything, so nothing was removed", hint="give at least one, for example --keep-daily 7"
        )
    return policy


def prune(
    repository: Repository,
    policy: Policy,
    *,
    zone: str = "UTC",
    source: str | None = None,
    dry_run: bool = False,
    now: datetime | None = None,
    removable: AbstractSet[str] | None = None,
) -> PruneResult:
    """Mark as deleted what `policy` does not keep; until the grace period ends, `undelete` takes that back.

    Only backups of `source` are looked at if it is given (`NAME`, `KIND/NAME` or a source's id). `now` is the storage's time unless given: a host
    whose clock is wrong must not remove too much. Of `removable`, if it is given, are the ids of all that may be removed. Raises UsageError, NotFoundError.
    """
    chosen_zone = parse_zone(zone)
    backups = Backups(repository)
    found = [backup for backup in backups.all() if source is None or _is_of(backup, source)]
    unreadable = {path: str(error) for path, error in backups.damaged.items()}
    if source is not None and not found:
        raise NotFoundError(f"there is no backup of {source}", hint="see: lab-backup list")
    moment = now or (repository.clock() if found else datetime.now(UTC))
    decisions = select([_point(backup) for backup in found], policy, now=moment, zone=chosen_zone)
    if removable is not None:
        for backup in found:
            if decisions[backup.id].outcome == "remove" and backup.id not in removable:
                decisions[backup.id] = Decision("keep", ("not made by a schedule",))
    if not dry_run:
        for backup in found:
            if decisions[backup.id].outcome == "remove":
                decisions[backup.id] = _remove(backups, backup.id) or decisions[backup.id]
    return _result(found, decisions, dry_run=dry_run, unreadable=unreadable)


def _is_of(backup: Backup, source: str) -> bool:
    made_of = backup.manifest.source
    return source in {made_of.name, made_of.id, f"{made_of.kind}/{made_of.name}", f"{made_of.kind}/{made_of.id}"}


def _point(backup: Backup) -> Point:
    made_of, state = backup.manifest.source, backup.state
    return Point(
        id=backup.id,
        source=(made_of.kind, made_of.id),
        time=backup.manifest.when,
        protected=state.protected,
        archived=state.archived,
        deleted=state.deleted is not None,
        good=None if state.verified is None else state.verified.ok,
    )


def _remove(backups: Backups, backup_id: str) -> Decision | None:
    """Mark as deleted; return another decision where somebody has protected the backup since it was listed."""
    state = fold(backups.marks(backup_id))
    if state.protected or state.archived:
        return Decision("keep", ("protected" if state.protected else "archived",))
    time = datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
    backups.mark(backup_id, "deleted", value=True, time=time, by=who())
    return None


def _result(
    found: Sequence[Backup], decisions: dict[str, Decision], *, dry_run: bool, unreadable: dict[str, str]
) -> PruneResult:
    rows = tuple(
        PruneDecision(
            backup=backup.id,
            time=backup.manifest.time,
            source=backup.manifest.source.name,
            source_kind=backup.manifest.source.kind,
            source_id=backup.manifest.source.id,
            outcome=decisions[backup.id].outcome,
            reasons=decisions[backup.id].reasons,
            bytes_stored=backup.manifest.statistics.bytes_stored,
        )
        for backup in found
    )
    removed = [row for row in rows if row.outcome == "remove"]
    return PruneResult(
        decisions=rows,
        kept=sum(row.outcome == "keep" for row in rows),
        removed=len(removed),
        deleted_before=sum(row.outcome == "deleted" for row in rows),
        bytes_removed=sum(row.bytes_stored for row in removed),
        dry_run=dry_run,
        unreadable=unreadable,
    )
