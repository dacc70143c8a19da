"""Make links from the docs to files outside docs/ work in the site: each such file becomes a page of it.

MkDocs calls the functions named `on_…`. Those in `_PAGES` are built like the other pages; any other file is shown under
source/ with its lines numbered. Links are rewritten for the site alone, so the pages keep working on a code host.
"""

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from pygments.lexers import get_lexer_for_filename
from pygments.util import ClassNotFound

_LINK = re.compile(r"(?<=\]\()(?![a-z]+:|#)([^)\s#]+)")
_ROOT = Path(__file__).parents[1]
_PAGES = ("CONTRIBUTING.md", "CHANGELOG.md", "clients/python/README.md", "examples/README.md")


def on_files(files: Files, config: MkDocsConfig) -> None:
    """Add the pages outside docs/, and every file outside docs/ that a page links to."""
    for path in _PAGES:
        files.append(File.generated(config, path, content=(_ROOT / path).read_text()))
    linked = {path for file in files.documentation_pages() for path in _linked(file.content_string, file.src_uri)}
    for path in sorted(linked - {f"docs/{file.src_uri}" for file in files} - set(_PAGES)):
        if not path.startswith("docs/"):
            files.append(File.generated(config, f"source/{path}.md", content=_source_page(path)))


def on_page_markdown(markdown: str, page: Page, **_: object) -> str:
    """Let each link lead to the page that shows its target."""

    def rewritten(link: re.Match[str]) -> str:
        target = _site_uri(_resolve(link[1], page.file.src_uri))
        return posixpath.relpath(target, posixpath.dirname(page.file.src_uri))

    return _LINK.sub(rewritten, markdown)


def _linked(markdown: str, src_uri: str) -> set[str]:
    return {_resolve(link, src_uri) for link in _LINK.findall(markdown)}


def _resolve(link: str, src_uri: str) -> str:
    """Return the path in the repository that a link on a page leads to; of a package, the file that introduces it."""
    page = src_uri if src_uri in _PAGES else f"docs/{src_uri}"
    path = posixpath.normpath(posixpath.join(posixpath.dirname(page), link))
    introduction = f"{path}/__init__.py"
    return introduction if (_ROOT / introduction).is_file() else path


def _site_uri(path: str) -> str:
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    return path if path in _PAGES else f"source/{path}.md"


def _source_page(path: str) -> str:
    if not (_ROOT / path).is_file():
        raise PluginError(f"a page links to {path}, which is no file")
    text = (_ROOT / path).read_text()
    try:
        language = get_lexer_for_filename(path).aliases[0]
    except ClassNotFound:
        language = "text"
    # Six backticks: no file that is shown has as many.
    return f'---\nsearch: {{exclude: true}}\n---\n# {path}\n\n``````{language} linenums="1"\n{text}\n``````\n'
