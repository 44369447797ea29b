"""The page: an executed notebook as one self-contained HTML file with a table of contents."""

from __future__ import annotations

import html as markup
import re
import string
from collections.abc import Sequence
from pathlib import Path

from study import paths
from study.store import write_atomically

HEADING = re.compile(r"<h([1-4])[^>]*>(.*?)</h\1>", re.DOTALL)
ANCHOR = re.compile(r'<a class="anchor-link".*?</a>', re.DOTALL)
TAG = re.compile(r"<[^>]+>")


def render(executed: Path, html: Path) -> Path:
    """Turn an executed notebook into one self-contained page; return its path."""
    from nbconvert import HTMLExporter  # only who renders needs it

    exporter = HTMLExporter(  # type: ignore[no-untyped-call]
        template_name="basic",
        embed_images=True,
        exclude_input=True,
        exclude_input_prompt=True,
        exclude_output_prompt=True,
    )
    body, _ = exporter.from_filename(str(executed))
    page = string.Template((paths.PACKAGE / "page.html").read_text())
    body, headings = _numbered(body)
    titles = [title for depth, _, title in headings if depth == 1]
    title = titles[0] if titles else executed.stem
    html.parent.mkdir(parents=True, exist_ok=True)
    text = page.substitute(title=title, contents=_contents(headings), body=body)
    write_atomically(html, text.encode())
    return html


Heading = tuple[int, str, str]  # depth, id, plain text (escaped)


def _numbered(body: str) -> tuple[str, list[Heading]]:
    """The body with an id on each heading, and the headings."""
    headings: list[Heading] = []

    def one(match: re.Match[str]) -> str:
        depth, inner = int(match[1]), ANCHOR.sub("", match[2]).strip()
        plain = markup.escape(markup.unescape(TAG.sub("", inner)))
        identity = _slug(plain, {known for _, known, _ in headings})
        headings.append((depth, identity, plain))
        return f'<h{depth} id="{identity}">{inner}</h{depth}>'

    return HEADING.sub(one, body), headings


def _slug(text: str, taken: set[str]) -> str:
    base = re.sub(r"[^a-z0-9]+", "-", markup.unescape(text).lower()).strip("-") or "section"
    slug, number = base, 2
    while slug in taken:
        slug, number = f"{base}-{number}", number + 1
    return slug


def _contents(headings: Sequence[Heading]) -> str:
    """The table of contents: all headings but the title."""
    items = [
        f'<li class="depth-{depth}"><a href="#{identity}">{text}</a></li>'
        for depth, identity, text in headings
        if depth > 1
    ]
    return f"<ul>{''.join(items)}</ul>"
