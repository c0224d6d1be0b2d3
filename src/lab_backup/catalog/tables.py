"""All tables, for who needs to know of every one."""

from lab_backup.catalog import news, people, places, work
from lab_backup.catalog.base import Base

METADATA = Base.metadata
MODULES = (news, people, places, work)
