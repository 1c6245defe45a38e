"Whole models that answer for each pixel: one call changes their stride, and what they resize stays at its pixels"
import copy, pickle, warnings
from functools import partial
import pytest, torch, torchvision.models as tvm
from hypothesis import given, settings, strategies as st
from torch import nn
from torch.nn import functional as F
from fastai_dilation import CannotDilate, InexactWarning, explain, get_output_stride, grid_error, pool_over, set_output_stride
from fastai_dilation.layers import GridPool
from fastai_dilation.resizes import Resize, Resizing, on_native_line, resized
from util import alive, each_resize_is_native, resizes_of, slow_if

# One resize

linear = {1:'linear', 2:'bilinear', 3:'trilinear'}
fine = st.sampled_from([1,2,3,4])

@settings(deadline=None, max_examples=60)
@given(st.data())
def test_a_finer_map_with_nothing_new_in_it_gives_the_native_answer(data):
    "Each mode, on one to three axes, by a factor and to a size, with sides that end within a native position too"
    ndim = data.draw(st.integers(1,3))
    def by_axis(o): return tuple(data.draw(st.tuples(*[o]*ndim)))
    sides,reads = by_axis(st.integers(2,6)),by_axis(fine)
    # what is made is at most as much finer as what is read
    makes = tuple(data.draw(st.sampled_from([o for o in (1,2,3,4) if r%o==0])) for r in reads)
    mode = data.draw(st.sampled_from([linear[ndim],'nearest','nearest-exact']))
    kw = dict(mode=mode, align_corners=data.draw(st.booleans())) if mode==linear[ndim] else dict(mode=mode)
    native = torch.randn(1, 2, *sides, dtype=torch.double)
    lacking = [data.draw(st.integers(0,r-1)) for r in reads]
    how,shape = Resize(reads,makes),(1,2,*[n*r-o for n,r,o in zip(sides,reads,lacking)])
    factors = by_axis(st.integers(1,4))
    by_factor = data.draw(st.booleans())
    natively = dict(scale_factor=factors) if by_factor else dict(size=[n*f for n,f in zip(sides,factors)])
    want = F.interpolate(native, **natively, **kw)
    to = dict(scale_factor=factors) if by_factor else dict(size=[n*m for n,m in zip(want.shape[2:],makes)])
    made = resized(on_native_line(native,shape,how,mode), how, **to, **kw)
    found = made[(...,*[slice(None,None,m) for m in makes])]
    assert found.shape==want.shape
    assert (found-want).abs().max()<1e-6 # PyTorch has its places in single precision

@pytest.mark.parametrize('kw', [dict(mode='bicubic'), dict(mode='area'), dict(mode='bilinear',antialias=True)])
def test_a_mode_that_reads_more_than_two_neighbours_is_refused(kw):
    with pytest.raises(ValueError, match='Linear and nearest'): resized(torch.ones(1,1,4,4), Resize(2,1), scale_factor=2, **kw)

# Small models

def body(): return nn.Sequential(nn.Conv2d(3,8,3,2,1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8,8,3,2,1), nn.ReLU())
def deep(): return nn.Sequential(nn.Conv2d(8,8,3,2,1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8,8,3,2,1), nn.ReLU())
def to(x, like, **kw): return F.interpolate(x, size=like.shape[2:], **kw)

class InForward(nn.Module):
    "As torchvision's: the network resizes its answer"
    def __init__(self):
        super().__init__()
        self.body,self.deep,self.head = body(),deep(),nn.Conv2d(8,4,1)
    def forward(self, x): return to(self.head(self.deep(self.body(x))), x, mode='bilinear')

class WithSkip(InForward):
    "As DeepLabV3+: by a function, to the map of an earlier level, which is joined"
    def __init__(self):
        super().__init__()
        self.head = nn.Conv2d(16,4,3,padding=1)
    def forward(self, x):
        low = self.body(x)
        high = to(self.deep(low), low, mode='bilinear', align_corners=True)
        return to(self.head(torch.cat([low,high],1)), x, mode='bilinear')

class Pyramid(InForward):
    "As an FPN: each level is resized to the one before it, and added; all is finer then"
    def __init__(self):
        super().__init__()
        self.mid,self.last = nn.Conv2d(8,8,3,2,1),nn.Conv2d(8,8,3,2,1)
    def forward(self, x):
        a = self.body(x)
        b = self.mid(a)
        c = self.last(b)
        b = b+to(c, b)
        return to(self.head(a+to(b,a)), x, mode='bilinear')

class Pooled(WithSkip):
    "As PSPNet: means of the quarters of a map, resized to it"
    def __init__(self):
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(2)
    def forward(self, x):
        y = self.deep(self.body(x))
        return to(self.head(torch.cat([y,to(self.pool(y), y, mode='bilinear')],1)), x, mode='bilinear')

class ImagePool(nn.Module):
    "As in ASPP: the mean of a map beside it; resizes inside of what runs by phases"
    def forward(self, x): return x+to(x.mean((2,3),keepdim=True), x, mode='bilinear')

class TwoHeads(InForward):
    "A class for the image, and two answers for each pixel"
    def __init__(self):
        super().__init__()
        self.pool,self.aux = ImagePool(),nn.Conv2d(8,4,1)
    def forward(self, x):
        y = self.pool(self.deep(self.body(x)))
        return dict(out=to(self.head(y),x,mode='bilinear'), aux=to(self.aux(y),x), label=y.mean((2,3)))

def upsampled(mode='nearest', **kw):
    "By modules"
    first,last = nn.Upsample(scale_factor=4,mode=mode,**kw),nn.Upsample(scale_factor=4,mode='bilinear')
    return nn.Sequential(body(), deep(), first, nn.Conv2d(8,4,3,padding=1), last)

small = dict(in_forward=InForward, with_skip=WithSkip, pyramid=Pyramid, pooled=Pooled, two_heads=TwoHeads, upsampled=upsampled,
    linear_upsampled=partial(upsampled,'bilinear',align_corners=True))
each_small = pytest.mark.parametrize('name', slow_if(small,'upsampled','pooled'))

def made(name): return alive(small[name]()).double().eval()
def images(*sides): return torch.randn(2, 3, *(sides or (64,96)), dtype=torch.double)
def answers(y): return [y] if isinstance(y,torch.Tensor) else [*y.values()] if isinstance(y,dict) else [*y]
def answer(m, x):
    with torch.no_grad(): return answers(m(x))

@each_small
def test_a_model_changes_its_stride_in_one_call(name):
    "Its answer is as large as ever, no one is warned, and back it is what it was, bit for bit"
    m = made(name)
    x,before,keys = images(),pickle.dumps(m),[*m.state_dict()]
    native = answer(m, x)
    with warnings.catch_warnings():
        warnings.simplefilter('error', InexactWarning)
        set_output_stride(m, 4)
    assert get_output_stride(m)==4 and [*m.state_dict()]==keys
    finer = answer(m, x)
    assert [o.shape for o in finer]==[o.shape for o in native]
    assert all((a-b).abs().max()>1e-3 for a,b in zip(finer,native)), 'finer values are seen'
    assert pickle.dumps(set_output_stride(m,16))==before
    assert all(a.equal(b) for a,b in zip(answer(m,x),native))

@each_small
@pytest.mark.parametrize('stride', [(16,4), *[pytest.param(o,marks=pytest.mark.slow) for o in (8,4,2)]])
def test_each_resize_of_a_model_is_native_where_nothing_is_new(name, stride):
    "A stride for each axis too; and sides that are no multiples, where the native model runs on them"
    m = made(name)
    changed = set_output_stride(copy.deepcopy(m), stride)
    for x in images(), *([] if 'upsampled' in name else [images(67,93)]): each_resize_is_native(m, changed, x)

def test_plain_resizing_would_fail_the_same_check():
    "A body that is changed by itself, in front of a head that resizes as before"
    m = made('with_skip')
    changed = copy.deepcopy(m)
    set_output_stride(nn.Sequential(changed.body,changed.deep), 4)
    before,after = resizes_of(m,images()),resizes_of(changed,images())
    (read,f,*_),native = after[''][0],before[''][0]
    finer = on_native_line(native[0], read.shape, Resize(4,1), 'bilinear')
    assert (f(finer)-native[2]).abs().max()>1e-2*native[2].abs().max()

@each_small
def test_the_body_of_a_model_is_exact(name):
    "Its maps in front of the first resize"
    assert grid_error(made(name), 4)<1e-9

def test_what_resizes_is_said_in_the_table():
    rows = {o.name:str(o.becomes) for o in explain(made('pooled'), 4)}
    assert rows['(itself)']=='resizes at the native positions' and rows['pool']=='reads at the native positions'

@each_small
def test_a_copy_and_a_pickle_of_a_changed_model_answer_as_it_does(name):
    m,x = set_output_stride(made(name),4),images()
    want = answer(m, x)
    for o in copy.deepcopy(m),pickle.loads(pickle.dumps(m)):
        assert all(a.equal(b) for a,b in zip(answer(o,x),want))
        assert not any(isinstance(c,Resizing) for c in set_output_stride(o,16).modules())

@pytest.mark.parametrize('name', ['with_skip', pytest.param('two_heads',marks=pytest.mark.slow)])
def test_a_changed_model_compiles_in_one_graph(name):
    m,x = set_output_stride(made(name),4),images()
    torch._dynamo.reset()
    c = torch.compile(m, backend='aot_eager', fullgraph=True)
    assert all((a-b).abs().max()<1e-9 for a,b in zip(answer(c,x),answer(m,x)))

def test_a_changed_model_is_exported_with_free_sides():
    "And traced; by `torch.jit.script` it is refused"
    m,x = set_output_stride(made('with_skip'),4),images()
    batch,h,w = [torch.export.Dim(o,min=1,max=64) for o in ('batch','h','w')]
    program = torch.export.export(m, (x,), dynamic_shapes=(({0:batch,2:16*h,3:16*w},),)).module()
    traced = torch.jit.trace(m, x)
    for o in x,images(32,64)[:1]: assert (program(o)-m(o)).abs().max()<1e-9
    assert (traced(x)-m(x)).abs().max()<1e-6 # its sides are tensors, divided in single precision
    with pytest.raises(Exception, match='variable number of arguments'): torch.jit.script(m)

def test_training_goes_on_at_the_finer_stride():
    "Each weight has a gradient"
    m = set_output_stride(made('with_skip'), 4).train()
    m(images()).square().mean().backward()
    assert all(p.grad is not None and p.grad.abs().max()>0 for p in m.parameters())

def test_a_module_that_resizes_more_often_than_before_says_so():
    class Twice(InForward):
        more = False
        def forward(self, x):
            y = super().forward(x)
            return F.interpolate(y, scale_factor=2) if self.more else y
    m = set_output_stride(alive(Twice()).double(), 4)
    m.more = True
    with pytest.raises(ValueError, match='resizes more often'): m(images())

def test_bicubic_resizing_is_warned_of():
    "It runs, and is not the function that was trained"
    class Bicubic(InForward):
        def forward(self, x): return to(self.head(self.deep(self.body(x))), x, mode='bicubic')
    with pytest.warns(InexactWarning): set_output_stride(alive(Bicubic()), 4)

def test_transposed_convs_and_shuffled_pixels_are_refused():
    "They make maps larger with weights of their own"
    for up in nn.ConvTranspose2d(8,8,4,4),nn.PixelShuffle(2):
        m = nn.Sequential(body(), deep(), up)
        before = pickle.dumps(m)
        with pytest.raises(CannotDilate, match='makes maps larger'): set_output_stride(m, 4)
        assert pickle.dumps(m)==before

# Models of torchvision and of segmentation_models

def torchvisions(name, **kw): return getattr(tvm.segmentation,name)(weights=None, weights_backbone=None, **kw)
def smps(name, encoder='resnet18', **kw):
    import segmentation_models_pytorch as smp
    return getattr(smp,name)(encoder, encoder_weights=None, classes=3, **kw)

# how it is made, and its stride; bench/decoders.py has more
real = dict(deeplabv3=(partial(torchvisions,'deeplabv3_resnet50',aux_loss=True), 8),
    lraspp=(partial(torchvisions,'lraspp_mobilenet_v3_large'), 16), smp_v3plus=(partial(smps,'DeepLabV3Plus'), 16),
    smp_fpn=(partial(smps,'FPN'), 32), smp_upernet=(partial(smps,'UPerNet'), 32), smp_segformer=(partial(smps,'Segformer'), 32),
    smp_psp=(partial(smps,'PSPNet',encoder_depth=5,upsampling=32), 32), smp_unet=(partial(smps,'Unet'), 32),
    smp_timm=(partial(smps,'DeepLabV3','tu-tf_efficientnet_lite0',encoder_output_stride=16), 16))

@pytest.mark.slow
@pytest.mark.parametrize('name', real)
def test_a_well_known_model_changes_its_stride(name):
    "The answer's size, its strides, each resize, and back bit for bit"
    make,S = real[name]
    torch.manual_seed(0)
    m = alive(make()).double().eval()
    changed = copy.deepcopy(m)
    x,before = images(128,192),pickle.dumps(changed)
    T = 4 if S==8 else 8
    native = answer(m, x)
    set_output_stride(changed, T)
    assert get_output_stride(changed)==T
    assert [o.shape for o in answer(changed,x)]==[o.shape for o in native]
    each_resize_is_native(m, changed, x)
    if name.startswith('smp'): assert changed.encoder.output_stride==T
    assert pickle.dumps(set_output_stride(changed,S))==before

@pytest.mark.slow
def test_a_decoder_of_transposed_convs_is_refused():
    "Linknet's; the words name its conv, and the encoder"
    with pytest.raises(CannotDilate, match='decoder.blocks.0.block.1.0.*`encoder` alone'): set_output_stride(alive(smps('Linknet')), 8)

# Detectors

def test_a_whole_detector_changes_its_body_and_its_pooler_forgets_its_scales():
    "A body without a pyramid: one map, natively of stride 8"
    from torchvision.models.detection import FasterRCNN
    from torchvision.models.detection.anchor_utils import AnchorGenerator
    from torchvision.ops import MultiScaleRoIAlign
    net = nn.Sequential(*body(), nn.Conv2d(8,8,3,2,1))
    net.out_channels = 8
    anchors,pooler = AnchorGenerator(((16,),),((1.,),)),MultiScaleRoIAlign(['0'],3,2)
    kw = dict(rpn_anchor_generator=anchors, box_roi_pool=pooler, box_head=nn.Sequential(nn.Flatten(),nn.Linear(72,1024)))
    m = FasterRCNN(net, 2, min_size=64, max_size=64, **kw).eval()
    def scales():
        with torch.no_grad(): m([torch.rand(3,64,64)])
        return pooler.scales
    assert scales()==[1/8]
    assert set_output_stride(m, 4) is m and get_output_stride(m)==4
    assert scales()==[1/4]
    with pytest.raises(CannotDilate): set_output_stride(m, 5)
    set_output_stride(nn.DataParallel(m), 8) # it holds a holder
    assert scales()==[1/8]

@pytest.mark.slow
@pytest.mark.parametrize('name', ['fasterrcnn_resnet50_fpn','retinanet_resnet50_fpn','fcos_resnet50_fpn','maskrcnn_resnet50_fpn'])
def test_a_well_known_detector_detects_at_a_finer_stride(name):
    "Its body is exact; its pooler takes the new scales"
    m = alive(tvm.detection.__dict__[name](weights=None, weights_backbone=None, min_size=128, max_size=160)).eval()
    xs = [torch.rand(3,128,160)]
    with torch.no_grad(): m(xs)
    assert grid_error(m, 8)<1e-4
    set_output_stride(m, 8)
    with torch.no_grad(): m(xs)
    if hasattr(m,'roi_heads'): assert m.roi_heads.box_roi_pool.scales==[1/4,1/8,1/8,1/8]

def test_a_pool_that_a_change_has_put_on_the_native_grid_may_read_all():
    m = set_output_stride(Pooled(), 4)
    assert any(isinstance(o,GridPool) for o in m.modules())
    assert not any(isinstance(o,GridPool) for o in pool_over(m,'all').modules())
    set_output_stride(m, 16)

class Up(nn.Sequential):
    "Resizes what its modules make"
    def forward(self, x): return F.interpolate(super().forward(x), scale_factor=4.)

def test_a_slice_of_a_sequential_that_resizes_does_as_the_whole():
    m = set_output_stride(nn.Sequential(nn.Conv2d(3,8,3,2,1), nn.Conv2d(8,8,3,2,1), Up(nn.Conv2d(8,2,1),nn.Identity())), 2)
    y = torch.randn(1,8,16,16)
    assert m[2][:1](y).equal(m[2](y)) and 'resizes' in repr(m[2][:1])
