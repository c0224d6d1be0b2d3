"""Roles, each of which may do all that the one before may."""

from enum import StrEnum


class Role(StrEnum):
    """What a person may do: look; back up and restore; or everything."""

    VIEWER = "viewer"
    OPERATOR = "operator"
    ADMIN = "admin"

    def includes(self, other: "Role") -> bool:
        """Whether this role may do what `other` may."""
        order = tuple(Role)
        return order.index(self) >= order.index(other)
