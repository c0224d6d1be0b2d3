"""The API's OpenAPI document, without a service that runs: `python -m lab_backup.api.document`. The web interface's client is made from it."""

import json
import sys
from pathlib import Path

from lab_backup.api.app import create_app
from lab_backup.settings import Settings


def document() -> str:
    """Return it as JSON, always the same for the same code."""
    # Neither is ever connected to: the document tells of the code alone.
    nowhere = Settings("postgresql+psycopg://nowhere/x", "redis://nowhere", Path("/nonexistent"))
    return json.dumps(create_app(nowhere).openapi(), indent=1, sort_keys=True) + "\n"


if __name__ == "__main__":
    sys.stdout.write(document())
