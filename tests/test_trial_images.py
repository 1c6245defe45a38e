"What a trial has to see: far edges, several positions, far taps, batches, second heads, objects, NaN that is swallowed"
from copy import deepcopy
from dataclasses import dataclass
from math import ceil
from types import SimpleNamespace
import pytest, torch, torchvision.models as tvm
from torch import nn
from torch.nn import functional as F
from torchvision.ops import roi_align
from fastai_dilation.all import CannotDilate, set_output_stride
from fastai_dilation.layers import phases_in
from fastai_dilation.search import _Edge, _Edges, _Place, _end, _side
from fastai_dilation.strides import follow
from fastai_dilation.trial import Natives
from util import close, said

class Function(nn.Module):
    "`f` in a module of its own, with a conv that it may use"
    def __init__(self, f):
        super().__init__()
        self.f,self.conv = f,nn.Conv2d(8,8,3,1,1)
    def forward(self, x, *args): return self.f(self, x, *args)

def convs(*strides): return [nn.Conv2d(3 if i==0 else 8, 8, 3, s, 1) for i,s in enumerate(strides)]

def coordinates(_, x):
    "From -1 to 1 over the map, as CoordConv has them"
    ys,xs = [torch.linspace(-1, 1, n, dtype=x.dtype, device=x.device) for n in x.shape[2:]]
    return x + ys[:,None] + 2*xs

def off_at(net, native, T, S, sizes):
    "The largest error on the native grid, over images of many sizes"
    errors = []
    for h,w in sizes:
        x = torch.randn(2, 3, h, w, dtype=torch.double)
        with torch.no_grad(): want,y = native(x),net(x)
        y = y[...,::S//T,::S//T]
        assert y.shape==want.shape
        errors.append(((y-want).abs().max()/want.abs().max()).item())
    return max(errors)

sizes = [(40+i,71-i) for i in range(9)]
def exact_or_told(make, T, S, sizes=sizes):
    "Is the net exact at all sizes, or warned of, or refused?"
    torch.manual_seed(0)
    net = make().double().eval()
    torch.manual_seed(0)
    native = make().double().eval()
    try: words = said(set_output_stride, net, T)
    except CannotDilate: return 'refused'
    if words: return 'warned'
    error = off_at(net, native, T, S, sizes)
    assert error<1e-9, error
    return 'exact'

def test_coordinates_behind_a_dilated_conv_that_pads_too_little():
    "Its map ends elsewhere, so that the last native position is the last one at half of all sizes"
    def make():
        shrinks = nn.Conv2d(8, 8, 3, 2, 1, dilation=2)
        return nn.Sequential(nn.Conv2d(3,8,3,2,1), shrinks, nn.ReLU(), Function(coordinates), nn.ReLU())
    assert exact_or_told(make, 2, 4)=='exact'

mixers = dict(gate=lambda m,x: x*x.mean((2,3),keepdim=True).sigmoid(), norm=lambda m,x: F.group_norm(x,2))
mixers['l2'] = lambda m,x: F.normalize(x, dim=(2,3))
@pytest.mark.parametrize('name', mixers)
def test_a_mixer_behind_layers_that_lose_positions(name):
    "The coarsest map of an AlexNet has one position, where that of a ResNet has three"
    def make(): return nn.Sequential(nn.Conv2d(3,8,11,4,2), nn.MaxPool2d(3,2), nn.Conv2d(8,8,5,1,2), nn.MaxPool2d(3,2), Function(mixers[name]))
    assert exact_or_told(make, 8, 16, [(127,160),(130,143)])=='exact'

far = {}
for d in (6,12,18):
    far[f'conv {d}'] = lambda m,x,d=d: F.conv2d(x, m.conv.weight, padding=d, dilation=d)
    far[f'unfold {d}'] = lambda m,x,d=d: F.unfold(x,3,padding=d,dilation=d).view(len(x),8,9,*x.shape[2:])[:,:,1:8:3].sum(2)
    far[f'shift down {d}'] = lambda m,x,d=d: x + F.pad(x,(0,0,d,0))[...,:x.shape[2],:]
    far[f'shift right {d}'] = lambda m,x,d=d: x + F.pad(x,(d,0,0,0))[...,:x.shape[3]]

@pytest.mark.parametrize('T', [16,8])
@pytest.mark.parametrize('name', far)
def test_what_reads_far_runs_by_phases(name, T):
    "As far as no map of a small image goes"
    def make(): return nn.Sequential(*convs(2,2,2,2,2), Function(far[name]))
    assert exact_or_told(make, T, 32, [(700,65),(65,700)])=='exact'

def test_one_weight_at_several_rates():
    "By functions, in the forward of a head"
    def head(m, x): return sum(F.conv2d(x, m.conv.weight, padding=d, dilation=d) for d in (6,12,18))
    assert exact_or_told(lambda: nn.Sequential(*convs(2,2,2,2,2), Function(head)), 16, 32, [(500,97)])=='exact'

class WithPositions(nn.Module):
    "Hands its blocks a map of positions that is the same for all images"
    def __init__(self):
        super().__init__()
        self.stem,self.block = nn.Sequential(*convs(2,2)),Function(lambda m,x,at: x*(x-at).mean((2,3),keepdim=True))
    def forward(self, x):
        x = self.stem(x)
        return self.block(x, torch.ones(1, 8, *x.shape[2:], dtype=x.dtype))

def test_a_map_that_is_the_same_for_all_images_of_a_batch():
    "Is split for each of them"
    assert exact_or_told(WithPositions, 1, 4)=='exact'

class Masked(nn.Module):
    "A mask beside the image, resized to the size of its map"
    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(*convs(2,2))
    def forward(self, x, mask):
        x = self.stem(x)
        return x*F.interpolate(mask.double(), x.shape[2:])

def test_a_mask_that_is_resized_to_the_map_is_seen():
    "A mask of yes and no is drawn with both; then the network runs by phases as a whole"
    x,mask = torch.randn(1,3,37,50).double(),torch.rand(1,1,37,50)>.5
    m = Masked().double()
    assert not said(set_output_stride, m, 1, (x,mask)) and phases_in(m).keys()=={''}
    native = deepcopy(m)
    set_output_stride(native, 4, (x,mask))
    torch.testing.assert_close(m(x,mask)[...,::4,::4], native(x,mask), rtol=1e-12, atol=1e-12)

@dataclass
class Answer:
    map: torch.Tensor

class AnswersInAnObject(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(*convs(2,2))
    def forward(self, x):
        x = self.stem(x)
        return Answer(x-x.mean((2,3), keepdim=True))

def test_what_leaves_a_network_in_an_object_is_compared():
    "A dataclass is looked into"
    assert len(said(set_output_stride, AnswersInAnObject(), 1))==1

class SecondHead(nn.Module):
    "Has a head that is called in training alone"
    def __init__(self):
        super().__init__()
        self.stem,self.last = nn.Sequential(*convs(2,2)),nn.Conv2d(8,8,3,2,1)
        self.aux = nn.Sequential(nn.Conv2d(8,8,3,1,1), Function(mixers['gate']), nn.Conv2d(8,4,3,2,1))
    def forward(self, x):
        x = self.stem(x)
        return (self.last(x),self.aux(x)) if self.training else self.last(x)

def test_a_head_that_is_called_in_training_alone_is_exact():
    "Its convs are dilated and its gate runs by phases, though it is never called otherwise"
    torch.manual_seed(0)
    net,x = SecondHead().double(),torch.randn(2,3,37,50).double()
    native = net.train()(x)
    assert said(set_output_stride, net, 1)==[] and net.training
    for y,want in zip(net(x), native, strict=True): close(y[...,::8,::8], want, 1e-12)
    close(net.eval()(x)[...,::8,::8], native[0], 1e-12)

swallows = dict(nanmean=lambda m,x: x-x.nanmean((2,3),keepdim=True), to_num=lambda m,x: x-x.nan_to_num().mean((2,3),keepdim=True))
swallows['where'] = lambda m,x: x-torch.where(x.isnan(), 0, x).mean((2,3), keepdim=True)
@pytest.mark.parametrize('name', swallows)
def test_what_leaves_out_nan_is_seen_with_numbers(name):
    assert exact_or_told(lambda: nn.Sequential(*convs(2,2), Function(swallows[name])), 1, 4)=='exact'

class Gain(nn.Module):
    "Adds the mean of its map, times a gain that begins with 0, in the `forward` of the whole network"
    def __init__(self, gain):
        super().__init__()
        self.stem = nn.Sequential(*convs(2,2))
        self.gain = nn.Parameter(torch.zeros(1)) if gain is None else gain
    def forward(self, x):
        x = self.stem(x)
        return x+self.gain*x.mean((2,3), keepdim=True)

def test_a_gain_of_0_hides_nothing():
    "It is trained, or loaded, later; a 0 that is no weight stays one, and NaN misleads there"
    net,x = Gain(None),torch.randn(1,3,37,50)
    native = deepcopy(net)
    assert said(set_output_stride, net, 1)==[] and net.gain.item()==0
    for m in (net,native): nn.init.constant_(m.gain, .7)
    close(net(x)[...,::4,::4], native(x))
    assert [*phases_in(net)]==[''] and not phases_in(set_output_stride(Gain(0.),1))

def test_what_weights_would_count_is_not_asked_of_a_network_that_fails_with_them():
    "Then it is tried with its own"
    class Fails(Gain):
        def forward(self, x):
            if self.gain!=0: raise ValueError('its gain has to be 0')
            return super().forward(x)
    assert said(set_output_stride, Fails(None), 1)==[]

@pytest.mark.slow
def test_a_fresh_segmenter_is_as_exact_with_weights_that_are_loaded_later():
    "What a MobileNetV3 makes of random weights is too small for its gates to move"
    from torchvision.models.segmentation.lraspp import LRASPP
    from torchvision.models._utils import IntermediateLayerGetter
    def make():
        body = tvm.mobilenet_v3_small(num_classes=2).features
        return LRASPP(IntermediateLayerGetter(body,{'3':'low','12':'high'}), 24, 576, 5).eval()
    early,trained = set_output_stride(make(),8),make()
    for p in trained.parameters(): nn.init.normal_(p, 0, .3)
    early.load_state_dict(trained.state_dict())
    x = torch.randn(1,3,96,128)
    late = set_output_stride(deepcopy(trained), 8)
    with torch.no_grad(): a,b = early(x)['out'],late(x)['out']
    close(a, b, 1e-6)
    assert (b-trained(x)['out']).abs().max()>.01*b.abs().max()

def nearest(m, x):
    "Samples the map in its middle, by nearest"
    theta = torch.tensor([[.7,.1,0],[0,.9,.1]], dtype=x.dtype).expand(len(x),2,3)
    return F.grid_sample(x, F.affine_grid(theta,x.shape,align_corners=False), mode='nearest', align_corners=False)

def test_sampling_by_nearest():
    "Of positions that are counted from one edge of the map to the other"
    assert exact_or_told(lambda: nn.Sequential(*convs(2,2), Function(nearest)), 1, 4)=='exact'

class Even(nn.Module):
    "Pads a map whose sides are odd, then shuffles its pixels into channels"
    def __init__(self):
        super().__init__()
        self.shuffle = nn.PixelUnshuffle(2)
    def forward(self, x): return self.shuffle(F.pad(x, (0,x.shape[3]%2,0,x.shape[2]%2)))

def test_a_module_that_pads_for_another_inside_of_it():
    "The inner one has even sides always, so by phases it is right on some images, and fails on others"
    def make(): return nn.Sequential(*convs(2,1), Even(), nn.Conv2d(32,8,1), nn.Conv2d(8,8,3,1,1))
    for T in (2,1): assert exact_or_told(make, T, 4)=='exact'

def test_taps_far_away_along_both_axes_at_once():
    "Also where the first images are too small for the network"
    def behind(m, x): return x+F.pad(x,(12,0,12,0))[...,:-12,:-12]
    def make():
        stem = nn.Conv2d(3,8,7,2,1),nn.MaxPool2d(3,2,ceil_mode=True)
        return nn.Sequential(*stem, Function(behind), nn.Conv2d(8,8,3), nn.Conv2d(8,8,5,1,2))
    for T in (2,1): assert exact_or_told(make, T, 4, [(60+i,81-i) for i in range(9)])=='exact'

def asked(S, T, *edges, later=()):
    "The pixels that further images have more, on one axis, for `edges` of maps; `later` images show these kinds"
    first = SimpleNamespace(sides=(100,), training=(), strides=SimpleNamespace(output=S, sides=None))
    o,later = _Edges(T, {}, first),iter(later)
    for i,(kinds_of,edge) in enumerate(edges):
        o.at_first[_Place(str(i),0,kinds_of)] = edge
        o.seen[_Place(str(i),0,kinds_of)] = kinds_of(edge.positions, edge.of)
    res = []
    while sides := o.more_sides():
        res.append(sides[0]-100)
        for place,kinds in zip(o.at_first, next(later,[])): o.seen[place] |= kinds
    return res

def test_an_image_is_made_for_each_kind_of_edge_that_was_not_seen():
    "Of 4 positions for a native one, 12 end behind, and are a multiple: one more is native, and uneven"
    assert asked(32, 8, (_end,_Edge(13,4,8)), later=[[{'behind'}]])==[16]
    assert asked(32, 8, (_end,_Edge(12,4,8)), later=[[{'native','uneven'}]])==[8]
    assert asked(32, 16, (_end,_Edge(5,2,16)), later=[[{'behind'}]])==[16]
    assert asked(32, 8, (_side,_Edge(11,2,8)), later=[[{'multiple'}]])==[8]

def test_a_kind_of_edge_that_never_comes_is_not_asked_for_often():
    "The last position once, sizes that are no multiple and sides twice, and a size that was tried never again"
    assert asked(32, 8, (_end,_Edge(13,4,8)))==[16]
    assert asked(32, 8, (_end,_Edge(12,4,8)))==[8,16]
    assert asked(32, 8, (_side,_Edge(11,2,8)))==[8,24]
    many = asked(16, 1, *[(_end,_Edge(o,16,1)) for o in (32,33,35)], *[(_side,_Edge(o,2,4)) for o in (7,8)])
    assert len(many)==len({*many})==4

def test_taps_far_away_behind_a_conv_that_loses_positions():
    "The large image has as many positions as they reach"
    def behind(m, x): return x+F.pad(x,(18,0,18,0))[...,:-18,:-18]
    def make(): return nn.Sequential(nn.Conv2d(3,8,11,4,2), Function(behind))
    for T in (2,1): assert exact_or_told(make, T, 4, [(90,110),(113,95)])=='exact'

class TimesImage(nn.Module):
    "Multiplies what `layers` make with the image, resized"
    def __init__(self, *layers):
        super().__init__()
        self.body = nn.Sequential(*layers)
    def forward(self, x):
        y = self.body(x)
        return y*F.interpolate(x[:,:1], y.shape[2:])

def test_an_answer_that_is_multiplied_with_a_resized_image():
    "Behind a pool that runs by phases and drops what is left, the map may end where no simple one does"
    def make():
        pools = nn.LPPool2d(2,2,2),nn.AvgPool2d(3,2,1,count_include_pad=False)
        return TimesImage(nn.Conv2d(3,8,3,2), nn.Conv2d(8,8,3,2,1), *pools)
    assert exact_or_told(make, 2, 16)=='exact' # as a whole

def test_a_resize_that_is_right_where_the_finer_map_is_a_multiple():
    "Behind padding that runs by phases most maps are, and `nearest` finds the native pixels by chance"
    def make():
        convs = nn.Conv2d(3,8,3,2,1),nn.Conv2d(8,8,3,2,1),nn.Conv2d(8,8,2,2),nn.BatchNorm2d(8)
        return TimesImage(*convs, nn.Sequential(nn.ZeroPad2d(1), nn.Conv2d(8,8,3,2)))
    assert exact_or_told(make, 1, 16, [(41,40),(47,38)])=='exact' # as a whole

class SameConv(nn.Conv2d):
    "Pads as TensorFlow does: by the size of the map"
    def forward(self, x):
        def padding(n, ks, s, d):
            p = max((ceil(n/s)-1)*s+(ks-1)*d+1-n, 0)
            return p//2,p-p//2
        (top,bottom),(left,right) = map(padding, x.shape[2:], self.kernel_size, self.stride, self.dilation)
        return self._conv_forward(F.pad(x,(left,right,top,bottom)), self.weight, self.bias)

def test_a_conv_that_pads_by_the_size_is_seen_with_even_and_odd_sides():
    "Also where many other edges ask for images"
    def make():
        stem = nn.Conv2d(3,8,3,2),nn.MaxPool2d(3,2),SameConv(8,8,5,2)
        return nn.Sequential(*stem, nn.AvgPool2d(2), nn.Conv2d(8,8,2,2,1), nn.CircularPad2d(1), nn.Conv2d(8,8,3))
    assert exact_or_told(make, 1, 32, [(62,67),(65,60)])=='exact'

def test_hooks_that_were_not_tried_are_named():
    "A hook may change what a module makes, and no trial calls it"
    net = nn.Sequential(*convs(2,2,1))
    net[1].register_forward_hook(lambda m,x,y: y-y.mean((2,3),keepdim=True))
    words, = said(set_output_stride, net, 1)
    assert '`1`' in words and 'hook' in words

class HasHead(nn.Module):
    "In training there is a head more"
    def __init__(self):
        super().__init__()
        self.body,self.head = nn.Sequential(*convs(2,2)),nn.Conv2d(8,8,3,1,1)
    def forward(self, x):
        x = self.body(x)
        return (x,self.head(x)) if self.training else x

def test_hooks_of_a_head_in_training_are_named():
    "It is not called in evaluation, and so a trial of that knows nothing of it"
    net = HasHead()
    net.head.register_forward_hook(lambda m,x,y: y-y.mean((2,3),keepdim=True))
    words, = said(set_output_stride, net, 1)
    assert '`head` has a hook' in words

class HasHeadAndImage(HasHead):
    "The image beside its map, resized: so all of it runs by phases"
    def forward(self, x):
        y = self.body(x)
        y = y*F.interpolate(x[:,:1], y.shape[2:])
        return (y,self.head(y)) if self.training else y

def test_hooks_of_a_head_are_named_where_the_whole_runs_by_phases():
    "There the hook sees the phases as images"
    net = HasHeadAndImage()
    net.head.register_forward_hook(lambda m,x,y: y-y.mean((0,2,3),keepdim=True))
    words, = said(set_output_stride, net, 1)
    assert phases_in(net).keys()=={''} and '`head` has a hook' in words

class PoolsInEvaluation(HasHead):
    "A detector in short: a map in training, and values of a box in evaluation"
    def forward(self, x):
        x = self.body(x)
        if self.training: return self.head(x)
        box = torch.tensor([[0.,0.,0.,31.,31.]], dtype=x.dtype)
        return x,roi_align(x, box, 3, spatial_scale=1/4)

def test_what_is_compared_in_training_need_not_be_in_evaluation():
    "There is a map of the same module, but it is another one"
    words = said(set_output_stride, PoolsInEvaluation(), 1)
    assert any('roi_align' in o for o in words)

class Collects(nn.Module):
    "Hooks its layers when it is called first, and returns what they make, as transformers' networks do"
    def __init__(self):
        super().__init__()
        self.layers,self.is_hooked,self.kept = nn.Sequential(*convs(2,2,2)),False,[]
    def keep(self, y): self.kept.append(y)
    def forward(self, x):
        def hook(m, args, y): self.keep(y)
        hook.__module__ = 'transformers.utils.output_capturing'
        if not self.is_hooked:
            for o in self.layers: o.register_forward_hook(hook)
            self.is_hooked = True
        self.kept.clear()
        self.layers(x)
        return self.kept[-2:]

@pytest.mark.parametrize('was_called', [False,True])
def test_hooks_that_a_network_needs_are_tried_with_it(was_called):
    "They stay, they are not there twice, and nobody is warned of them"
    net,x = Collects().double(),torch.randn(1,3,65,81).double()
    native = deepcopy(net)(x)
    if was_called: net(x)
    n_hooks = [len(o._forward_hooks) for o in net.layers]
    assert said(set_output_stride, net, 2)==[]
    assert [len(o._forward_hooks) for o in net.layers]==n_hooks
    for finer,step,want in zip(net(x), (2,4), native, strict=True): close(finer[...,::step,::step], want, 1e-12)

@pytest.mark.slow
@pytest.mark.parametrize('name', ['inception_v3','googlenet'])
def test_aux_heads_of_torchvision_are_told(name):
    "They make no map, and read another one in training"
    net = getattr(tvm,name)(weights=None, init_weights=False)
    assert len(said(set_output_stride, net, 8))==1

class Correlates(nn.Module):
    "Looks for one image in another, with one body for both"
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(*convs(2,2))
    def forward(self, z, x): return F.conv2d(self.body(x), self.body(z))

def test_an_answer_that_does_not_grow_with_images_of_several_sizes_is_refused():
    "Nothing could be compared; the body by itself is exact"
    net,xs = Correlates(),(torch.randn(1,3,31,31),torch.randn(1,3,63,63))
    with pytest.raises(CannotDilate, match='does not grow with them.*Change the network inside'): set_output_stride(net, 2, xs)
    assert said(set_output_stride, net.body, 2)==[]

def test_images_of_several_sizes_grow_by_as_many_pixels():
    "A style of one position stays one, and two crops keep their own sizes"
    class Styled(Correlates):
        def forward(self, x, style): return self.body(x)*style
    class Crops(Correlates):
        def forward(self, a, b): return self.body(a),self.body(b)
    for net,other in ((Styled(),(1,8,1,1)), (Crops(),(1,3,31,31))):
        assert said(set_output_stride, net, 2, (torch.randn(1,3,63,63),torch.randn(other)))==[]

def test_sides_are_those_of_the_first_image():
    "Not of a vector that stands in front of it"
    class WithVector(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv,self.lin = nn.Conv2d(3,8,3,2,1),nn.Linear(5,8)
        def forward(self, v, x): return self.conv(x)+self.lin(v)[...,None,None]
    net,xs = WithVector(),(torch.randn(1,5),torch.randn(1,3,40,64))
    assert tuple(Natives(net, follow(net,xs), xs).sides)==(40,64)

def test_what_is_lost_in_training_alone_is_warned_of():
    "An auxiliary head that resizes a map; in evaluation it is not called at all"
    class Aux(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(8,8,3,1,1)
        def forward(self, a, b): return self.conv(a+F.interpolate(b, a.shape[2:]))
    class WithAux(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem,self.mid,self.last = [nn.Conv2d(ni,8,3,2,1) for ni in (3,8,8)]
            self.aux = Aux()
        def forward(self, x):
            a = self.stem(x)
            b = self.mid(a)
            return (self.last(b),self.aux(a,b)) if self.training else self.last(b)
    assert '`aux` (Aux)' in said(set_output_stride, WithAux(), 2)[0]

def test_a_network_without_values_is_warned_of_as_one_with_them():
    "On the meta device, where numbers have to be tried as well"
    with torch.device('meta'): net = Gain(0.)
    assert said(set_output_stride, net, 1)==[]
    with torch.device('meta'): net = AnswersInAnObject()
    assert len(said(set_output_stride, net, 1))==1

class Ending(nn.Module):
    "Can run by phases as a whole alone; in training a head reads the map of module `at`, too"
    def __init__(self, at):
        super().__init__()
        self.at,self.head = at,nn.Conv2d(8,2,1)
        self.a,self.b = nn.Conv2d(3,8,3,2,1),nn.Conv2d(8,8,3,2,1)
    def forward(self, x):
        maps = dict(a=self.a(x))
        maps['b'] = self.b(maps['a'])
        y = maps['b']-maps['b'].mean((2,3),keepdim=True)
        return (y,self.head(maps[self.at])) if self.training else y

@pytest.mark.parametrize('at,words', [('a',['in training it calls `head` too']), ('b',[])])
def test_a_head_in_training_is_tried_where_the_whole_runs_by_phases(at, words):
    "Its map may be of another stride than the answer, and phases merge all alike"
    net = Ending(at).double()
    x = torch.randn(2,3,21,30).double()
    with torch.no_grad(): native,of_head = net.eval()(x),net.train()(x)[1]
    found = said(set_output_stride, net, 1)
    assert len(found)==len(words) and all(w in f for w,f in zip(words,found))
    with torch.no_grad():
        close(net.eval()(x)[...,::4,::4], native, 1e-12)
        if not words: close(net.train()(x)[1][...,::4,::4], of_head, 1e-12)
