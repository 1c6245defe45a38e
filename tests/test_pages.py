"What a reader copies from a page of the site runs: what the pages hide or leave out is not needed"
import os, re, subprocess, sys
from pathlib import Path
import pytest, torch
from fastcore.nbio import read_nb
from fastai_dilation.all import get_output_stride
from seg_data import class_dls, make_files, seg_dls
from util import never_download

root = Path(__file__).parent.parent
sys.path.insert(0, str(root/'docs'))
import pages as site
from api import by_use, examples, public, raises, signature
from networks import page as networks_page, read, text
from pages import plain_pages, undefined, visible_code, without_quick

@pytest.fixture(scope='module')
def pages(tmp_path_factory):
    "Visible code of each page of the site, by name"
    proc = tmp_path_factory.mktemp('pages')
    return {o.relative_to(proc).with_suffix('').as_posix():visible_code(read_nb(o)) for o in plain_pages(root/'nbs', proc)}

def test_no_name_is_missing(pages):
    "Each name that a page uses was imported or defined on that page"
    assert len(pages)==len([o for o in (root/'nbs').rglob('*.ipynb') if '.ipynb_checkpoints' not in o.parts])
    missing = {name:undefined(cells) for name,cells in pages.items()}
    assert {k:v for k,v in missing.items() if v}=={}

def test_a_missing_name_is_found():
    "Names that a hidden cell made, that come later, or that only functions use, are found"
    assert undefined(['n = 8 if quick else 400'])==['quick']
    assert undefined(['def f(x): return np.sqrt(x+y)', 'import numpy as np\ny = 1'])==['np','y']
    assert undefined(['from math import *\na = [b for b in range(3)]', 'class A:\n    c = 1\n    d = c+sqrt(a[0])'])==[]

def test_real_numbers():
    "Pages show what was run, and not what tests make of it"
    assert without_quick('a = f(8 if quick else 400, *((1,2) if quick else (3,4)))')=='a = f(400, *(3,4))'
    assert without_quick("for o in ('é' if quick else xs[:2]): print(o)")=='for o in (xs[:2]): print(o)'
    assert without_quick('if quick:\n    a = 1\n    b = 2\nc = 3')=='c = 3'

def test_api_has_all_public_names():
    "The API page has what `from fastai_dilation.all import *` brings, with arguments as they are"
    from fastai_dilation import all as public_names
    entries = {k:f for k,(f,_) in public().items()}
    assert {k for k in entries if '.' not in k}=={k for k in public_names.__all__ if callable(getattr(public_names,k))}
    assert signature('grid_error', entries['grid_error'])=='grid_error(model, output_stride, x=None, levels=False)'
    assert signature('vision_learner', entries['vision_learner'])=='vision_learner(dls, arch, ..., output_stride=None)'

def test_each_name_of_the_api_stands_under_a_use():
    "A new name needs a place on the page, and an example is about a name that is there"
    told = [o for names in by_use.values() for o in names.split()]
    assert len({*told})==len(told)
    assert {*public()}<={*told} and {*examples,*raises}<={*told}

@pytest.mark.slow
@pytest.mark.filterwarnings('ignore')
def test_the_examples_of_the_api_run(tmp_path):
    "Each example runs as it stands, one after the other"
    from fastai.vision import all as fastai_names
    from fastai_dilation import all as our_names
    files = make_files(tmp_path)
    net = fastai_names.resnet18().eval()
    names = {**vars(fastai_names), **{k:getattr(our_names,k) for k in our_names.__all__}}
    names |= dict(net=net, body=fastai_names.create_body(fastai_names.resnet18()), x=torch.randn(2,3,128,128), dls=class_dls(files), mask_dls=seg_dls(files))
    for code in examples.values(): exec(code, names)
    assert names['y'].shape==(2,512,4,4) and names['heat'].shape[2:]==(128,128)

def test_the_page_of_networks_says_what_the_rows_say():
    "After a run of bench/zoo.py, `python docs/networks.py` writes it anew"
    assert networks_page.read_text(encoding='utf-8')==text(*read())

def test_source_links(monkeypatch):
    "Without an address of the repository there is no link to a source; with one it leads to the line of the definition"
    monkeypatch.setattr(site, 'git_url', '')
    assert site.source_link('to_pixels', 'pixels')==''
    monkeypatch.setattr(site, 'git_url', 'https://github.com/OWNER/NAME')
    url,line = site.source_link('to_pixels', 'pixels').strip().removeprefix('[source](').removesuffix(')').split('#L')
    assert url=='https://github.com/OWNER/NAME/blob/main/fastai_dilation/pixels.py'
    assert (root/'fastai_dilation'/'pixels.py').read_text().splitlines()[int(line)-1].startswith('def to_pixels(')

# pages that take seconds; the others train, or try out the library for minutes
@pytest.mark.slow
@pytest.mark.parametrize('name', ['00_layers','index','tutorials/levels'])
def test_a_page_runs(pages, tmp_path, name):
    "The code of a page, copied into a file, runs in an empty folder"
    (tmp_path/'copied.py').write_text('\n\n'.join(pages[name]), encoding='utf-8')
    env = {k:v for k,v in os.environ.items() if k!='IN_TEST'} | dict(MPLBACKEND='Agg', PYTHONPATH=str(root))
    res = subprocess.run([sys.executable,'-W','ignore','copied.py'], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert res.returncode==0, res.stderr

@pytest.mark.slow
def test_the_plain_lines_at_the_front_run_and_say_what_stands_there(tmp_path):
    "Copied into an empty file; fastai is not imported"
    code,said = re.search(r'```python\n(import timm.*?)```\s+(\(.*?)\n', (root/'README.md').read_text(), flags=re.S).groups()
    (tmp_path/'copied.py').write_text(code+"\nimport sys\nassert 'fastai' not in sys.modules")
    env = {**os.environ, 'PYTHONPATH':str(root)}
    res = subprocess.run([sys.executable,'-W','ignore','copied.py'], cwd=tmp_path, env=env, capture_output=True, text=True)
    def shapes(s): return s.partition('off by')[0]
    assert res.returncode==0 and shapes(res.stdout)==shapes(said), res.stderr
    assert float(res.stdout.split()[-1])<1e-5

@pytest.mark.slow
@pytest.mark.filterwarnings('ignore')
def test_the_lines_at_the_front_run(tmp_path, monkeypatch):
    "The lines for fastai at the front run as they stand, given images and masks"
    never_download(monkeypatch)
    files = make_files(tmp_path)
    names = dict(dls=class_dls(files), mask_dls=seg_dls(files))
    lines = re.search(r'```python\n(from fastai.*?)```', (root/'README.md').read_text(), flags=re.S)[1]
    exec(lines, names)
    assert get_output_stride(names['learn'])==8
