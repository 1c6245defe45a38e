"Layers as people make and change them: numbers and lists as settings, weights that are made, forwards that were replaced"
import pickle
from abc import ABC
from dataclasses import dataclass
import numpy as np, pytest, torch
from accelerate.hooks import ModelHook, add_hook_to_module, remove_hook_from_module
from torch import nn
from torch.nn.utils.parametrizations import weight_norm
from torch.nn.utils.parametrize import remove_parametrizations
from fastai_dilation.all import CannotDilate, get_output_stride, pool_over, set_output_stride, smoothed, to_pixels
from fastai_dilation.layers import phases_in
from util import close, said

class Gate(nn.Module):
    "Multiplies a map with its mean"
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(8,8,1)
    def forward(self, x): return x*self.conv(x.mean((2,3),keepdim=True)).sigmoid()

def two_convs(): return nn.Conv2d(3,8,3,2,1),nn.Conv2d(8,8,3,2,1)
def net_with(*layers): return nn.Sequential(*two_convs(), *layers, nn.Conv2d(8,8,3,1,1)).double()

def exact(net, T=1, S=4):
    "Is `net` exact at `T`, and back as it was?"
    x,before = torch.randn(2,3,37,50).double(),repr(net)
    with torch.no_grad():
        native = net(x)
        assert said(set_output_stride, net, T)==[]
        close(net(x)[...,::S//T,::S//T], native, 1e-12)
        assert repr(set_output_stride(net,S))==before
        return net

def number(o): return o[0] # of a stride alone: PyTorch's own `repr` counts the others

makers = dict(number=number, list=list, list_of_one=lambda o: [o[0]])
def set_by_hand(make):
    "A conv whose settings `make` has set by hand, as EfficientNets of PyTorch do"
    conv = nn.Conv2d(8, 8, 3, 2, 1)
    conv.stride = make(conv.stride)
    if make is not number: conv.padding,conv.dilation = make(conv.padding),make(conv.dilation)
    return conv

@pytest.mark.parametrize('name', makers)
def test_settings_that_are_numbers_or_lists(name):
    "A conv understands them, and so do we"
    exact(net_with(set_by_hand(makers[name])), 1, 8)

def test_a_depthwise_conv_of_one_tap_can_be_trained():
    "It has no taps to move apart, and runs as it is with gradients too"
    net = exact(net_with(nn.Conv2d(8,8,1,2,groups=8), nn.Conv2d(8,8,1,groups=8)), 1, 8)
    set_output_stride(net, 1)(torch.randn(2,3,37,50).double()).mean().backward()
    assert all(p.grad is not None for p in net.parameters())

normed = dict(grouped=lambda: nn.Conv2d(8,8,3,1,1,groups=2), reflected=lambda: nn.Conv2d(8,8,3,1,1,padding_mode='reflect'))
normed['depthwise'] = lambda: nn.Conv2d(8,8,3,1,1,groups=8)
@pytest.mark.parametrize('name', normed)
def test_weight_norm_may_be_removed_after_the_change(name):
    net,x = net_with(weight_norm(normed[name]())),torch.randn(2,3,37,50).double()
    with torch.no_grad():
        native = net(x)
        set_output_stride(net, 1)
        remove_parametrizations(net[2], 'weight')
        close(net(x)[...,::4,::4], native, 1e-12)
        close(set_output_stride(net,4)(x), native, 1e-12)
    assert type(net[2]) is nn.Conv2d

def hook_of(m):
    "accelerate's hooks keep a `forward` on the module"
    add_hook_to_module(m, ModelHook())
    return m

def test_a_hook_of_accelerate_may_be_put_on_after_the_change():
    "Then the network goes to another stride and back"
    net,x = net_with(Gate()),torch.randn(2,3,37,50).double()
    with torch.no_grad():
        native = net(x)
        for o in set_output_stride(net,1).modules(): hook_of(o)
        for T in (2,4,1): close(set_output_stride(net,T)(x)[...,::4//T,::4//T], native, 1e-12)

def test_a_forward_that_was_replaced_before_the_change():
    "It cannot run by phases, and the error says why; without it the network is exact"
    net = net_with(hook_of(Gate()))
    with pytest.raises(CannotDilate, match='`2`.*`forward` was replaced'): set_output_stride(net, 1)
    remove_hook_from_module(net[2])
    exact(net)

class Equalised(nn.Conv2d):
    "Makes its weight in a hook, before each call"
    def __init__(self, *args):
        super().__init__(*args)
        self.raw = nn.Parameter(self.weight.detach().clone())
        del self.weight
        self.register_forward_pre_hook(lambda m,_: setattr(m,'weight',2*m.raw))

def test_a_weight_that_a_hook_makes():
    "Is there after the first call; before it the error says what is missing"
    net = net_with(Equalised(8,8,3,2,1))
    with pytest.raises(CannotDilate, match='weight'): set_output_stride(net, 2)
    assert get_output_stride(nn.Sequential(nn.Conv2d(3,8,3,2,1)))==2

def test_a_module_by_phases_that_is_given_no_map():
    net = set_output_stride(net_with(Gate()), 1)
    with pytest.raises(ValueError, match='was given none'): net[2](None)

# The way back

def test_a_pool_traded_in_part_comes_back_bit_for_bit():
    net = nn.Sequential(nn.Conv2d(3,8,3,1,1), nn.MaxPool2d(4,4), nn.Conv2d(8,8,3,2,1))
    before = pickle.dumps(net)
    set_output_stride(net, 2)
    assert pickle.dumps(set_output_stride(net,8))==before

def test_after_a_setting_was_changed_by_hand_nothing_is_lost():
    "The error says so each time, until it is put right"
    net = nn.Sequential(*net_with(), nn.AdaptiveAvgPool2d(1))
    pool_over(set_output_stride(net,1))
    net[3].spacing = 3
    for _ in range(2):
        with pytest.raises(CannotDilate, match='by hand'): pool_over(net, 'all')
        assert net[3].spacing==3
    net[3].spacing = 4
    assert repr(pool_over(set_output_stride(net,4),'all')[3])==repr(nn.AdaptiveAvgPool2d(1))

class AbstractGate(ABC, Gate): "Objects of a class that begins with `ABC` cannot get another one"

class Around(nn.Module):
    "A block with `gate` in it"
    def __init__(self, gate):
        super().__init__()
        self.conv,self.gate = nn.Conv2d(8,8,3,1,1),gate
    def forward(self, x): return x+self.gate(self.conv(x))

def test_a_class_of_another_layout_is_run_with_the_module_around_it():
    "Or, where there is none, the warning names it"
    exact(net_with(Around(AbstractGate())))
    assert 'AbstractGate' in said(set_output_stride, net_with(AbstractGate()), 1)[0]

def test_what_is_put_on_a_changed_class_is_not_taken_off_in_silence():
    "Weight norm on a conv that runs by phases, and then another stride: refused, and nothing is lost"
    net = net_with(nn.Conv2d(8,8,3,1,1,padding_mode='reflect'))
    set_output_stride(net, 1)
    weight_norm(net[2])
    x = torch.randn(1,3,16,16).double()
    before = net(x)
    with pytest.raises(CannotDilate, match='`2`: something has given it the class'): set_output_stride(net, 4)
    assert net(x).equal(before)
    remove_parametrizations(net[2], 'weight')
    assert type(set_output_stride(net, 4)[2]) is nn.Conv2d

def test_the_spacing_of_voxels_is_no_spacing_of_taps():
    "An attribute of somebody's own, of that name, changes nothing; one that hides all there is to change is refused"
    net = net_with(nn.ReLU())
    net.spacing = net[2].spacing = (1.,1.,2.5)
    exact(net)
    net.spacing = 1
    with pytest.raises(CannotDilate, match='Nothing in this Sequential can be changed'): set_output_stride(net, 1)

def test_a_number_of_numpys_is_not_kept():
    "Neither in layers nor in pools"
    net = set_output_stride(net_with(nn.MaxPool2d(2)), np.int64(2))
    assert {type(o) for m in net.modules() if isinstance(m,nn.Conv2d) for o in m.dilation}=={int}
    assert type(net[2].spacing) is int

def test_a_norm_that_is_called_adaptive_is_no_pool():
    "By its name, a pool has to be one"
    class AdaptiveNorm(nn.Module):
        def forward(self, x): return x-x.mean((2,3),keepdim=True)
    with pytest.raises(ValueError, match='no adaptive pool'): pool_over(net_with(AdaptiveNorm()))

class WithMask(nn.Module):
    "Hands on a map and a mask, and reads them together"
    def forward(self, x):
        x,mask = x if isinstance(x,tuple) else (x,x.abs())
        return x-(x*mask).mean((2,3),keepdim=True),mask

class First(nn.Module):
    def forward(self, x): return x[0]

def test_neighbours_that_hand_on_two_maps_run_by_phases_one_by_one():
    "A split of one map is shared by those that make one"
    m = nn.Sequential(*two_convs(), WithMask(), WithMask(), WithMask(), First(), nn.Conv2d(8,8,3,1,1)).double()
    x = torch.randn(1,3,37,50).double()
    native = m(x)
    close(set_output_stride(m,1)(x)[...,::4,::4], native, 1e-12)
    assert [*phases_in(m)]==['2','3','4']

class ByName(nn.Module):
    "Keeps functions under a name that ends as PyTorch's hooks do"
    def __init__(self):
        super().__init__()
        self.act_hooks,self.convs = {'relu':torch.relu},nn.Sequential(*two_convs())
    def forward(self, x): return self.convs(x+self.act_hooks['relu'](x))

@dataclass(slots=True)
class Answer:
    y: torch.Tensor

class WithSlots(ByName):
    def forward(self, x): return Answer(super().forward(x))

def test_what_only_looks_like_a_hook_stays():
    for net in (ByName(),WithSlots()): assert get_output_stride(set_output_stride(net,1))==1

class AdaptiveGeMPool2d(nn.Module):
    eps = 1e-6
    def forward(self, x): return x.clamp(min=self.eps).pow(3).mean((2,3),keepdim=True).pow(1/3)

class AdaptivePoolNet(nn.Sequential): pass

def test_a_pool_of_ones_own_with_a_setting_of_its_class():
    "In a network that is called as if it were one itself"
    net,x = AdaptivePoolNet(*two_convs(), AdaptiveGeMPool2d()),torch.randn(1,3,37,50)
    native = net(x)
    close(set_output_stride(pool_over(net),1)(x), native)

def test_whole_numbers_are_not_interpolated():
    "There is nothing between the classes 3 and 4"
    for f in (lambda x: to_pixels(x,4,2), lambda x: smoothed(x,2)):
        with pytest.raises(ValueError, match=r'give it `x.float\(\)`'): f(torch.full((1,1,2,2),7))

def test_a_hook_of_no_module_is_told_of_as_others_are():
    "As a method of a set, which Python's own code makes"
    net = nn.Sequential(*two_convs())
    net[1].register_forward_hook(set().update)
    assert len(said(set_output_stride, net, 1))==1
