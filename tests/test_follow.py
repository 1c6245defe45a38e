"How a network is followed: whatever its forward asks for, holds or is given, and however it is called"
import threading
from functools import partial
import pytest, timm, torch
from torch import nn
from torch.nn import functional as F
from fastai.vision.models import xresnet
from fastai_dilation.all import CannotDilate, get_output_stride, grid_error, output_strides, set_output_stride
from fastai_dilation.layers import is_closed
from fastai_dilation.strides import follow
from util import Call, alive, between, close, said, stays_exact

def test_a_lock_is_no_obstacle():
    "Nothing is copied"
    m = between()
    m.lock = threading.Lock()
    stays_exact(m)

class Asks(nn.Module):
    "Asks for values, devices and lists in the middle of its forward"
    def __init__(self, how):
        super().__init__()
        self.how,self.bias = how,[torch.ones(1,8,1,1).double()]
        self.register_buffer('flag', torch.tensor(True))
    def forward(self, x):
        if self.how=='autocast':
            with torch.autocast(x.device.type, enabled=False): return x.relu()
        if self.how=='if' and self.flag: return x.relu()
        if self.how=='item' and self.flag.item(): return x.relu()
        if self.how=='nan' and torch.isnan(x).any(): raise ValueError('NaN in the map')
        if self.how=='nan, quietly' and torch.isnan(x).any(): return torch.zeros_like(x)
        if self.how=='list': return x+self.bias[0]
        return x+torch.zeros(x.shape[1:], device='cpu').to(x)

@pytest.mark.parametrize('how', ['autocast','if','item','nan','nan, quietly','list','zeros'])
def test_networks_that_ask_in_the_middle_are_exact(how):
    "What meta tensors cannot answer is followed on real images; who looks for NaN is shown something else"
    m = between(Asks(how))
    assert said(stays_exact, m)==[]

class HeadFirst(nn.Module):
    def __init__(self):
        super().__init__()
        self.head,self.stem = nn.Conv2d(8,5,1),between()
    def forward(self, x): return self.head(self.stem(x))

def test_the_first_conv_need_not_be_the_stem():
    "Its channels are not those of the image; others are tried"
    stays_exact(HeadFirst().double())

def test_a_stem_of_shuffled_pixels():
    "Its first conv reads 12 channels, its image has 3"
    stays_exact(nn.Sequential(nn.PixelUnshuffle(2), nn.Conv2d(12,8,3,2,1), nn.Conv2d(8,8,3,2,1)).double(), 2, (34,48))

class Two(nn.Module):
    "Reads two images, or a dict with two"
    def __init__(self):
        super().__init__()
        self.net = between()
    def forward(self, a, b=None): return self.net(a['a']-a['b'] if b is None else a-b)

@pytest.mark.parametrize('x', [lambda x: (x,x.flip(3)), lambda x: {'a':x,'b':x.flip(3)}], ids=['two','dict'])
def test_a_sample_says_what_the_input_is(x):
    "`x=` for two images or a dict, in all functions that follow a network"
    m,x = Two(),x(torch.randn(1,3,32,48).double())
    xs = x if isinstance(x,tuple) else (x,)
    assert (get_output_stride(m,x),output_strides(m,x))==(8,[1,2,4,8])
    with torch.no_grad(): native = m(*xs)
    assert grid_error(m, 2, x)<1e-12
    with torch.no_grad(): close(set_output_stride(m, 2, x)(*xs)[...,::4,::4], native, 1e-12)

class Three(nn.Module):
    def __init__(self):
        super().__init__()
        self.c = nn.Conv2d(6,8,3,2,1)
    def forward(self, a, b): return self.c(torch.cat([a,b],1))

def test_a_refusal_asks_for_a_sample():
    "Where a network reads three images"
    with pytest.raises(CannotDilate, match='`x=`'): set_output_stride(Three(), 1)

def test_a_compiled_model_is_changed_inside():
    "And the compiled one follows"
    m = between()
    c = torch.compile(m, backend='eager')
    x = torch.randn(1,3,64,64).double()
    with torch.no_grad():
        c(x)
        assert set_output_stride(c, 2) is c and get_output_stride(m)==2
        close(c(x), m(x))

def test_a_forward_of_ones_own():
    "A `forward` that was put on a module, and has no `__self__`"
    m = between(nn.Conv2d(8,8,3,1,1))
    m[2].forward = partial(nn.Conv2d.forward, m[2])
    assert said(stays_exact, m)==[]

class Listed(nn.Module):
    "Calls the blocks of a `Sequential` one by one, so that itself is never called"
    def __init__(self):
        super().__init__()
        self.stem = between()
        self.blocks = nn.Sequential(*[Call(lambda x: F.layer_norm(x, x.shape[2:])) for _ in range(2)])
    def forward(self, x):
        x = self.stem(x)
        for o in self.blocks: x = o(x)
        return x

def test_a_container_that_is_not_called():
    "Its blocks run by phases all the same"
    assert said(stays_exact, Listed())==[]

class ByKeyword(nn.Conv2d):
    def forward(self, x):
        kw = dict(stride=self.stride, padding=self.padding, dilation=self.dilation)
        return F.conv2d(x, self.weight, self.bias, **kw)

def test_a_conv_that_passes_keywords_is_dilated():
    "A subclass that hands its settings on by name is a conv like others"
    m = between(ByKeyword(8,8,3,2,1))
    stays_exact(m, 1, S0=16)
    assert m[2].dilation==(4,4)

def test_strides_between_those_of_the_maps():
    "A stride of 4 is left with 2"
    m = alive(timm.create_model('test_convnext'))
    assert output_strides(m)==[1,2,4,8,16,32]
    assert set_output_stride(m,2).stem[0].stride==(2,2)
    assert grid_error(m.double(), 2, torch.randn(1,3,65,97).double())<1e-9

def test_a_network_on_the_meta_device():
    "It is tried with weights of its own, and stays without"
    with torch.device('meta'): m = xresnet.xse_resnet18(output_stride=8)
    assert get_output_stride(m)==8 and all(p.device.type=='meta' for p in m.parameters())
    assert 'by phases' in repr(m)

def test_features_only_tells_its_strides():
    "timm's decoders ask `feature_info` for the strides of the maps"
    m = timm.create_model('resnet18d', features_only=True)
    reductions = m.feature_info.reduction()
    assert set_output_stride(m, 8).feature_info.reduction()==[2,4,8,8,8]
    assert set_output_stride(m, 32).feature_info.reduction()==reductions==[2,4,8,16,32]

def test_a_phased_module_as_a_root_hides_what_is_inside_of_it():
    "Its children and theirs; it is asked itself"
    net = set_output_stride(xresnet.xse_resnet18(widen=.25), 8)
    name = next(n for n,m in net.named_modules() if is_closed(m) and len([*m.modules()])>3)
    assert get_output_stride(net.get_submodule(name))==1

def test_what_timm_collects_in_hooks_is_followed_and_compared():
    m = alive(timm.create_model('efficientnet_lite0', features_only=True, feature_location='expansion')).double()
    strides,x = m.feature_info.reduction(),torch.randn(2,3,65,97).double()
    assert [g.stride for g in follow(m).answers]==strides==[2,4,8,16,32]
    with torch.no_grad():
        native = m.eval()(x)
        finer = set_output_stride(m,8)(x)
    for y,t,S in zip(native,finer,strides): close(t[...,::max(1,S//8),::max(1,S//8)], y, 1e-12)
