"""How `nox -s docs` builds the site: Sphinx, MyST pages and notebooks, numpydoc for the
reference.
"""

import sys
import tomllib
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(Path(__file__).parent / "_ext")]

import source_pages  # noqa: E402

import xlstm  # noqa: E402

project = "xlstm"
author = "the authors of xlstm"
copyright = "the authors of xlstm, Apache-2.0"
version = release = xlstm.__version__

extensions = [
    "myst_nb",
    "numpydoc",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.linkcode",
    "equations",
    "mathml",
    "site_files",
    "commands",
    "reference",
    "source_pages",
    "thumbnails",
    "reading_order",
    "search_texts",
    "search_words",
    "failed_cells",
]
exclude_patterns = ["_build", "_ext"]
nitpicky = False

# Pages and notebooks
myst_enable_extensions = ["amsmath", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 4
# the other mode, "cache", makes its database in two processes at once, and one fails
nb_execution_mode = "force"
# seconds of a cell; a page takes half a minute on two cores, far longer beside other work
nb_execution_timeout = 1800

# The reference
default_role = "py:obj"  # names in docstrings are code, and links where they are in the reference
autosummary_generate = False  # the extension `reference` makes its pages
linkcode_resolve = source_pages.link
autodoc_typehints = "none"  # docstrings say types, with shapes
numpydoc_show_class_members = False
python_use_unqualified_type_names = True
toc_object_entries_show_parents = "hide"  # beside the page of a class there is room for a method

# The search
search_words = tomllib.loads(Path(__file__).with_name("search.toml").read_text(encoding="utf-8"))
html_use_index = False  # no page links to an index of all names

# The site: static, with nothing from elsewhere
html_theme = "pydata_sphinx_theme"
html_title = "xlstm"
# a package of which only the font is used
MATHEMATICS = Path(find_spec("ziamath").origin).parent / "fonts"
html_static_path = ["_static", str(MATHEMATICS / "STIXTwoMath-Regular.ttf")]
html_css_files = ["site.css"]
html_math_renderer = "mathml"
html_show_sourcelink = False
html_sidebars = {"index": [], "comparison": []}  # their sections have no other pages
html_theme_options = {
    "navbar_align": "left",
    "header_links_before_dropdown": 7,
    "show_toc_level": 2,
    "secondary_sidebar_items": {"**": ["page-toc"], "index": []},
    "footer_start": ["copyright"],
    "footer_end": [],
}
