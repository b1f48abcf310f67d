"""What a written page holds, for tests that read it without a browser."""

import html.parser
import json
from typing import Any

Record = dict[str, Any]


class Page(html.parser.HTMLParser):
    """A page's tables, texts by element id, figures, and everything it would load."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.texts: dict[str, str] = {}
        self.tables: dict[str, list[list[str]]] = {}
        self.figures: dict[str, Record] = {}
        self.tags: list[str] = []
        self._open: list[tuple[str, dict[str, str | None]]] = []
        self._table: list[list[str]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = dict(attrs)
        self.tags.append(tag)
        links = [str(value) for name, value in attrs if name in ("src", "href", "data", "action", "srcset")]
        self.loads += [link for link in links if not link.startswith("#")]  # places of the page itself
        if tag == "table":
            self._table = self.tables.setdefault(attributes.get("id") or "", [])
        elif tag == "tr":
            self._table.append([])
        elif tag in ("td", "th"):
            self._table[-1].append("")
        if tag not in ("meta", "br", "link", "input", "wbr"):
            self._open.append((tag, attributes))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop()[0] == tag, f"</{tag}> closes something else"

    def handle_data(self, data: str) -> None:
        tag, attributes = self._open[-1] if self._open else ("", {})
        if tag == "script" and "data-figure" in attributes:
            self.figures[str(attributes["data-figure"])] = json.loads(data)
        elif tag != "script" and any(element in ("td", "th") for element, _ in self._open):
            self._table[-1][-1] += data
        for _, attributes in self._open:
            if attributes.get("id"):
                self.texts[str(attributes["id"])] = self.texts.get(str(attributes["id"]), "") + data
