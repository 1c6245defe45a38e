"Make README.md and the site from the notebooks: `python docs/build.py`"
import nbformat, os, re, shutil, subprocess, sys
from pathlib import Path
from fastcore.nbio import mk_cell, read_nb, write_nb
from fastcore.script import call_parse
from nbconvert import MarkdownExporter
from nbdev.serve import proc_nbs
from api import api
from networks import write_page
from pages import git_url, number, page, root

# The sidebar calls pages by their names in the README. What is not named here is called by its file's name.
tutorials = dict(real_weights='Real weights: photos', localise='Localise: where is it?', one_axis='One axis: when does it sound?',
    segment='Segment: larger maps, same weights', detect='Detect: small objects', inpaint='Inpaint: seeing past a hole',
    levels='Levels: all maps of a network', tiles='Tiles: large images', gridding='Gridding: what one position sees')
reference = dict(networks='Which networks', decoders='Whole models that segment', api='API: every function', peers='How its peers compare',
    deploy='Compile, export, many GPUs')
library = {o.split(':')[0]:o for o in """layers: taps that can be moved apart
strides: which stride has a map?
phases: any module, phase by phase
resizes: at the native positions
trial: try it, then believe it
search: dilated, or by phases
output_stride: one argument
pixels: where a value stands
ask: exact, why, where
reach: how far a value sees
holders: what a network may be in
detectors: the body of torchvision's
pretrained: ImageNet weights
xresnet: fastai's blocks and networks
learner: fastai's learners
checkpointing: less memory, more time
deeplab: DeepLabV3 and V3+
evaluate: accuracy, time, memory
demo: what is in a photo, and where?
check: can this network be dilated?""".split('\n')}
start,contribute = {'tutorials/start':'Getting started'},{'CONTRIBUTING':'How to contribute', '90_upstream':'The pull requests into fastai',
    'CHANGELOG':'Changes'}

def readme():
    "README.md is index.ipynb, with links that hold one folder up"
    nb = nbformat.read(root/'nbs'/'index.ipynb', as_version=4)
    nb.metadata.language_info = dict(name='python')
    for c in nb.cells: c.source = re.sub(r'^#\|.*\n', '', c.source, flags=re.M)
    md = MarkdownExporter().from_notebook_node(nb)[0]
    md = re.sub(r'\]\(([\w/]+\.ipynb)\)', r'](nbs/\1)', md).replace('](../','](')
    (root/'README.md').write_text(re.sub(r'\n{3,}', '\n\n', md).strip()+'\n')

def sidebar(proc):
    "Titles of the pages, by their files, by the headings above them"
    lessons = [o.stem for o in sorted((proc/'tutorials').glob('*.ipynb')) if o.stem not in ('start',*tutorials)]
    rooms = [o.stem for o in sorted(proc.glob('*.ipynb')) if o.stem not in ('index','90_upstream')]
    lessons = {f'tutorials/{k}':title for k,title in (tutorials | {o:o for o in lessons}).items()}
    rooms = {o:library.get(number(o), number(o)) for o in rooms}
    return {'Start':start, 'Tutorials':lessons, 'Reference':reference, 'How it works':rooms, 'Contributing':contribute}

def toc(caption, pages):
    "A part of the sidebar"
    lines = '\n'.join(f'{title} <{o}>' for o,title in pages.items())
    return f'```{{toctree}}\n:hidden:\n:caption: {caption}\n\n{lines}\n```'

def home(proc):
    "The first page also says how to install, and has the sidebar"
    nb = read_nb(proc/'index.ipynb')
    links = ['[Getting started](tutorials/start.ipynb)', '[Which networks](networks.md)', '[API](api.md)',
        *([f'[Source]({git_url})'] if git_url else []), 'Apache-2.0']
    how = f"`pip install '.[timm]'` in a copy of the repository. {' · '.join(links)}"
    nb.cells.insert(1, mk_cell(how, 'markdown'))
    nb.cells += [mk_cell(toc(k,ps), 'markdown') for k,ps in sidebar(proc).items()]
    write_nb(nb, proc/'index.ipynb')

@call_parse
def main():
    "Write README.md, and the site to `_docs`"
    os.chdir(root)
    readme(), write_page()
    for o in ('_proc','_docs'): shutil.rmtree(o, ignore_errors=True)
    proc = proc_nbs(str(root/'nbs'), n_workers=1)
    for o in proc.rglob('*.ipynb'): page(o, proc)
    home(proc)
    shutil.copytree('docs/images', proc/'images')
    for o in (*Path('docs').glob('*.md'), Path('CONTRIBUTING.md'), Path('CHANGELOG.md')):
        (proc/o.name).write_text(re.sub(r'\]\((?:\.\./)?(?:nbs|docs)/', '](', o.read_text()))
    md,lacking = api(proc)
    (proc/'api.md').write_text(md)
    if lacking: print(f"without a heading of their own: {', '.join(lacking)}")
    subprocess.run([sys.executable, '-m', 'sphinx', '-q', '-W', '--keep-going', '-c', 'docs', '-b', 'html', str(proc), '_docs'], check=True)
    shutil.rmtree('jupyter_execute', ignore_errors=True)
    print(f"{root/'_docs'/'index.html'}")
