"""The web interface in a real browser, against a real service and a real container: from the first run to a restore."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from lab_backup.demo.podman_service import PodmanService
from support.podman_box import container
from support.service import NAME, PASSWORD, Service

AXE = Path(__file__).parents[2] / "web" / "node_modules" / "axe-core" / "axe.min.js"
PATIENCE = 60_000  # milliseconds


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Run Chromium."""
    with sync_playwright() as player:
        running = player.chromium.launch(executable_path="/usr/bin/chromium")
        yield running
        running.close()


def watched(browser: Browser, said: list[str], **options: Any) -> Page:
    """Return a new page; what it complains about is put into `said`."""
    page = browser.new_context(locale="en-GB", **options).new_page()
    page.set_default_timeout(PATIENCE)
    # That the service refuses a weak password is meant, and the browser tells of it.
    page.on(
        "console",
        lambda said_so: said.append(said_so.text) if said_so.type == "error" and "422" not in said_so.text else None,
    )
    page.on("pageerror", lambda error: said.append(str(error)))
    return page


def assert_accessible(page: Page) -> None:
    """Let axe look at the page: it finds nothing."""
    page.evaluate("Promise.allSettled(document.getAnimations().map(each => each.finished))")  # colours fade in
    # By the debugger's way in: the page's own policy lets no foreign script in.
    session = page.context.new_cdp_session(page)
    session.send("Runtime.evaluate", {"expression": AXE.read_text()})
    found = session.send(
        "Runtime.evaluate",
        {
            "expression": "axe.run({runOnly: ['wcag2a', 'wcag2aa', 'wcag21a', 'wcag21aa', 'wcag22aa']}).then(r => JSON.stringify(r.violations.map(v => [v.id, v.nodes.map(n => n.html)])))",
            "awaitPromise": True,
        },
    )
    assert json.loads(found["result"]["value"]) == [], page.url


def ended_well(page: Page) -> None:
    """Wait until the job that the page shows has succeeded."""
    page.wait_for_url("**/jobs/*")
    expect(page.get_by_text("succeeded", exact=False).first).to_be_visible(timeout=PATIENCE)
    expect(page.get_by_role("button", name="Try again")).to_be_visible(timeout=PATIENCE)


@pytest.mark.timeout(400)
def test_from_the_first_run_to_a_restore(browser: Browser, podman_service: PodmanService, tmp_path: Path) -> None:
    """One-time link, storage with a live test, host, backup with live progress, one file downloaded, restore under a new name; each page is accessible and none complains."""
    said: list[str] = []
    service = Service()
    try:
        service.start()
        page = watched(browser, said)
        with container(podman_service) as box:
            box.sh("mkdir -p /data/docs; echo hello > /data/docs/letter.txt; head -c 3000000 /dev/urandom > /data/big")
            first_run(page, service, tmp_path)
            back_up(page, podman_service, box.name)
            download(page, box.name)
            page.get_by_role("button", name="Restore").click()
            page.get_by_label("New name").fill(f"{box.name}-2")
            page.get_by_label("Start it afterwards").check()
            page.get_by_role("dialog").get_by_role("button", name="Restore").click()
            ended_well(page)
            try:
                assert podman_service.run("exec", f"{box.name}-2", "cat", "/data/docs/letter.txt").stdout == b"hello\n"
            finally:
                podman_service.run("rm", "-f", "-t", "0", f"{box.name}-2", check=False)
            look_at_every_page(page, service)
        a_viewer_sees_less(browser, page, service, said)
        assert said == []
    finally:
        service.__exit__(*sys.exc_info())


def first_run(page: Page, service: Service, folder: Path) -> None:
    """Make the administrator and the storage."""
    token = (service.setup or "").partition("#")[2]
    base = f"http://127.0.0.1:{service.port}"
    page.goto(f"{base}/setup#{token}")
    assert_accessible(page)
    page.get_by_label("User name").fill(NAME)
    page.get_by_label("Password").fill("short")
    page.get_by_role("button", name="Create").click()
    expect(page.get_by_role("alert")).to_be_visible()
    page.get_by_label("Password").fill(PASSWORD)
    page.get_by_role("button", name="Create").click()
    page.wait_for_url("**/storage?first=1")
    page.get_by_role("dialog").get_by_role("textbox", name="Name").fill("disk")
    page.get_by_role("textbox", name="Address").fill(str(folder / "nowhere" / "repository"))
    page.get_by_label("Passphrase").fill("only for tests")
    page.get_by_role("button", name="Test").click()
    expect(page.get_by_text("open:")).to_be_visible()
    page.get_by_role("textbox", name="Address").fill(str(folder / "repository"))
    assert_accessible(page)
    page.get_by_role("dialog").get_by_role("button", name="Add").click()
    expect(page.get_by_role("heading", name="disk")).to_be_visible()


def back_up(page: Page, podman: PodmanService, name: str) -> None:
    """Add the host and back its container up."""
    page.get_by_role("link", name="Sources").click()
    page.get_by_role("button", name="Add a host").first.click()
    page.get_by_role("combobox", name="Kind").click()
    page.get_by_role("option", name="Podman").click()
    page.get_by_role("dialog").get_by_role("textbox", name="Name").fill("box")
    page.get_by_role("textbox", name="Address of the host").fill(podman.uri)
    page.get_by_role("dialog").get_by_role("button", name="Add").click()
    page.get_by_role("dialog").wait_for(state="hidden")
    page.get_by_role("tab", name="Container").click()
    row = page.get_by_role("row", name=name)
    for _ in range(30):  # the host is looked at in the background
        page.wait_for_timeout(500)
        if row.count():
            break
        page.reload()
    row.get_by_role("button", name="Back up now").click()
    page.get_by_role("dialog").get_by_role("button", name="Back up now").click()
    ended_well(page)
    assert_accessible(page)


def download(page: Page, name: str) -> None:
    """Find the backup, look into its volume, and download a file."""
    page.get_by_role("link", name="Backups").click()
    page.get_by_role("link", name=name).click()
    page.get_by_role("button", name="docs/").click()
    with page.expect_download() as coming:
        page.get_by_role("button", name="Download: docs/letter.txt").click()
    assert Path(coming.value.path()).read_bytes() == b"hello\n"
    assert coming.value.suggested_filename == "letter.txt"
    assert_accessible(page)


def look_at_every_page(page: Page, service: Service) -> None:
    """Open each by its address, on a phone too; nothing is wider than the screen, and German is there."""
    base = f"http://127.0.0.1:{service.port}"
    for place in (
        "",
        "sources",
        "backups",
        "jobs",
        "schedules",
        "storage",
        "reports",
        "inbox",
        "users",
        "audit",
        "settings",
    ):
        page.goto(f"{base}/{place}")
        page.get_by_role("heading", level=1).wait_for()
        page.wait_for_load_state("networkidle")
        assert_accessible(page)
    page.set_viewport_size({"width": 390, "height": 800})
    for place in ("", "backups", "storage"):
        page.goto(f"{base}/{place}")
        page.get_by_role("heading", level=1).wait_for()
        page.wait_for_load_state("networkidle")
        assert page.evaluate("document.documentElement.scrollWidth") <= 390, place
    page.get_by_role("combobox", name="Language").click()
    page.get_by_role("option", name="Deutsch").click()
    expect(page.get_by_role("heading", name="Speicher", level=1)).to_be_visible()


def a_viewer_sees_less(browser: Browser, admin: Page, service: Service, said: list[str]) -> None:
    """Sign in as a viewer: nothing is offered that would be refused, and one comes to the page that one wanted."""
    token = service.sign_in()
    service.post("users", {"username": "vera", "password": PASSWORD, "role": "viewer"}, token=token, status=201)
    page = watched(browser, said, color_scheme="dark")
    base = f"http://127.0.0.1:{service.port}"
    page.goto(f"{base}/sources?kind=container")
    assert_accessible(page)
    page.get_by_label("User name").fill("vera")
    page.get_by_label("Password").fill(PASSWORD)
    page.get_by_role("button", name="Sign in").click()
    page.get_by_role("navigation").wait_for()
    assert page.url.endswith("/sources?kind=container"), "one comes to where one wanted to go"
    page.get_by_role("heading", level=1).wait_for()
    expect(page.get_by_role("button", name="Back up now")).to_have_count(0)
    expect(page.get_by_role("link", name="Users")).to_have_count(0)
    assert_accessible(page)
    page.get_by_role("button", name="Sign out").click()
    expect(page.get_by_role("button", name="Sign in")).to_be_visible()
    admin.context.close()
