"""The site: `make docs` builds it with Sphinx, warnings are errors.

Without a network the names of other projects stay text: set DOCS_ONLINE=1, as the workflow does, to
link them.
"""

import os
import re
from importlib.metadata import version as version_of
from pathlib import Path
from typing import Any

project = "aiomultiprocess"
author = "Amethyst Reese and aiomultiprocess contributors"
project_copyright = author
release = version_of("aiomultiprocess")
version = ".".join(release.split(".")[:2])

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.intersphinx",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "sphinx_design",
]
exclude_patterns = ["img/README*"]
nitpicky = True
smartquotes_action = "D"  # dashes alone: texts name values such as "shm"
maximum_signature_line_length = 88
default_role = "literal"  # docstrings write `name` for code
highlight_language = "none"

myst_enable_extensions = ["attrs_inline", "colon_fence", "deflist"]
myst_heading_anchors = 3
REPOSITORY = "https://github.com/omnilib/aiomultiprocess"

intersphinx_mapping = {
    "python": ("https://docs.python.org/3", None),
    "numpy": ("https://numpy.org/doc/stable", None),
    "aiohttp": ("https://docs.aiohttp.org/en/stable", None),
    "dask": ("https://docs.dask.org/en/stable", None),
}
if os.environ.get("DOCS_ONLINE") != "1":
    intersphinx_mapping = {}
# types of other projects, and type variables, which no inventory has
nitpick_ignore_regex = [(r"py:.*", r"(?!aiomultiprocess\b).*|aiomultiprocess\.types\..*")]

autodoc_member_order = "bysource"
autodoc_typehints = "none"  # overloads fill a page; the texts say what an argument may be
autodoc_default_options = {"members": True}
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_custom_sections = [
    ("Awaiting the call raises", "Raises"),
    ("The future raises", "Raises"),
]

copybutton_prompt_text = r"\$ |>>> |\.\.\. "
copybutton_prompt_is_regexp = True

html_theme = "furo"
html_title = "aiomultiprocess"
html_favicon = "_static/icon.svg"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_theme_options = {
    "source_repository": REPOSITORY,
    "source_branch": "main",
    "source_directory": "docs/",
    "footer_icons": [],
}
html_show_sphinx = False
html_copy_source = False


def _one_signature(
    app: Any, what: str, name: str, obj: Any, options: Any, signature: str | None, returns: Any
) -> tuple[str, str | None] | None:
    """Leave out the arguments of classes that only the library makes."""
    if what == "class" and name.rpartition(".")[2] in MADE_BY_THE_LIBRARY:
        return "", None
    return None


#: Pages that are files of the repository's root.
SHOWN = {"changelog": "CHANGELOG.md", "contributing": "CONTRIBUTING.md", "security": "SECURITY.md"}

MADE_BY_THE_LIBRARY = {"Call", "PoolResult", "Stream", "WorkerInfo"}


def _link_the_repository(app: Any, name: str, source: list[str]) -> None:
    """Let links out of docs/, as GitHub follows them, lead to the files of the repository."""
    if name in SHOWN:
        shown = Path(app.srcdir).parent / SHOWN[name]
        app.env.note_dependency(str(shown))
        text = shown.read_text(encoding="utf-8").replace("](docs/", "](")
        source[0] = re.sub(r"\]\((?=[A-Z_]+\.md|\w+/README)", f"]({REPOSITORY}/blob/main/", text)
        return
    up = "../" * (name.count("/") + 1)
    source[0] = source[0].replace(f"]({up}", f"]({REPOSITORY}/blob/main/")


def setup(app: Any) -> None:
    app.connect("source-read", _link_the_repository)
    app.connect("autodoc-process-signature", _one_signature)
