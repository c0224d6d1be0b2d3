"""The whole API against its own OpenAPI document, as each role: schemathesis asks thousands of odd questions of a real service."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest

from lab_backup.catalog.base import connect
from lab_backup.catalog.places import Container
from lab_backup.catalog.queue import new_job
from lab_backup.catalog.work import BackupRow
from lab_backup.service.folders import settings_of
from support.service import PASSWORD, Service

SEED = os.environ.get("LAB_BACKUP_TEST_SEED", "1")
EXAMPLES = int(os.environ.get("LAB_BACKUP_TEST_API_EXAMPLES", "0"))  # 0: what fits into every run of the tests
CHECKS = (
    "not_a_server_error,status_code_conformance,content_type_conformance,response_headers_conformance,"
    "response_schema_conformance,ignored_auth,use_after_free"
)
ROLES = ["viewer", "operator", "admin"]
FEW = ["--phases", "coverage", "--mode", "positive"]  # whoever may do less is refused before the body is looked at
FEW_FOR_ADMIN = ["--phases", "coverage,stateful", "--max-examples", "2"]
TEST_SUPPORT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def service() -> Iterator[Service]:
    """Run a service that does not count requests."""
    with Service(rate=1_000_000) as running:
        yield running


@pytest.fixture(scope="module")
def identities(service: Service, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Make one of everything, and return the ids by the names of parameters and fields."""
    token = service.sign_in()
    folder = tmp_path_factory.mktemp("api") / "repository"
    made: dict[str, Any] = {
        "storage_id": service.post("storage", {"name": "disk", "url": str(folder), "passphrase": None}, token=token, status=201),
        "host_id": service.post("podman/hosts", {"name": "box", "uri": "unix:///nowhere/s"}, token=token, status=201),
        "user_id": service.post("users", {"username": "una", "password": PASSWORD, "role": "viewer"}, token=token, status=201),
    }  # fmt: skip
    found = {name: str(row["id"]) for name, row in made.items()}
    engine, sessions = connect(settings_of(service.data).database_url)
    now = datetime.now(UTC)
    with sessions() as session:
        source = Container(podman_host_id=found["host_id"], name="web", container_id="1", image="i", state="running", seen_at=now)  # fmt: skip
        backup = BackupRow(
            backup_id="20260101T000000Z-00000000", source_type="container", source_id="web", source_name="web", backup_type="full", consistency="fuzzy",
            status="complete", size=1, compressed_size=1, storage_backend_id=found["storage_id"], storage_path="manifests/x", checksum="", completed_at=now,
        )  # fmt: skip
        job = new_job("usage", {}, title="space", storage=made["storage_id"]["id"])
        session.add_all([source, backup, job])
        session.flush()
        found |= {"source_id": str(source.id), "backup_id": str(backup.id), "job_id": str(job.id)}
        session.commit()
    engine.dispose()
    schedule = {"name": "nightly", "source_type": "container", "source_id": found["source_id"], "cron_expression": "0 3 * * *", "storage_backend_id": found["storage_id"]}  # fmt: skip
    found["schedule_id"] = service.post("schedules", schedule, token=token, status=201)["id"]
    return found | {
        "storage_backend_id": found["storage_id"],
        "to": found["storage_id"],
        "host": found["host_id"],
    }


@dataclass(frozen=True)
class Person:
    """Somebody who is signed in, with a token for programs, and the ids of what must not be ended."""

    token: str
    without_session: str
    spared: list[str]


@pytest.fixture(scope="module")
def people(service: Service) -> dict[str, Person]:
    """Sign somebody of each role in, before the questions use up what an address may sign in."""
    administrator = service.sign_in()
    found = {}
    for role in ROLES:
        body = {"username": f"{role}-asks", "password": PASSWORD, "role": role}
        person = service.post("users", body, token=administrator, status=201)
        token = service.sign_in(body["username"])
        sessions = service.get("me/sessions", token)["items"]
        made = service.post("tokens", {"name": "for signing out", "role": role}, token=token, status=201)
        found[role] = Person(token, made["token"], [person["id"], *(row["id"] for row in sessions)])
    return found


@pytest.mark.parametrize("role", ROLES)
def test_no_question_gets_an_answer_that_is_not_documented(
    role: str, service: Service, identities: dict[str, str], people: dict[str, Person], tmp_path: Path
) -> None:
    """Every endpoint, with valid and invalid values, in sequences too: no 5xx, and no status, type of content, header or body but the documented ones."""
    person = people[role]
    (tmp_path / "schemathesis.toml").write_text(f"""
headers = {{ Authorization = "Bearer {person.token}" }}
[checks.not_a_server_error]
expected-statuses = ["2xx", "3xx", "4xx", 502]  # 502: the storage or host that was named does not answer
[[operations]]
include-path = "/api/v1/auth/logout"
headers = {{ Authorization = "Bearer {person.without_session}" }}
""")
    world = {
        "identities": identities,
        "spared": person.spared,
        "folder": str(tmp_path / "storages"),
    }
    (tmp_path / "storages").mkdir()
    few = FEW_FOR_ADMIN if role == "admin" else FEW
    chosen = ["--phases", "coverage,fuzzing,stateful", "--max-examples", str(EXAMPLES)] if EXAMPLES else few
    done = subprocess.run(
        [
            Path(sys.executable).with_name("schemathesis"), "run", f"{service.url}/openapi.json", "--checks", CHECKS, "--seed", SEED, "--workers", "2",
            "--generation-database", "none", "--continue-on-failure", *chosen,
        ],
        cwd=tmp_path, capture_output=True, text=True, check=False, timeout=280 + 60 * EXAMPLES,
        env={
            **os.environ, "SCHEMATHESIS_HOOKS": "support.api_schema_hooks", "LAB_BACKUP_TEST_WORLD": json.dumps(world), "NO_COLOR": "1",
            "PYTHONPATH": os.pathsep.join([str(TEST_SUPPORT), os.environ.get("PYTHONPATH", "")]),
        },
    )  # fmt: skip
    told = "\n".join(line[:500] for line in done.stdout.splitlines())
    assert done.returncode == 0, told + done.stderr
    assert service.get("me", person.token)["role"] == role, "nobody signed it out meanwhile"


def test_a_method_that_a_path_does_not_know_is_refused_with_those_that_it_knows(service: Service) -> None:
    """TRACE on every path: 405 with all of its methods, as RFC 9110 wants it."""
    for path, methods in service.ask("GET", "openapi.json").json()["paths"].items():
        answer = httpx.request("TRACE", f"http://127.0.0.1:{service.port}{path.replace('{', '').replace('}', '')}")
        told = set(answer.headers.get("allow", "").split(", "))
        assert (answer.status_code, {name.upper() for name in methods} - told) == (405, set()), path
