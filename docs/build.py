"Make README.md and the site from the notebooks: `python docs/build.py`"
import nbformat, os, re, shutil, subprocess, sys
from pathlib import Path
from fastcore.nbio import mk_cell, read_nb, write_nb
from fastcore.script import call_parse
from nbconvert import MarkdownExporter
from nbdev.serve import proc_nbs

root = Path(__file__).resolve().parent.parent

def readme():
    "README.md is index.ipynb, with links that hold one folder up"
    nb = nbformat.read(root/'nbs'/'index.ipynb', as_version=4)
    nb.metadata.language_info = dict(name='python')
    for c in nb.cells: c.source = re.sub(r'^#\|.*\n', '', c.source, flags=re.M)
    md = MarkdownExporter().from_notebook_node(nb)[0]
    md = re.sub(r'\]\(([\w/]+\.ipynb)\)', r'](nbs/\1)', md).replace('](../','](')
    (root/'README.md').write_text(re.sub(r'\n{3,}', '\n\n', md).strip()+'\n')

def page(path):
    "nbdev writes for Quarto: give Sphinx the title that it put into a header, and hide the source of generated cells"
    nb = read_nb(path)
    nb.metadata['language_info'] = dict(name='python')
    if nb.cells[0].cell_type=='raw':
        meta = dict(re.findall(r'^(title|description): (.*(?:\n  .*)*)', nb.cells[0].source, flags=re.M))
        meta = {k:re.sub(r'\s+', ' ', v).strip("'") for k,v in meta.items()}
        nb.cells[0] = mk_cell(f"# {meta['title']}\n\n{meta['description']}", 'markdown')
    for c in nb.cells:
        for d,k in ((c.metadata,'execution'), (c,'has_sd')): d.pop(k, None)
        if c.cell_type=='code' and 'echo: false' in c.source:
            c.metadata['tags'] = ['remove-input']
            for o in c.outputs: o['data'] = {'text/markdown': re.sub(r'\A---\n|\{target=[^}]*\}', '', ''.join(o['data'].get('text/markdown','')))}
        c.source = re.sub(r'^#\|.*\n', '', c.source, flags=re.M).replace('](../docs/','](').replace('](../CONTRIBUTING','](CONTRIBUTING')
    if path.stem=='index': nb.cells += [mk_cell(toc(k,ps), 'markdown') for k,ps in contents(path.parent).items()]
    write_nb(nb, path)

def contents(proc):
    "Pages of the site, by heading"
    tutorials = [o for o in ('real_weights','localise','segment','detect','inpaint','levels','tiles','gridding') if (proc/'tutorials'/f'{o}.ipynb').exists()]
    return dict(Tutorials=[f'tutorials/{o}' for o in tutorials], Library=sorted(o.stem for o in proc.glob('*.ipynb') if o.stem!='index'),
        Reference=['networks','peers','deploy','CONTRIBUTING'])

def toc(caption, pages): return f'```{{toctree}}\n:hidden:\n:caption: {caption}\n\n' + '\n'.join(pages) + '\n```'

@call_parse
def main():
    "Write README.md, and the site to `_docs`"
    os.chdir(root)
    readme()
    for o in ('_proc','_docs'): shutil.rmtree(o, ignore_errors=True)
    proc = proc_nbs(str(root/'nbs'), n_workers=1)
    for o in proc.rglob('*.ipynb'): page(o)
    shutil.copytree('docs/images', proc/'images')
    for o in (*Path('docs').glob('*.md'), Path('CONTRIBUTING.md')): (proc/o.name).write_text(re.sub(r'\]\((?:\.\./)?nbs/', '](', o.read_text()))
    subprocess.run([sys.executable, '-m', 'sphinx', '-q', '-W', '--keep-going', '-c', 'docs', '-b', 'html', str(proc), '_docs'], check=True)
    shutil.rmtree('jupyter_execute', ignore_errors=True)
    print(f"{root/'_docs'/'index.html'}")
