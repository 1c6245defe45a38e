"fastai's constructors with the pull request make the networks that are made here: the same convs and outputs"
from importlib import import_module
from fastai.vision.all import *
from fastai.vision.models import xresnet
from fastai.vision.models.xresnet import XResNet

theirs = XResNet.__init__,xresnet._xresnet
import_module('fastai_dilation.all')
ours = XResNet.__init__,xresnet._xresnet

def convs(m): return [(o.stride,o.dilation,o.padding) for o in m.modules() if isinstance(o,(nn.Conv2d,nn.Conv1d))]

def build(f, name, T):
    "The network `name` at output stride `T`, by theirs or ours"
    XResNet.__init__,xresnet._xresnet = f
    torch.manual_seed(0)
    return getattr(xresnet,name)(output_stride=T, widen=.5 if 'next18' in name or 'next34' in name else .25).eval()

def difference(name, T):
    "Of the outputs, as a part of the largest"
    a,b = [build(f,name,T) for f in (theirs,ours)]
    assert convs(a)==convs(b) and list(a.state_dict())==list(b.state_dict()), name
    assert all(p.equal(q) for p,q in zip(a.state_dict().values(), b.state_dict().values()))
    for o in b.modules():
        if isinstance(o,nn.BatchNorm2d): nn.init.uniform_(o.weight,.5,1.5)   # a block's last norm is 0 otherwise
    a.load_state_dict(b.state_dict())
    x = torch.randn(1,3,65,51)
    with torch.no_grad(): y,z = a(x),b(x)
    return ((y-z).abs().max()/y.abs().max()).item()

worst,n = 0,0
names = [o for o in xresnet.__all__ if o.startswith(('xresnet','xresnext'))]   # the others run by phases here, exactly
for name in names:
    T = 512 if 'deeper' in name else 128 if 'deep' in name else 32
    while T>=4:
        worst = max(worst, difference(name,T))
        T,n = T//2,n+1
assert worst<1e-6 and n>=12*4, (worst,n)
print(n, worst, 'ok')
