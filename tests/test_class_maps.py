"What a classifier says of each position: its answer is the mean of the native ones, whatever the head is called"
from copy import deepcopy
from functools import partial
from types import SimpleNamespace
import pytest, timm, torch, torchvision.models as tvm
from fastai.vision.all import CrossEntropyLossFlat, Learner, create_body, nn
from fastai.vision.models import xresnet
from fastai_dilation.all import ClassMaps, class_maps, create_vision_model, get_output_stride, pool_over, set_output_stride, smoothed
from seg_data import class_dls, make_files
from timm.layers import SelectAdaptivePool2d
from util import alive, close, same, settled, slow_if, small, tensors

nets = dict(small=lambda: small(n_out=10), xse_resnet18=lambda: xresnet.xse_resnet18(n_out=10, widen=.25))
nets |= dict(xresnet_1d=lambda: small(n_out=10, ndim=1), resnet18=tvm.resnet18, googlenet=lambda: tvm.googlenet(init_weights=False))
nets |= {o:partial(timm.create_model,o) for o in ('test_resnet','test_efficientnet','efficientnet_lite0')}

@pytest.mark.parametrize('name', slow_if(nets, 'resnet18', 'googlenet', 'lite0'))
def test_mean_of_native_positions(name):
    "Their mean is the native answer, at each stride, and the network is left as it was"
    x = torch.randn(2,3,97) if '1d' in name else torch.randn(2,3,97,130)
    m = settled(alive(nets[name]()), torch.randn(4,*x.shape[1:])).double()
    ts,x = tensors(m),x.double()
    with torch.no_grad(): native = m(x)
    positions = 0
    for T in (32,16,8):
        maps = class_maps(m, x, T)
        assert maps[0,0].numel()>positions
        positions = maps[0,0].numel()
        close(maps[(...,*[slice(None,None,32//T)]*(x.ndim-2))].flatten(2).mean(2), native, 1e-9)
    assert same(m, ts) and get_output_stride(m)==32 and not m.training

def test_dilated_and_pooled_networks():
    "The maps are the same from a network that is dilated already, or whose pool reads the native grid"
    m,x = settled(alive(small(n_out=10)), torch.randn(4,3,64,64)),torch.randn(1,3,97,130)
    maps = class_maps(m, x, 8)
    for mode in ('grid','inside'): assert class_maps(pool_over(m,mode), x, 8).equal(maps)
    close(class_maps(set_output_stride(m,16), x, 8), maps)
    assert get_output_stride(m)==16

def test_any_head():
    "A head that is not linear is asked about one position at a time"
    m,x = alive(create_vision_model(tvm.resnet18, 10, pretrained=False)).double(),torch.randn(1,3,97,130).double()
    maps,features = class_maps(m, x, 16),set_output_stride(m[0],16)(x).detach()
    i,j = 3,5
    with torch.no_grad(): close(maps[...,i,j], m[1](features[...,i:i+1,j:j+1]), 1e-12)

class WithLogits(nn.Module):
    "Answers as transformers' classifiers do"
    def __init__(self, net):
        super().__init__()
        self.net = net
    def forward(self, x): return SimpleNamespace(loss=None, logits=self.net(x))

def test_an_answer_with_logits_is_one_of_a_classifier():
    net,x = alive(small(n_out=3)),torch.randn(2,3,64,96)
    assert class_maps(WithLogits(net), x, 8).equal(class_maps(net, x, 8))

def test_a_learner_is_asked_as_its_model_is(tmp_path):
    "A learner is asked as its model is, at 8 if nothing else is said"
    dls = class_dls(make_files(tmp_path))
    learn = Learner(dls, small(n_out=10), loss_func=CrossEntropyLossFlat())
    x = dls.one_batch()[0]
    maps = class_maps(learn, x)
    assert maps.shape[:2]==(len(x),10) and maps.equal(class_maps(learn.model, x, 8))

no_pool = 'no adaptive pool module in front'
vgg = pytest.param(tvm.vgg11_bn, r'reads \(7, 7\) positions at once \(`avgpool`\)', marks=pytest.mark.slow)
refused = [vgg, (tvm.mobilenet_v2,no_pool), (lambda: create_body(small()),no_pool)]
@pytest.mark.parametrize('net,why', refused, ids=['vgg11_bn','mobilenet_v2','body'])
def test_a_head_that_reads_more_than_one_position_is_refused(net, why):
    "A head that cannot be asked about one position is refused, and says why"
    m = net()
    ts = tensors(m)
    with pytest.raises(ValueError, match=why): class_maps(m, torch.randn(1,3,97,130), 8)
    assert same(m, ts) and get_output_stride(m)==32

def test_maps_that_are_planned_once_are_those_of_each_call():
    "Batch by batch, from a `DataLoader`, smoothed or not; and when the weights have changed"
    m,x = settled(alive(small(n_out=10)), torch.randn(4,3,64,64)),torch.randn(3,3,97,130)
    dl = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x,torch.zeros(3)), batch_size=2)
    for smooth in (False,True):
        ask = ClassMaps(m, 8, smooth)
        maps = ask(x)
        close(ask(dl), maps)
        assert class_maps(m, x, 8, smooth).equal(maps)
    close(smoothed(class_maps(m,x,8), 4), maps)
    with torch.no_grad(): m[-1].bias += 1
    close(ask(x), maps+1)

def test_a_pool_to_a_list_of_sides():
    "As `[1,1]`, which some write"
    net = nn.Sequential(nn.Conv2d(3,8,3,2,1), nn.Conv2d(8,8,3,2,1), nn.AdaptiveAvgPool2d([1,1]), nn.Flatten(), nn.Linear(8,4))
    assert class_maps(net, torch.randn(1,3,64,64), 1).shape==(1,4,64,64)

class ChannelsLast(nn.Module):
    "A classifier whose map has its channels last, and a pool that reads such a map, as timm's Swin has"
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3,8,3,2,1), nn.Conv2d(8,6,3,2,1))
        self.pool,self.head = SelectAdaptivePool2d(pool_type='fastavg',flatten=True,input_fmt='NHWC'),nn.Linear(6,4)
    def forward(self, x): return self.head(self.pool(self.body(x).movedim(1,-1)))

def test_a_pool_of_a_map_with_its_channels_last():
    "It reads the native positions, before a change and after one, and its head can be asked about each position"
    net,x = ChannelsLast().double().eval(),torch.randn(2,3,61,97).double()
    native,maps = net(x),class_maps(net, x, 1)
    close(maps[...,::4,::4].mean((2,3)), native, 1e-12)
    before,after = pool_over(deepcopy(net)),set_output_stride(deepcopy(net),1)
    close(set_output_stride(before,1)(x), native, 1e-12)
    close(pool_over(after)(x), native, 1e-12)
    assert repr(pool_over(set_output_stride(after,4),'all'))==repr(net)
