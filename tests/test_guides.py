"The pages on other libraries: what a reader copies from one into an empty file runs, and the sidebar has each"
import os, re, subprocess, sys
from importlib.util import find_spec
from pathlib import Path
import pytest
from fastcore.nbio import read_nb

root = Path(__file__).parent.parent
sys.path.insert(0, str(root/'docs'))
from build import guides
from pages import visible_code, without_quick

def shown(nb):
    "Code that the page of a notebook shows"
    cells = [o for o in visible_code(nb) if not o.startswith('#| hide')]
    return [without_quick(re.sub(r'^#\|.*\n', '', o, flags=re.M)) for o in cells]

notebooks = {o.stem:read_nb(o) for o in sorted((root/'nbs'/'guides').glob('*.ipynb'))}

def test_the_sidebar_has_each_guide(): assert guides.keys()==notebooks.keys()

@pytest.mark.parametrize('name', notebooks)
def test_a_guide_is_short_and_says_first_what_it_is_about(name):
    "A title, a summary of one line, and code that fits on a page"
    title,_,summary,*_ = notebooks[name].cells[0].source.split('\n')
    assert title.startswith('# ') and summary.startswith('> ')
    cells = shown(notebooks[name])
    assert [o for o in cells if len(o.split('\n'))>13]==[]
    assert [l for o in cells for l in o.split('\n') if len(l)>100]==[]

# the one on anomaly maps takes minutes; nbdev-test runs a part of it
@pytest.mark.slow
@pytest.mark.parametrize('name', [o for o in notebooks if o!='anomaly'])
def test_a_guide_runs(tmp_path, name):
    "Its code, copied into a file, in an empty folder; transformers is no requirement, and its page waits for it"
    if name=='transformers' and find_spec(name) is None: pytest.skip('transformers is not installed')
    (tmp_path/'copied.py').write_text('\n\n'.join(shown(notebooks[name])), encoding='utf-8')
    path = os.pathsep.join([str(root), *filter(None,[os.environ.get('PYTHONPATH')])])
    env = {k:v for k,v in os.environ.items() if k!='IN_TEST'} | dict(MPLBACKEND='Agg', PYTHONPATH=path)
    res = subprocess.run([sys.executable,'-W','ignore','copied.py'], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert res.returncode==0, res.stderr
