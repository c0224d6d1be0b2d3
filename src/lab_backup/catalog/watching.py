"""What nobody's job notices by failing: workers that fell silent, tokens that are about to expire. Each is told once, and its end too."""

from datetime import datetime, timedelta

from sqlalchemy import select
from sqlalchemy.orm import Session

from lab_backup.catalog.people import ApiToken, Setting, User
from lab_backup.catalog.places import WorkerRow
from lab_backup.catalog.telling import tell
from lab_backup.catalog.workers import ALIVE

EXPIRES_SOON = timedelta(days=7)


def watch(session: Session, now: datetime) -> None:
    """Look, and tell what is new. The caller commits."""
    rows = session.scalars(select(WorkerRow)).all()
    served = {row.host for row in rows if row.seen_at >= now - ALIVE}
    # One that was started again on its host goes by another name.
    silent = [row for row in rows if row.seen_at < now - ALIVE and row.host not in served]
    known = _remembered(session, "watch/workers", {row.name for row in silent})
    for row in silent:
        if row.name not in known:
            tell(
                session,
                kind="worker silent",
                severity="error",
                subject=f"the worker {row.name} is silent",
                message=f"It was heard last at {row.seen_at:%Y-%m-%d %H:%M} UTC. Its jobs are done by others, if there are any.",
            )
    for name in sorted(known - {row.name for row in silent}):
        back = session.get(WorkerRow, name)
        if back is not None:  # one that was forgotten, or ended in order, is not back
            tell(
                session,
                kind="worker back",
                severity="warning",
                subject=f"the worker {name} is back",
                message="It is heard again.",
            )
    _watch_tokens(session, now)


def _watch_tokens(session: Session, now: datetime) -> None:
    soon = session.execute(
        select(ApiToken, User.username)
        .join(User, User.id == ApiToken.user_id)
        .where(ApiToken.expires_at.is_not(None), ApiToken.expires_at > now, ApiToken.expires_at < now + EXPIRES_SOON)
    ).all()
    known = _remembered(session, "watch/tokens", {str(token.id) for token, _ in soon})
    for token, username in soon:
        if str(token.id) not in known:
            tell(
                session,
                kind="token expiring",
                severity="warning",
                subject=f"the token {token.name} of {username} expires soon",
                message=f"It ends at {token.expires_at:%Y-%m-%d %H:%M} UTC. Make another one before, where it is in use.",
            )


def _remembered(session: Session, name: str, present: set[str]) -> set[str]:
    """Return what was known under a name, and remember what there is now."""
    row = session.get(Setting, name, with_for_update=True)
    before = set() if row is None else set(row.value["names"])
    if row is None:
        session.add(Setting(name=name, value={"names": sorted(present)}))
    elif before != present:
        row.value = {"names": sorted(present)}
    return before
