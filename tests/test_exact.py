"What is exact: own forwards, function calls, whole maps, heads, strides that are hard to follow"
import re
from copy import deepcopy
from functools import partial
from itertools import product
import pytest, timm, torch, torchvision.models as tvm
from torch import nn
from torch.nn import functional as F
from fastai.vision.all import create_body
from fastai.vision.models import xresnet
from fastai_dilation.phases import Phased
from fastai_dilation.all import create_unet_model, create_vision_model, get_output_stride, grid_error, pool_over
from fastai_dilation.all import set_output_stride, vision_learner
from seg_data import class_dls, make_files
from util import Call, alive, between, close, randomize, said, same, slow_if, small, small50, small_densenet
from util import stays_exact, tensors

tiny = ['resnet','convnext','efficientnet','nfnet','byobnet'] # timm has these for tests
large = ['convnext_atto','fasternet_t0','inception_next_atto','xception41','nf_resnet26','resnetv2_50','resnet18d']
large += ['res2net50_14w_8s']
nets = slow_if([f'test_{o}' for o in tiny],'nfnet','byobnet') + [pytest.param(o,marks=pytest.mark.slow) for o in large]
@pytest.mark.parametrize('name', nets)
def test_networks_of_timm_are_exact(name):
    "In double precision, with no branch that adds nothing; and no warning"
    m = alive(timm.create_model(name)).double()
    assert said(set_output_stride, deepcopy(m), 8)==[]
    assert grid_error(m, 8)<1e-9

quiet = dict(small=small, small50=small50, xresnet18_deep=partial(xresnet.xresnet18_deep,widen=.25))
quiet |= dict(resnet18=tvm.resnet18, mobilenet_v2=partial(tvm.mobilenet_v2,width_mult=.25), densenet=small_densenet)
quiet |= {o.__name__:o for o in (xresnet.xresnext18,tvm.resnet50,tvm.vgg11_bn,tvm.densenet121,tvm.convnext_tiny)}
@pytest.mark.parametrize('name', slow_if(quiet,'xresnet18_deep','resnet18','mobilenet_v2','xresnext18','resnet50','vgg11_bn','densenet121','convnext_tiny'))
def test_quiet(name):
    "Nets that are exact warn of nothing, with their heads, at any stride"
    m = quiet[name]()
    for T in (8,16,4,32): assert said(set_output_stride, m, T)==[]

def attend(x):
    "Self-attention over all positions"
    q = x.flatten(2)
    return ((q.transpose(1,2)@q).softmax(-1)@q.transpose(1,2)).transpose(1,2).view(x.shape)
def windows(x):
    "Attention within windows of 2x2"
    B,C,H,W = x.shape
    w = x.view(B,C,H//2,2,W//2,2).permute(0,2,4,3,5,1).reshape(-1,4,C)
    w = (w@w.transpose(1,2)).softmax(-1)@w
    return w.view(B,H//2,W//2,2,2,C).permute(0,5,1,3,2,4).reshape(B,C,H,W)
def sdpa(x): return F.scaled_dot_product_attention(*[x.flatten(2).transpose(1,2)]*3).transpose(1,2).reshape(x.shape)
def resized(x):
    "Adds a map that was made small and resized"
    made = torch.ones(1,8,3,3,device=x.device,dtype=x.dtype).cumsum(3)
    return x+F.interpolate(made, x.shape[2:], mode='bilinear')
around = dict(mean=lambda x: x*x.mean((2,3),keepdim=True).sigmoid(), pool=lambda x: x*F.adaptive_avg_pool2d(x,1))
around |= dict(amax=lambda x: x-x.amax((2,3),True), std=lambda x: x/x.std((2,3),keepdim=True))
around |= dict(avg_pool=lambda x: F.avg_pool2d(x,3,1,1), max_pool=lambda x: F.max_pool2d(x,3,1,1))
around |= dict(pad=lambda x: F.pad(x,(1,0,1,0))[...,:-1,:-1], roll=lambda x: x.roll(1,2))
around |= dict(unfold=lambda x: F.unfold(x,3,padding=1).view(-1,8,9,*x.shape[2:]).mean(2))
around |= dict(conv=lambda x: F.conv2d(x,torch.ones_like(x[:1,:,:3,:3]),padding=1).expand_as(x))
around |= dict(group_norm=lambda x: F.group_norm(x,2), attend=attend, windows=windows, sdpa=sdpa)
around |= dict(numbered=lambda x: x*torch.arange(x.shape[3],device=x.device).to(x.dtype).sin())
around |= dict(sort=lambda x: x+x.flatten(2).sort(-1)[0].view_as(x), fft=lambda x: torch.fft.fft2(x).real)
around |= dict(resized=resized, shift=lambda x: torch.cat([x[...,1:],x[...,:1]],3))
around |= dict(normalize=lambda x: F.normalize(x, dim=(2,3)), layer_norm=lambda x: F.layer_norm(x, x.shape[2:]))
around |= dict(softmax=lambda x: x.flatten(2).softmax(-1).view_as(x), sides=lambda x: x*x.shape[-1]**.5)
mods = dict(GroupNorm=lambda: nn.GroupNorm(2,8), InstanceNorm=lambda: nn.InstanceNorm2d(8),
    Adaptive=lambda: Call(lambda x,p: x*p(x), nn.AdaptiveAvgPool2d(1)))
cases = {**{k:(lambda f=f: Call(f)) for k,f in around.items()}, **mods}

@pytest.mark.parametrize('name', cases)
def test_mixers_run_by_phases(name):
    "Behind a traded stride what reads several positions runs by phases, exactly, no warning; in front nothing changes"
    def net(i):
        convs = [nn.Conv2d(8 if j else 3,8,3,2,1) for j in range(i)]
        mixer = cases[name]()
        return nn.Sequential(*convs, mixer, *[nn.Conv2d(8,8,3,2,1) for _ in range(4-i)])
    m,x = net(3).double(),torch.randn(1,3,64,64).double()
    native = m(x)
    assert said(set_output_stride, m, 4)==[] and isinstance(m[3], Phased)
    close(m(x)[...,::4,::4], native, 1e-12)
    m = net(2)
    assert said(set_output_stride, m, 4)==[] and not isinstance(m[2], Phased)

@pytest.mark.parametrize('f', [lambda x: x.flip(1), lambda x: x.roll(1,1), lambda x: x.sort(1)[0]], ids=['flip','roll','sort'])
def test_functions_of_channels_are_quiet(f):
    "They read one position, wherever they are called: in a module, and in the forward of the whole model"
    whole = Call(lambda x,stem,last: last(f(stem(x))), between(), nn.Conv2d(8,8,3,1,1))
    for m in (between(Call(f)), whole.double()): assert said(set_output_stride, m, 1)==[]
    stays_exact(between(Call(f)))

def test_pointwise_is_quiet():
    "Calls that read one position at a time: a layer norm over channels, tokens, shuffles, 1x1 convs, a head"
    def pointwise(x):
        t = x.flatten(2).transpose(1,2)
        t = F.linear(F.layer_norm(t, (8,)), torch.ones(8,8,dtype=x.dtype,device=x.device)).softmax(-1)
        x = t.transpose(1,2).view(x.shape).view(1,2,4,*x.shape[2:]).transpose(1,2).flatten(1,2)
        a,b = F.conv2d(x, torch.ones(8,8,1,1,dtype=x.dtype,device=x.device)).chunk(2,1)
        return torch.cat([a*b.sigmoid(),b],1)
    m = nn.Sequential(nn.Conv2d(3,8,3,2,1), nn.Conv2d(8,8,3,2,1), Call(pointwise), nn.Conv2d(8,8,3,2,1),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8,2))
    assert said(set_output_stride, m, 2)==[]
    assert grid_error(m.double(), 2)<1e-9

def test_squeeze_and_excitation_is_quiet():
    "Built at a stride, changed live, or with the pools over the grid: exact, and no warning"
    assert said(xresnet.xse_resnet18, output_stride=8, widen=.25)==[]
    assert said(create_vision_model, partial(xresnet.xse_resnet18,widen=.25), 2, pretrained=False, output_stride=8)==[]
    m = xresnet.xse_resnet18(widen=.25)
    for T in (8,8,32): assert said(set_output_stride, m, T)==[]
    assert said(set_output_stride, pool_over(m), 8)==[]

def of_timm(name): return partial(timm.create_model, name)
possible = [(tvm.alexnet,32), (tvm.squeezenet1_0,16), (of_timm('test_convnext'),32)]
possible += [pytest.param(of_timm('res2net50_14w_8s'),32,marks=pytest.mark.slow)]
@pytest.mark.parametrize('f,native', possible)
def test_strides_that_can_be_had(f, native):
    "Unpadded convs, strides of 4, many parallel strides"
    net,want = f(),[o for o in (1,2,4,8,16,32) if o<=native]
    with pytest.raises(ValueError, match=re.escape(f'can be one of {want}')): set_output_stride(net, 3)
    assert get_output_stride(net)==native

@pytest.mark.slow
def test_a_pyramid_of_tokens_is_refused():
    with pytest.raises(ValueError, match='tokens'): set_output_stride(timm.create_model('twins_pcpvt_small'), 8)

def test_unet_asks_for_what_it_has():
    "Its own stride is never refused, another one is"
    m = create_unet_model(small, 2, (64,64), pretrained=False, output_stride=8)
    assert set_output_stride(m, 8) is m
    with pytest.raises(ValueError, match='anew'): set_output_stride(m, 16)

late = [(dict(kernel_size=3,padding=12,dilation=12),False), (dict(kernel_size=3,padding=1),False)]
late += [(dict(kernel_size=1),True)]
@pytest.mark.parametrize('conv,ok', late)
def test_late_head(conv, ok):
    "A conv put behind a dilated body has no native dilation: refused, unless 1x1; the stride it has is never refused"
    m = nn.Sequential(create_body(small(output_stride=8)), nn.Conv2d(128,4,**conv))
    ts,d = tensors(m),m[1].dilation
    for T in (16,32,4):
        if ok: set_output_stride(m, T)
        else:
            with pytest.raises(ValueError, match='`1`: it was added'): set_output_stride(m, T)
            assert get_output_stride(m)==8
    assert get_output_stride(set_output_stride(m, get_output_stride(m)))==(4 if ok else 8)
    assert m[1].dilation==d and same(m, ts)
    m = nn.Sequential(m[0], nn.AdaptiveAvgPool2d(1))
    assert pool_over(m)[1].spacing==(8 if ok else 4)

def test_pool_over_a_late_head():
    "`pool_over` asks for the stride that a net has: it never refuses, and changes nothing but the pools"
    body,late = create_body(small(output_stride=8)),nn.Conv2d(128,4,3,padding=12,dilation=12)
    m = nn.Sequential(body, late, nn.AdaptiveAvgPool2d(1))
    assert pool_over(m)[2].spacing==4 and m[1].dilation==(12,12) and get_output_stride(m)==8
    assert pool_over(m,'all')[2].extra_repr()==nn.AdaptiveAvgPool2d(1).extra_repr() and '_undo' not in vars(m[2])

@pytest.fixture(scope='module')
def dls(tmp_path_factory): return class_dls(make_files(tmp_path_factory.mktemp('data')))

@pytest.mark.parametrize('name', slow_if(['test_resnet','test_convnext','resnet18d','vgg11_bn'], '18d', 'vgg'))
def test_timm_exact(dls, name):
    "By name in a learner: built natively, then traded; live, and back"
    torch.manual_seed(0)
    native = vision_learner(dls, name, pretrained=False).model[0].eval()
    torch.manual_seed(0)
    learn = vision_learner(dls, name, pretrained=False, output_stride=8)
    assert learn.output_stride==8 and same(learn.model[0], tensors(native))
    x = torch.randn(1,3,97,75)
    with torch.no_grad():
        for T in (8,16,4): close(learn.set_output_stride(T).model[0].eval()(x)[...,::32//T,::32//T], native(x))
        assert learn.set_output_stride(32).model[0](x).equal(native(x))

def test_timm_by_name(dls):
    "What was warned of or refused is exact; a transformer that makes no map is refused"
    for name in ('test_byobnet','test_efficientnet'):
        learn = vision_learner(dls, name, pretrained=False, output_stride=8)
        assert get_output_stride(learn.model)==8 and said(learn.set_output_stride, 16)==[]
    kw = dict(pretrained=False, output_stride=8)
    with pytest.raises(ValueError, match='vit_tiny_patch16_224 makes no map of its tokens'): vision_learner(dls, 'vit_tiny_patch16_224', **kw)

def test_grid_error_leaves_the_net():
    "The net is as it was; at its native stride it is not off"
    m = xresnet.xse_resnet18(output_stride=16, widen=.25).train()
    ts,modes = tensors(m),[o.training for o in m.modules()]
    assert grid_error(randomize(deepcopy(m)).double(), 8)<1e-9 and grid_error(m, 32)==0
    assert same(m, ts) and [o.training for o in m.modules()]==modes and get_output_stride(m)==16

@pytest.mark.parametrize('sz', [(16,16),*[pytest.param(o,marks=pytest.mark.slow) for o in ((30,31),(33,20))]], ids=str)
def test_grid_error_small(sz):
    "On an image of which the native map has one position, with and without a head"
    m = randomize(small())
    x = torch.randn(1,3,*sz)
    for o in (m, create_body(m)): assert max(grid_error(o, T, x) for T in (16,4))<1e-5
    assert grid_error(randomize(xresnet.xse_resnet18(widen=.25)).double(), 4, x.double())<1e-9

class Blur(nn.Module):
    "A pool that torch does not know, with a buffer"
    def __init__(self, stride, ndim=2, ceil_mode=False):
        super().__init__()
        self.stride,self.pad = stride,nn.ReflectionPad2d(1)
        self.register_buffer('filt', torch.tensor([[1.,2,1],[2,4,2],[1,2,1]])[None,None]/16)
    def forward(self, x):
        nf = x.shape[1]
        return nn.functional.conv2d(self.pad(x), self.filt.expand(nf,-1,-1,-1), stride=self.stride, groups=nf)

class Same(nn.Conv2d):
    "Pads by the size of the map, as TensorFlow does"
    def forward(self, x):
        axes = zip(x.shape[2:], self.kernel_size, self.stride, self.dilation)
        p = [max((-(-n//s)-1)*s+(k-1)*d+1-n, 0) for n,k,s,d in axes]
        x = nn.functional.pad(x, [p[1]//2,p[1]-p[1]//2,p[0]//2,p[0]-p[0]//2])
        return nn.functional.conv2d(x, self.weight, self.bias, self.stride, 0, self.dilation)

def with_stride(*mods): return nn.Sequential(nn.Conv2d(3,4,3,2,1), *mods, nn.Conv2d(4,4,3,2,1))
undilatable = dict(same=lambda: nn.Conv2d(4,4,4,padding='same'), tf=lambda: Same(4,4,3,2))
undilatable |= dict(counts=lambda: nn.AvgPool2d(3,1,1,count_include_pad=False), lp=lambda: nn.LPPool2d(2,2))
modes = product(('reflect','replicate','circular'), (1,2))
undilatable |= {f'mode_{o}_{s}':lambda o=o,s=s: nn.Conv2d(4,4,3,s,1,padding_mode=o) for o,s in modes}
undilatable |= dict(divisor=lambda: nn.AvgPool2d(2,divisor_override=3), blur=lambda: Blur(2))
pads = dict(end=nn.ZeroPad2d((0,1,0,1)), uneven=nn.ZeroPad2d((2,1,0,1)), reflect=nn.ReflectionPad2d(1))
pads |= dict(replicate=nn.ReplicationPad2d(1), circular=nn.CircularPad2d(1))
undilatable |= {f'pad_{k}':lambda o=o: nn.Sequential(deepcopy(o), nn.Conv2d(4,4,3,2)) for k,o in pads.items()}
@pytest.mark.parametrize('name', undilatable)
@pytest.mark.parametrize('sz', [(64,48),(65,97)], ids=str)
def test_what_cannot_be_dilated_runs_by_phases(name, sz):
    "Padding of all kinds, pools of all kinds: refused by 0.0.2, exact now, on even and odd sides"
    made = undilatable[name]()
    m = with_stride(*(made if isinstance(made,nn.Sequential) else [made])).double()
    x = torch.randn(1,3,*sz).double()
    with torch.no_grad():
        native,T0 = m(x),get_output_stride(m)
        for T in (T0//2,2,1): close(set_output_stride(m,T)(x)[...,::T0//T,::T0//T], native, 1e-12)
        assert set_output_stride(m,T0)(x).equal(native)

convs = [(4,2,1), (3,2,0), (2,2), (2,2,1), (3,2,2), (5,2,1), (7,2,3), (3,2,1,2), (4,1,2), (2,1)]
convs += [(3,1,'same'), (3,1,'valid'), (4,3,1)]
@pytest.mark.parametrize('a', convs, ids=str)
@pytest.mark.parametrize('sz', [(64,64),(75,97)])
def test_any_kernel(a, sz):
    "Any kernel and any padding with zeros: every native value is there, and behind it too"
    m = nn.Sequential(nn.Conv2d(3,4,3,2,1), nn.Conv2d(4,4,*a), nn.Conv2d(4,4,3,2,1), nn.MaxPool2d(2)).double()
    x = torch.randn(1,3,*sz).double()
    native,T0 = m(x),get_output_stride(m)
    for T in (T0//2,2,1):
        y = set_output_stride(m,T)(x)[...,::T0//T,::T0//T]
        close(y, native, 1e-12)
    assert set_output_stride(m,T0)(x).equal(native)

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
    assert said(stays_exact, m, T, (33,48), 4)==[] and get_output_stride(m)==T
    was = repr(m)
    assert repr(set_output_stride(m,T))==was # nothing is left to do
    assert same(set_output_stride(m,8), native[0]) and repr(m)==native[1]

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

fused = [('mobileone_s0',8),('repvgg_a0',8),('repvit_m0_9',8),('fastvit_t8',32)]
@pytest.mark.slow
@pytest.mark.parametrize('name,late_stride', fused)
def test_fuse_first(name, late_stride):
    "Branches fused before the stride is set stay exact; fused afterwards, a conv may be made with its native stride"
    from timm.utils import reparameterize_model
    m = alive(timm.create_model(name))
    fused = reparameterize_model(m)
    assert set_output_stride(fused, 8) is fused and grid_error(fused.double(), 8)<1e-9
    assert get_output_stride(reparameterize_model(set_output_stride(m, 8)))==late_stride
