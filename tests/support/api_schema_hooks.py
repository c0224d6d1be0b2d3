"""What schemathesis is told of the service under test (SCHEMATHESIS_HOOKS): real objects to ask for, and what it must leave alone.

`LAB_BACKUP_TEST_WORLD` is JSON: `identities` are ids of objects by parameter or field, `spared` are ids that no request may name, `folder`
is where storages may be made.
"""

import json
import os
from typing import Any
from uuid import UUID, uuid5

import schemathesis

WORLD: dict[str, Any] = json.loads(os.environ["LAB_BACKUP_TEST_WORLD"])
OTHERS = UUID("6ba7b810-9dad-11d1-80b4-00c04fd430c8")


def _chosen(name: str, value: Any, *, keep: bool) -> Any:
    """Return `value`, but the id of a real object for every second valid id unless `keep`, and never an id that is spared."""
    try:
        number = UUID(str(value))
    except ValueError:
        return value
    if str(number) in WORLD["spared"]:
        return str(uuid5(OTHERS, str(number)))
    return value if keep or number.int % 2 else WORLD["identities"].get(name, value)


@schemathesis.hook
def before_call(_: schemathesis.HookContext, case: schemathesis.Case[Any], kwargs: dict[str, Any]) -> None:
    """Let every second request name what is there, and keep storages in their folder."""
    del kwargs
    keep = case.method == "DELETE"  # what is there stays there for the others
    case.path_parameters.update({name: _chosen(name, value, keep=keep) for name, value in case.path_parameters.items()})
    if isinstance(case.body, dict):
        case.body.update({name: _chosen(name, value, keep=keep) for name, value in case.body.items()})
        url = str(case.body.get("url", ""))
        if case.path.endswith("/storage") and url.startswith(("/", "file:")):
            case.body["url"] = f"{WORLD['folder']}/{uuid5(OTHERS, url)}"
