"Sphinx configuration: the pages are the notebooks that nbdev has processed, see build.py"
project = 'fastai_dilation'
extensions = ['myst_nb']
html_theme = 'furo'
html_title = project
html_use_index = False
nb_execution_mode = 'off'
nb_render_markdown_format = 'myst'
html_static_path = ['static']
html_css_files = ['wide.css']
myst_enable_extensions = ['dollarmath']
# outputs and links that only mean something on GitHub or in Jupyter
suppress_warnings = ['myst.header', 'myst.xref_missing', 'mystnb.unknown_mime_type', 'misc.highlighting_failure']
