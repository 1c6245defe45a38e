"What several test files need"
import torch, warnings
from functools import partial
from pathlib import Path
from torch import nn
from fastai.vision.models import xresnet

names = [o for o in xresnet.__all__ if o.startswith(('xresnet','xresnext','xse_')) and o!='xsenet154']

def program_file(name):
    "File of a program that tests run in a process of its own"
    return Path(__file__).parent/'programs'/f'{name}.py'

def small(pretrained=False, expansion=1, **kwargs):
    "An XResNet of five blocks, of a quarter of the width: what holds for them holds for more and wider ones"
    return xresnet.XResNet(xresnet.ResBlock, expansion, [1,1,1,2], **{'widen':.25, **kwargs})

small50 = partial(small, expansion=4)
small50.__name__ = 'small50'

def narrow(name, **kwargs):
    "The network `name`, as narrow as its 32 groups can be"
    return getattr(xresnet,name)(widen=.5 if 'next18' in name or 'next34' in name else .25, **kwargs)

def small_densenet():
    "A DenseNet of short blocks"
    from torchvision.models import DenseNet
    return DenseNet(8, (2,2,2,2), 16)

def never_download(monkeypatch):
    "Let timm make networks with random weights, where it is asked for pretrained ones"
    import timm   # bench/ uses this file too, and so do tests that need no timm
    real = timm.create_model
    monkeypatch.setattr(timm, 'create_model', lambda name,pretrained=False,**kw: real(name,**kw))

def slow_if(ns, *big):
    "Names `ns` as parameters of a test, those with a word of `big` in them marked slow"
    import pytest   # bench/ uses this file too, where pytest need not be installed
    return [pytest.param(n, marks=pytest.mark.slow) if any(o in n for o in big) else n for n in ns]

def randomize(m):
    "Batch norms such as a trained net has"
    for o in m.modules():
        if not isinstance(o, nn.modules.batchnorm._BatchNorm): continue
        nn.init.normal_(o.running_mean, 0, .3), nn.init.uniform_(o.running_var, .5, 1.5)
        nn.init.uniform_(o.weight, .5, 1.5), nn.init.normal_(o.bias, 0, .2)
    return m.eval()

def settled(m, x):
    "`m` with the statistics of `x` in its norms: where gates follow features that grow, a rounding error grows too"
    norms = [o for o in m.modules() if isinstance(o, nn.modules.batchnorm._BatchNorm)]
    momenta = [o.momentum for o in norms]
    for o in norms: o.momentum = 1.
    with torch.no_grad(): m.train()(x)
    for o,p in zip(norms,momenta): o.momentum = p
    return m.eval()

def alive(m):
    "`m` without a branch that adds nothing: what starts near 0 (layer scales, gains, last norms) gets a weight"
    for p in randomize(m).parameters():
        if p.numel()==1 or p.ndim==1 and p.abs().max()<.2 or p.ndim>1 and p.std()<1e-6: nn.init.uniform_(p, .5, 1.5)
    return m

class Call(nn.Module):
    "A module whose forward is `f`, which is given `mods` too"
    def __init__(self, f, *mods):
        super().__init__()
        self.f,self.mods = f,nn.ModuleList(mods)
    def forward(self, *args, **kwargs): return self.f(*args, *self.mods, **kwargs)

def between(*middle):
    "Two strided convs, what is asked about, and a strided conv"
    return nn.Sequential(nn.Conv2d(3,8,3,2,1), nn.Conv2d(8,8,3,2,1), *middle, nn.Conv2d(8,8,3,2,1)).double()

def stays_exact(m, T=1, sz=(33,48), S0=8):
    "`m`, in double precision and of stride `S0`, has its native map on the native grid after a change to `T`"
    from fastai_dilation.all import set_output_stride   # bench/ uses this file too
    x = torch.randn(1,3,*sz).double()
    with torch.no_grad():
        native = m(x)
        y = set_output_stride(m,T)(x)
    close(y[...,::S0//T,::S0//T], native, 1e-12)

def close(a, b, tol=1e-5):
    "`a` equals `b`, but for `tol` of the largest value of `b`"
    assert a.shape==b.shape
    err = ((a-b).abs().max()/b.abs().max()).item()
    assert err<=tol, err
    return err

def with_weights(m, like):
    "`m` with the weights of `like`, a network or its tensors by name, by their order"
    weights = like.state_dict() if isinstance(like,nn.Module) else like
    m.load_state_dict(dict(zip(m.state_dict(), weights.values(), strict=True)))
    return m

def grid_diff(a, b, T):
    "How far map `a`, at stride `T`, is off the native map `b`, at 32, as a part of its largest feature, or nan"
    a = a[...,::32//T,::32//T]
    return ((a-b).abs().max()/b.abs().max()).item() if a.shape==b.shape else float('nan')

def tensors(m):
    "Copies of the tensors of `m`, with their names"
    return [(k,v.clone()) for k,v in m.state_dict().items()]

def same(m, ts):
    "Does `m` have the `tensors` of `ts`, under the same names in the same order?"
    sd = m.state_dict()
    return list(sd)==[k for k,_ in ts] and all(v.equal(t) for v,(_,t) in zip(sd.values(),ts))

def said(f, *args, **kwargs):
    "The warnings of exactness that `f` gives"
    from fastai_dilation.all import InexactWarning   # bench/ uses this file too
    with warnings.catch_warnings(record=True) as ws:
        warnings.simplefilter('always')
        f(*args, **kwargs)
    return [str(o.message) for o in ws if issubclass(o.category, InexactWarning)]

def resizes_of(net, x):
    "By name of a module that resizes maps, for each of its resizes: what it read, the call, what it made, and its mode"
    from fastai_dilation.resizes import mode_of   # test_upstream uses this file too, without the package
    from fastai_dilation.strides import watched
    found = {}
    def note(name, i, forward, x, *args, **kwargs):
        read,y = x.clone(),forward(x, *args, **kwargs)
        call = lambda x: forward(x, *args, **kwargs)
        found.setdefault(name,[]).append((read, call, y.clone(), mode_of(x,*args,**kwargs)))
        return y
    with watched(net, lambda name,forward,*args,**kwargs: forward(*args,**kwargs), watch_resize=note): net(x)
    return found

def each_resize_is_native(native, changed, x, most=1e-6):
    "Given a finer map with nothing new in it, each resize of `changed` makes what the `native` net does; the largest difference"
    from fastai_dilation.layers import as_tuple, phases_in
    from fastai_dilation.resizes import on_native_line
    from fastai_dilation.strides import is_inside
    before,after,errors = resizes_of(native,x),resizes_of(changed,x),[]
    phased = phases_in(changed)
    for name in [o for o in after if not is_inside(o,phased)]:
        hows = changed.get_submodule(name)._resizes
        for how,(its_read,_,want,_),(read,call,_,mode) in zip(hows, before[name], after[name]):
            if how is None: continue
            y = call(on_native_line(its_read, read.shape, how, mode))
            y = y[(..., *[slice(None,None,o) for o in as_tuple(how.makes,y.ndim-2)])]
            assert y.shape==want.shape, name
            errors.append(((y-want).abs().max()/want.abs().max()).item())
    assert errors and max(errors)<most
    return max(errors)
