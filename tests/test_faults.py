"Networks that were changed in silence, warned of or refused wrongly, each with what is right"
import threading
from copy import deepcopy
from functools import partial
import pytest, timm, torch, torchvision.models as tvm
from torch import nn
from torch.nn import functional as F
from fastai.vision.all import create_body
from fastai.vision.models import xresnet
from fastai_dilation.all import CannotDilate, InexactWarning, create_deeplab_model, get_output_stride, grid_error
from fastai_dilation.all import output_strides, set_output_stride
from util import alive, close, randomize, said, tensors, same

class Function(nn.Module):
    "`f` in a module of its own"
    def __init__(self, f):
        super().__init__()
        self.f = f
    def forward(self, x): return self.f(x)

def between(*middle):
    "Two strided convs, what is asked about, and a strided conv"
    return nn.Sequential(nn.Conv2d(3,8,3,2,1), nn.Conv2d(8,8,3,2,1), *middle, nn.Conv2d(8,8,3,2,1)).double()

def off(m, T=1, sz=(33,48), S0=8):
    "Largest difference on the native grid after a change to `T`"
    x = torch.randn(1,3,*sz).double()
    with torch.no_grad():
        native = m(x)
        y = set_output_stride(m,T)(x)
    return close(y[...,::S0//T,::S0//T], native, 1e-12)

mixers = {'normalize over positions':lambda x: F.normalize(x, dim=(2,3))}
mixers['softmax over positions'] = lambda x: x.flatten(2).softmax(-1).view_as(x)
mixers['layer norm over positions'] = lambda x: F.layer_norm(x, x.shape[2:])
mixers['arithmetic with the sides'] = lambda x: x*x.shape[-1]**.5

@pytest.mark.parametrize('name', mixers)
def test_mixers_in_a_module_run_by_phases(name):
    "What was changed in silence is exact, and there is no warning"
    m = between(Function(mixers[name]))
    assert said(off, m)==[]

class Whole(nn.Module):
    "The same in the forward of the whole model"
    def __init__(self, f):
        super().__init__()
        self.f,self.a,self.b = f,between(),nn.Conv2d(8,8,3,1,1)
    def forward(self, x): return self.b(self.f(self.a(x)))

@pytest.mark.parametrize('name', mixers)
def test_mixers_in_the_whole_forward_are_warned_of(name):
    "The model itself cannot run by phases, and is named"
    ws = said(set_output_stride, Whole(mixers[name]).double(), 1)
    assert len(ws)==1 and 'Whole' in ws[0] and 'forward' in ws[0]

@pytest.mark.parametrize('f', [lambda x: x.flip(1), lambda x: x.roll(1,1), lambda x: x.sort(1)[0]])
def test_functions_of_channels_are_quiet(f):
    "Flips, rolls and sorts of channels read one position, wherever they are called"
    for m in (between(Function(f)), Whole(f).double()): assert said(set_output_stride, m, 1)==[]
    off(between(Function(f)))

class Skip(nn.Module):
    "A map resized to the size of an earlier one, and a conv that reads both"
    def __init__(self):
        super().__init__()
        self.body,self.head = create_body(tvm.resnet18(), cut=-2),nn.Conv2d(512+64, 4, 3, padding=1)
    def forward(self, x):
        low = self.body[:5](x)
        return self.head(torch.cat([F.interpolate(self.body[5:](low), low.shape[2:]), low], 1))

@pytest.mark.parametrize('T', [16,8])
def test_a_resized_map_is_warned_of(T):
    "By the name of the model, with what happens, and what tells how much"
    m = Skip()
    ws = said(set_output_stride, m, T)
    assert len(ws)==1 and 'Skip' in ws[0] and 'resizes' in ws[0] and f'grid_error(model, {T})' in ws[0]
    assert grid_error(randomize(m).double(), T)>.01

def test_torchvisions_fcn_is_warned_of():
    "Its answers at the image's pixels move"
    m = tvm.segmentation.fcn_resnet50(weights=None, weights_backbone=None, aux_loss=False, num_classes=4)
    ws = said(set_output_stride, m, 4)
    assert len(ws)==1 and 'FCN' in ws[0] and 'to_pixels' in ws[0]

class ByKeyword(nn.Conv2d):
    def forward(self, x):
        kw = dict(stride=self.stride, padding=self.padding, dilation=self.dilation)
        return F.conv2d(x, self.weight, self.bias, **kw)

pads = dict(end=lambda: nn.ZeroPad2d((0,1,0,1)), uneven=lambda: nn.ZeroPad2d((2,1,0,1)))
pads |= dict(reflect=lambda: nn.ReflectionPad2d(1), replicate=lambda: nn.ReplicationPad2d(1))
pads |= dict(circular=lambda: nn.CircularPad2d(1))
@pytest.mark.parametrize('pad', pads)
@pytest.mark.parametrize('sz', [(33,48),(64,35)], ids=str)
def test_padding_modules_are_exact(pad, sz):
    "Before an unpadded conv with a stride, on odd and even sides"
    m = between(pads[pad](), nn.Conv2d(8,8,3,2))
    off(m, 1, sz, 16)

@pytest.mark.parametrize('mode', ['reflect','replicate','circular'])
@pytest.mark.parametrize('s', [1,2])
def test_padding_modes_are_exact(mode, s):
    "A conv that pads with anything but zeros runs by phases"
    off(between(nn.Conv2d(8,8,3,s,1,padding_mode=mode)), 1, (64,48), 8*s)

def test_a_conv_that_passes_keywords_is_dilated():
    "A subclass that hands its settings on by name is a conv like others"
    m = between(ByKeyword(8,8,3,2,1))
    off(m, 1, S0=16)
    assert m[2].dilation==(4,4)

def test_a_lock_is_no_obstacle():
    "Nothing is copied"
    m = between()
    m.lock = threading.Lock()
    off(m)

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
    assert said(off, m)==[]

class HeadFirst(nn.Module):
    def __init__(self):
        super().__init__()
        self.head,self.stem = nn.Conv2d(8,5,1),between()
    def forward(self, x): return self.head(self.stem(x))

def test_the_first_conv_need_not_be_the_stem():
    "Its channels are not those of the image; others are tried"
    off(HeadFirst().double())

def test_a_stem_of_shuffled_pixels():
    "Its first conv reads 12 channels, its image has 3"
    off(nn.Sequential(nn.PixelUnshuffle(2), nn.Conv2d(12,8,3,2,1), nn.Conv2d(8,8,3,2,1)).double(), 2, (34,48))

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
    m = randomize(xresnet.xresnet18(widen=.25))
    c = torch.compile(m, backend='eager')
    x = torch.randn(1,3,64,64)
    with torch.no_grad():
        c(x)
        assert set_output_stride(c, 16) is c and get_output_stride(m)==16
        close(c(x), m(x))

def test_a_scripted_model_is_refused_in_our_words():
    with pytest.raises(CannotDilate, match='script'): set_output_stride(torch.jit.script(tvm.resnet18()), 8)

def test_dilations_set_by_hand():
    "On the native net they follow the stride; on a dilated one they are not forgotten in silence"
    m = tvm.resnet18()
    convs = [o for o in m.layer4.modules() if isinstance(o,nn.Conv2d) and o.kernel_size==(3,3)]
    set_output_stride(m, 16)
    for f,o in zip((1,2,4), convs[1:]): o.dilation = o.padding = tuple(f*d for d in o.dilation)
    ts,before = tensors(m),[o.dilation for o in convs]
    with pytest.raises(CannotDilate, match='by hand') as e: set_output_stride(m, 8)
    assert e.value.layer=='layer4.1.conv1' and same(m, ts) and [o.dilation for o in convs]==before

def test_features_only_tells_its_strides():
    "timm's decoders ask `feature_info` for the strides of the maps"
    m = timm.create_model('resnet18d', features_only=True)
    reductions = m.feature_info.reduction()
    assert set_output_stride(m, 8).feature_info.reduction()==[2,4,8,8,8]
    assert set_output_stride(m, 32).feature_info.reduction()==reductions==[2,4,8,16,32]

def test_hrnet_is_refused_in_true_words():
    "It runs on all multiples of 32, and it is no matter of building anew"
    m = timm.create_model('hrnet_w18_small')
    with pytest.raises(CannotDilate, match='makes maps larger') as e: set_output_stride(m, 16)
    assert '224' not in str(e.value) and 'anew' not in str(e.value)

def test_one_size_is_said_by_the_library():
    words = 'does not run on all sizes of image, but on 224x224'
    with pytest.raises(CannotDilate, match=words): set_output_stride(tvm.vit_b_32(), 16)

def test_deeplab_is_not_warned_of_its_own_head():
    "The pool of its head runs by phases: exact, and silent, with weights or without"
    m = randomize(create_deeplab_model(tvm.resnet18, 4, pretrained=False, output_stride=16)).double()
    x = torch.randn(1,3,96,160).double()
    with torch.no_grad():
        head = lambda: m[1](m[0](x))
        y = head()
        assert said(set_output_stride, m, 8)==[]
        close(head()[...,::2,::2], y, 1e-9)

fused = [('mobileone_s0',8),('repvgg_a0',8),('repvit_m0_9',8),('fastvit_t8',32)]
@pytest.mark.parametrize('name,late_stride', fused)
def test_fuse_first(name, late_stride):
    "Branches fused before the stride is set stay exact; fused afterwards, a conv may be made with its native stride"
    from timm.utils import reparameterize_model
    m = alive(timm.create_model(name))
    fused = reparameterize_model(m)
    assert set_output_stride(fused, 8) is fused and grid_error(fused.double(), 8)<1e-9
    assert get_output_stride(reparameterize_model(set_output_stride(m, 8)))==late_stride

gated = [xresnet.xse_resnet18, xresnet.xse_resnext18]
attentive = [partial(xresnet.xresnet18,sa=True), partial(xresnet.xresnet18,sa=True,sym=True)]
@pytest.mark.parametrize('f', gated+attentive)
@pytest.mark.parametrize('T', [16,8,4])
def test_all_xresnets_are_exact(f, T):
    "Squeeze-and-excitation and self-attention included"
    m = alive(f(widen=.5) if 'next' not in str(f) else f())
    assert said(set_output_stride, m, T)==[] and grid_error(m.double(), T)<1e-9

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

def test_errors_and_warnings_are_classes():
    m = nn.Sequential(create_body(xresnet.xresnet18()), nn.Upsample(scale_factor=2), nn.Conv2d(512,4,3,padding=1))
    with pytest.raises(ValueError) as e: set_output_stride(m, 8)
    assert (e.type,e.value.layer)==(CannotDilate,'1') and 'larger' in e.value.reason
    with pytest.warns(InexactWarning): set_output_stride(Skip(), 16)
    assert issubclass(InexactWarning, UserWarning)

class ThereAndBack(nn.Module):
    "Reads a map, works on a coarser one, and makes one of the first size"
    def __init__(self):
        super().__init__()
        self.down,self.up = nn.Conv2d(8,8,3,2,1),nn.Conv2d(8,8,3,1,1)
    def forward(self, x): return self.up(F.interpolate(self.down(x), x.shape[2:]))

@pytest.mark.parametrize('T', [4,2,1])
def test_a_block_that_goes_down_and_up_again(T):
    "Exact; where no stride is traded before it, it keeps its layers; the network has the stride that was asked for"
    m = nn.Sequential(nn.Conv2d(3,8,3,2,1), nn.Conv2d(8,8,3,2,1), ThereAndBack(), nn.Conv2d(8,8,3,1,1)).double()
    native = tensors(m),repr(m)
    assert said(off, m, T, (33,48), 4)==[] and get_output_stride(m)==T
    was = repr(m)
    assert repr(set_output_stride(m,T))==was # nothing is left to do
    assert same(set_output_stride(m,8), native[0]) and repr(m)==native[1]

class Detector(nn.Module):
    "Resizes its images, as torchvision's detectors do"
    def __init__(self):
        super().__init__()
        self.backbone = between()
    def forward(self, x): return self.backbone(F.interpolate(x, (64,64)))

def test_a_network_that_resizes_its_images_is_refused_in_true_words():
    "It says what would do, and that does"
    m = Detector()
    with pytest.raises(CannotDilate, match="resize its input.*such as a detector's `backbone`"): set_output_stride(m, 2)
    assert said(off, m.backbone, 2)==[]

def test_a_forward_of_ones_own():
    "A `forward` that was put on a module, and has no `__self__`"
    m = between(nn.Conv2d(8,8,3,1,1))
    m[2].forward = partial(nn.Conv2d.forward, m[2])
    assert said(off, m)==[]

class Listed(nn.Module):
    "Calls the blocks of a `Sequential` one by one, so that itself is never called"
    def __init__(self):
        super().__init__()
        self.stem = between()
        self.blocks = nn.Sequential(*[Function(mixers['layer norm over positions']) for _ in range(2)])
    def forward(self, x):
        x = self.stem(x)
        for o in self.blocks: x = o(x)
        return x

def test_a_container_that_is_not_called():
    "Its blocks run by phases all the same"
    assert said(off, Listed())==[]

class Reduction(nn.Module):
    "A conv and a max-pool that do not pad, side by side, as an Inception has them"
    def __init__(self):
        super().__init__()
        self.conv,self.pool = nn.Conv2d(8,8,3,2),nn.MaxPool2d(3,2)
    def forward(self, x): return torch.cat([self.conv(x), self.pool(x)], 1)

@pytest.mark.parametrize('T', [2,1])
def test_layers_that_do_not_pad_keep_together(T):
    "On images of all sizes, not of those alone that a trial has"
    m = nn.Sequential(nn.Conv2d(3,8,3,2), Reduction(), nn.Conv2d(16,8,1), Reduction()).double()
    native = deepcopy(m)
    set_output_stride(m, T)
    for n in range(33,66):
        x = torch.randn(1,3,n,98-n).double()
        with torch.no_grad(): want,y = native(x),m(x)[...,::8//T,::8//T]
        close(y[...,:want.shape[2],:want.shape[3]], want, 1e-12)
