"Networks of one size, of tokens, of any layout; and the whole network by phases, in turn too"
import pickle
from copy import deepcopy
import pytest, timm, torch
from torch import nn
from torch.nn import functional as F
from fastai_dilation.all import CannotDilate, explain, get_output_stride, grid_error, in_turn, set_output_stride
from fastai_dilation.ask import multiply_adds
from fastai_dilation.deeplab import create_deeplab_model
from fastai_dilation.layers import phases_in
from fastai_dilation.phases import Phases
from fastai_dilation.strides import follow
from util import close, randomize, said

def vit(**kwargs):
    kw = dict(features_only=True, out_indices=[1], depth=2, **kwargs)
    return randomize(timm.create_model('vit_tiny_patch16_224', **kw)).double().eval()

def image(*sides): return torch.randn(1, 3, *(sides or (224,224))).double()

def shifted(x, down, right):
    "The image `x` as seen so many pixels further down and to the right, with its last ones again"
    y = x[..., down:, right:]
    return F.pad(y, (0,right,0,down), mode='replicate')

@pytest.mark.parametrize('T', [8, pytest.param(4,marks=pytest.mark.slow)])
def test_a_vit_is_itself_on_shifted_images(T):
    "At 8: four native maps, each to the last bit; at 4, sixteen"
    m,x = vit(),image()
    native,n = deepcopy(m),16//T
    with torch.no_grad(): finer, = set_output_stride(m, T)(x)
    for i,j in ((0,0),(1,0),(n-1,n-1)):
        with torch.no_grad(): of_shifted, = native(shifted(x, i*T, j*T))
        close(finer[...,i::n,j::n], of_shifted)
    assert phases_in(m)=={'':Phases(1, 16, T)} and get_output_stride(m)==T

def test_a_vit_comes_back_and_can_be_kept():
    m,x = vit(),image()
    before = pickle.dumps(m)
    y = set_output_stride(m,8)(x)
    for copied in (deepcopy(m), pickle.loads(pickle.dumps(m))): close(copied(x)[0], y[0])
    assert pickle.dumps(set_output_stride(m,16))==before

def test_each_axis_has_its_stride():
    m,x = vit(),image()
    native, = deepcopy(m)(x)
    finer, = set_output_stride(m, (16,4))(x)
    assert finer.shape[2:]==(14,56) and get_output_stride(m)==(16,4)
    close(finer[...,::4], native)

def test_explain_says_that_the_whole_runs_by_phases():
    conv, = [o for o in explain(vit(), 8) if o.name.endswith('proj')]
    assert str(conv.becomes)=='stride 16 -> 8, by 2x2 phases, with the whole network'
    assert grid_error(vit(), 8)<1e-12

class OneSize(nn.Module):
    "Refuses all images but those of one size"
    def __init__(self, *modules, side=224):
        super().__init__()
        self.body,self.side = nn.Sequential(*modules),side
    def forward(self, x):
        assert x.shape[-2:]==(self.side,self.side)
        return self.body(x)

class Moved(nn.Module):
    def __init__(self, *dims):
        super().__init__()
        self.dims = dims
    def forward(self, x): return x.permute(*self.dims)

class Crop(nn.Module):
    "The middle of the image"
    def forward(self, x): return x[...,56:168,56:168]

@pytest.mark.parametrize('channels,patch', [(14,16),(28,8)])
def test_channels_that_look_like_sides_are_not_taken_for_them(channels, patch):
    "With the channels last, in the middle, or turned"
    def lies(*dims): return follow(OneSize(nn.Conv2d(3,channels,patch,patch), Moved(*dims))).calls['body.1'][0].makes[0]
    assert lies(0,1,2,3)==((2,3),patch) and lies(0,2,3,1)==((1,2),patch)
    for dims in ((0,2,1,3), (0,3,2,1), (0,1,3,2)): assert lies(*dims).stride is None

def test_a_network_of_one_length_is_followed():
    "With one axis"
    class OneLength(nn.Module):
        def __init__(self):
            super().__init__()
            self.convs = nn.Sequential(*[nn.Conv1d(i,8,3,2,1) for i in (3,8,8)])
        def forward(self, x):
            assert x.shape[-1]==224
            return self.convs(x)
    assert get_output_stride(OneLength(), torch.randn(1,3,224))==8

@pytest.mark.slow
@pytest.mark.parametrize('seed', [6,12,36])
def test_a_stride_is_found_through_taps_that_lie_apart(seed):
    "A head of dilated convs moves far places as much as that which is touched"
    torch.manual_seed(seed)
    m = create_deeplab_model('swin_tiny_patch4_window7_224', 2, pretrained=False, output_stride=32)
    assert follow(m).calls[''][0].makes[0].stride==1 and get_output_stride(m)==32

def test_a_stride_that_only_the_size_suggests_is_not_believed():
    "A map of 7x7 is no map of stride 32 if the image was cropped"
    with pytest.raises(CannotDilate, match='no layer reads a map'): set_output_stride(OneSize(Crop(), nn.Conv2d(3,8,16,16)), 8)

def test_a_conv_net_of_one_size_is_dilated():
    m,x = OneSize(nn.Conv2d(3,8,3,2,1), nn.Conv2d(8,8,5,2,2), nn.Conv2d(8,8,3,2,1)).double(),image()
    native = m(x)
    close(set_output_stride(m,2)(x)[...,::4,::4], native)
    assert not phases_in(m)

class Levels(nn.Module):
    "Mixes its maps in its own `forward`, so that nothing inside could run by phases"
    def __init__(self):
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(3 if i==0 else 8, 8, 3, 2, 1) for i in range(4))
    def forward(self, x):
        maps = []
        for o in self.convs: maps.append(x := o(x-x.mean((2,3),keepdim=True)))
        return dict(fine=maps[0], last=maps[3].movedim(1,-1), all=maps[1:3])

def tensors_of(y): return [y['fine'], y['last'].movedim(-1,1), *y['all']]

@pytest.mark.parametrize('side', (64,77))
def test_maps_of_several_strides_are_each_right(side):
    "In a dict, one with its channels last; the early ones stay as they are"
    m,x = Levels().double().eval(),image(side,side+16)
    native = tensors_of(m(x))
    assert not said(set_output_stride, m, 4) and phases_in(m).keys()=={''}
    finer = tensors_of(m(x))
    for y,z,times in zip(finer, native, (1,4,1,2)): close(y[...,::times,::times], z)

class OnRequest(Levels):
    "Makes a list of positions too, if asked"
    def forward(self, x, tokens=False):
        maps = super().forward(x)
        return maps | dict(tokens=maps['fine'].flatten(2)) if tokens else maps

def test_more_tensors_than_were_tried_are_refused_in_words():
    "Nobody knows how to merge the phases of what was never seen"
    m = set_output_stride(OnRequest().double().eval(), 4)
    with pytest.raises(ValueError, match='makes 5 tensors, and when that was tried it made 4'): m(image(64,80), tokens=True)

class LastToFirst(nn.Module):
    "Reads a map with its channels last, in windows, and makes one that has them first"
    def __init__(self):
        super().__init__()
        self.mix = nn.Linear(8, 8)
    def forward(self, x):
        mean = x.mean((1,2), keepdim=True)
        return self.mix(x-mean).movedim(-1, 1)

def test_a_module_that_reads_another_layout_than_it_makes_runs_by_phases():
    convs = [nn.Conv2d(3 if i==0 else 8, 8, 3, 2, 1) for i in range(3)]
    m,x = nn.Sequential(*convs, Moved(0,2,3,1), LastToFirst(), nn.Conv2d(8,8,3,1,1)).double(),image(61,96)
    native = m(x)
    set_output_stride(m, 2)
    assert [*phases_in(m)]==['4'] and phases_in(m)['4'].makes
    close(m(x)[...,::4,::4], native)

@pytest.mark.slow
def test_a_pyramid_is_right_at_each_level():
    "It makes maps larger, so it runs as a whole"
    from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
    m = randomize(resnet_fpn_backbone(backbone_name='resnet18', weights=None)).double().eval()
    x = image(128,160)
    with torch.no_grad(): native,finer = m(x),set_output_stride(m,16)(x)
    for (k,y),times in zip(finer.items(), (1,1,1,2,4)): close(y[...,::times,::times], native[k])

class Functional(nn.Module):
    "Hides a stride in a function"
    def __init__(self):
        super().__init__()
        self.a,self.b,self.c = nn.Conv2d(3,4,3,2,1),nn.Conv2d(4,4,3,2,1),nn.Conv2d(4,4,3,2,1)
    def forward(self, x): return self.c(F.max_pool2d(self.b(self.a(x)), 2))

def test_a_stride_in_a_function_is_traded_by_shifts():
    m,x = Functional().double(),image(64,77)
    native = m(x)
    close(set_output_stride(m,2)(x)[...,::8,::8], native)
    assert phases_in(m).keys()=={''}

@pytest.mark.parametrize('at_once', (1,3,100))
@pytest.mark.parametrize('make', (vit,Levels))
def test_in_turn_is_the_same(make, at_once):
    m,x = make().double().eval(),image()
    set_output_stride(m, 4)
    with torch.no_grad():
        y = m(x)
        with in_turn(m, at_once): z = m(x)
    for a,b in zip(*[tensors_of(o) if isinstance(o,dict) else o for o in (y,z)]): close(a, b)

def test_in_turn_one_phase_is_seen_at_a_time():
    "Without gradients; with them, and in training, all at once"
    m,x,sizes = set_output_stride(vit(),4),image(),[]
    m.model.blocks[0].register_forward_hook(lambda m,x,y: sizes.append(len(y)))
    with in_turn(m, 2):
        with torch.no_grad(): m(x)
        m(x)
        with torch.no_grad(): m.train()(x)
    with torch.no_grad(): m.eval()(x)
    assert sizes==[2]*8+[16]*3

def test_in_turn_refuses_what_it_cannot_do():
    for n in (0,-1,1.5,True):
        with pytest.raises(ValueError, match='1 or more'), in_turn(set_output_stride(vit(),8), n): pass
    with pytest.raises(ValueError, match='Nothing in this OneSize runs by phases'), in_turn(OneSize()): pass

# the most multiply-adds at 8, as times the native ones
families = dict(nest_tiny=2.83, pvt_v2_b0=4.51, coatnet_nano_rw_224=5.06, gcvit_xxtiny=4.60, swin_tiny_patch4_window7_224=5.,
    vit_tiny_patch16_224=4.01, hrnet_w18_small=16.01, xcit_nano_12_p16_224=4.01, convit_tiny=4.01, efficientformerv2_s0=6.93,
    levit_128s=64.01) # natively 64: of 7 positions, 4

@pytest.mark.slow
@pytest.mark.parametrize('name,most', families.items())
def test_timms_maps_are_exact(name, most):
    m,x = timm.create_model(name, features_only=True, out_indices=[-1]).eval(),torch.randn(1,3,224,224)
    work,step = multiply_adds(m, x),get_output_stride(m)//8
    randomize(m.double())
    with torch.no_grad():
        native, = m(x.double())
        finer, = set_output_stride(m,8)(x.double())
    dims = [i for i,(a,b) in enumerate(zip(native.shape,finer.shape)) if a!=b]
    for i in dims: finer = finer.index_select(i, torch.arange(0, finer.shape[i], step))
    close(finer, native)
    assert multiply_adds(m.float(), x)/work<most

@pytest.mark.slow
@pytest.mark.parametrize('name,T', [('vit_small_patch16_224',4), ('hrnet_w18_small',8)])
def test_in_turn_takes_the_memory_of_one_pass(name, T):
    "And that of the map that is made"
    from fastai_dilation.evaluate import peak_memory
    m,x = timm.create_model(name, features_only=True, out_indices=[-1]).eval(),torch.randn(1,3,224,224)
    with torch.no_grad():
        native = peak_memory(lambda: m(x))
        finer, = set_output_stride(m, T)(x)
        with in_turn(m): in_turns = peak_memory(lambda: m(x))
    made = finer.numel()*finer.element_size()
    assert in_turns < 1.3*native+made

def test_what_may_be_a_coarser_map_and_is_not_believed_is_no_reason_to_do_nothing():
    "The stride that is known is that of the patches; what is asked for may be finer than the answer, so silence would be wrong"
    class Mixed(nn.Module):
        "Patches, and a map of 7x7 of which each value reads all of them"
        def __init__(self):
            super().__init__()
            self.patches,self.mix = nn.Conv2d(3,5,4,4),nn.Linear(14*14,7*7)
        def forward(self, x): return self.mix(self.patches(x).flatten(2)).unflatten(2, (7,7))
    m = Mixed()
    x = torch.randn(1,3,56,56)
    with pytest.raises(CannotDilate, match='its stride is not known'): set_output_stride(m, 4, x)
    with pytest.raises(CannotDilate): set_output_stride(m, 2, x)

def test_strides_of_one_size_do_not_depend_on_the_random_numbers_of_the_day():
    "Nor is one of them drawn"
    m,found = timm.create_model('vit_tiny_patch16_224', features_only=True, out_indices=[0], depth=1),[]
    for seed in range(3):
        torch.manual_seed(seed)
        state = torch.get_rng_state()
        found.append(get_output_stride(m))
        assert state.equal(torch.get_rng_state())
    assert found==[16,16,16]
