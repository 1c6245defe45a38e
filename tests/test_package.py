"What importing the package does, and does not do; each in a process of its own"
import os, subprocess, sys
from pathlib import Path
import pytest
from reconstruct import patched

root = Path(__file__).parent.parent
pytestmark = pytest.mark.slow

def run(code, *args, path=(root,)):
    "Output of `code` in a new process with one thread and `path`; without one, it cannot import fastai_dilation"
    if not path: code = "import sys\nsys.modules['fastai_dilation'] = None\n" + code
    env = {**os.environ, 'OMP_NUM_THREADS':'1', 'PYTHONPATH':os.pathsep.join([*map(str,path),os.environ.get('PYTHONPATH','')])}
    res = subprocess.run([sys.executable,'-W','ignore','-c',code,*map(str,args)], env=env, capture_output=True, text=True)
    assert res.returncode==0, res.stderr
    return res.stdout.strip()

build = """
import sys, torch, pickle, inspect
{}
from fastai.vision.all import *
{}
ms = []
for f in (xresnet18, xse_resnext18, xresnet18_deeper):
    torch.manual_seed(0)
    m = f().eval()
    with torch.no_grad(): ms.append((m, torch.rand(1), m(torch.linspace(-1,1,3*64*64).view(1,3,64,64))))
torch.manual_seed(0)
u = create_unet_model(xresnet18, 2, (64,64), pretrained=False).eval()
torch.manual_seed(0)
v = create_vision_model(xresnet18, 2, pretrained=False).eval()
assert not any(type(o).__module__.startswith('fastai_dilation') for m in (*[o[0] for o in ms],u,v) for o in m.modules())
pickle.dump((ms, [m(torch.ones(2,3,64,64)).detach() for m in (u,v)], torch.rand(1)), open(sys.argv[1],'wb'))
"""

compare = """
import sys, torch, pickle
from fastai.vision.all import *
(a,ua,ra),(b,ub,rb) = [pickle.load(open(o,'rb')) for o in sys.argv[1:]]
assert ra.equal(rb) and all(x.as_subclass(Tensor).equal(y.as_subclass(Tensor)) for x,y in zip(ua,ub))
for (m,r,y),(m2,r2,y2) in zip(a,b):
    assert r.equal(r2) and y.equal(y2) and repr(m)==repr(m2)
    assert all(p.equal(q) and k==k2 for (k,p),(k2,q) in zip(m.state_dict().items(), m2.state_dict().items()))
print('same')
"""

@pytest.mark.parametrize('before,after', [('','from fastai_dilation.all import *'), ('from fastai_dilation.all import *','')])
def test_nothing_changes(tmp_path, before, after):
    "Networks that do not ask are the same, bit for bit, and load where the package is not installed"
    run(build.format('',''), tmp_path/'a', path=())
    run(build.format(before,after), tmp_path/'b')
    assert run(compare, tmp_path/'a', tmp_path/'b', path=())=='same'

@pytest.mark.parametrize('imports', ['from fastai.vision.all import *\nfrom fastai_dilation.all import *', 'from fastai_dilation.all import *\nfrom fastai.vision.all import *',
    'from fastai.vision.all import *\nimport fastai_dilation.all', 'import fastai_dilation.layers, fastai_dilation.xresnet\nfrom fastai.vision.all import *\nfrom fastai_dilation.all import *'])
def test_import_orders(imports):
    code = imports + """
from fastai.vision.all import *
import fastai_dilation.layers, inspect
m = create_vision_model(xresnet18, 2, pretrained=False, output_stride=8)
assert m[0](torch.randn(1,3,64,64)).shape[-1]==8
assert isinstance(xresnet18(output_stride=1)[3], fastai_dilation.layers.DilatedPool)
for f in (vision_learner, unet_learner, cnn_learner, create_unet_model): assert 'output_stride' in inspect.signature(f).parameters
print('ok')"""
    assert run(code).endswith('ok')

def test_reload():
    code = """
from fastai.vision.all import *
import importlib, pickle, fastai_dilation.all as fd
m,se = xresnet18(output_stride=8),xse_resnet18(output_stride=8)
for _ in range(2):
    for o in ('layers','strides','phases','trial','output_stride','pretrained','xresnet','learner','evaluate','all'): importlib.reload(sys.modules[f'fastai_dilation.{o}'])
from fastai_dilation.all import *
assert get_output_stride(m)==8
set_output_stride(m, 4)
n = pickle.loads(pickle.dumps(m))
set_output_stride(n, 32)
assert repr(n)==repr(xresnet18())
assert get_output_stride(se)==8 and repr(set_output_stride(se,32))==repr(xse_resnet18())
assert ResBlock(1,8,8,dilation=2)(torch.randn(1,8,9,9)).shape[-1]==9
assert create_vision_model(xresnet18, 2, pretrained=False, output_stride=8)[0](torch.randn(1,3,64,64)).shape[-1]==8
print('ok')"""
    assert run("import sys\n"+code).endswith('ok')

@pytest.fixture(scope='module')
def fastai2(tmp_path_factory): return patched(tmp_path_factory.mktemp('fastai')/'fastai')

def test_steps_aside(fastai2):
    "On a fastai that has the pull request: its blocks are its own; networks, learners and live changes are the superset"
    code = """
import inspect
from fastai.vision.all import *
from fastai.vision.models.xresnet import XResNet
theirs = [ResBlock.__init__,ConvLayer.__init__]
native_init = XResNet.__init__
pr = xresnet18(output_stride=8).eval()
from fastai_dilation.all import *
import torchvision.models as tvm
assert theirs==[ResBlock.__init__,ConvLayer.__init__] and XResNet._orig___init__ is native_init
assert 'DilatedAvgPool' in repr(pr) and 'DilatedPool' not in repr(pr)
x = torch.randn(1,3,97,75)
def body(m): return nn.Sequential(*list(m)[:-4]).eval()
m = xresnet18()
for o in m.modules():
    if isinstance(o,nn.BatchNorm2d): nn.init.uniform_(o.weight,.5,1.5)
native = body(m)(x)
def check(m, T): test_close(body(m)(x)[...,::32//T,::32//T], native, eps=1e-5*native.max().item())
from fastcore.test import *
for T in (16,8,4,2,1):
    check(set_output_stride(m,T), T)
    n = xresnet18(output_stride=T)
    n.load_state_dict(m.state_dict())
    check(n, T)
    assert 'DilatedAvgPool' not in repr(n)
assert body(set_output_stride(m,32))(x).equal(native)
# what fastai built itself: it has the stride of 8 natively, and is dilated further
pr.load_state_dict(m.state_dict())
assert get_output_stride(pr)==8
check(pr, 8)
for T in (4,2,8): check(set_output_stride(pr,T), T)
try: set_output_stride(pr, 16)
except ValueError as e: assert 'can be one of [1, 2, 4, 8], not 16' in str(e)
else: assert False
for f in (vision_learner, cnn_learner, unet_learner, create_vision_model, create_unet_model): assert 'output_stride' in inspect.signature(f).parameters
for arch in (xresnet18, tvm.resnet18):
    for T in (8,2):
        assert create_vision_model(arch, 2, pretrained=False, output_stride=T)[0](x).shape[-1]==-(-75//T)
        assert get_output_stride(create_unet_model(arch, 2, (64,64), pretrained=False, output_stride=T))==T
assert ResBlock(1,8,8,dilation=2)(torch.randn(2,8,9,9)).shape[-1]==9
print('ok')"""
    assert run(code, path=[fastai2,root]).endswith('ok')

@pytest.mark.parametrize('file', ['test_xresnet.py','test_exact.py','test_learner.py','test_evaluate.py'])
def test_on_top(fastai2, file):
    "This package's own tests of networks and learners pass on that fastai"
    env = {**os.environ, 'OMP_NUM_THREADS':'1', 'MAX_EXAMPLES':'20', 'PYTHONPATH':os.pathsep.join([str(fastai2),str(root)])}
    args = ['-q', '-n', '0', '-p', 'no:cacheprovider', '-k', 'not block_drawn and not pool_share and not 34 and not 50 and not deeper', str(root/'tests'/file)]
    res = subprocess.run([sys.executable,'-W','ignore','-m','pytest',*args], env=env, cwd=root, capture_output=True, text=True)
    assert res.returncode==0 and ' passed' in res.stdout, res.stdout[-4000:]
    where = subprocess.run([sys.executable,'-W','ignore','-c','import fastai; print(fastai.__file__)'], env=env, cwd=root, capture_output=True, text=True)
    assert where.stdout.startswith(str(fastai2))

def test_one_network(fastai2):
    "fastai's constructors with the pull request, and building and trading here: the same convs and outputs, but for squeeze-and-excitation"
    code = """
import sys
from fastai.vision.all import *
from fastai.vision.models import xresnet
from fastai.vision.models.xresnet import XResNet
theirs = XResNet.__init__,xresnet._xresnet
import fastai_dilation.all
ours = XResNet.__init__,xresnet._xresnet
def convs(m): return [(o.stride,o.dilation,o.padding) for o in m.modules() if isinstance(o,(nn.Conv2d,nn.Conv1d))]
worst,n = 0,0
for name in [o for o in xresnet.__all__ if o.startswith(('xresnet','xresnext'))]: # the others run by phases here, exactly
    T = 512 if 'deeper' in name else 128 if 'deep' in name else 32
    while T>=4:
        ms = []
        for f in (theirs,ours):
            XResNet.__init__,xresnet._xresnet = f
            torch.manual_seed(0)
            ms.append(getattr(xresnet,name)(output_stride=T, widen=1. if 'next' in name else .25).eval())
        a,b = ms
        assert convs(a)==convs(b) and list(a.state_dict())==list(b.state_dict()), name
        assert all(p.equal(q) for p,q in zip(a.state_dict().values(), b.state_dict().values()))
        for o in b.modules():
            if isinstance(o,nn.BatchNorm2d): nn.init.uniform_(o.weight,.5,1.5)   # a block's last norm is 0 otherwise
        a.load_state_dict(b.state_dict())
        x = torch.randn(1,3,65,51)
        with torch.no_grad(): y,z = a(x),b(x)
        worst = max(worst, ((y-z).abs().max()/y.abs().max()).item())
        T,n = T//2,n+1
assert worst<1e-6 and n>=12*4, (worst,n)
print(n, worst, 'ok')"""
    out = run(code, path=[fastai2,root])
    print(out)
    assert out.endswith('ok')

def test_import_time():
    "Importing the package after fastai adds at most 5 % to the import"
    code = "import time\na=time.perf_counter()\nfrom fastai.vision.all import *\nb=time.perf_counter()\nimport fastai_dilation.all\nprint((time.perf_counter()-b)/(b-a))"
    assert min(float(run(code).split()[-1]) for _ in range(3))<.05

def test_dilated_pickle_asks_for_the_package(tmp_path):
    "A dilated network loads in a process that does not import the package by hand, and a restored one where it is missing"
    code = f"from fastai_dilation.all import *\nfrom fastai.vision.all import *\nm = xresnet18(output_stride=8)\ntorch.save(m, r'{tmp_path}/d.pt')\ntorch.save(set_output_stride(m,32), r'{tmp_path}/n.pt')"
    run(code)
    load = f"import torch\nprint(torch.load(r'{tmp_path}/d.pt', weights_only=False)[7][0].convpath[0][0].stride)"
    assert '(1, 1)' in run(load)
    assert '(2, 2)' in run(load.replace('d.pt','n.pt'), path=())

def test_pickles_of_0_0_2_load(tmp_path):
    "What it kept of the native settings is understood: such a net goes back, and to another stride"
    code = f"""from fastai.vision.all import *
from fastai_dilation.all import *
m = xresnet18(output_stride=8)
for o in m.modules():
    if undo := vars(o).pop('_undo', None): o._native = {{k:before for k,(before,_) in undo.items()}}
torch.save(m, r'{tmp_path}/m.pt')"""
    run(code)
    print(run(f"""import torch
m = torch.load(r'{tmp_path}/m.pt', weights_only=False)
from fastai.vision.all import *
from fastai_dilation.all import *
assert get_output_stride(m)==8 and get_output_stride(set_output_stride(m,16))==16
assert repr(set_output_stride(m,32))==repr(xresnet18()) and not any({{'_native','_undo'}} & vars(o).keys() for o in m.modules())"""))
