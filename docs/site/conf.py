"""The site of the documentation: ``python -m sphinx -W -c docs/site . DIRECTORY`` writes it.

The pages are those of the repository, which are read there too: nothing is written for the site
alone. With ``-W`` a link that leads nowhere, to a page, a heading or a file, is an error.
"""

import os

from sphinx.application import Sphinx

project = "mapsave"
author = "the authors of mapsave"
extensions = ["myst_parser"]
root_doc = "docs/README"
include_patterns = ["README.md", "HACKING.md", "CHANGELOG.md", "docs/*.md"]

# Anchors as on the platforms that show the pages of a repository.
myst_heading_anchors = 4
myst_links_external_new_tab = False
myst_enable_extensions: list[str] = []
suppress_warnings = ["misc.highlighting_failure"]  # examples leave out parts, by an ellipsis

html_theme = "alabaster"
html_theme_options = {"fixed_sidebar": True, "page_width": "70em", "description": "saves guests"}
html_sidebars = {"**": ["about.html", "searchfield.html", "navigation.html"]}
html_show_sourcelink = False
html_copy_source = False

NAVIGATION = {
    "Get started": [
        "../README",
        "install",
        "configuration",
        "commands",
        "migrating",
        "faq",
        "emulator",
    ],
    "How to": [
        *("libvirt", "jobs", "service", "client", "cockpit", "systemd", "evacuation"),
        *("mac", "planning", "checkpoints", "instant", "verification", "moving", "metrics"),
        "fleet",
        "pictures",
    ],
    "Reference": ["errors", "labels", "image-format"],
    "Explanation": [
        *("comparison", "security", "hazards", "benchmarks", "../HACKING", "../CHANGELOG"),
    ],
}


def _navigation(known: set[str]) -> str:
    """Return the navigation as MyST writes it; it is not shown on the page itself.

    What it does not name of the ``known`` pages comes last.
    """
    parts = {
        caption: [os.path.normpath(f"docs/{page}") for page in pages]
        for caption, pages in NAVIGATION.items()
    }
    named = {page for pages in parts.values() for page in pages}
    if more := sorted(known - named - {root_doc}):
        parts["More"] = more
    return "".join(
        f"\n```{{toctree}}\n:hidden:\n:caption: {caption}\n\n"
        + "".join(f"/{page}\n" for page in pages)
        + "```\n"
        for caption, pages in parts.items()
    )


def _add_navigation(app: Sphinx, name: str, source: list[str]) -> None:
    if name == root_doc:
        source[0] += _navigation(app.env.found_docs)


def setup(app: Sphinx) -> None:
    """Have the first page contain the navigation."""
    app.connect("source-read", _add_navigation)
