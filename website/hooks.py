"""What mkdocs calls while it builds: it adds the pages that are not in docs/, and makes links fit. Nothing else."""

from __future__ import annotations

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from website import reference, sources


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the references, the pages beside docs/, and the files that pages link to."""
    for path, uri in sources.PAGES.items():
        files.append(File.generated(config, uri, abs_src_path=str(sources.ROOT / path)))
    linked = {
        path
        for page in files.documentation_pages()
        for path in sources.links(page.content_string, sources.source_of(page.src_uri))
    }
    for path in sorted(linked):
        uri = sources.place_of(path)
        if uri.startswith("files/"):
            files.append(File.generated(config, uri, content=sources.shown(path)))
    for uri, make in reference.PAGES.items():
        files.append(File.generated(config, uri, content=make()))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """The page's text with its links as the site needs them; what was made here has them so already."""
    uri = page.file.src_uri
    if uri in reference.PAGES or uri.startswith("files/"):
        return markdown
    return sources.rewritten(markdown, sources.source_of(uri), uri)
