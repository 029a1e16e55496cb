"""Hooks of mkdocs that add the pages outside of docs/ and rewrite links."""

from __future__ import annotations

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from website import reference, sources

# Generated pages, which already have the links of the site.
_MADE = set(reference.PAGES)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the references, the pages outside of docs/, and the files that pages link to."""
    for path, uri in sources.PAGES.items():
        files.append(File.generated(config, uri, abs_src_path=str(sources.ROOT / path)))
    for uri, make in reference.PAGES.items():
        files.append(File.generated(config, uri, content=make()))
    unread = [page for page in files.documentation_pages() if page.src_uri not in reference.PAGES]
    while unread:
        page = unread.pop()
        for path in sources.links(page.content_string, sources.source_of(page.src_uri)):
            uri = sources.place_of(path)
            if files.get_file_from_path(uri) is not None:
                continue
            if path.endswith(".md"):
                unread.append(File.generated(config, uri, abs_src_path=str(sources.ROOT / path)))
                files.append(unread[-1])
            else:
                _MADE.add(uri)
                files.append(File.generated(config, uri, content=sources.shown(path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """The page's text with its links as the site needs them; what was made here has them so already."""
    uri = page.file.src_uri
    if uri in _MADE:
        return markdown
    return sources.rewritten(markdown, sources.source_of(uri), uri)
