"""Pictures of every page of the web interface, light, dark and on a phone: python screenshots.py FOLDER."""

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from playwright.sync_api import Browser, sync_playwright

from lab_backup.demo.podman_service import PodmanService
from support.podman_box import container
from support.service import NAME, PASSWORD, Service

LOOKS: dict[str, dict[str, Any]] = {
    "light": {"color_scheme": "light", "viewport": {"width": 1280, "height": 800}},
    "dark": {"color_scheme": "dark", "viewport": {"width": 1280, "height": 800}},
    "phone": {"color_scheme": "light", "viewport": {"width": 390, "height": 800}},
}


def furnished(service: Service, podman: PodmanService, name: str) -> dict[str, str]:
    """Put something into the service that pages can show; return the addresses of the pages by the names of their pictures."""
    token = service.sign_in()
    body = {"name": "disk", "url": str(service.folder / "repository"), "passphrase": "only for pictures"}
    storage = service.post("storage", body, token=token, status=201)
    host = service.post("podman/hosts", {"name": "box", "uri": podman.uri}, token=token, status=201)
    place = f"podman/hosts/{host['id']}/containers"
    rows = service.until(
        lambda: service.get(place, token)["items"], lambda rows: any(row["name"] == name for row in rows)
    )
    source = next(row for row in rows if row["name"] == name)
    wanted = {"source_type": "container", "source_id": source["id"], "storage_backend_id": storage["id"]}
    schedule = {
        "name": "every night",
        "source_type": "all",
        "cron_expression": "30 2 * * *",
        "storage_backend_id": storage["id"],
    }
    service.post("schedules", schedule, token=token, status=201)
    job = service.post("backups", wanted, token=token, status=202)["id"]
    service.job(job, token)
    backup = service.get("backups", token)["items"][0]["id"]
    pages = [
        "sources?kind=container",
        "backups",
        "jobs",
        "schedules",
        "storage",
        "reports",
        "inbox",
        "users",
        "audit",
        "settings",
    ]
    return {
        "dashboard": "",
        "backup": f"backups/{backup}",
        "job": f"jobs/{job}",
        **{page.partition("?")[0]: page for page in pages},
    }


def take(browser: Browser, base: str, pages: dict[str, str], folder: Path) -> None:
    """Take the pictures."""
    for look, options in LOOKS.items():
        page = browser.new_context(locale="en-GB", **options).new_page()
        page.goto(f"{base}/")
        page.get_by_label("User name").wait_for()
        page.screenshot(path=folder / f"sign-in-{look}.png")
        page.get_by_label("User name").fill(NAME)
        page.get_by_label("Password").fill(PASSWORD)
        page.get_by_role("button", name="Sign in").click()
        page.locator("nav").wait_for(state="attached")
        for name, place in pages.items():
            page.goto(f"{base}/{place}")
            page.get_by_role("heading", level=1).wait_for()
            page.wait_for_load_state("networkidle")
            page.screenshot(path=folder / f"{name}-{look}.png")


def main(folder: Path) -> None:
    """Run a service with a container, and take pictures of it."""
    folder.mkdir(parents=True, exist_ok=True)
    with (
        PodmanService() as podman,
        Service() as service,
        sync_playwright() as player,
        container(podman, name="shop") as box,
    ):
        box.sh("mkdir /data/docs; echo hello > /data/docs/letter.txt; head -c 3000000 /dev/urandom > /data/stock")
        pages = furnished(service, podman, box.name)
        browser = player.chromium.launch(executable_path="/usr/bin/chromium")
        take(browser, f"http://127.0.0.1:{service.port}", pages, folder)
        browser.close()
    sys.stdout.write(f"{len(pages) + 1} pages, {len(LOOKS)} looks: {folder}\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
