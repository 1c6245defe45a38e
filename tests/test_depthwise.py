"A dilated depthwise conv runs by phases where that is faster, and nobody can tell by what it makes"
import copy, os, pickle
import pytest, torch, torchvision.models as tvm
from hypothesis import given, settings, strategies as st
from torch import nn
from torch.overrides import TorchFunctionMode
from fastai_dilation import phases
from fastai_dilation.all import set_output_stride
from fastai_dilation.layers import restore
from fastai_dilation.phases import DepthwiseConv, is_plain_depthwise, let_run_by_phases
from util import alive, close

drawn = settings(max_examples=int(os.environ.get('MAX_EXAMPLES',60)), deadline=None)

formats = torch.contiguous_format,torch.channels_last

class Dilations(TorchFunctionMode):
    "Notes the dilation of each conv that is called"
    def __init__(self):
        super().__init__()
        self.seen = []
    def __torch_function__(self, f, types, args=(), kwargs=None):
        if f is torch.conv2d: self.seen.append(args[5][0])
        return f(*args, **(kwargs or {}))

def depthwise(ks=3, spacing=2, channels=4, each=1, native=1, **kwargs):
    "A depthwise conv whose taps are `spacing` times as far apart as natively"
    pad = [spacing*native*(o//2) for o in (ks if isinstance(ks,tuple) else (ks,ks))]
    return nn.Conv2d(channels, channels*each, ks, padding=pad, dilation=spacing*native, groups=channels, **kwargs).double()

def map_and_grads(m, x):
    "What `m` makes of `x`, and the gradients of its input and its parameters"
    x = x.clone().requires_grad_()
    y = m(x)
    return [y.detach(), *torch.autograd.grad((y*y.detach().cos()).sum(), [x,*m.parameters()])]

def always(faster): return lambda conv,x,weight: faster

@st.composite
def convs(draw):
    "A depthwise conv, its spacing, and a map"
    ks,spacing = (draw(st.sampled_from([1,3,5,7])),draw(st.sampled_from([3,5]))),draw(st.integers(2,9))
    conv = depthwise(ks, spacing, draw(st.integers(2,4)), draw(st.integers(1,2)), draw(st.integers(1,2)), bias=draw(st.booleans()))
    x = torch.randn(draw(st.integers(1,2)), conv.in_channels, draw(st.integers(1,23)), draw(st.integers(1,23))).double()
    return conv,spacing,x.to(memory_format=draw(st.sampled_from(formats)))

@drawn
@given(convs())
def test_a_depthwise_conv_makes_the_same_map_and_gradients_either_way(case):
    conv,spacing,x = case
    dilated = map_and_grads(conv, x)
    let_run_by_phases(conv, spacing)
    with Dilations() as calls: by_phases = map_and_grads(conv, x)
    assert calls.seen==[conv.dilation[0]//spacing]
    for a,b in zip(dilated, by_phases): close(a, b, 1e-12)
    for fmt in formats: assert by_phases[0].is_contiguous(memory_format=fmt)==dilated[0].is_contiguous(memory_format=fmt)

@pytest.mark.parametrize('ks,spacing,trained,dilation', [(3,2,True,1), (3,2,False,2), (7,2,False,2), (5,4,False,1), (7,4,False,1), (3,8,True,1)])
def test_on_a_cpu_it_runs_by_phases_where_it_is_trained_or_reaches_far(ks, spacing, trained, dilation):
    conv = depthwise(ks, spacing)
    let_run_by_phases(conv, spacing)
    with torch.set_grad_enabled(trained), Dilations() as calls: conv(torch.randn(1,4,32,32).double())
    assert calls.seen==[dilation]

def test_a_kept_body_that_needs_no_gradient_is_only_asked():
    conv = depthwise().requires_grad_(False)
    let_run_by_phases(conv, 2)
    with Dilations() as calls: conv(torch.randn(1,4,32,32).double())
    assert calls.seen==[2]

def test_a_conv_that_is_strided_grouped_or_shrinks_its_map_is_let_be():
    plain = dict(padding=1, groups=4)
    for kw in (dict(padding=1), dict(padding=1,groups=2), dict(plain,stride=2), dict(groups=4), dict(plain,padding_mode='reflect')):
        assert not is_plain_depthwise(nn.Conv2d(4, 4, 3, **kw))
    assert is_plain_depthwise(nn.Conv2d(4, 4, 3, **plain)) and is_plain_depthwise(nn.Conv2d(4, 4, 3, padding='same', groups=4))

@pytest.fixture(scope='module')
def net(): return set_output_stride(alive(tvm.mobilenet_v2(width_mult=.35)).double(), 8)

def convs_of(net): return [m for m in net.modules() if isinstance(m,DepthwiseConv)]

def test_a_network_is_trained_with_the_same_gradients_either_way(net, monkeypatch):
    body,x,grads = copy.deepcopy(net.features).train(),torch.randn(2,3,65,97).double(),[]
    assert len(convs_of(body))==10 # all behind the first stride that is traded
    for faster in (True,False):
        monkeypatch.setattr(phases, '_phases_are_faster', always(faster))
        grads.append(map_and_grads(body, x))
    for a,b in zip(*grads): close(a, b, 1e-8)

def test_its_native_network_comes_back_with_its_own_classes(net):
    native = set_output_stride(copy.deepcopy(net), 32)
    assert not convs_of(native) and repr(native)==repr(tvm.mobilenet_v2(width_mult=.35))

@pytest.mark.parametrize('again', [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=['copied','pickled'])
def test_a_copy_runs_by_phases_too_and_can_be_undone(again):
    conv,x = depthwise(),torch.randn(1,4,9,9).double()
    let_run_by_phases(conv, 2)
    copied = again(conv)
    with Dilations() as calls: y = copied(x)
    assert calls.seen==[1] and torch.equal(y, conv(x))
    restore(copied)
    assert type(copied) is nn.Conv2d

def test_it_compiles_in_one_graph_for_training_and_for_asking():
    conv,x = depthwise(),torch.randn(2,4,11,14).double()
    dilated = map_and_grads(conv, x)
    let_run_by_phases(conv, 2)
    compiled = torch.compile(conv, fullgraph=True, backend='aot_eager')
    for a,b in zip(dilated, map_and_grads(compiled, x)): close(a, b, 1e-12)
    with torch.no_grad(): close(compiled(x), conv(x), 1e-12)

def test_an_exported_graph_has_the_dilated_conv():
    conv = depthwise(5, 4)
    let_run_by_phases(conv, 4)
    graph = torch.export.export(conv, (torch.randn(1,4,32,32).double(),)).graph_module.code
    assert '[4, 4]' in graph.split('conv2d',1)[1]

def test_an_image_without_a_batch():
    "Also where a gradient comes back, and a depthwise conv would run by phases"
    net = nn.Sequential(nn.Conv2d(3,8,3,2,1), nn.Conv2d(8,8,3,2,1), nn.Conv2d(8,8,3,1,1,groups=8))
    x = torch.randn(3,37,50)
    native = net(x)
    close(set_output_stride(net,1)(x)[...,::4,::4], native)

def test_a_trace_passes_its_own_check_where_a_gradient_comes_back():
    "It is for any device, as an export is, so it does not choose what is faster here"
    net = nn.Sequential(nn.Conv2d(3,8,3,2,1), nn.Conv2d(8,8,3,2,1), nn.Conv2d(8,8,3,1,1,groups=8))
    m,x = set_output_stride(net,1),torch.randn(1,3,37,50)
    close(torch.jit.trace(m,x)(x), m(x))
