"What `grid_error` and the command can see, and on what they run"
import warnings
import pytest, torch
from fastai.vision.all import nn, partial
from fastai.vision.models import xresnet
from torchvision.models import ResNet, resnet
from fastai_dilation import ask
from fastai_dilation.__main__ import _give_weights, check, is_exact
from fastai_dilation.all import grid_error, set_output_stride
from fastai_dilation.layers import change
from fastai_dilation.strides import Grid
from util import alive

def convnext():
    "Three stages of ConvNeXt's blocks; the last ones have twelve depthwise convs"
    from timm.models.convnext import ConvNeXtBlock
    def stage(ni, nf, stride, n): return nn.Conv2d(ni,nf,stride,stride),*[ConvNeXtBlock(nf,ls_init_value=1e-6) for _ in range(n)]
    return nn.Sequential(*stage(3,16,4,1), *stage(16,96,2,6), *stage(96,128,2,6))

def wrong_taps(net, output_stride, *args, **kwargs):
    "As `set_output_stride`, and then the taps of all depthwise convs stand next to each other"
    set_output_stride(net, output_stride, *args, **kwargs)
    wrong = [o for o in net.modules() if isinstance(o,nn.Conv2d) and o.groups>1 and o.dilation[0]>1]
    for o in wrong: change(o, padding=(3,3), dilation=(1,1))
    assert len(wrong)==12
    return net

def asked(net, output_stride, *args, **kwargs):
    "`grid_error`, and what it warns of"
    with warnings.catch_warnings(record=True) as ws:
        warnings.simplefilter('always')
        off = grid_error(net, output_stride, *args, **kwargs)
    return off,[str(o.message) for o in ws if o.category is UserWarning]

def test_wrong_taps_show(monkeypatch):
    "Twelve convs with wrong taps: behind a layer scale of 1e-6 the number is small, and says that it sees nothing; with weights it is large"
    monkeypatch.setattr(ask, 'set_output_stride', wrong_taps)
    net,x = convnext().double(),torch.randn(1,3,49,65).double()
    off,words = asked(net, 4, x)
    assert off<1e-4 and len(words)==1 and words[0].startswith('12 of the 14 layers that change can hardly be seen')
    assert '`15.conv_dw` for one' in words[0] and 'nn.init.uniform_' in words[0]
    _give_weights(net, torch.randn(2,3,96,96).double())
    off,words = asked(net, 4, x)
    assert off>.01 and words==[]

@pytest.mark.parametrize('set_stride,exact', [(wrong_taps,False), pytest.param(set_output_stride,True,marks=pytest.mark.slow)])
def test_the_command_sees_wrong_taps(monkeypatch, set_stride, exact):
    "It gives weights to what starts near 0"
    monkeypatch.setattr(ask, 'set_output_stride', set_stride)
    assert is_exact(check(convnext(), 4))==exact

def small(): return ResNet(resnet.BasicBlock, [1,1,1,1], num_classes=5)
hidden = [(partial(xresnet.xresnet18,widen=.25),'8 of the 10'), (small,None), (lambda: small().requires_grad_(False),None)]
hidden += [(lambda: ResNet(resnet.BasicBlock,[1,1,1,1],zero_init_residual=True),'4 of the 6'), (lambda: alive(convnext()),None)]
@pytest.mark.parametrize('make,says', hidden)
def test_hidden_layers_are_warned_of(make, says):
    "Norms of weight 0 at the end of blocks hide what is inside; a frozen network has gradients here too"
    off,words = asked(make().double(), 8)
    assert off<1e-12 and len(words)==bool(says) and all(o.startswith(says) for o in words)

def test_hidden_in_a_level():
    "What leads to no later map is seen with `levels=True`"
    class Aside(nn.Module):
        def __init__(self):
            super().__init__()
            self.a,self.b,self.c = [nn.Conv2d(i,8,3,2,1) for i in (3,8,8)]
            self.side = nn.Conv2d(8, 8, 3, padding=1)
        def forward(self, x):
            x = self.b(self.a(x))
            self.side(x)
            return self.c(x)
    m = Aside().double()
    assert '`side` for one' in asked(m, 2)[1][0]
    errors,words = asked(m, 2, levels=True)
    assert max(errors.values())<1e-12 and words==[]

def test_no_way_back():
    "A network without gradients is compared all the same, and it is said that nobody knows what the number sees"
    class NoGradient(nn.Module):
        def forward(self, x): return x.detach()
    off,words = asked(nn.Sequential(*[*small().double().children()][:-2], NoGradient()), 8)
    assert off<1e-12 and len(words)==1 and 'is not known' in words[0]

sides_seen = [] # not in the module, which is put back as it was
class Sides(nn.Identity):
    "Notes the sides of what has numbers"
    def forward(self, x):
        if x.device.type!='meta': sides_seen.append(tuple(x.shape[2:]))
        return x

@pytest.mark.parametrize('conv,sides', [(nn.Conv1d,(161,)), (nn.Conv2d,(161,193)), (nn.Conv3d,(65,49,33))])
def test_an_image_for_the_dims(conv, sides):
    "Sounds and volumes have one of the size that fits; volumes of 161x193x97 take gigabytes"
    m = nn.Sequential(Sides(), *[conv(i,4,3,2,1) for i in (1,4,4)]).double()
    assert grid_error(m, 4)<1e-12 and sides_seen[-1]==sides

class Even(Sides):
    "Refuses odd sides"
    def forward(self, x):
        assert not any(n%2 for n in x.shape[2:])
        return super().forward(x)

def test_an_image_with_even_sides():
    "Where a network does not run on odd ones"
    m = nn.Sequential(Even(), *[nn.Conv2d(i,4,2,2) for i in (3,4,4)]).double()
    assert grid_error(m, 4)<1e-12 and sides_seen[-1]==(160,192)

def test_a_level_without_channels():
    "Encoders of segmentation_models.pytorch have one where the network makes no map of stride 2"
    class Levels(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem,self.next = nn.Conv2d(3,8,4,4),nn.Conv2d(8,8,2,2)
            self.none = nn.Identity()
        def forward(self, x):
            y = self.stem(x)
            return self.none(x.new_zeros(len(x),0,*[n//2 for n in x.shape[2:]])),y,self.next(y)
    errors = grid_error(Levels().double(), 4, torch.randn(1,3,64,96).double(), levels=True)
    assert errors[2]==0 and max(errors.values())<1e-12

def test_hooks_are_not_called():
    "A hook that spoils a map is not part of what is measured, and is there afterwards"
    m = small().double()
    hook = m.layer4.register_forward_hook(lambda m,args,y: y.roll(1,-1))
    assert grid_error(m, 8)<1e-12 and hook.id in m.layer4._forward_hooks

class TwoMapsInOne(nn.Module):
    "One head on maps of two strides, as a detector has it"
    def __init__(self):
        super().__init__()
        self.a,self.b,self.head = nn.Conv2d(3,8,3,2,1),nn.Conv2d(8,8,3,2,1),nn.Conv2d(8,4,1)
    def forward(self, x):
        a = self.a(x)
        return torch.cat([self.head(o).flatten(2) for o in (a,self.b(a))], -1)

def test_a_head_that_is_called_on_two_strides_is_compared_at_each():
    "By the call that made the map"
    assert max(grid_error(TwoMapsInOne().double(), 2, levels=True).values())<1e-12

def test_a_map_of_zeros_is_off_by_nothing_and_shows_nothing():
    net = nn.Sequential(nn.Conv2d(3,8,3,2,1), nn.Conv2d(8,8,3,2,1))
    for o in net[1].parameters(): nn.init.zeros_(o)
    with pytest.warns(UserWarning, match='can hardly be seen'): assert grid_error(net,1)==0

def test_a_nan_is_no_small_number():
    "In a comparison it is neither larger nor smaller than any"
    native,grid = torch.ones(1,1,2,2),Grid((2,3),4)
    assert ask._error(native.clone(), native, grid, 4)==0
    assert ask._error(native*torch.nan, native, grid, 4)==torch.inf
