"""How many jobs may run at once on a host and in a storage. Jobs that only look at things are neither counted nor held back."""

from dataclasses import dataclass
from typing import Self

from sqlalchemy import ColumnElement, func, select, text
from sqlalchemy.orm import Session

from lab_backup.catalog.places import KvmHost, PodmanHost, Storage
from lab_backup.catalog.work import Job

LOCK = 7_236_118_004  # one claim after the other, so that each sees those before it; only where there are limits
ALWAYS = ("inventory", "usage", "notify", "housekeeping", "heartbeat", "report")  # what goes on in maintenance, too


@dataclass(frozen=True, slots=True)
class Room:
    """How many more jobs each host and storage takes, by their ids; what has no limit of its own is not in it."""

    left: dict[str, int]

    @classmethod
    def read(cls, session: Session, counted: ColumnElement[bool], *, alone: bool = False) -> Self:
        """Return the room beside the jobs that are `counted`. `alone`: nobody else who asks so gets an answer before this transaction ends."""
        limits: dict[str, int] = {}
        for table in (KvmHost, PodmanHost, Storage):
            found = session.execute(select(table.id, table.at_once).where(table.at_once > 0))
            limits |= {str(identity): at_once for identity, at_once in found}
        if not limits:
            return cls({})
        if alone:
            session.execute(text("select pg_advisory_xact_lock(:key)"), {"key": LOCK})
        for place in (Job.details["host"].astext, Job.storage_backend_id):
            taken = select(place, func.count()).where(counted, Job.type.not_in(ALWAYS)).group_by(place)
            for identity, count in session.execute(taken):
                if str(identity) in limits:
                    limits[str(identity)] -= count
        return cls(limits)

    @property
    def full(self) -> list[str]:
        """The hosts and storages that take no more."""
        return [identity for identity, left in self.left.items() if left <= 0]

    def take(self, job: Job) -> bool:
        """Give the job its place on its host and in its storage; False where there is none."""
        if job.type in ALWAYS:
            return True
        places = [place for place in (job.details.get("host"), str(job.storage_backend_id)) if place in self.left]
        if any(self.left[place] <= 0 for place in places):
            return False
        for place in places:
            self.left[place] -= 1
        return True
