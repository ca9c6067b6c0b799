"""Hooks of the site: they add the generated pages, those of the repository's root, and the source files linked to.

Nothing is written to the repository. Links keep working in a checkout, where they name files, and on the site.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

sys.path[:0] = [str(Path(__file__).resolve().parents[2]), str(Path(__file__).resolve().parent)]

import cli_pages  # noqa: E402
import config_pages  # noqa: E402
import recipe_schema  # noqa: E402
from links import ROOT, ROOT_PAGES, SHOWN, is_external, links, repository_path, rewrite, site_path  # noqa: E402

ORIGINS = {page: path for path, page in ROOT_PAGES.items()}


def on_files(files: Files, config: Any) -> Files:
    """Add every page that is not a file below `docs/`."""
    generated = {**cli_pages.pages(), **config_pages.pages(), "reference/recipe.schema.json": recipe_schema.text()}
    for uri, text in generated.items():
        files.append(File.generated(config, uri, content=text))
    for path, uri in ROOT_PAGES.items():
        files.append(File.generated(config, uri, content=(ROOT / path).read_text("utf-8")))
    for path in sorted(_linked_sources(files)):
        if (ROOT / path).is_file():  # else the link is reported as broken
            files.append(File.generated(config, site_path(path), content=_source_page(path)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Point the links that leave `docs/` to the pages that show their files."""
    uri = page.file.src_uri
    if uri.startswith("source/"):
        return markdown
    origin = _origin(uri)

    def change(target: str) -> str:
        if is_external(target) or target.startswith("#"):
            return target
        path, (_, mark, heading) = repository_path(origin, target), target.partition("#")
        return os.path.relpath(site_path(path), os.path.dirname(uri) or ".") + mark + heading

    return rewrite(markdown, change)


def _origin(uri: str) -> str:
    """Return the path in the repository that the links of a page are relative to."""
    return ORIGINS.get(uri, f"docs/{uri}")


def _linked_sources(files: Files) -> set[str]:
    """Return the files outside of `docs/` that some page links to and no page shows yet."""
    found = set()
    for file in files.documentation_pages():
        for target in links(file.content_string):
            if not is_external(target) and not target.startswith("#"):
                found.add(repository_path(_origin(file.src_uri), target))
    return {path for path in found if not path.startswith("docs/") and path not in ROOT_PAGES}


def _source_page(path: str) -> str:
    """Return a page with the text of a file; it is left out of the search."""
    language = SHOWN[Path(path).suffix]
    text = (ROOT / path).read_text("utf-8").rstrip("\n")
    return f"---\nsearch:\n  exclude: true\n---\n# {path}\n\n~~~~~~~{language}\n{text}\n~~~~~~~\n"
