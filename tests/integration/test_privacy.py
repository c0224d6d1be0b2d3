"""What is kept of a person can be given out and erased, and the audit log still proves itself."""

from collections.abc import Iterator

import pytest
from sqlalchemy import text

from lab_backup.catalog.audit import verify_audit
from lab_backup.catalog.base import connect
from lab_backup.security.sealed import read_or_make_key
from support.cluster import Cluster
from support.service import PASSWORD


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """Run one API."""
    with Cluster() as made:
        made.start("api")
        made.wait_for_apis()
        yield made


def test_a_user_is_exported_and_erased_and_the_audit_log_still_verifies(cluster: Cluster) -> None:
    """The export has what the person did and where from, for them and administrators only; erased, no table holds their name, and the chain is whole."""
    admin = cluster.sign_in()
    body = {"username": "petra.example", "password": PASSWORD, "role": "operator", "email": "petra@example.org"}
    petra = cluster.ask("POST", "users", body, token=admin)
    vera = cluster.ask("POST", "users", {"username": "vera", "password": PASSWORD, "role": "viewer"}, token=admin)
    own = cluster.ask("POST", "auth/login", {"username": "petra.example", "password": PASSWORD})["access_token"]
    made = cluster.ask("POST", "tokens", {"name": "script", "role": "viewer"}, token=own)
    cluster.ask("POST", "notifications/channels", {"name": "hook", "type": "webhook", "address": "https://hooks.example.org/petra"}, token=own)  # fmt: skip
    told = cluster.ask("GET", f"users/{petra['id']}/export", token=own)
    assert told["user"]["email"] == "petra@example.org"
    assert [token["name"] for token in told["tokens"]] == ["script"]
    assert [channel["name"] for channel in told["channels"]] == ["hook"]
    by_action = {entry["action"]: entry["details"] for entry in told["audit"]}
    assert by_action["login"] == {"address": "127.0.0.1"}
    assert any(entry["details"].get("username") == "petra.example" for entry in told["audit"])
    assert cluster.ask("GET", f"users/{petra['id']}/export", token=admin)["user"]["id"] == petra["id"]
    foreign = cluster.client.get(f"{cluster.urls[0]}/users/{vera['id']}/export", headers={"Authorization": f"Bearer {own}"})  # fmt: skip
    assert foreign.status_code == 403
    cluster.ask("DELETE", f"users/{petra['id']}", token=admin)
    for kept in (own, made["token"]):
        assert cluster.client.get(f"{cluster.urls[0]}/me", headers={"Authorization": f"Bearer {kept}"}).status_code == 401  # fmt: skip
    with cluster.sessions() as session:
        names = session.scalars(text("select tablename from pg_tables where schemaname = 'public'")).all()
        for name in names:
            rows = [str(row) for row in session.execute(text(f'select * from "{name}"'))]  # noqa: S608  of the catalog
            assert not [row for row in rows if "petra" in row], f"{name} still knows the name"
    entries = cluster.ask("GET", "audit?limit=500", token=admin)["items"]
    hers = [entry for entry in entries if petra["id"] in {entry["user_id"], entry["resource_id"]}]
    assert {"login", "created", "deleted"} <= {entry["action"] for entry in hers}
    assert {value for entry in hers for name, value in entry["details"].items() if name == "address"} == {"erased"}
    engine, _ = connect(cluster.database.url)
    try:
        count, broken = verify_audit(engine, read_or_make_key(cluster.folder / "secrets" / "audit.key"))
    finally:
        engine.dispose()
    assert (count >= len(entries), broken) == (True, None)
