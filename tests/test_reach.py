"How far a value sees, and a large image tile by tile: the map is that of one pass, for any network, stride and size"
import math
import pytest, timm, torch, torchvision.models as tvm
from hypothesis import given, settings, strategies as st
from torch import nn
from fastai.vision.all import create_body
from fastai_dilation import by_tiles, get_output_stride, receptive_field, set_output_stride
from fastai_dilation.deeplab import create_deeplab_model
from util import alive, close, same, slow_if, small, tensors

def convs(ks, strides): return nn.Sequential(*[nn.Conv2d(1 if i==0 else 2, 2, k, s, k//2) for i,(k,s) in enumerate(zip(ks,strides))])

convs_in_a_row = st.lists(st.tuples(st.sampled_from((1,3,5,7)), st.sampled_from((1,1,2))), min_size=1, max_size=5)

@settings(max_examples=15, deadline=None)
@given(convs_in_a_row)
def test_convs_see_as_far_as_their_sizes_say(layers):
    "Half a kernel each, times the strides in front; rounded up to the last stride"
    ks,strides = zip(*layers)
    far,S = 0,1
    for k,s in layers: far,S = far+k//2*S,S*s
    assert receptive_field(convs(ks,strides))[S]==math.ceil(far/S)*S

def test_each_axis_sees_for_itself():
    "Strides and kernels that differ by axis"
    net = nn.Sequential(nn.Conv2d(3,4,(3,7),(1,2),(1,3)), nn.Conv2d(4,4,3,1,1))
    assert receptive_field(net)=={(1,2):(2,6)}

def test_a_whole_image_is_seen_by_squeeze_and_excitation():
    "No distance is far enough, from the first block on; and tiles are refused unless the margin is given"
    net = nn.Sequential(nn.Conv2d(3,8,3,2,1), timm.layers.SEModule(8), nn.Conv2d(8,8,3,2,1))
    ts = tensors(net)
    assert receptive_field(net)=={2:math.inf, 4:math.inf}
    with pytest.raises(ValueError, match='depends on all of the image'): by_tiles(net, torch.randn(1,3,64,64), 32)
    assert by_tiles(net, torch.randn(1,3,64,64), 32, margin=8).shape==(1,8,16,16) and same(net, ts)

bodies = dict(xresnet=(lambda: create_body(small()), 32), resnet=(lambda: timm.create_model('test_resnet',features_only=True,out_indices=[-1]),32),
    convnext=(lambda: timm.create_model('test_convnext',features_only=True,out_indices=[-1]), 32))

def test_levels_that_come_as_a_list_are_told_apart():
    "A network that returns all its levels sees as far at each as the one that is inside of it"
    net = timm.create_model('test_resnet', features_only=True)
    inside = receptive_field(timm.create_model('test_resnet'))
    assert receptive_field(net)==inside and len({*inside.values()})>3

class ChannelsLast(nn.Module):
    "A conv's map with its channels last"
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3,4,3,2,1)
    def forward(self, x): return self.conv(x).permute(0,2,3,1)

def test_a_map_with_its_channels_last_is_measured_and_has_no_tiles():
    "Its sides are where the network has them"
    assert receptive_field(ChannelsLast())=={2:2}
    with pytest.raises(ValueError, match='channels last'): by_tiles(ChannelsLast(), torch.randn(1,3,64,64), 32)

def test_only_a_corner_of_the_image_is_looked_at_before():
    "So a large image is never in one pass"
    net = create_body(small()).eval()
    sizes = []
    net[0].register_forward_hook(lambda m,args,y: sizes.append(args[0].shape[-1]))
    by_tiles(net, torch.randn(1,3,32,2048), 64, margin=32)
    assert max(sizes)==128

class Only(nn.Module):
    "The one map of a network that makes a list"
    def __init__(self, net):
        super().__init__()
        self.net = net
    def forward(self, x):
        y = self.net(x)
        return y[0] if isinstance(y,list) else y

@pytest.mark.parametrize('T', [8, pytest.param(32,marks=pytest.mark.slow)])
@pytest.mark.parametrize('name', slow_if(bodies,'convnext'))
def test_tiles_make_the_map_of_one_pass(name, T):
    "For odd sides, a tile of another size than the stride, and at two strides"
    make,S = bodies[name]
    net = set_output_stride(Only(alive(make())).double(), min(T,S))
    x = torch.randn(1,3,225,98).double()
    with torch.no_grad(): whole = net(x)
    close(by_tiles(net, x, (96,70)), whole, 1e-12)
    assert get_output_stride(net)==min(T,S)

def test_a_margin_that_is_too_small_is_seen():
    "So the test above can fail"
    net,x = alive(create_body(small())).double(),torch.randn(1,3,192,128).double()
    with torch.no_grad(): whole = net(x)
    with pytest.raises(AssertionError): close(by_tiles(net, x, 32, margin=32), whole, 1e-9)

def test_a_segmenter_answers_for_each_pixel_by_tiles():
    "An answer that is resized to the image, where its sides are multiples of the native stride"
    net = alive(create_deeplab_model(small, 5, pretrained=False, output_stride=16, rates=())).double()
    x = torch.randn(1,3,224,160).double()
    with torch.no_grad(): whole = net(x)
    close(by_tiles(net, x, 64), whole, 1e-12)
    with pytest.raises(ValueError, match='multiples of 32'): by_tiles(net, x[...,:150], 64)

def test_in_training_mode_it_is_evaluated_and_put_back():
    "Norms keep their statistics, and the mode stays"
    net = create_body(small()).train()
    ts = tensors(net)
    by_tiles(net, torch.randn(1,3,64,64), 32, margin=32)
    receptive_field(net)
    assert same(net, ts) and all(o.training for o in net.modules())

refused = [(lambda: small(), 'makes no map'), (lambda: timm.create_model('test_resnet',features_only=True), 'makes 5 maps')]
@pytest.mark.parametrize('make,why', refused, ids=['classifier','levels'])
def test_what_makes_no_single_map_is_refused(make, why):
    "With what would do"
    with pytest.raises(ValueError, match=why): by_tiles(make(), torch.randn(1,3,96,96), 32)

@pytest.mark.slow
def test_a_known_network_sees_as_far_as_is_known():
    "densenet121's field is 2,071 pixels, a little more than a thousand on each side"
    far = receptive_field(tvm.densenet121())
    assert 1000<=far[32]<1060 and [*far]==[2,4,8,16,32]

def test_what_is_no_image_is_not_touched():
    "A vector beside it has no pixels"
    class WithVector(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv,self.lin = nn.Conv2d(3,8,3,2,1),nn.Linear(8,8)
        def forward(self, x, v): return self.conv(x)+self.lin(v)[...,None,None]
    assert receptive_field(WithVector(), x=(torch.randn(1,3,64,64),torch.randn(1,8)))=={2:2}

def test_tiles_without_a_margin():
    "Each is an image of its own, and what it makes beyond its end is the next one's"
    conv,x = nn.Conv2d(3,4,2,2,1),torch.randn(1,3,128,128)
    assert by_tiles(conv, x, tile=64, margin=0).shape==conv(x).shape

class AsDict(nn.Sequential):
    "As torchvision's segmenters answer"
    def forward(self, x): return dict(size=torch.tensor(x.shape), out=super().forward(x))

def test_a_map_in_a_dict_comes_by_tiles_too():
    net,x = AsDict(nn.Conv2d(3,8,3,2,1),nn.Conv2d(8,4,3,2,1)).double(),torch.randn(1,3,131,97).double()
    close(by_tiles(net, x, tile=64), net(x)['out'], 1e-12)
