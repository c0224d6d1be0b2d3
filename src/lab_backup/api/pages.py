"""The web interface: files that were built into the package, and one page for every other address, which finds its way by itself."""

import secrets
from pathlib import Path

from fastapi import APIRouter, FastAPI
from fastapi.responses import FileResponse, HTMLResponse, PlainTextResponse, Response
from starlette.exceptions import HTTPException

FOLDER = Path(__file__).parent.parent / "pages"
PLACEHOLDER = "__NONCE__"
KEPT = "public, max-age=31536000, immutable"  # the names of assets change with what is in them
MISSING = """<!doctype html><html lang="en"><title>Lab Backup</title><h1>The web interface is not built</h1>
<p>This is a checkout without it. Build it: <code>make web</code>, then load this page again. The API is at <code>/api/v1</code>.</p></html>"""

router = APIRouter(include_in_schema=False)


def page_policy(nonce: str) -> str:
    """Return the content security policy of the page: scripts of ours alone, styles of ours and those that carry the nonce."""
    return (
        f"default-src 'self'; style-src 'self' 'nonce-{nonce}'; img-src 'self' data:; "
        "frame-ancestors 'none'; base-uri 'none'; form-action 'self'; object-src 'none'"
    )


def _file(name: str) -> Path | None:
    """Return a built file; None for what is none, or lies elsewhere."""
    path = (FOLDER / name).resolve()
    return path if path.is_relative_to(FOLDER.resolve()) and path.is_file() and path.suffix != ".html" else None


@router.get("/{path:path}")
async def page(path: str) -> Response:
    """Return a file, or the page."""
    if path.startswith("api/") or path == "metrics":
        raise HTTPException(404, "Not Found")
    found = _file(path) if path else None
    if found is not None:
        kept = {"Cache-Control": KEPT} if path.startswith("assets/") else {}
        return FileResponse(found, headers=kept)
    if path.startswith("assets/"):
        return PlainTextResponse("there is no such file", 404)
    index = FOLDER / "index.html"
    nonce = secrets.token_urlsafe(16)
    text = index.read_text(encoding="utf-8").replace(PLACEHOLDER, nonce) if index.is_file() else MISSING
    return HTMLResponse(text, headers={"Content-Security-Policy": page_policy(nonce), "Cache-Control": "no-store"})


def install(app: FastAPI) -> None:
    """Serve the pages, after everything else that `app` serves."""
    app.include_router(router)
