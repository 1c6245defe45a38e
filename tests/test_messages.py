"What a user reads when something is refused or warned of: who and why, then what to do; and the model is as it was"
from functools import partial
import pytest, timm, torch, torchvision.models as tvm
from fastai.vision.all import CrossEntropyLossFlat, Learner, create_body, nn, xresnet18
from fastai_dilation.all import (CannotDilate, InexactWarning, class_maps, create_deeplab_model, create_unet_model,
    deeplab_learner, explain, get_output_stride, grid_error, output_strides, pool_over, set_output_stride)
from fastai_dilation.__main__ import main as ask
from fastai_dilation.layers import phases_in
from fastai_dilation.strides import Sample
from torch.nn import functional as F
from torchvision.models import detection, segmentation
from seg_data import class_dls, make_files, seg_dls
from util import between, close, randomize, said, same, slow_if, small, small_densenet, stays_exact, tensors

def state(m): return [(n,type(o),str(o)) for n,o in m.named_modules()]

@pytest.fixture(scope='module')
def path(tmp_path_factory): return make_files(tmp_path_factory.mktemp('data'))

class ResizesItself(nn.Sequential):
    def forward(self, x): return super().forward(F.interpolate(x, (64,64)))

# the network, the stride that it is asked for, and words in the order in which they are read
refused = dict(
    vit = (lambda: timm.create_model('vit_tiny_patch16_224'), 8, 'VisionTransformer makes no map of its tokens.*`timm.create_model.*features_only=True.*`deeplab_learner'),
    vit_all_sizes = (lambda: timm.create_model('vit_tiny_patch16_224',dynamic_img_size=True,depth=1), 8, 'VisionTransformer makes no map of its tokens'),
    hrnet = (lambda: timm.create_model('hrnet_w18_small'), 16, r'^(?!.*(224|anew)).*it makes maps larger.*\(HRNet\) has that one to take'),
    detector = (lambda: detection.ssdlite320_mobilenet_v3_large(weights=None,weights_backbone=None), 8,
        r'default boxes of an SSD lie at the strides.*`backbone`.*steps = None'),
    resizes_itself = (lambda: ResizesItself(nn.Conv2d(3,8,3,2,1)), 1, "ResizesItself no layer reads.*resize its input.*such as a detector's `backbone`"),
    timm_at_8 = (lambda: timm.create_model('resnet18',output_stride=8), 16, r'ResNet can be one of \[1, 2, 4, 8\], not 16.*built at 8.*without'),
    torchvision_fcn = (lambda: segmentation.fcn_resnet50(weights=None,weights_backbone=None), 16, 'FCN can be one of.*built at 8.*without'),
    unet = (lambda: create_unet_model(small,2,(64,64),pretrained=False), 8, 'decoder of a U-Net.*Build the net anew with output_stride=8'))

@pytest.mark.parametrize('name', slow_if(refused, 'pyramid', 'detector', 'swin', 'torchvision_fcn'))
def test_a_refusal_says_who_and_why_and_then_what_to_do(name):
    "The model is as it was: its modules, their classes and settings, and its weights"
    make,T,words = refused[name]
    m = make()
    before,ts = state(m),tensors(m)
    with pytest.raises(CannotDilate, match=words): set_output_stride(m, T)
    assert state(m)==before and same(m, ts)

class OneSize(nn.Sequential):
    "A network for images of 224 pixels, with a conv of many channels"
    def forward(self, x):
        assert x.shape[-1]==224
        return super().forward(x)

def test_a_network_of_one_size_is_followed_soon(monkeypatch):
    "Images to try it on have as many channels as any of its convs, but no more than half a gigabyte"
    sizes,resized = [],Sample.resized
    def noted(self, *args, **kwargs):
        x, = resized(self, *args, **kwargs)
        if x.device.type!='meta': sizes.append(x.numel())
        return x,
    monkeypatch.setattr(Sample, 'resized', noted)
    m = OneSize(nn.Conv2d(3,256,3,2,1), nn.Conv2d(256,8,3,2,1))
    assert get_output_stride(set_output_stride(m,2))==2
    assert 2**20<max(sizes)<2**24 # and not 256 channels of 512 pixels

@pytest.mark.slow
def test_what_a_refusal_advises_does():
    "A Swin for all sizes has its strides traded"
    m = timm.create_model('swin_tiny_patch4_window7_224', strict_img_size=False)
    assert said(set_output_stride, m, 16)==[] and get_output_stride(m)==16

programs = dict(scripted=torch.jit.script, traced=lambda m: torch.jit.trace(m, torch.randn(1,3,64,64)),
    exported=lambda m: torch.export.export(m, (torch.randn(1,3,64,64),)), exported_module=lambda m: torch.export.export(m, (torch.randn(1,3,64,64),)).module())

@pytest.mark.parametrize('name', programs)
def test_a_program_is_no_network_to_be_changed(name):
    with pytest.raises(CannotDilate, match='exported network cannot be changed: set.*then script or export'):
        set_output_stride(programs[name](tvm.resnet18().eval()), 8)

@pytest.mark.parametrize('f', [set_output_stride, grid_error, explain, lambda m,T: class_maps(m,torch.randn(1,3,64,64),T)],
    ids=['set_output_stride','grid_error','explain','class_maps'])
def test_a_function_without_brackets(f):
    "All functions say to call it; nothing else is told to be called"
    for arch,name in ((tvm.resnet18,'resnet18'), (xresnet18,'xresnet18'), (partial(xresnet18,widen=.5),'xresnet18'), (nn.Linear,'Linear')):
        with pytest.raises(TypeError, match=rf'call it to make one: `{name}\(\)`'): f(arch, 8)
    for o in ('resnet18', None):
        with pytest.raises(TypeError, match=f'has to be a network, not {o!r}$'): f(o, 8)

def test_a_learner_is_as_good_as_its_model(path):
    "It is changed inside and notes its stride; after an error both are as they were"
    learn = Learner(class_dls(path), small(n_out=2), loss_func=CrossEntropyLossFlat())
    assert set_output_stride(learn, 8) is learn and learn.output_stride==get_output_stride(learn)==get_output_stride(learn.model)==8
    assert output_strides(learn)[-1]==32 and grid_error(learn, 16)<1e-5 and explain(learn, 16)==explain(learn.model, 16)
    before,ts = state(learn.model),tensors(learn.model)
    with pytest.raises(CannotDilate, match='can be one of'): set_output_stride(learn, 12)
    assert learn.output_stride==8 and state(learn.model)==before and same(learn.model, ts)

@pytest.mark.parametrize('skip', [None,pytest.param(4,marks=pytest.mark.slow)])
def test_our_own_deeplab_learner_warns_of_nothing(path, skip):
    "At another stride it is exact, as its page says"
    learn = deeplab_learner(seg_dls(path), small, pretrained=False, rates=(1,), skip=skip)
    randomize(learn.model)
    for T in (8,16): assert said(learn.set_output_stride, T)==[] and learn.output_stride==T
    assert grid_error(nn.Sequential(*learn.model[:2]) if skip is None else learn, 8)<1e-5

class Gate(nn.Module):
    "Multiplies a map with its mean, in the forward of the whole network"
    def __init__(self, mean):
        super().__init__()
        self.stem,self.mean = nn.Sequential(nn.Conv2d(3,8,3,2,1), nn.Conv2d(8,8,3,2,1)),mean
        self.last = nn.Conv2d(8,8,3,1,1)
    def forward(self, x):
        x = self.stem(x)
        return self.last(x*self.mean(x).sigmoid())

class Mean(nn.Module):
    def forward(self, x): return x.mean((2,3), keepdim=True)

def test_a_warning_names_pool_over_where_it_makes_the_net_exact():
    m,x = Gate(nn.AdaptiveAvgPool2d(1)).double(),torch.randn(2,3,97,130).double()
    with torch.no_grad(): native = m(x)
    words, = said(set_output_stride, m, 1)
    assert words.startswith('At output_stride=1 this Gate is not exact') and '`grid_error(model, 1)`' in words
    assert words.endswith("with `pool_over(model, 'grid')`") and grid_error(m, 1)>1e-3
    with torch.no_grad(): close(pool_over(m,'grid')(x)[...,::4,::4], native, 1e-12)
    assert grid_error(m, 1)<1e-12 and said(set_output_stride, set_output_stride(m,4), 1)==[]

class WithHead(Gate):
    "Has a pool module too, but one that has no part in what is off"
    def __init__(self):
        super().__init__(Mean())
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8,3))
    def forward(self, x): return self.head(super().forward(x))

def test_a_warning_does_not_name_pool_over_where_it_would_not_do():
    words, = said(set_output_stride, WithHead(), 1)
    assert 'pool_over' not in words and '`grid_error(model, 1)`' in words and 'Train on' in words

def test_what_is_tried_for_a_warning_leaves_no_trace():
    "The network is the same with a warning and without"
    a,b = [Gate(nn.AdaptiveAvgPool2d(1)) for _ in range(2)]
    b.load_state_dict(a.state_dict())
    said(set_output_stride, a, 1)
    assert state(a)==state(set_output_stride(b, 1, warn=False)) and same(a, tensors(b))
    assert state(set_output_stride(a, 4))==state(Gate(nn.AdaptiveAvgPool2d(1)))

def test_class_maps_says_what_it_needs():
    "The head of a classifier, and a batch; the model is as it was"
    x = torch.randn(1,3,64,64)
    cases = [(create_deeplab_model(small,3,pretrained=False), 'DeepLab is not the head of a classifier'),
        (create_body(small()), 'no adaptive pool module in front of its head'), (small_densenet(), 'put its parts together')]
    for m,words in cases:
        before,ts = state(m),tensors(m)
        with pytest.raises(ValueError, match=words): class_maps(m, x, 8)
        assert state(m)==before and same(m, ts)
    for wrong,words in ((x[0],r'not of shape \(3, 64, 64\)'), (x.numpy(),'not a ndarray')):
        with pytest.raises(ValueError, match=f'has to be a batch of images.*{words}'): class_maps(small(n_out=2), wrong, 8)

@pytest.mark.parametrize('args,words', [pytest.param(('resmlp_12_224',8),'refused: ',marks=pytest.mark.slow),
    (('resnet18',12),'refused: `output_stride` of this ResNet can be one of'),
    (('resnet18dd',8),'of no network of fastai, timm or torchvision: did you mean resnet18d')], ids=['refused','stride','name'])
def test_the_command_says_it_in_a_line(args, words):
    with pytest.raises(SystemExit) as e: ask(*args)
    assert words in str(e.value) and '\n' not in str(e.value)

mixers = {'normalize over positions':lambda x: F.normalize(x, dim=(2,3))}
mixers['softmax over positions'] = lambda x: x.flatten(2).softmax(-1).view_as(x)
mixers['layer norm over positions'] = lambda x: F.layer_norm(x, x.shape[2:])
mixers['arithmetic with the sides'] = lambda x: x*x.shape[-1]**.5

class Whole(nn.Module):
    "The same in the forward of the whole model"
    def __init__(self, f):
        super().__init__()
        self.f,self.a,self.b = f,between(),nn.Conv2d(8,8,3,1,1)
    def forward(self, x): return self.b(self.f(self.a(x)))

@pytest.mark.parametrize('name', mixers)
def test_mixers_in_the_whole_forward_run_by_phases_with_all_else(name):
    m,x = Whole(mixers[name]).double(),torch.randn(2,3,33,48).double()
    native = m(x)
    assert not said(set_output_stride, m, 1) and phases_in(m).keys()=={''}
    close(m(x)[...,::8,::8], native)

class Skip(nn.Module):
    "A map resized to the size of an earlier one, by four neighbours on each axis, and a conv that reads both"
    def __init__(self):
        super().__init__()
        self.body,self.head = create_body(small()),nn.Conv2d(128+16, 4, 3, padding=1)
    def forward(self, x):
        low = self.body[:5](x)
        return self.head(torch.cat([F.interpolate(self.body[5:](low), low.shape[2:], mode='bicubic'), low], 1))

@pytest.mark.parametrize('T', [16,8])
def test_a_resized_map_is_warned_of(T):
    "By the name of the model, with what happens, and what tells how much"
    m = Skip()
    ws = said(set_output_stride, m, T)
    assert len(ws)==1 and 'Skip' in ws[0] and 'resizes' in ws[0] and f'grid_error(model, {T})' in ws[0]
    assert grid_error(randomize(m).double(), T)>.01

def test_dilations_set_by_hand():
    "On the native net they follow the stride; on a dilated one they are not forgotten in silence"
    m = tvm.resnet18()
    convs = [o for o in m.layer4.modules() if isinstance(o,nn.Conv2d) and o.kernel_size==(3,3)]
    set_output_stride(m, 16)
    for f,o in zip((1,2,4), convs[1:]): o.dilation = o.padding = tuple(f*d for d in o.dilation)
    ts,before = tensors(m),[o.dilation for o in convs]
    with pytest.raises(CannotDilate, match='by hand') as e: set_output_stride(m, 8)
    assert e.value.layer=='layer4.1.conv1' and same(m, ts) and [o.dilation for o in convs]==before

def test_errors_and_warnings_are_classes():
    m = nn.Sequential(create_body(small()), nn.Upsample(scale_factor=2), nn.Conv2d(128,4,3,padding=1))
    with pytest.raises(ValueError) as e: set_output_stride(m, 8)
    assert (e.type,e.value.layer)==(CannotDilate,'1') and 'larger' in e.value.reason
    with pytest.warns(InexactWarning): set_output_stride(Skip(), 16)
    assert issubclass(InexactWarning, UserWarning)

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
    assert said(stays_exact, m.backbone, 2)==[]

def test_pools_stay_after_an_error():
    "A network that reads two images, and no sample"
    class TwoImages(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv,self.pool = nn.Conv2d(3,8,3,2,1),nn.AdaptiveAvgPool2d(1)
        def forward(self, x, y): return self.pool(self.conv(x+y))
    net = TwoImages()
    with pytest.raises(ValueError, match='does not run'): pool_over(net)
    assert type(net.pool) is nn.AdaptiveAvgPool2d

class DTensor(nn.Parameter): "As the weights of a network that FSDP has spread over processes: no plain tensor can meet them"
def test_weights_that_are_spread_over_processes_are_said():
    "FSDP2 after the change, then another stride: the true reason"
    def conv(x, weight): raise RuntimeError('got mixed torch.Tensor and DTensor')
    class Spread(nn.Conv2d):
        def forward(self, x): return conv(x, self.weight)
    net = nn.Sequential(Spread(3,4,3,2,1), nn.Conv2d(4,4,3,2,1))
    net[0].weight = DTensor(net[0].weight.data)
    with pytest.raises(CannotDilate, match='before `fully_shard`'): set_output_stride(net, 1)
