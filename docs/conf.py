"Sphinx configuration: the pages are the notebooks that nbdev has processed, see build.py"
import re, sys
from pathlib import Path
sys.path.insert(0, str(Path(__file__).parent))
from pages import branch, git_url, root, settings

project = 'fastai_dilation'
author = settings['author']
copyright = f"{author}, {settings['license']}"
release = re.search(r'__version__ = "(.+)"', (root/'fastai_dilation'/'__init__.py').read_text())[1]
extensions = ['myst_nb','sphinx_copybutton']
html_theme = 'furo'
html_title = f'{project} {release}'
html_use_index = False
html_show_sourcelink = html_copy_source = False
nb_execution_mode = 'off'
nb_render_markdown_format = 'myst'
html_static_path = ['static']
html_css_files,html_js_files = ['wide.css'],['find.js']
myst_enable_extensions = ['dollarmath']
myst_heading_anchors = 3
copybutton_exclude = '.linenos, .gp, .go'
copybutton_selector = 'div.cell_input pre, div.highlight-python pre, div.highlight-sh pre'
# outputs and links that only mean something on GitHub or in Jupyter
suppress_warnings = ['myst.header', 'mystnb.unknown_mime_type', 'misc.highlighting_failure']
# all links to the repository need its address, which pages.py reads from settings.ini
html_theme_options = dict(top_of_page_buttons=['edit'] if git_url else [])
if git_url: html_theme_options |= dict(footer_icons=[dict(name='Source', url=git_url, html='Source', **{'class':''})])

def edit_link(app, pagename, templatename, context, doctree):
    "Each page is edited where it comes from, if it was not generated"
    sources = [f'nbs/{pagename}.ipynb', f'docs/{pagename}.md', f'{pagename}.md']
    found = next((o for o in sources if (root/o).exists()), None)
    if git_url and found: context['theme_source_edit_link'] = f'{git_url}/edit/{branch}/{found}'

def setup(app): app.connect('html-page-context', edit_link)
