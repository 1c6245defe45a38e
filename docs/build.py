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
guides = dict(timm='timm', torchvision='torchvision: segmenters, detectors', segmentation_models='segmentation_models',
    transformers='Hugging Face transformers', cam='CAM, Grad-CAM and hooks', anomaly='Anomaly maps, as PatchCore')
reference = dict(pays='Does it pay?', networks='Which networks', decoders='Whole models that segment', api='API: every function',
    peers='Costs, and how its peers compare', deploy='Compile, export, many GPUs')
library = {o.split(':')[0]:o for o in """layers: pools and convs, dilated
strides: how the strides of a network are found
phases: what cannot be dilated
resizes: F.interpolate on a finer map
trial: the proof, by running both
search: what is dilated, what runs by phases
output_stride: the function that you call
pixels: from a map to the image
ask: is it exact, and what changes?
reach: receptive fields and tiles
holders: Learner, U-Net
detectors: torchvision's
pretrained: ImageNet weights for XResNets
xresnet: fastai's blocks and networks
learner: fastai's learners
checkpointing: less memory, more time
deeplab: DeepLabV3 and V3+
evaluate: accuracy, time, memory
demo: photos and digits
check: the command""".split('\n')}
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
    others = {f'guides/{k}':title for k,title in guides.items()}
    return {'Start':start, 'Tutorials':lessons, 'With other libraries':others, 'Reference':reference, 'How it works':rooms, 'Contributing':contribute}

def toc(caption, pages):
    "A part of the sidebar"
    lines = '\n'.join(f'{title} <{o}>' for o,title in pages.items())
    return f'```{{toctree}}\n:hidden:\n:caption: {caption}\n\n{lines}\n```'

def home(proc):
    "The first page has links at its top, and the sidebar"
    nb = read_nb(proc/'index.ipynb')
    links = ['[Getting started](tutorials/start.ipynb)', '[Which networks](networks.md)', '[Does it pay?](pays.md)', '[API](api.md)',
        *([f'[Source]({git_url})'] if git_url else [])]
    nb.cells.insert(1, mk_cell(' · '.join(links), 'markdown'))
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
