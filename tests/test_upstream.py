"The pull request: patches for a checkout of the installed fastai, and what the patched fastai does by itself"
import os, shutil, subprocess, sys
from inspect import getsource
from pathlib import Path
import pytest
from fastcore.utils import exec_local
from fastai_dilation import upstream
from fastai_dilation.upstream import main, stack
from reconstruct import git, lib, reconstruct

pytestmark = [pytest.mark.slow, pytest.mark.timeout(2400)] # some run notebooks
mods = ['fastai/layers.py','fastai/vision/learner.py','fastai/vision/models/xresnet.py']
nbs = ['nbs/01_layers.ipynb','nbs/11_vision.models.xresnet.ipynb','nbs/21_vision.learner.ipynb']

@pytest.fixture(scope='module')
def tmp(tmp_path_factory): return tmp_path_factory.mktemp('upstream')
@pytest.fixture(scope='module')
def checkout(tmp): return reconstruct(tmp/'checkout')
@pytest.fixture(scope='module')
def patches(checkout, tmp):
    "The files that the command writes"
    main(repo=checkout, out=tmp/'patches')
    return sorted((tmp/'patches').iterdir())

def clone(checkout, dest, *patches):
    "A copy of `checkout` with `patches` applied"
    git('clone', '-q', checkout, dest, cwd=checkout)
    for k,v in (('user.name','a'),('user.email','a@b')): git('config', k, v, cwd=dest)
    if patches: git('am', '-q', *patches, cwd=dest)
    return dest

@pytest.fixture(scope='module')
def first(checkout, patches, tmp): return clone(checkout, tmp/'first', *patches[:2])
@pytest.fixture(scope='module')
def second(checkout, patches, tmp): return clone(checkout, tmp/'second', *patches)

def python(tree, *args):
    "Run Python on one thread with the fastai in `tree`"
    env = {k:v for k,v in os.environ.items() if k!='IN_TEST'}
    paths = os.pathsep.join(map(str,[tree,Path(__file__).parent]))
    env.update(PYTHONPATH=paths, PYTHONWARNINGS='ignore', OMP_NUM_THREADS='1')
    res = subprocess.run([sys.executable,*args], env=env, cwd=tree, capture_output=True, text=True)
    assert res.returncode==0, res.stdout[-5000:]+res.stderr[-5000:]
    return res.stdout

def run(tree, f, *args):
    "What the function `f` prints in a process of its own, with the fastai in `tree`, and without fastai_dilation"
    top = 'import sys, torch, fastai\nfrom fastcore.test import *\n'
    top += 'sys.modules["fastai_dilation"] = None\ntorch.set_num_threads(1)\n'
    top += f'assert fastai.__file__.startswith({str(tree)!r})\n'
    return python(tree, '-c', f'{top}{getsource(f)}{f.__name__}(*{tuple(map(str,args))!r})')

# the patches

def test_patches(checkout, patches, second):
    "They apply in their order, come off again, touch what they say they touch, and leave the checkout alone"
    assert [o.name[:8] for o in patches]==['0000-Max','0001-Add','0002-xre']
    assert git('log', '--reverse', '--format=%s', 'HEAD~3..', cwd=second).splitlines()==[o[0] for o in stack]
    body = git('log', '-1', '--format=%b', 'HEAD~1', cwd=second)
    assert '62282' in body and '##' in body
    assert git('status', '--porcelain', cwd=checkout)=='' and git('worktree', 'list', cwd=checkout).count('\n')==1
    def files(n): return git('diff', '--name-only', f'HEAD~{n+1}', f'HEAD~{n}', cwd=second).split()
    assert files(2)==[mods[0],nbs[0]]
    assert files(1)==['fastai/_modidx.py',*mods,*nbs]
    assert files(0)==['fastai/_modidx.py',mods[2],nbs[1]]
    for o in reversed(patches): git('apply', '-R', o, cwd=second)
    assert git('diff', 'HEAD~3', cwd=second)==''
    git('checkout', '-q', '.', cwd=second)

def test_budget(second):
    "How small it is: lines of the modules, with `__all__`"
    def lines(n):
        stats = git('diff', '--numstat', f'HEAD~{n+1}', f'HEAD~{n}', '--', *mods, cwd=second).splitlines()
        return [sum(o) for o in zip(*[map(int,o.split()[:2]) for o in stats])]
    plus,minus = lines(1)
    assert plus<=45 and minus<=20 and f'{plus} lines added and {minus} removed' in stack[1][1], (plus,minus)
    contributing = (Path(__file__).parent.parent/'CONTRIBUTING.md').read_text()
    for n in (2,1,0): assert '+{} -{}'.format(*lines(n)) in contributing
    diff = git('diff', 'HEAD~3', '-U0', '--', *mods, cwd=second).splitlines()
    assert max(len(o) for o in diff if o.startswith('+'))<=160

def test_nbdev_has_nothing_left_to_do(second):
    "In the patched tree nbdev has nothing left to do, but for the empty entries of the index"
    idx = second/'fastai'/'_modidx.py'
    was = exec_local(idx.read_text(), 'd')
    python(second, '-c', 'import nbdev.doclinks as a, nbdev.clean as b; a.nbdev_export(); b.nbdev_clean()')
    assert git('status', '--porcelain', cwd=second).split()==['M','fastai/_modidx.py']
    assert exec_local(idx.read_text(), 'd')=={**was, 'syms':{k:v for k,v in was['syms'].items() if v}}
    git('checkout', '-q', '.', cwd=second)

@pytest.mark.parametrize('nb', nbs)
def test_notebooks(second, nb):
    "The new test cells run, after the exported cells of their notebook"
    assert 'Success.' in python(second, '-c', f'import nbdev.test as m; m.nbdev_test({nb!r})')

# what it refuses

def changed(checkout, dest, f):
    "A copy of `checkout` in which `f` has changed the text of a notebook"
    nb = clone(checkout, dest)/nbs[0]
    nb.write_text(f(nb.read_text()))
    git('commit', '-qam', 'x', cwd=dest)
    return dest

def refused(repo, out, msg):
    "`main` says `msg` and leaves nothing behind"
    was = {*out.parent.iterdir()} if out.parent.is_dir() else set()
    with pytest.raises((SystemExit,KeyboardInterrupt), match=f'(?s){msg}'): main(repo=repo, out=out)
    assert was==({*out.parent.iterdir()} if out.parent.is_dir() else set())
    if (Path(repo)/'.git').exists(): assert git('worktree', 'list', cwd=repo).count('\n')==1

def test_the_command_refuses_what_does_not_fit(checkout, second, tmp):
    "What does not fit is an error that says which"
    dirty,other = clone(checkout, tmp/'dirty'),tmp/'other'
    (dirty/'new.txt').write_text('')
    shutil.copytree(checkout, other)
    (other/'pyproject.toml').write_text('[project]\nname = "other"\n')
    git('commit', '-qam', 'x', cwd=other)
    gone = changed(checkout, tmp/'gone', lambda s: s.replace('pool=AvgPool, pool_first=True','pool=AvgPool'))
    other_block = 'class ParameterModule(Module)','class ResBlock(Module)'
    twice = changed(checkout, tmp/'twice', lambda s: s.replace(*other_block))
    has_some = '    pool=AvgPool, pool_first=True','    pool=AvgPool, dilation=1, first_dilation=None, pool_first=True'
    half = changed(checkout, tmp/'half', lambda s: s.replace(*has_some))
    cases = [(dirty,'has changes.*new.txt'), (other,'no checkout of fastai'),
        (gone,'01_layers.*pool_first=True.*are 0'), (twice,'with `class ResBlock.*are 2'),
        (second,'has all of this already'), (tmp,'not a git repository'), (tmp/'no','No such file.*no$')]
    for o,msg in cases: refused(o, tmp/'none', msg)
    for o in (tmp/'patches', tmp/'no'/'a'): refused(checkout, o, 'new folder in one that exists')
    main(repo=half, out=tmp/'half_patches') # a change beside the words that an edit holds on to does no harm
    patch, = (tmp/'half_patches').glob('0001-Add-output_stride-*.patch')
    assert 'dilation=1, first_dilation=None, pool_first=True, dilation=1' in patch.read_text()

def test_no_git(checkout, tmp, monkeypatch):
    "Without git: an error in words"
    monkeypatch.setenv('PATH', str(tmp/'no'))
    with pytest.raises(SystemExit, match='git: No such file'): main(repo=checkout, out=tmp/'none')

def test_half_a_folder(checkout, tmp, monkeypatch):
    "A disk that is full after the first patch, and a Ctrl-C: an error, and no half of the folder stays"
    (tmp/'bin').mkdir()
    fake,real = tmp/'bin'/'git',shutil.which('git')
    full = f'"{real}" "$@"; echo "No space left on device" >&2; exit 128'
    fake.write_text(f'#!/bin/sh\ncase "$*" in *format-patch*) {full};; esac\nexec "{real}" "$@"\n')
    fake.chmod(0o755)
    with monkeypatch.context() as m:
        m.setenv('PATH', f"{tmp/'bin'}{os.pathsep}{os.environ['PATH']}")
        refused(checkout, tmp/'none', 'No space left')
    def stop(*args): raise KeyboardInterrupt('stop')
    monkeypatch.setattr(upstream, '_commit', stop)
    refused(checkout, tmp/'none', 'stop')

def test_later(first, tmp):
    "Where fastai has the first two, only the third is left"
    main(repo=first, out=tmp/'later')
    assert [o.name[:4] for o in (tmp/'later').iterdir()]==['0002']

def test_the_installed_command_makes_the_same_patches(checkout, patches, tmp):
    "The installed command makes the same patches, and its errors are no tracebacks"
    exe = Path(sys.executable).with_name('fastai-dilation-pr')
    if not exe.exists(): pytest.skip('the package is not installed')
    res = subprocess.run([exe, '--repo', checkout, '--out', 'cli'], cwd=tmp, capture_output=True, text=True)
    assert res.returncode==0 and '7 files changed' in res.stdout, res.stderr
    def diffs(o): return o.read_text().partition('\n---\n')[2]
    assert [diffs(o) for o in sorted((tmp/'cli').iterdir())]==[diffs(o) for o in patches]
    res = subprocess.run([exe, '--repo', tmp, '--out', tmp/'cli2'], capture_output=True, text=True)
    assert res.returncode==1 and 'not a git repository' in res.stderr and 'Traceback' not in res.stderr

# the patched fastai

def exactness():
    "On the native grid a dilated net is the native one; random numbers and names are the same"
    from torch import nn
    from fastai.vision.models import xresnet
    from util import close, randomize
    def build(seed=0, **kwargs):
        torch.manual_seed(seed)
        m = getattr(xresnet,nm)(**kwargs)
        return m,torch.rand(1)
    def feats(m, x): return nn.Sequential(*list(m)[:-4])(x)
    def check(T, native, xs, **kwargs):
        (a,ra),(b,rb) = build(**kwargs),build(output_stride=T, **kwargs)
        assert ra.equal(rb) and list(a.state_dict())==list(b.state_dict())
        assert all(p.equal(q) for p,q in zip(a.state_dict().values(), b.state_dict().values()))
        b.load_state_dict(randomize(a).state_dict())
        every = slice(None, None, native//int(T))
        def on_grid(y): return y[(...,*[every]*(y.ndim-2))]
        with torch.no_grad(): return max(close(on_grid(feats(b.eval(),x)), feats(a,x)) for x in xs)
    xs,worst = [torch.randn(1,3,97,75),torch.randn(1,3,30,31)],0
    strides = dict.fromkeys(['xresnet18','xresnet34','xresnet50','xresnext18','xresnext50'], 32)
    for nm,native in {**strides, 'xresnet18_deep':128, 'xresnet18_deeper':512}.items():
        for T in [2**i for i in range(2,10) if 2**i<=native]: worst = max(worst, check(T, native, xs))
    nm = 'xresnet18'
    worst = max(worst, check(8, 32, [torch.randn(2,2,203)], ndim=1, c_in=2, ks=15))
    worst = max(worst, check(8, 32, [torch.randn(1,3,32,17,32)], ndim=3, widen=.5))
    worst = max(worst, check(9, 243, [torch.randn(1,3,100,130)], stride=3, widen=.25))
    worst = max(worst, check(16, 1024, [torch.randn(1,3,100,130)], stride=4, widen=.25))
    worst = max(worst, check(8, 32, xs, pool_first=False))
    worst = max(worst, check(8., 32, xs, stem_szs=(8,8,64), act_cls=nn.SiLU))
    print(f'{worst:.1e}')

def test_the_patched_fastai_is_exact(first):
    "`exactness`, without this package"
    print(run(first, exactness))

def fingerprint():
    "A hash of all networks as they are built by default, of what they say, and of the random numbers they leave"
    import hashlib
    from fastai.vision.all import create_unet_model, create_vision_model, nn
    from fastai.layers import ConvLayer, MaxPool, ResBlock, SeparableBlock
    from fastai.vision.models import resnet18, xresnet
    from util import names, randomize
    res,x = hashlib.sha256(),torch.linspace(-1, 1, 2*3*65*33).view(2,3,65,33)
    def add(*ts):
        for o in ts: res.update(o.detach().numpy().tobytes())
    def net(f, x=x):
        torch.manual_seed(0)
        m = f()
        add(torch.rand(1), *m.state_dict().values())
        res.update(repr(m).encode())
        add(randomize(m)(x))
    for nm in names: net(lambda: getattr(xresnet,nm)(widen=.5, n_out=5))
    for arch in (xresnet.xresnet18, resnet18):
        net(lambda: create_vision_model(arch, 5, pretrained=False))
        net(lambda: create_unet_model(arch, 5, (64,64), pretrained=False), x[...,:32,:32])
    def layers(stride):
        blocks = ResBlock(1, 3, 128, stride=stride),SeparableBlock(1, 128, 128)
        return nn.Sequential(*blocks, ConvLayer(128, 4, 4), MaxPool(2))
    for stride in (1,2,3): net(lambda: layers(stride))
    print(res.hexdigest())

def test_defaults(second):
    "Networks that do not ask are built and work as in the fastai that is installed, bit for bit"
    native = run(lib.parent, fingerprint)
    assert len(native)==65 and run(second, fingerprint)==native

def pickled(path):
    "Write a net and what it says to `path`, or compare"
    from fastai.vision.models.xresnet import xresnet18
    from util import randomize
    is_patched = fastai.__file__.startswith(path)
    if not is_patched:
        m,x = randomize(xresnet18()),torch.randn(1,3,65,97)
        torch.save((m,x,m(x)), f'{path}/m.pt')
    else:
        m,x,y = torch.load(f'{path}/m.pt', weights_only=False)
        test_eq(m(x), y)
        xresnet18(output_stride=8).load_state_dict(m.state_dict())

def test_pickles(first):
    "What was pickled with fastai as it is loads, and says the same, bit for bit"
    for o in (lib.parent,first): run(o, pickled, first)
    (first/'m.pt').unlink()

def hard_use():
    "Half precision, layouts, gradients, compilers"
    from fastai.layers import AvgPool, DilatedAvgPool
    from fastai.vision.models.xresnet import xresnet18
    from util import close, randomize
    x = torch.full((1,1,9,9), 6e4, dtype=torch.float16)
    test_eq(DilatedAvgPool(2,3)(x), x)
    x[...,::2] *= -1
    assert DilatedAvgPool(3,2)(x).isfinite().all()
    x = torch.randn(2, 3, 7, 10, dtype=torch.double, requires_grad=True)
    assert torch.autograd.gradcheck(DilatedAvgPool(3,2), x)
    for k in (1,2,3,5): test_close(DilatedAvgPool(k,1)(x)[...,::k,::k], AvgPool(k, ceil_mode=True)(x), eps=1e-12)
    m,x = randomize(xresnet18(output_stride=8)),torch.randn(2,3,64,96)
    y = m(x)
    last = torch.channels_last
    inner = torch.nn.Sequential(*list(m)[:-4]).to(memory_format=last)(x.to(memory_format=last))
    assert inner.is_contiguous(memory_format=last)
    close(m(x.to(memory_format=last)), y)
    close(torch.compile(m, fullgraph=True, backend='aot_eager')(x), y)
    h,w = [torch.export.Dim(o, min=2, max=16) for o in 'hw']
    ep,x2 = torch.export.export(m, (x,), dynamic_shapes=({2:32*h,3:32*w},)).module(),torch.randn(2,3,96,64)
    close(ep(x), y), close(ep(x2), m(x2))

def test_hard_use_of_the_patched_fastai(first):
    "`hard_use`, without this package"
    run(first, hard_use)

def errors():
    "What cannot be is refused in words"
    from fastai.vision.all import MaxPool, ResBlock, create_unet_model, create_vision_model, partial
    from fastai.vision.all import resnet18, xresnet18
    for T in (12,2,1,64,0,-8,'8',8.5):
        words = f'`output_stride` can be one of [4, 8, 16, 32], not {T!r}'
        test_fail(lambda: xresnet18(output_stride=T), contains=words)
    for stride,d,first in ((2,2,None), (1,0,None), (1,0,1), (1,4,3), (1,1,2), (1,2,0)):
        kw = dict(stride=stride, dilation=d, first_dilation=first)
        words = 'has to be a positive multiple of first_dilation'
        with expect_fail(ValueError, words): ResBlock(1, 8, 8, **kw)
    kw = dict(dilation=2, first_dilation=1, pool=MaxPool)
    with expect_fail(NotImplementedError, 'Only an `AvgPool` shortcut'): ResBlock(1, 8, 8, **kw)
    with expect_fail(NotImplementedError, 'Only an `AvgPool` shortcut'): xresnet18(output_stride=8, pool=MaxPool)
    for f in (partial(create_vision_model, n_out=5), partial(create_unet_model, n_out=5, img_size=(64,64))):
        words = 'This constructor takes no `output_stride`: ResNet'
        with expect_fail(TypeError, words): f(resnet18, pretrained=False, output_stride=8)
        with expect_fail(ValueError, 'one of [4, 8, 16, 32], not 3'): f(xresnet18, pretrained=False, output_stride=3)
    def broken(output_stride, pretrained): raise TypeError('broken')
    with expect_fail(TypeError) as e: create_vision_model(broken, 5, pretrained=False, output_stride=8)

def test_errors_of_the_patched_fastai(first):
    "`errors`, without this package"
    run(first, errors)

def learners():
    "All learners take it, show it, and train"
    import inspect
    from fastai.vision.all import CategoryBlock, DataBlock, ImageBlock, MaskBlock, PILImage, PILMask, np
    from fastai.vision.all import cnn_learner, unet_learner, vision_learner, xresnet18
    def img(i): return PILImage.create(np.full((64,64,3), i*8, dtype=np.uint8))
    def mask(i): return PILMask.create(np.full((64,64), i%2, dtype=np.uint8))
    def label(i): return i%2
    cases = [(f,CategoryBlock,label) for f in (vision_learner,cnn_learner)]
    cases.append((unet_learner,MaskBlock(['a','b']),mask))
    for f,block,get_y in cases:
        dls = DataBlock((ImageBlock,block), get_x=img, get_y=get_y).dataloaders(range(20), bs=4, num_workers=0)
        learn = f(dls, xresnet18, pretrained=False, output_stride=8)
        with learn.no_bar(), learn.no_logging(): learn.fit(1)
        body = learn.model[0].eval()
        test_eq(body(torch.randn(1,3,64,64)).shape, [1,512,8,8])
        if f is not cnn_learner: assert 'output_stride' in inspect.signature(f).parameters

def test_learners_of_the_patched_fastai(first):
    "`learners`, without this package"
    run(first, learners)

def weights():
    "A file with names of 2019: all of it is loaded, or it is an error"
    import re
    from fastai.vision.all import create_vision_model, xresnet18, xresnet34, xresnet50
    from fastai.vision.models import xresnet
    src = xresnet50()
    today,old = src.state_dict(),{}
    for k,v in today.items():
        for a,b in (('convpath','convs'), (r'idpath\.[01]','idconv'), ('^11','10')): k = re.sub(a, b, k)
        old[k] = v
    assert len(old)==len(today) and not set(old) & {k for k in today if k[0]>'3'}
    def file(sd): xresnet.load_state_dict_from_url = lambda url, **kwargs: dict(model=sd)
    for sd in (old,today):
        file(sd)
        for k,v in xresnet50(pretrained=True).state_dict().items(): test_eq(v, today[k])
    m,n = xresnet50(pretrained=True, n_out=10),xresnet50(pretrained=True, output_stride=8)
    test_eq([m[-1].out_features, n[7][0].convpath[1][0].dilation], [10,(2,2)])
    def late(m): return m[7][2].convpath[2][0].weight
    for o in (m,n,create_vision_model(xresnet50, 5, pretrained=True)[0]): test_eq(late(o), late(src))
    file({k:v for k,v in old.items() if k!='4.0.convs.0.0.weight'})
    words = 'Missing key(s) in state_dict: "4.0.convpath.0.0.weight"'
    with expect_fail(RuntimeError, words): xresnet50(pretrained=True)
    for f in (xresnet18,xresnet34):
        with expect_fail(ValueError, 'Only xresnet50 has weights: use `pretrained=False`'): f(pretrained=True)

def test_weights_of_the_patched_fastai(second):
    "`weights`, without this package"
    run(second, weights)
