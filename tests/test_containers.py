"A container that only calls its modules in a row never runs by phases: anybody may call them one by one"
import pytest, timm, torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from fastai_dilation.all import get_output_stride, set_output_stride
from fastai_dilation.phases import Phased
from util import alive, close, said

class Gated(nn.Module):
    "A block that takes the mean of its map"
    def __init__(self, n=8):
        super().__init__()
        self.conv,self.gate = nn.Conv2d(n,n,3,1,1),nn.Conv2d(n,n,1)
    def forward(self, x):
        y = self.conv(x)
        return x + y*self.gate(y.mean((2,3),keepdim=True)).sigmoid()

class Named(nn.Sequential): "A stage of one's own"

class Looped(nn.Module):
    "A stage that loops over its blocks"
    def __init__(self, *blocks):
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
    def __iter__(self): return iter(self.blocks)
    def forward(self, x):
        for o in self.blocks: x = o(x)
        return x

class CheckpointedInTraining(Looped):
    "Saves memory block by block, when it is trained"
    def forward(self, x):
        for o in self.blocks: x = checkpoint(o, x, use_reentrant=False) if self.training else o(x)
        return x

def net_with(stage): return nn.Sequential(nn.Conv2d(3,8,3,2,1), nn.Conv2d(8,8,3,2,1), stage).double()

def one_by_one(net, x):
    "What the blocks of the last stage make, called by hand"
    for o in [net[0], net[1], *net[2]]: x = o(x)
    return x

stages = [nn.Sequential, Named, Looped, CheckpointedInTraining]
@pytest.mark.parametrize('stage', stages, ids=lambda o: o.__name__)
def test_blocks_that_are_called_one_by_one_are_exact(stage):
    "As they are by the stage, and as they were natively; in training too"
    net,x = net_with(stage(*[Gated() for _ in range(3)])),torch.randn(2,3,37,30).double()
    native = net(x)
    assert said(set_output_stride, net, 1)==[]
    close(net(x)[...,::4,::4], native, 1e-12)
    close(one_by_one(net,x)[...,::4,::4], native, 1e-12)
    close(net.train()(x)[...,::4,::4], native, 1e-12)

others = dict(again=lambda s: nn.Sequential(*s), tail=lambda s: s[1:], listed=lambda s: nn.Sequential(*list(s.children())))
others['sum'] = lambda s: s[:1]+s[1:]
@pytest.mark.parametrize('name', others)
def test_a_container_made_of_another_ones_blocks_is_exact(name):
    net,x = net_with(nn.Sequential(*[Gated() for _ in range(3)])),torch.randn(2,8,21,30).double()
    native = others[name](net[2])(x[...,::4,::4])
    set_output_stride(net, 1)
    close(others[name](net[2])(x)[...,::4,::4], native, 1e-12)

def test_a_stage_of_ones_own_does_not_run_by_phases():
    "Its blocks do, also where a larger module would save copies"
    net = set_output_stride(net_with(Looped(*[Gated() for _ in range(3)])), 1)
    assert not isinstance(net[2],Phased) and all(isinstance(o,Phased) for o in net[2].blocks)

large = [pytest.param(o, marks=pytest.mark.slow) for o in ('efficientnet_b0','mobilenetv3_small_050','convnextv2_atto','shvit_s1')]
@pytest.mark.parametrize('name', ['test_efficientnet',*large])
def test_timms_checkpointing_may_be_switched_on_after_the_change(name):
    "It calls the blocks of a stage one by one"
    net,x = alive(timm.create_model(name)).double(),torch.randn(2,3,97,130).double()
    with torch.no_grad(): native = net.forward_features(x)
    S = get_output_stride(net)
    set_output_stride(net, 8).set_grad_checkpointing()
    with torch.no_grad(): close(net.forward_features(x)[...,::S//8,::S//8], native, 1e-9)
    for o in net.modules(): o.training = not hasattr(o,'running_mean') and 'Drop' not in type(o).__name__
    close(net.forward_features(x.requires_grad_())[...,::S//8,::S//8], native, 1e-9)

@pytest.mark.parametrize('name', ['test_efficientnet',pytest.param('efficientnet_b0',marks=pytest.mark.slow)])
def test_a_hook_that_timm_puts_inside_of_a_block_sees_a_map(name):
    "Of the images that were given, with the native values"
    kw = dict(features_only=True, feature_location='expansion')
    net,x = alive(timm.create_model(name,**kw)).double(),torch.randn(2,3,97,130).double()
    with torch.no_grad():
        native,strides = net(x),net.feature_info.reduction()
        maps = set_output_stride(net,8)(x)
    for y,want,S in zip(maps, native, strides, strict=True):
        every = S//min(S,8)
        assert len(y)==2
        close(y[...,::every,::every], want, 1e-9)
