"""Sphinx's settings: everything that a page loads lies on the site itself."""

import json
import os
import re
import sys
from pathlib import Path

from latex2mathml.converter import convert as mathml

sys.path.insert(0, str(Path(__file__).parent))
here = Path(os.environ["FASTEDIT_SITE"])  # written by build.py: what a page needs to know
known = json.loads((here / "known.json").read_text(encoding="utf-8"))

project, author, release = "fastedit", known["author"], known["version"]
copyright = f"{author}, {known['license']}"
extensions = ["myst_nb", "sphinx_copybutton"]
myst_enable_extensions = ["dollarmath", "colon_fence", "attrs_block", "attrs_inline"]
myst_heading_anchors = 4
nb_execution_mode = "off"
nb_merge_streams = True
nb_mime_priority_overrides = [("html", "text/html", 0)]
html_theme, html_title = "furo", "fastedit"
html_static_path = [str(Path(__file__).parent / "static")]
templates_path = [str(Path(__file__).parent / "templates")]
html_css_files, html_js_files = ["site.css"], ["site.js"]
html_copy_source, html_show_sourcelink, html_show_sphinx = False, False, False
html_theme_options = dict(
    source_repository=known["url"] + "/",
    source_branch="main",
    source_directory="nbs/",
    top_of_page_buttons=[],
)
html_sidebars = {
    "**": [
        "sidebar/scroll-start.html",
        "sidebar/brand.html",
        "sidebar/search.html",
        "pages.html",
        "sidebar/scroll-end.html",
    ]
}
html_context = dict(sections=known["sections"])
pygments_style, pygments_dark_style = "friendly", "monokai"
copybutton_selector = "div.cell_input pre, div.highlight-bash pre, div.highlight-python pre"
python_maximum_signature_line_length = 90
add_module_names = False
toc_object_entries = False
templates_exclude = ["**.md"]
exclude_patterns = ["known.json", "**.json"]

_CODE = re.compile(
    r"(<a [^>]*>(?:(?!</a>).)*</a>|<h[1-6]\b.*?</h[1-6]>|<dt\b.*?</dt>)"
    r'|<code class="docutils literal notranslate"><span class="pre">([\w.]+)(\(\))?</span></code>',
    re.S,
)


def link_names(app, pagename, templatename, context, doctree):
    "Make the name of something exported, where it stands as code in a text, a link to its entry."
    if "body" not in context or not pagename:
        return
    up = "../" * pagename.count("/")

    def linked(m):
        place = known["names"].get(m[2]) if m[2] else None
        if not place or place[0] == pagename:
            return m[0]
        return f'<a class="fe-name" href="{up}{place[0]}.html#{place[1]}">{m[0]}</a>'

    context["body"] = _CODE.sub(linked, context["body"])


def setup(app):
    def visit(display):
        def write(self, node):
            self.body.append(mathml(node.astext(), display=display))
            raise __import__("docutils.nodes").nodes.SkipNode

        return write

    app.add_html_math_renderer("mathml", (visit("inline"), None), (visit("block"), None))
    app.connect("html-page-context", link_names)
    import furo

    furo._compute_navigation_tree = lambda context: ""  # pages.html draws the sidebar


html_math_renderer = "mathml"
