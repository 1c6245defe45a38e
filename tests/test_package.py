"What importing the package does, and does not do; each in a process of its own"
import os, subprocess, sys
from pathlib import Path
import pytest

root = Path(__file__).parent.parent
pytestmark = pytest.mark.slow

def run(code, *args, path=True):
    "Output of `code` in a new process; without `path`, one that cannot import fastai_dilation"
    if not path: code = "import sys\nsys.modules['fastai_dilation'] = None\n" + code
    env = {**os.environ, 'PYTHONPATH':os.pathsep.join([str(root),os.environ.get('PYTHONPATH','')])}
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
    run(build.format('',''), tmp_path/'a', path=False)
    run(build.format(before,after), tmp_path/'b')
    assert run(compare, tmp_path/'a', tmp_path/'b', path=False)=='same'

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
m = xresnet18(output_stride=8)
for _ in range(2):
    for o in ('layers','xresnet','learner','pretrained','evaluate','all'): importlib.reload(sys.modules[f'fastai_dilation.{o}'])
from fastai_dilation.all import *
assert get_output_stride(m)==8
set_output_stride(m, 4)
n = pickle.loads(pickle.dumps(m))
set_output_stride(n, 32)
assert repr(n)==repr(xresnet18())
assert ResBlock(1,8,8,dilation=2)(torch.randn(1,8,9,9)).shape[-1]==9
assert create_vision_model(xresnet18, 2, pretrained=False, output_stride=8)[0](torch.randn(1,3,64,64)).shape[-1]==8
print('ok')"""
    assert run("import sys\n"+code).endswith('ok')

def test_steps_aside():
    "If fastai takes the arguments itself, nothing of it is patched"
    code = """
from fastai.vision.all import *
from fastai.vision.models import xresnet
from fastai.vision import learner
def taking(f, *names):
    def _f(*args, **kwargs): return f(*args, **{k:v for k,v in kwargs.items() if k not in names})
    sig = inspect.signature(f)
    ps = [p for p in sig.parameters.values() if p.kind!=p.VAR_KEYWORD]
    _f.__signature__ = sig.replace(parameters=ps+[inspect.Parameter(n, inspect.Parameter.KEYWORD_ONLY, default=None) for n in names if n not in sig.parameters])
    return _f
xresnet.XResNet.__init__ = taking(xresnet.XResNet.__init__, 'output_stride', 'weights')
xresnet.set_output_stride = xresnet.get_output_stride = learner._normalize = noop
ResBlock.__init__ = taking(ResBlock.__init__, 'dilation', 'first_dilation')
ResBlock.__signature__ = inspect.signature(ResBlock.__init__)
for o in ('create_vision_model','create_unet_model'): setattr(learner, o, taking(getattr(learner,o), 'output_stride'))
theirs = xresnet.XResNet.__init__,ResBlock.__init__,ConvLayer.__init__,learner.create_vision_model,learner.create_unet_model,learner.vision_learner
import fastai_dilation.all
assert theirs==(xresnet.XResNet.__init__,ResBlock.__init__,ConvLayer.__init__,learner.create_vision_model,learner.create_unet_model,learner.vision_learner)
assert fastai_dilation.all.create_vision_model is learner.create_vision_model
print('ok')"""
    assert run("import inspect\n"+code).endswith('ok')

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
    assert '(2, 2)' in run(load.replace('d.pt','n.pt'), path=False)
