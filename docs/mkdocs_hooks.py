"""Hooks of MkDocs: the documents of the repository's root as pages of the site, and links to them as links of the site.

The site holds what the files hold when it is built; there is no second copy of their text.
"""

import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "LICENSE": "LICENSE.txt",
}
LINK = re.compile(r"\]\((?:\.\./|docs/)?([\w./-]+)")  # from a page of docs/, and from the root


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Called once a build, with the files of docs/."""
    root = Path(config.config_file_path).parent
    for name, page in PAGES.items():
        files.append(File.generated(config, page, content=(root / name).read_text(encoding="utf-8")))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Called once a page."""
    return LINK.sub(lambda link: f"]({PAGES.get(link[1], link[1])}", markdown)
