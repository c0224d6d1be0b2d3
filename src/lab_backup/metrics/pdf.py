"""A report as a page to print."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from fpdf import FPDF
from fpdf.fonts import FontFace

MOST_ROWS = 2000
BARS = 12
_HEAD = FontFace(emphasis="BOLD", fill_color=(230, 236, 245))


def report(
    title: str, rows: Sequence[dict[str, Any]], *, when: datetime, chart: tuple[str, str] | None = None
) -> bytes:
    """Return a PDF of a table, with a bar chart of the columns `chart` (name, number) above it. `when` is in UTC."""
    page = FPDF(orientation="landscape", format="A4")
    page.set_title(title)
    page.set_creator("Lab Backup")
    page.set_creation_date(when)
    page.set_auto_page_break(auto=True, margin=12)
    page.add_page()
    page.set_font("Helvetica", "B", 16)
    page.cell(0, 10, _plain(title), new_x="LMARGIN", new_y="NEXT")
    page.set_font("Helvetica", size=9)
    page.cell(0, 6, f"{when:%Y-%m-%d %H:%M} UTC, {len(rows)} rows", new_x="LMARGIN", new_y="NEXT")
    if not rows:
        page.cell(0, 10, "There is nothing to report.", new_x="LMARGIN", new_y="NEXT")
        return bytes(page.output())
    if chart is not None:
        _bars(page, rows, *chart)
    page.ln(4)
    columns = list(rows[0])
    with page.table(headings_style=_HEAD, line_height=5, text_align="LEFT") as table:
        table.row([_plain(column.replace("_", " ")) for column in columns])
        for row in rows[:MOST_ROWS]:
            table.row([_plain(_shown(row[column])) for column in columns])
    return bytes(page.output())


def _bars(page: FPDF, rows: Sequence[dict[str, Any]], name: str, number: str) -> None:
    chosen = sorted((row for row in rows if row[number]), key=lambda row: float(row[number]), reverse=True)[:BARS]
    most = max((float(row[number]) for row in chosen), default=0.0)
    page.ln(2)
    for row in chosen:
        top = page.get_y()
        page.cell(60, 5, _plain(str(row[name]))[:36])
        page.set_fill_color(70, 120, 190)
        page.rect(72, top + 0.8, max(0.5, 150 * float(row[number]) / most), 3.4, style="F")
        page.set_x(224)
        page.cell(40, 5, _plain(_shown(row[number])), new_x="LMARGIN", new_y="NEXT")
    page.set_font("Helvetica", "I", 8)
    page.cell(0, 5, _plain(f"{number.replace('_', ' ')} by {name.replace('_', ' ')}"), new_x="LMARGIN", new_y="NEXT")
    page.set_font("Helvetica", size=9)


def _shown(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:%Y-%m-%d %H:%M}" if isinstance(value, datetime) else str(value)


def _plain(text: str) -> str:
    """Return what the built-in fonts can show: what they cannot is a question mark."""
    return text.encode("latin-1", "replace").decode("latin-1")
