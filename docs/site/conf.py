"""How Sphinx shows the pages that build.py assembles."""

import re

from trl_pafo.storage.versions import __version__

project, release = "trl-pafo", __version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton"]
root_doc = "README"
html_theme = "furo"
html_title = f"trl-pafo {release}"
html_static_path, html_css_files = ["static"], ["tables.css"]
myst_heading_anchors = 4
autodoc_typehints = "none"  # the docstrings say them
autodoc_inherit_docstrings = False
autodoc_member_order = "bysource"
napoleon_google_docstring = True
default_role = "code"
highlight_language = "text"
pygments_style, pygments_dark_style = "friendly", "github-dark"  # both show what a diff adds and removes
smartquotes_action = "qe"  # no dashes: `--` begins an option


def to_rst(app, what, name, obj, options, lines):
    """Docstrings are Markdown in TRL's manner; Sphinx reads reStructuredText."""
    found, fence = [], None
    for line in lines:
        if line.strip().startswith("```"):
            fence = None if fence is not None else len(line) - len(line.lstrip())
            found += ["", " " * fence + ".. code-block:: python", ""] if fence is not None else [""]
        elif fence is not None:
            found.append("    " + line)
        elif argument := re.fullmatch(r"( *[\w, `*]+ )\((.+)\):", line):  # napoleon marks the type by itself
            kind = re.sub(r"[`*]", "", re.sub(r"\[`~?([\w.]+)`\]", r"\1", argument[2]))
            found.append(f"{argument[1].replace('`', '')}({kind}):")
        else:
            found.append(inline(line))
    lines[:] = found


def inline(line: str) -> str:
    """Code in double backquotes, links to names as code, and what Markdown does not read as a mark escaped."""
    parts = re.split(r"(``[^`]+``|\[`[^`]+`\]|`[^`]+`|\*\*[^*]+\*\*(?!\w)|(?<!\*)\*[^*\s](?:[^*]*[^*\s])?\*(?![\w*]))", line)
    for i, part in enumerate(parts):
        if not i % 2:
            parts[i] = ("\\ " if i and part[:1].isalnum() else "") + re.sub(r"[*|]", r"\\\g<0>", part)
        elif "`" in part:
            name = part.removeprefix("[").strip("`").removesuffix("`]")
            parts[i] = f"``{name.rpartition('.')[2] if name.startswith('~') else name}``"
    return "".join(parts)


def setup(app):
    """Before napoleon reads them."""
    app.connect("autodoc-process-docstring", to_rst, priority=100)
