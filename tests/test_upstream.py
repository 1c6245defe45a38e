"The pull request: patches for a checkout made of the installed fastai, and this package's own tests on the patched fastai"
import errno, os, re, shutil, subprocess, sys
from pathlib import Path
import pytest, torch
from fastai.vision.models.xresnet import xresnet18
from fastai_dilation.upstream import _where, main, reconstruct
from util import randomize

root = Path(__file__).parent.parent
pytestmark = pytest.mark.slow
def git(*args, cwd): return subprocess.run(['git',*args], cwd=cwd, check=True, capture_output=True, text=True).stdout

@pytest.fixture(scope='module')
def tmp(tmp_path_factory): return tmp_path_factory.mktemp('upstream')
@pytest.fixture(scope='module')
def checkout(tmp): return reconstruct(tmp/'checkout', _where('fastai'))

def applied(checkout, tmp, name, **kwargs):
    "A copy of `checkout` with its patch applied, as one commit"
    main(repo=checkout, out=tmp/f'{name}.patch', **kwargs)
    git('clone', '-q', checkout, tmp/name, cwd=tmp)
    git('config', 'user.name', 'a', cwd=tmp/name), git('config', 'user.email', 'a@b', cwd=tmp/name)
    git('am', tmp/f'{name}.patch', cwd=tmp/name)
    return tmp/name

@pytest.fixture(scope='module')
def first(checkout, tmp): return applied(checkout, tmp, 'first')
@pytest.fixture(scope='module')
def second(first, tmp): return applied(first, tmp, 'second', pretrained=True)

def python(tree, *args, dilation=False, **env):
    "Run Python with the fastai of `tree`; without `dilation`, fastai_dilation cannot be imported there"
    site = tree.parent/f'{tree.name}_site'
    site.mkdir(exist_ok=True)
    (site/'fastai_dilation.py').write_text('raise ImportError("this is a test without fastai_dilation")')
    path = os.pathsep.join([str(tree), str(root if dilation else site)])
    env = {**{k:v for k,v in os.environ.items() if k!='IN_TEST'}, 'PYTHONPATH':path, 'PYTHONWARNINGS':'ignore', **env}
    res = subprocess.run([sys.executable,*args], env=env, cwd=tree, capture_output=True, text=True)
    assert res.returncode==0, res.stdout[-5000:]+res.stderr[-5000:]
    return res.stdout

def test_patch(checkout, first, tmp):
    "Applies to a pristine tree, comes off again, touches what it says it touches, and leaves the checkout alone"
    git('apply', '--check', tmp/'first.patch', cwd=checkout)
    assert git('status', '--porcelain', cwd=checkout)=='' and git('worktree', 'list', cwd=checkout).count('\n')==1
    files = git('diff', '--name-only', 'HEAD~1', cwd=first).split()
    mods = ['fastai/layers.py','fastai/vision/learner.py','fastai/vision/models/xresnet.py']
    assert files==['fastai/_modidx.py',*mods,'nbs/01_layers.ipynb','nbs/11_vision.models.xresnet.ipynb','nbs/21_vision.learner.ipynb']
    gone = [o for o in git('diff', '-U0', 'HEAD~1', '--', *mods, cwd=first).splitlines() if re.match('-[^-]',o) and '__all__' not in o and not re.match(r"- +'", o)]
    assert len(gone)<=15, gone
    git('apply', '-R', tmp/'first.patch', cwd=first)
    assert git('diff', 'HEAD~1', cwd=first)==''
    git('checkout', '-q', '.', cwd=first)
    assert git('log', '-1', '--format=%s', cwd=first).startswith('Add output_stride') and '62282' in git('log', '-1', '--format=%b', cwd=first)

def test_modules_alone(tmp, first):
    "Without a checkout: the same change of the modules"
    main(out=tmp/'modules.patch')
    assert (tmp/'modules.patch').read_text()==git('diff', 'HEAD~1', '--', 'fastai', cwd=first)

@pytest.mark.parametrize('nb', ['01_layers','11_vision.models.xresnet','15a_vision.models.unet','21_vision.learner'])
def test_notebooks(first, second, nb):
    "The new test cells run, after the exported cells of their notebook"
    for o in (first,second): assert 'Success.' in python(o, '-c', f'import nbdev.test as m; m.nbdev_test("nbs/{nb}.ipynb")')

behaviour = ['test_layers.py','test_xresnet.py','test_learner.py']
@pytest.mark.parametrize('file', behaviour)
def test_behaviour(first, file):
    "This package's tests, without this package (the largest networks left out, and fewer drawn)"
    out = python(first, '-m', 'pytest', '-q', '-n', '0', '-p', 'no:cacheprovider', root/'tests'/file, '-k', 'not 152 and not 101 and not 31', TEST_UPSTREAM='1', MAX_EXAMPLES='20')
    print(out)
    assert ' passed' in out and ' failed' not in out

def test_behaviour_of_weights(second):
    assert ' passed' in python(second, '-m', 'pytest', '-q', '-n', '0', '-p', 'no:cacheprovider', root/'tests'/'test_pretrained.py', TEST_UPSTREAM='1')

def test_existing_networks(first, tmp):
    "What was pickled with fastai as it is loads, and says the same, bit for bit; so does a network that is built again"
    m,x = randomize(xresnet18()),torch.randn(1,3,65,97)
    torch.save((m,m(x),x), tmp/'m.pt')
    torch.manual_seed(0)
    torch.save(xresnet18().state_dict(), tmp/'sd.pt')
    code = f"""import torch
from fastai.vision.all import *
m,y,x = torch.load(r'{tmp}/m.pt', weights_only=False)
assert m(x).equal(y)
torch.manual_seed(0)
sd,old = xresnet18().state_dict(),torch.load(r'{tmp}/sd.pt')
assert list(sd)==list(old) and all(a.equal(b) for a,b in zip(sd.values(),old.values()))
assert m(x).equal(set_output_stride(set_output_stride(m,8),32)(x))"""
    python(first, '-c', code)

def test_steps_aside(first):
    "fastai_dilation on top of the patched fastai: its functions are fastai's"
    code = """from fastai.vision.all import *
from fastai.vision import learner
from fastai.vision.models import xresnet
theirs = [XResNet.__init__,ResBlock.__init__,ConvLayer.__init__,set_output_stride,DilatedPool,create_unet_model,Learner.set_output_stride]
import fastai_dilation.layers, fastai_dilation.xresnet, fastai_dilation.learner
assert theirs[:3]==[XResNet.__init__,ResBlock.__init__,ConvLayer.__init__]
import fastai_dilation.all as fd
assert theirs[3:]==[fd.set_output_stride,fd.DilatedPool,fd.create_unet_model,Learner.set_output_stride]
m = fd.pool_over(xresnet18(output_stride=8).eval())
x = torch.randn(1,3,65,64)
test_close(m(x), fd.set_output_stride(m,32)(x), eps=1e-4)"""
    python(first, '-c', code.replace('import learner\n','import learner\nfrom fastcore.test import test_close\n'), dilation=True)

def changed(checkout, tmp, name, f):
    "A copy of `checkout` in which `f` has changed the text of a notebook"
    git('clone', '-q', checkout, tmp/name, cwd=tmp)
    nb = tmp/name/'nbs'/'01_layers.ipynb'
    nb.write_text(f(nb.read_text()))
    git('-c','user.name=a','-c','user.email=a@b','commit', '-qam', 'x', cwd=tmp/name)
    return tmp/name

def test_refusals(checkout, first, tmp):
    "What does not fit is an error that says which; no file is written, and no worktree stays"
    dirty,other = tmp/'dirty',tmp/'other'
    git('clone', '-q', checkout, dirty, cwd=tmp)
    (dirty/'new.txt').write_text('')
    shutil.copytree(checkout, other)
    (other/'pyproject.toml').write_text('[project]\nname = "other"\n')
    gone = changed(checkout, tmp, 'gone', lambda s: s.replace('pool=AvgPool, pool_first=True','pool=AvgPool'))
    twice = changed(checkout, tmp, 'twice', lambda s: s.replace('class SEModule','class ResBlock(Module)').replace('def SEBlock(','# class ResBlock(Module)\\ndef SEBlock('))
    cases = [(dirty,'new.txt'), (other,'no checkout of fastai'), (gone,'pool_first=True.*0 times'), (twice,'2 exported cells have `class ResBlock'), (first,'already'), (tmp,'no git checkout'), (tmp/'no','no git')]
    for o,msg in cases:
        with pytest.raises(SystemExit, match=f'(?s){msg}'): main(repo=o, out=tmp/'none.patch')
        assert not (tmp/'none.patch').exists()
        if (o/'.git').exists(): assert git('worktree', 'list', cwd=o).count('\n')==1
    for o in (tmp/'first.patch', tmp/'no'/'a.patch'):
        with pytest.raises(SystemExit, match='new file in a folder that exists'): main(repo=checkout, out=o)

def test_half_a_patch(checkout, tmp, monkeypatch):
    "A disk that is full in the middle of the patch: an error, and no half of it stays"
    write = Path.write_text
    def full(self, txt, *args, **kwargs):
        if not self.name.startswith('half'): return write(self, txt, *args, **kwargs)
        write(self, txt[:100], *args, **kwargs)
        raise OSError(errno.ENOSPC, 'No space left on device')
    monkeypatch.setattr(Path, 'write_text', full)
    with pytest.raises(OSError, match='No space'): main(repo=checkout, out=tmp/'half.patch')
    assert not [*tmp.glob('half*')]

def test_command(checkout, tmp):
    exe = Path(sys.executable).with_name('fastai-dilation-pr')
    if not exe.exists(): pytest.skip('the package is not installed')
    res = subprocess.run([exe, '--repo', checkout, '--out', tmp/'cli.patch'], capture_output=True, text=True)
    assert res.returncode==0 and '7 files changed' in res.stdout and (tmp/'cli.patch').exists(), res.stderr
    res = subprocess.run([exe, '--repo', tmp, '--out', tmp/'cli2.patch'], capture_output=True, text=True)
    assert res.returncode==1 and 'is no git checkout' in res.stderr and 'Traceback' not in res.stderr
