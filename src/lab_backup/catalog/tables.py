"""All tables, for who needs to know of every one."""

from lab_backup.catalog import people, places, work
from lab_backup.catalog.base import Base

METADATA = Base.metadata
MODULES = (people, places, work)
