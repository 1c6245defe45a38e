"The pull requests: patches for a checkout of the installed fastai, and what the patched fastai does by itself"
import os, re, shutil, subprocess, sys
from inspect import getsource
from pathlib import Path
import pytest
from fastcore.nbio import read_nb
from fastcore.utils import exec_local
from fastai_dilation import upstream
from fastai_dilation.upstream import forum_post, main
from reconstruct import git, lib, reconstruct

pytestmark = [pytest.mark.slow, pytest.mark.timeout(2400)] # some run notebooks
root = Path(__file__).parent.parent
layers,learner,xresnet = 'fastai/layers.py','fastai/vision/learner.py','fastai/vision/models/xresnet.py'
nbs = ['01_layers','21_vision.learner','11_vision.models.xresnet']
notebook_of = {k:f'nbs/{o}.ipynb' for k,o in zip((layers,learner,xresnet),nbs)}
touched = dict(maxpool=[layers], weights=[xresnet], output_stride=[layers,learner,xresnet], unet=[learner])
branches = list(touched)
new_names = {'weights','output_stride'} # those with a line for the index of names

@pytest.fixture(scope='module')
def tmp(tmp_path_factory): return tmp_path_factory.mktemp('upstream')
@pytest.fixture(scope='module')
def checkout(tmp): return reconstruct(tmp/'checkout')
@pytest.fixture(scope='module')
def patches(checkout, tmp):
    "The files that the command writes, by branch"
    main(repo=checkout, out=tmp/'patches')
    return dict(zip(branches, sorted((tmp/'patches').glob('*.patch')), strict=True))

def clone(checkout, dest, *patches):
    "A copy of `checkout` with `patches` applied"
    git('clone', '-q', checkout, dest, cwd=checkout)
    for k,v in (('user.name','a'),('user.email','a@b')): git('config', k, v, cwd=dest)
    if patches: git('am', '-q', *patches, cwd=dest)
    return dest

@pytest.fixture(scope='module')
def trees(checkout, patches, tmp):
    "Copies of the checkout: one for each patch, with nothing but it, and one with all, `together`"
    alone = {k:clone(checkout, tmp/k, o) for k,o in patches.items()}
    return dict(alone, together=clone(checkout, tmp/'together', *patches.values()))

def python(tree, *args):
    "Run Python on one thread with the fastai in `tree`"
    # nbdev exports nothing where IN_TEST is set, and a test of a warning fails where warnings are ignored
    env = {k:v for k,v in os.environ.items() if k not in ('IN_TEST','PYTHONWARNINGS')}
    paths = os.pathsep.join(map(str,[tree,Path(__file__).parent]))
    env.update(PYTHONPATH=paths, OMP_NUM_THREADS='1')
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

def test_four_patches_and_a_post(checkout, patches, tmp):
    "They are numbered from 1, and no one is told to be one of many; the checkout is left alone"
    files = sorted(o.name for o in (tmp/'patches').iterdir())
    assert [o[:8] for o in files]==['0001-Max','0002-xre','0003-Add','0004-une','forum_po']
    for o in patches.values(): assert '\nSubject: [PATCH] ' in o.read_text()
    assert (tmp/'patches'/'forum_post.md').read_text()==forum_post
    assert git('status', '--porcelain', cwd=checkout)=='' and git('worktree', 'list', cwd=checkout).count('\n')==1

@pytest.mark.parametrize('branch', branches)
def test_each_applies_alone(trees, patches, branch):
    "On fastai as it is, touches what it says it touches, has its title, and comes off again"
    tree = trees[branch]
    files = [*touched[branch], *[notebook_of[o] for o in touched[branch]]]
    if branch in new_names: files.append('fastai/_modidx.py')
    assert sorted(git('diff', '--name-only', 'HEAD~1', cwd=tree).split())==sorted(files)
    patch, = [o for o in upstream.patches if o.branch==branch]
    assert git('log', '-1', '--format=%s', cwd=tree).strip()==patch.title
    assert git('log', '-1', '--format=%b', cwd=tree).strip()==patch.text
    git('apply', '-R', patches[branch], cwd=tree)
    assert git('diff', 'HEAD~1', cwd=tree)==''
    git('checkout', '-q', '.', cwd=tree)

def test_all_apply_together(trees):
    "One after the other, in their order"
    titles = git('log', '--reverse', '--format=%s', 'HEAD~4..', cwd=trees['together']).splitlines()
    assert titles==[o.title for o in upstream.patches]

def lines(tree, branch):
    "How many lines of the modules, with `__all__`, a patch adds and removes"
    stats = git('diff', '--numstat', 'HEAD~1', '--', *touched[branch], cwd=tree).splitlines()
    return '+{} -{}'.format(*[sum(o) for o in zip(*[map(int,o.split()[:2]) for o in stats])])

def test_how_small_they_are(trees):
    "As CONTRIBUTING and the post say; and no line is longer than fastai allows"
    said = {k:lines(trees[k], k) for k in branches}
    rows = [o for o in (root/'CONTRIBUTING.md').read_text().splitlines() if o.startswith('| `000')]
    assert [re.search(r'\+\d+ -\d+', o)[0] for o in rows]==list(said.values())
    assert f"{said['output_stride']} lines in the modules" in forum_post
    plus,minus = map(int, re.findall(r'\d+', said['output_stride']))
    assert plus<=38+3 and minus<=13 # three lines of the five that refuse or warn
    diff = git('diff', 'HEAD~4', '-U0', '--', *notebook_of, cwd=trees['together']).splitlines()
    assert max(len(o) for o in diff if o.startswith('+'))<=160

@pytest.mark.parametrize('branch', [*branches,'together'])
def test_nbdev_has_nothing_left_to_do(trees, branch):
    "In a patched tree nbdev has nothing left to do, but for the empty entries of the index"
    tree = trees[branch]
    idx = tree/'fastai'/'_modidx.py'
    was = exec_local(idx.read_text(), 'd')
    python(tree, '-c', 'import nbdev.doclinks as a, nbdev.clean as b; a.nbdev_export(); b.nbdev_clean()')
    assert git('status', '--porcelain', cwd=tree).split()==['M','fastai/_modidx.py']
    assert exec_local(idx.read_text(), 'd')=={**was, 'syms':{k:v for k,v in was['syms'].items() if v}}
    git('checkout', '-q', '.', cwd=tree)

cases = [(k,o) for k,os in dict(touched, together=list(notebook_of)).items() for o in os]
@pytest.mark.parametrize('branch,module', cases)
def test_new_cells_run(trees, branch, module):
    "The new test cells run, after the exported cells of their notebook, with each patch alone and with all"
    program = f'import nbdev.test as m; m.nbdev_test({notebook_of[module]!r})'
    assert 'Success.' in python(trees[branch], '-c', program)

# the texts

def test_no_line_of_a_text_ends_in_mid_sentence():
    "GitHub shows each break of a line"
    for text in [*[o.text for o in upstream.patches], forum_post]:
        prose = re.sub(r'```.*?```', '', text, flags=re.S).splitlines()
        prose = [o for o in prose if o and o[0] not in '|#']
        assert [o for o in prose if o[-1] not in '.:?)']==[]

def n_words(text): return len([o for o in text.split() if re.search(r'\w', o)]) # bars of a table are none

def test_links_and_words_of_the_texts():
    "Issues of the other repository are named so that they link, and the texts are short"
    text = '\n'.join([*[o.text for o in upstream.patches], forum_post])
    assert text.count('fastai2#')==text.count('fastai/fastai2#')>0
    assert len(forum_post.split())<=200
    for o in upstream.patches: assert n_words(o.text)<=250, (o.branch,n_words(o.text))

def test_the_lines_of_a_message():
    "None is long, and none begins as git's comments do, which are gone after an amend"
    for o in upstream.patches:
        for line in (o.title,*o.text.splitlines()): assert len(line)<=100 and not line.startswith('#'), line

def printed(nb):
    "The text of the last results of the cells of notebook `nb`"
    outputs = [o for c in read_nb(root/'nbs'/f'{nb}.ipynb').cells for o in c.get('outputs',[])]
    return '\n'.join(''.join(o['data']['text/plain']) for o in outputs if 'text/plain' in o.get('data',{}))

def test_the_table_is_the_one_that_is_measured():
    "Each number of the text and the post stands in the output of 14_evaluate"
    text = printed('14_evaluate').partition('128 px our rule')[2]
    measured = [o.split()[-7:] for o in text.splitlines()[:3]]
    rows = [o for o in upstream.output_stride.text.splitlines() if re.search(r'\| \d\d\.', o)]
    assert [re.findall(r'[\d.]+', o) for o in rows]==[[o[i] for i in (0,1,3,4,6)] for o in measured]
    for o in rows: assert o in forum_post

# what it refuses

def changed(checkout, dest, f):
    "A copy of `checkout` in which `f` has changed the text of a notebook"
    nb = clone(checkout, dest)/notebook_of[layers]
    nb.write_text(f(nb.read_text()))
    git('commit', '-qam', 'x', cwd=dest)
    return dest

def refused(repo, out, msg):
    "`main` says `msg` and leaves nothing behind"
    was = {*out.parent.iterdir()} if out.parent.is_dir() else set()
    with pytest.raises((SystemExit,KeyboardInterrupt), match=f'(?s){msg}'): main(repo=repo, out=out)
    assert was==({*out.parent.iterdir()} if out.parent.is_dir() else set())
    if (Path(repo)/'.git').exists(): assert git('worktree', 'list', cwd=repo).count('\n')==1

def test_the_command_refuses_what_does_not_fit(checkout, patches, trees, tmp):
    "What does not fit is an error that says which"
    dirty,other = clone(checkout, tmp/'dirty'),tmp/'other'
    (dirty/'new.txt').write_text('')
    shutil.copytree(checkout, other)
    (other/'pyproject.toml').write_text('[project]\nname = "other"\n')
    git('commit', '-qam', 'x', cwd=other)
    gone = changed(checkout, tmp/'gone', lambda s: s.replace('pool=AvgPool, pool_first=True','pool=AvgPool'))
    other_block = 'class ParameterModule(Module)','class ResBlock(Module)'
    twice = changed(checkout, tmp/'twice', lambda s: s.replace(*other_block))
    no_prose = changed(checkout, tmp/'no_prose', lambda s: s.replace('This is a resnet block','A resnet block'))
    has_some = '    pool=AvgPool','    pool=AvgPool, dilation=1, first_dilation=None'
    half = changed(checkout, tmp/'half', lambda s: s.replace(*has_some))
    cases = [(dirty,'has changes.*new.txt'), (other,'no checkout of fastai')]
    cases += [(gone,'01_layers.*pool_first=True.*are 0'), (twice,'with `class ResBlock.*are 2')]
    cases += [(no_prose,'with `This is a resnet block.*are 0'), (trees['together'],'has all of this already')]
    cases += [(tmp,'not a git repository'), (tmp/'no','No such file.*no$')]
    for o,msg in cases: refused(o, tmp/'none', msg)
    for o in (tmp/'patches', tmp/'no'/'a'): refused(checkout, o, 'new folder in one that exists')
    main(repo=half, out=tmp/'half_patches') # a change beside the words that an edit holds on to does no harm
    patch, = (tmp/'half_patches').glob('0003-Add-output_stride-*.patch')
    assert 'dilation=1, first_dilation=None, pool_first=True, dilation=1' in patch.read_text()

def test_these_tests_want_the_released_fastai(trees):
    "In an environment with a patched one they say so"
    from reconstruct import check_is_released
    with pytest.raises(RuntimeError, match='has patches already: maxpool, weights, output_stride, unet.*released'):
        check_is_released(trees['together'])

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

def test_what_is_merged_is_left_out(trees, tmp):
    "The others keep their numbers, and there is no post for an argument that fastai has"
    main(repo=trees['maxpool'], out=tmp/'no_maxpool')
    assert sorted(o.name[:4] for o in (tmp/'no_maxpool').iterdir())==['0002','0003','0004','foru']
    main(repo=trees['output_stride'], out=tmp/'no_argument')
    assert sorted(o.name[:4] for o in (tmp/'no_argument').iterdir())==['0001','0002','0004']

def test_the_installed_command_makes_the_same_patches(checkout, patches, tmp):
    "The installed command makes the same patches, and its errors are no tracebacks"
    exe = Path(sys.executable).with_name('fastai-dilation-pr')
    if not exe.exists(): pytest.skip('the package is not installed')
    res = subprocess.run([exe, '--repo', checkout, '--out', 'cli'], cwd=tmp, capture_output=True, text=True)
    assert res.returncode==0, res.stderr
    assert '0001-MaxPool-pass-on-ceil_mode.patch: modules, 1 file changed' in res.stdout
    def diffs(o): return o.read_text().partition('\n---\n')[2]
    assert [diffs(o) for o in sorted((tmp/'cli').glob('*.patch'))]==[diffs(o) for o in patches.values()]
    res = subprocess.run([exe, '--repo', tmp, '--out', tmp/'cli2'], capture_output=True, text=True)
    assert res.returncode==1 and 'not a git repository' in res.stderr and 'Traceback' not in res.stderr

# the patched fastai

def exactness():
    "In double precision a dilated net on the native grid is the native one; random numbers and names are the same"
    from fastai.vision.all import nn, partial
    from fastai.vision.models import xresnet
    from util import close, names, narrow, randomize
    torch.set_default_dtype(torch.double)
    def build(f, seed=0, **kwargs):
        torch.manual_seed(seed)
        m = f(**kwargs)
        return m,torch.rand(1)
    def feats(m, x): return nn.Sequential(*list(m)[:-4])(x)
    def check(f, T, native, xs, **kwargs):
        (a,ra),(b,rb) = build(f, **kwargs),build(f, output_stride=T, **kwargs)
        assert ra.equal(rb) and list(a.state_dict())==list(b.state_dict())
        assert all(p.equal(q) for p,q in zip(a.state_dict().values(), b.state_dict().values()))
        b.load_state_dict(randomize(a).state_dict())
        every = slice(None, None, native//T)
        def on_grid(y): return y[(...,*[every]*(y.ndim-2))]
        with torch.no_grad(): return max(close(on_grid(feats(b.eval(),x)), feats(a,x), 1e-13) for x in xs)
    xs,worst,n = [torch.randn(1,3,97,75),torch.randn(1,3,30,31)],0,0
    for nm in names:
        if 'xse' in nm: continue
        native = 512 if 'deeper' in nm else 128 if 'deep' in nm else 32
        for T in [2**i for i in range(2,10) if 2**i<=native]:
            worst = max(worst, check(partial(narrow,nm), T, native, xs))
            n += 1
    f = xresnet.xresnet18
    worst = max(worst, check(f, 8, 32, [torch.randn(2,2,203)], ndim=1, c_in=2, ks=15))
    worst = max(worst, check(f, 8, 32, [torch.randn(1,3,32,17,32)], ndim=3, widen=.5))
    worst = max(worst, check(f, 9, 243, [torch.randn(1,3,100,130)], stride=3, widen=.25))
    worst = max(worst, check(f, 16, 1024, [torch.randn(1,3,100,130)], stride=4, widen=.25))
    worst = max(worst, check(f, 8, 32, xs, pool_first=False))
    worst = max(worst, check(f, 8, 32, xs, stem_szs=(8,8,64), act_cls=nn.SiLU))
    print(n, f'{worst:.1e}')

def test_the_patched_fastai_is_exact(trees):
    "`exactness`, without this package"
    print(run(trees['output_stride'], exactness))

def uses():
    "What runs in fastai as it is, without any `output_stride`: a hash of what each says"
    import hashlib
    from fastai.vision.all import ConvLayer, MaxPool, Mish, ResBlock, nn, store_attr
    from fastai.vision.models.xresnet import XResNet
    class OwnBlocks(XResNet):
        def _make_blocks(self, layers, block_szs, sa, stride, **kwargs):
            return super()._make_blocks(layers, block_szs, sa, stride, **kwargs)
    class OwnLayers(XResNet):
        def _make_layer(self, ni, nf, blocks, stride, sa, **kwargs):
            return nn.Sequential(*[self.block(nf if i else ni, nf, **kwargs) for i in range(blocks)])
    class OwnInit(XResNet):
        def __init__(self, block, layers):
            store_attr('block', expansion=1, act_cls=Mish, ndim=2, ks=3)
            stages = self._make_blocks(layers, [8,8,8], False, 2)
            nn.Sequential.__init__(self, ConvLayer(3, 8), *stages)
    def plain(ni, nf, groups=1): return nn.Conv2d(ni, nf, 3, groups=groups)
    def narrow(cls, *args, **kwargs): return cls(*args, widen=.25, **kwargs)
    def say(name, f, ch=3):
        torch.manual_seed(0)
        y = f().eval()(torch.linspace(-1, 1, 2*ch*96*64).view(2,ch,96,64))
        print(name, tuple(y.shape), hashlib.sha256(y.detach().numpy().tobytes()).hexdigest())
    four = [1,1,1,1]
    say('own_make_blocks', lambda: narrow(OwnBlocks, ResBlock, 1, four))
    say('own_make_layer', lambda: narrow(OwnLayers, plain, 1, four, groups=2))
    say('own_init', lambda: OwnInit(ResBlock, four[:2]))
    say('stride_by_axis', lambda: narrow(XResNet, ResBlock, 1, four, stride=(2,1)))
    say('pool_of_another_kind', lambda: narrow(XResNet, ResBlock, 4, four, pool=MaxPool))
    say('dilated_conv_layer', lambda: ConvLayer(3, 8, dilation=2))
    def block(name, **kwargs): say(name, lambda: ResBlock(1, 8, 8, **kwargs), 8)
    block('dilation_by_axis', dilation=(1,2), padding=(1,2))
    block('stride_and_dilation', stride=2, dilation=2, padding=2)
    block('same', dilation=2, padding='same')
    block('dilated_1x1', dilation=2, ks=1)
    block('dilated_1x1_by_axis', stride=2, dilation=(2,1), ks=1)
    block('ks_by_axis', ks=(3,5), padding=(1,2))
    block('transposed', transpose=True, ks=1)
    block('reflected', padding_mode='reflect')
    block('no_padding_given', padding=None)

use_names = re.findall(r"(?:say|block)\('(\w+)'", getsource(uses))

@pytest.fixture(scope='module')
def said_by_uses(trees):
    "What each of `uses` says in the installed fastai, and in the one with the argument"
    both = [run(o, uses).splitlines() for o in (lib.parent,trees['output_stride'])]
    return [{k:o for k,_,o in (line.partition(' ') for line in said)} for said in both]

@pytest.mark.parametrize('use', use_names)
def test_what_ran_runs_and_says_the_same(said_by_uses, use):
    "Subclasses with methods of their own, and blocks that were given a dilation, padding or stride of any kind"
    before,after = said_by_uses
    assert before[use]==after[use]

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

def test_networks_that_do_not_ask_stay_as_they_are(trees):
    "Built and run with all patches as in the fastai that is installed, bit for bit"
    native = run(lib.parent, fingerprint)
    assert len(native)==65 and run(trees['together'], fingerprint)==native

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

def test_pickles_of_fastai_as_it_is_load(trees):
    "And say the same, bit for bit"
    tree = trees['output_stride']
    for o in (lib.parent,tree): run(o, pickled, tree)
    (tree/'m.pt').unlink()

def hard_use():
    "Half precision, layouts, gradients, compilers"
    from fastai.layers import AvgPool, _DilatedAvgPool as DilatedAvgPool
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

def test_hard_use_of_the_patched_fastai(trees):
    "`hard_use`, without this package"
    run(trees['output_stride'], hard_use)

def errors():
    "What cannot be is refused in words"
    from fastai.vision.all import MaxPool, ResBlock, create_unet_model, create_vision_model, nn, partial
    from fastai.vision.all import resnet18, xresnet18
    from fastai.vision.models.xresnet import XResNet
    class OwnLayers(XResNet):
        "It does not know that the first block of a stage is dilated in another way"
        def _make_layer(self, ni, nf, blocks, stride, sa, **kwargs):
            return nn.Sequential(self.block(1, ni, nf, stride, **kwargs), self.block(1, nf, nf, **kwargs))
    for T in (12,2,1,64,0,-8,'8',8.5,True,[8],(8,8)):
        words = f'`output_stride` can be one of [4, 8, 16, 32], not {T!r}'
        with expect_fail(ValueError, words): xresnet18(output_stride=T)
    words = '`output_stride` needs one `stride` above 1, no `dilation`'
    for kw in (dict(stride=1), dict(stride=(2,1)), dict(dilation=2), dict(dilation=(1,2))):
        with expect_fail(ValueError, words): xresnet18(output_stride=8, **kw)
    words = '`first_dilation` is for stride 1, `AvgPool`, and a `dilation` that is a multiple of it'
    for kw in (dict(stride=2), dict(pool=MaxPool), dict(dilation=3), dict(dilation=1), dict(dilation=(2,2))):
        with expect_fail(ValueError, words): ResBlock(1, 8, 8, **{**dict(dilation=4, first_dilation=2), **kw})
    with expect_fail(ValueError, words): ResBlock(1, 8, 8, dilation=2, first_dilation=(1,1))
    with expect_fail(ValueError, words): xresnet18(output_stride=8, pool=MaxPool)
    OwnLayers(ResBlock, 1, [2,2,2,2])
    with expect_fail(TypeError, "'prev_dilation'"): OwnLayers(ResBlock, 1, [2,2,2,2], output_stride=8)
    for f in (partial(create_vision_model, n_out=5), partial(create_unet_model, n_out=5, img_size=(64,64))):
        words = "ResNet.__init__() got an unexpected keyword argument 'output_stride'"
        with expect_fail(TypeError, words): f(resnet18, pretrained=False, output_stride=8)
        with expect_fail(ValueError, 'one of [4, 8, 16, 32], not 3'): f(xresnet18, pretrained=False, output_stride=3)

def test_errors_of_the_patched_fastai(trees):
    "`errors`, without this package"
    run(trees['together'], errors)

def warned():
    "What is not exact is warned of, and nothing else is: a network of four stages attends in the first"
    import warnings
    from fastai.vision.all import NormType, ResBlock, xresnet18, xse_resnet18
    from fastai.vision.models.xresnet import xresnet18_deep
    def said(f, **kwargs):
        with warnings.catch_warnings(record=True) as ws:
            warnings.simplefilter('always')
            f(**kwargs)
        return {str(o.message) for o in ws if 'zero-element' not in str(o.message)} # PyTorch's, of attention
    words = {'`output_stride` is not exact with squeeze-and-excitation, self-attention, instance norm or `padding_mode`'}
    whole = dict(reduction=16), dict(norm_type=NormType.Instance), dict(padding_mode='reflect')
    for kw in whole:
        test_eq(said(xresnet18, output_stride=8, **kw), words)
        test_eq(said(xresnet18, output_stride=32, **kw), set())
        test_eq(said(xresnet18, **kw), set())
        test_eq(said(lambda: ResBlock(1, 8, 8, dilation=2, **kw)), set())
    for f,kw in ((xse_resnet18,{}), (xresnet18_deep,dict(sa=True))): test_eq(said(f, output_stride=8, **kw), words)
    for kw in ({}, dict(sa=True), dict(padding_mode='zeros')): test_eq(said(xresnet18, output_stride=4, **kw), set())

def test_warnings_of_the_patched_fastai(trees):
    "`warned`, without this package"
    run(trees['output_stride'], warned)

def signatures():
    "What is shown: the argument, but not the dilations that an XResNet chooses itself"
    import inspect
    from fastai.vision.all import ResBlock, XResNet, create_vision_model, vision_learner
    def shown(f): return {'output_stride','dilation','first_dilation'} & set(inspect.signature(f).parameters)
    for f in (XResNet,vision_learner,create_vision_model): test_eq(shown(f), {'output_stride'})
    test_eq(shown(ResBlock), {'dilation','first_dilation'})

def test_signatures_of_the_patched_fastai(trees):
    "`signatures`, without this package"
    run(trees['output_stride'], signatures)

def learners(example):
    "Learners take it, split the network as ever, and train; and the example of the text runs"
    from fastai.vision.all import CategoryBlock, DataBlock, ImageBlock, PILImage, cnn_learner, create_body, np
    from fastai.vision.all import vision_learner, xresnet18, xresnet34
    def img(i): return PILImage.create(np.full((64,64,3), i*8, dtype=np.uint8))
    def label(i): return i%2
    block = DataBlock((ImageBlock,CategoryBlock), get_x=img, get_y=label)
    dls = block.dataloaders(range(20), bs=4, num_workers=0)
    x = torch.randn(1, 3, 64, 64)
    for f in (vision_learner,cnn_learner):
        learn = f(dls, xresnet18, pretrained=False, output_stride=8)
        with learn.no_bar(), learn.no_logging(): learn.fit(1)
        test_eq([*learn.model[0].eval()(x).shape], [1,512,8,8])
        test_eq(len(learn.splitter(learn.model)), 3)
        test_eq(learn.output_stride, 8)
    names = dict(dls=dls, xresnet34=xresnet34, vision_learner=vision_learner)
    for line in [*example.splitlines(), "vision_learner(dls, 'resnet18', pretrained=False, output_stride=8)"]:
        m = eval(line, names)
        body = m.model[0] if hasattr(m,'model') else create_body(m, cut=-4)
        test_eq([*body.eval()(x).shape], [1,512,8,8])

def code_in(text): return re.search(r'```python\n(.*?)```', text, flags=re.S)[1]

def test_learners_of_the_patched_fastai(trees):
    "`learners`, without this package"
    run(trees['output_stride'], learners, code_in(upstream.output_stride.text))

def posted(code):
    "The code of the post runs, and its last line sees each conv and pool that is not dilated"
    from fastai.layers import _DilatedAvgPool
    from torch import nn
    names = {}
    exec(code, names)
    top,_,last = code.strip().rpartition('\n')
    def fails():
        with expect_fail(AssertionError): exec(last, names)
    convs = [o for o in names['d'].modules() if isinstance(o,nn.Conv2d) and o.dilation!=(1,1)]
    for o in convs:
        was,o.dilation,o.padding = (o.dilation,o.padding),(1,1),(1,1)
        fails()
        o.dilation,o.padding = was
    paths = [(o,k) for o in names['d'].modules() for k,p in o.named_children() if isinstance(p,_DilatedAvgPool)]
    for o,k in paths:
        pool = o[int(k)]
        o[int(k)] = nn.Identity()
        fails()
        o[int(k)] = pool
    test_eq((len(convs),len(paths)), (7,2))
    exec(last, names)

def test_the_code_of_the_post_runs(trees):
    "In the fastai with the argument, as it stands there"
    run(trees['output_stride'], posted, code_in(forum_post))

def unets():
    "A U-Net takes it, and trains; a `partial` makes the same one, but loses what fastai knows of the network"
    from fastai.vision.all import DataBlock, ImageBlock, MaskBlock, PILImage, PILMask, np, partial
    from fastai.vision.all import unet_learner, xresnet34
    def img(i): return PILImage.create(np.full((64,64,3), i*8, dtype=np.uint8))
    def mask(i): return PILMask.create(np.full((64,64), i%2, dtype=np.uint8))
    block = DataBlock((ImageBlock,MaskBlock(['a','b'])), get_x=img, get_y=mask)
    dls = block.dataloaders(range(20), bs=4, num_workers=0)
    learn = unet_learner(dls, xresnet34, pretrained=False, output_stride=8)
    with learn.no_bar(), learn.no_logging(): learn.fit(1)
    test_eq([*learn.model.layers[0].eval()(torch.randn(1,3,64,64)).shape], [1,512,8,8])
    native = unet_learner(dls, xresnet34, pretrained=False)
    by_hand = unet_learner(dls, partial(xresnet34, output_stride=8), pretrained=False)
    def n_params(learn): return round(sum(o.numel() for o in learn.model.parameters())/1e6, 1)
    test_eq([n_params(o) for o in (native,learn,by_hand)], [41.2,33.9,33.9])
    test_eq([len(o.splitter(o.model)) for o in (native,learn,by_hand)], [3,3,2])

def test_unets_of_the_patched_fastai(trees):
    "`unets`, without this package"
    run(trees['together'], unets)

def weights():
    "A file with names of 2019: all of it is loaded; what ran runs, what raised raises, and of the rest is a warning"
    import re, warnings
    from fastai.vision.all import Mish, create_vision_model, xresnet18, xresnet34, xresnet50, xresnet101
    from fastai.vision.models.xresnet import xresnet50_deep
    from fastai.vision.models import xresnet
    src = xresnet50()
    today,old = src.state_dict(),{}
    for k,v in today.items():
        for a,b in (('convpath','convs'), (r'idpath\.[01]','idconv'), ('^11','10')): k = re.sub(a, b, k)
        old[k] = v
    assert len(old)==len(today) and not set(old) & {k for k in today if k[0]>'3'}
    def file(sd): xresnet.load_state_dict_from_url = lambda url, **kwargs: dict(model=sd)
    def built(f, **kwargs):
        "A network, and how many tensors of its own and of the file are warned of"
        with warnings.catch_warnings(record=True) as ws:
            warnings.simplefilter('always')
            m = f(pretrained=True, **kwargs)
        assert {o.filename for o in ws} <= {'<string>'} # they show the line that asked for weights
        said = ' '.join(str(o.message) for o in ws)
        def n(words): return sum(map(int, re.findall(rf'(\d+) of \d+ tensors {words}: 4\S+', said)))
        res = n('of the network are not in the file'),n('of the file are not loaded')
        assert len(ws)==sum(o>0 for o in res), said
        return m,res
    none = 0,0
    def same(m, ks=today):
        for k in ks: test_eq(m.state_dict()[k], today[k])
    few = {k:v for k,v in old.items() if 'num_batches' not in k}
    for sd in (old,today,few):
        file(sd)
        m,said = built(xresnet50)
        test_eq(said, none)
        same(m, sd if sd is today else [k for k in today if sd is old or 'num_batches' not in k])
    file(old)
    def late(m): return m[7][2].convpath[2][0].weight
    for kw in (dict(n_out=10), dict(act_cls=Mish), dict(p=.5)):
        m,said = built(xresnet50, **kw)
        test_eq(said, none)
        test_eq(late(m), late(src))
    test_eq(late(create_vision_model(xresnet50, 5, pretrained=True)[0]), late(src))
    for kw,want in ((dict(sa=True),None), (dict(reduction=16),None), (dict(groups=32),(16,16))):
        m,said = built(xresnet50, **kw)
        assert said==want if want else said[0] and not said[1], (kw,said)
        test_eq(late(m), late(src))
    def raises():
        for kw in (dict(c_in=1), dict(ks=5), dict(stem_szs=(16,32,64))):
            with expect_fail(RuntimeError, 'size mismatch for 0.0.weight'): xresnet50(pretrained=True, **kw)
    raises()
    stem = [k for k in today if k[:2] in ('0.','1.','2.')]
    def body(sd): return [k for k in sd if k not in stem and 'num_batches' not in k]
    for f in (xresnet18,xresnet34,xresnet101,xresnet50_deep):
        torch.manual_seed(0)
        m,said = built(f)
        torch.manual_seed(0)
        own = f().state_dict()
        for k,v in m.state_dict().items(): test_eq(v, (today if k in stem else own)[k])
        test_eq(said, (len([k for k in body(own) if not k.startswith(f'{len(m)-1}.')]), len(body(old))))
    gone,buffer = '4.0.convs.0.0.weight','4.0.convs.0.1.running_mean'
    for o in (gone,buffer):
        file({k:v for k,v in old.items() if k!=o})
        test_eq(built(xresnet50)[1], (1,0))
    file({**old, '4.0.convs.9.weight':old[gone]})
    test_eq(built(xresnet50)[1], (0,1))
    file(today) # a shape that differs was an error for each of its names
    raises()
    for kw in (dict(groups=32), dict(n_out=10)):
        with expect_fail(RuntimeError, 'size mismatch'): xresnet50(pretrained=True, **kw)

def test_weights_of_the_patched_fastai(trees):
    "`weights`, without this package"
    run(trees['weights'], weights)
