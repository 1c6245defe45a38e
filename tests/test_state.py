"What a network shares, keeps or hides: modules called at several places, state in containers, weights that are still 0"
import warnings
from collections import deque
from dataclasses import dataclass
from types import SimpleNamespace
import pytest, torch
from torch import nn
from torch.nn import functional as F
from torch.fx.immutable_collections import immutable_list
from torchvision.models.feature_extraction import create_feature_extractor
from fastai_dilation.all import CannotDilate, InexactWarning, get_output_stride, pool_over, set_output_stride
from fastai_dilation.strides import Snapshot, _held
from util import close, said

def body(): return [nn.Conv2d(3 if i==0 else 8, 8, 3, 2, 1) for i in range(3)]
def image(*sides, n=2): return torch.randn(n, 3, *sides).double()

class Call(nn.Module):
    "`f(self, x)`, with a conv that it may use, and `attrs`"
    def __init__(self, f, **attrs):
        super().__init__()
        self.conv,self.f = nn.Conv2d(8,8,1),f
        for k,v in attrs.items(): setattr(self, k, v)
    def forward(self, x): return self.f(self, x)

def gated(m, x): return x*m.conv(m.pool(x)).sigmoid()
def gate(): return Call(gated, pool=nn.AdaptiveAvgPool2d(1))

def is_exact(net, T, S=8, *, sides=((37,50),(64,48)), told=()):
    "Is `net` exact at `T`, and as it was at its native stride `S`?"
    net,xs = net.double().eval(),[image(*o) for o in sides]
    with torch.no_grad():
        natives = [net(x) for x in xs]
        assert said(set_output_stride, net, T)==[*told] and get_output_stride(net)==T
        for x,y in zip(xs,natives): close(net(x)[...,::S//T,::S//T], y, 1e-12)
        set_output_stride(net, S)
        for x,y in zip(xs,natives): assert net(x).equal(y)

def test_an_activation_may_be_shared_with_blocks_that_run_by_phases():
    "There it sees phases, which are as coarse as the native map: that is not the network's stride"
    act = nn.ReLU()
    def block(): return Call(lambda m,x: m.act(x*m.conv(x.mean((2,3),keepdim=True)).sigmoid()), act=act)
    a,b,c = body()
    is_exact(nn.Sequential(a, act, b, block(), c, block(), act), 2)

def test_a_pool_may_be_shared_by_gates():
    pool = nn.AdaptiveAvgPool2d(1)
    a,b,c = body()
    is_exact(nn.Sequential(a, Call(gated,pool=pool), b, Call(gated,pool=pool), c, Call(gated,pool=pool)), 2)

def test_a_module_is_called_in_phases_and_then_outside():
    "The second call is compared with what was noted of the second one"
    act = Call(lambda m,x: m.conv(x).relu())
    def inner(m, x): return x-act(x).mean((2,3),keepdim=True)
    is_exact(nn.Sequential(*body(), Call(inner,act=act), act, nn.Conv2d(8,8,3,1,1)), 1)

def test_what_was_changed_in_part_goes_back():
    net = nn.Sequential(nn.Sequential(*body()), nn.Conv2d(8,8,3,1,1), gate()).double().eval()
    x = image(37,50)
    with torch.no_grad():
        native = net(x)
        set_output_stride(net, 2)
        set_output_stride(net[0], 8)
        assert set_output_stride(net,8)(x).equal(native)

def test_a_gate_that_is_added_to_a_changed_net_runs_by_phases():
    net,more,x = nn.Sequential(*body()).double().eval(),gate().double(),image(37,50)
    with torch.no_grad():
        native = more(net(x))
        set_output_stride(net, 2).append(more)
        assert said(set_output_stride, net, 2)==[]
        close(net(x)[...,::4,::4], native, 1e-12)

def resized_table(m, x): return m.conv(x+F.interpolate(m.table, x.shape[2:], mode='bilinear'))
def rows(m, x): return m.conv(x+m.table[:,:,:x.shape[2],:1])
def scaled(m, x): return x+m.table[:,:,:1,:1]*torch.linspace(-1, 1, x.shape[3], dtype=x.dtype, device=x.device)
@pytest.mark.parametrize('f', [resized_table,rows,scaled])
def test_weights_may_be_loaded_after_the_change(f):
    "As long as they are 0 they hide that a table is of another size then"
    net = nn.Sequential(*body(), Call(f,table=nn.Parameter(torch.zeros(1,8,40,40)))).double().eval()
    is_exact_when_loaded(net, net[3].table)

def is_exact_when_loaded(net, p):
    "Is `net` exact at 2 also if the weights `p` come when it was changed? 40 and 48 pixels are no multiples of 16, and no more by 1"
    xs,fresh,trained = [image(37,50),image(40,48)],p.detach().clone(),torch.randn(p.shape).double()
    with torch.no_grad():
        p.copy_(trained)
        natives = [net(x) for x in xs]
        p.copy_(fresh)
        assert said(set_output_stride, net, 2)==[] and p.equal(fresh)
        p.copy_(trained)
        for x,y in zip(xs,natives): close(net(x)[...,::4,::4], y, 1e-12)

def across(x): return torch.linspace(-1, 1, x.shape[3]).to(x).expand(len(x), 1, *x.shape[2:])

@pytest.mark.parametrize('norm', [nn.BatchNorm2d(8), nn.GroupNorm(2,8)])
def test_the_last_norm_of_a_block_may_begin_with_0(norm):
    "As timm's and fastai's do: behind it nothing of what the block makes of positions is seen"
    nn.init.zeros_(norm.weight)
    net = nn.Sequential(*body(), Call(lambda m,x: x+m.norm(m.conv(x+across(x))), norm=norm)).double().eval()
    is_exact_when_loaded(net, norm.weight)

def test_a_table_may_be_called_bias():
    def f(m, x): return m.conv(x+F.interpolate(m.bias, x.shape[2:], mode='bilinear'))
    net = nn.Sequential(*body(), Call(f,bias=nn.Parameter(torch.zeros(1,8,40,40)))).double().eval()
    is_exact_when_loaded(net, net[3].bias)

def test_a_channel_of_positions_may_begin_with_0():
    "It was added to a conv that has its weights"
    wide = nn.Conv2d(9, 8, 3, 1, 1)
    nn.init.zeros_(wide.weight[:,8:].data)
    net = nn.Sequential(*body(), Call(lambda m,x: m.wide(torch.cat([x,across(x)],1)), wide=wide)).double().eval()
    is_exact_when_loaded(net, wide.weight)

def test_weights_without_statistics_are_left_alone():
    "Of 8 bits, sparse, or not made yet"
    net = nn.Sequential(*body(), Call(lambda m,x: m.conv(x), later=nn.LazyLinear(3)))
    net[3].small = nn.Parameter(torch.zeros(3,3).to(torch.float8_e4m3fn), requires_grad=False)
    net[3].sparse = nn.Parameter(torch.eye(3).to_sparse())
    assert said(set_output_stride, net, 2)==[] and get_output_stride(net)==2

class Levels(nn.Module):
    "One pool reads all levels"
    def __init__(self):
        super().__init__()
        (self.a,self.b,self.c),self.gap,self.fc = body(),nn.AdaptiveAvgPool2d(1),nn.Linear(24,5)
    def forward(self, x):
        a = self.a(x).relu()
        b = self.b(a).relu()
        return self.fc(torch.cat([self.gap(o).flatten(1) for o in (a,b,self.c(b).relu())],1))

def test_a_pool_of_several_levels_cannot_read_the_native_grid():
    net,x = Levels().double().eval(),image(37,50)
    with pytest.raises(ValueError, match='`gap` pools maps of several strides.*a pool of its own'): pool_over(set_output_stride(net,2))
    assert type(net.gap) is nn.AdaptiveAvgPool2d
    with torch.no_grad(): native = set_output_stride(net,8)(x)
    with pytest.raises(CannotDilate, match='`gap`.*one `spacing`, and reads maps of several'): set_output_stride(pool_over(net), 2)
    with torch.no_grad(): assert net(x).equal(native)

def test_a_spacing_that_means_something_else_is_left_alone():
    "As that of voxels; it runs by phases"
    net = nn.Sequential(*body(), Call(lambda m,x: m.conv(x-x.mean((2,3),keepdim=True))/m.spacing, spacing=1))
    is_exact(net, 2)
    assert net[3].spacing==1

def test_what_does_not_grow_keeps_its_shape():
    "Beside a map that is right"
    class Kept(nn.Module):
        def __init__(self):
            super().__init__()
            self.body,self.gate = nn.Sequential(*body()),Call(self.keep)
        def keep(self, m, x):
            self.attn = m.conv(x.mean((2,3),keepdim=True)).sigmoid()
            return x*self.attn
        def forward(self, x): return self.gate(self.body(x)),self.attn
    with pytest.warns(InexactWarning, match='not exact'): set_output_stride(Kept(), 2)

def mean_so_far(m, y):
    m.state.mean = y.mean((2,3),keepdim=True) if m.state.mean is None else .9*m.state.mean+.1*y.mean((2,3),keepdim=True)
    return y-m.state.mean
def of_the_last(m, y):
    m.past.append(y.detach())
    return y+m.past[-1]
def nested(m, y):
    m.counts['all'][0] += 1
    return y
class Table(nn.Module):
    by_size = {}
    def forward(self, y):
        sides = tuple(y.shape[2:])
        if sides not in self.by_size: self.by_size[sides] = torch.arange(sides[0], device=y.device)[:,None].to(y)
        return y+self.by_size[sides]

states = dict(namespace=lambda: Call(mean_so_far,state=SimpleNamespace(mean=None)), deque=lambda: Call(of_the_last,past=deque(maxlen=4)),
    nested=lambda: Call(nested,counts={'all':[0]}), of_class=Table)
@pytest.mark.parametrize('name', states)
def test_asking_leaves_no_trace_in_what_a_network_keeps(name):
    net = nn.Sequential(*body(), states[name]()).eval()
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        assert get_output_stride(net)==8
        set_output_stride(net, 4)
        set_output_stride(net, 8)
    m = net[3]
    if name=='namespace': assert m.state.mean is None
    if name=='deque': assert len(m.past)==0
    if name=='nested': assert m.counts=={'all':[0]}
    if name=='of_class': assert not Table.by_size
    for px in (512,1024): net(torch.randn(1,3,px,64)) # sizes that were asked about without values

class Frozen(dict):
    def clear(self): raise TypeError('frozen')
    update = clear

@dataclass
class Sized:
    "It looks empty, and is no container"
    items:list
    def __len__(self): return len(self.items)

class WithClassState(Call): config = Frozen(a=1)

@pytest.mark.parametrize('state', [Sized([]), (Frozen(a=1),), dict(a=immutable_list([1]))], ids=['sized','frozen','immutable'])
def test_state_that_cannot_be_cleared_is_left_alone(state):
    assert said(set_output_stride, nn.Sequential(*body(),WithClassState(gated,pool=nn.AdaptiveAvgPool2d(1),state=state)), 2)==[]

def test_a_long_list_is_put_back_and_not_looked_through():
    words = [(str(i),str(i+1)) for i in range(2000)]
    held = deque([words])
    assert any(o is words for o in _held([held])) and len([*_held([held])])==2
    m = Call(gated, words=words)
    with Snapshot(m): words.clear()
    assert len(words)==2000

def test_a_network_with_a_traced_module_is_refused_and_runs():
    traced = torch.jit.trace(gate(), torch.randn(1,8,8,8))
    net = nn.Sequential(*body(), traced)
    with pytest.raises(CannotDilate, match='`3`.*scripted or traced'): set_output_stride(net, 2)
    net(torch.randn(1,3,64,64))

def test_a_graph_does_not_run_by_phases_as_a_whole():
    "It sets the `forward` of its class when it goes from training to evaluation"
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.body,self.fc = nn.Sequential(*body()),nn.Conv2d(8,8,1)
        def forward(self, x):
            x = self.body(x)
            return x*self.fc(F.adaptive_avg_pool2d(x,1)).sigmoid()
    m = create_feature_extractor(Net().eval(), {'mul':'y'})
    with pytest.warns(InexactWarning): set_output_stride(m, 2)
    m.train()
    m.eval()
    assert m(torch.randn(1,3,64,64))['y'].shape[2:]==(32,32)

def test_a_network_may_ask_for_what_its_sample_has():
    "Images from 0 to 1"
    def checked(m, x):
        assert 0<=x.min() and x.max()<=1
        return (x+.01).log()
    net = nn.Sequential(Call(checked), *body()).double().eval()
    x = torch.rand(2,3,37,50).double()
    with torch.no_grad():
        native = net(x)
        with warnings.catch_warnings():
            warnings.simplefilter('error', InexactWarning)
            set_output_stride(net, 2, x)
        close(net(x)[...,::4,::4], native, 1e-12)
        assert all(type(o) is nn.Conv2d for o in net[1:])

class Classes(nn.Module):
    "Gives the vector of each class to its head"
    def __init__(self, head):
        super().__init__()
        self.body,self.classes,self.head = nn.Sequential(*body()),nn.Parameter(torch.randn(4,8)),head
    def forward(self, x): return self.head(self.body(x), self.classes)

class Similar(nn.Module):
    def forward(self, x, classes):
        y = torch.einsum('bchw,kc->bkhw', F.instance_norm(x), classes)
        return y,classes

class Centred(nn.Module):
    "Can run by phases as a whole alone"
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(*body())
    def forward(self, x):
        x = self.body(x)
        return x-x.mean((2,3),keepdim=True)

def test_an_image_may_be_a_parameter():
    "It is optimised, as in style transfer: nothing else can be the map"
    m,x = Centred().double(),nn.Parameter(image(40,48))
    native = m(x)
    assert said(set_output_stride, m, 2)==[]
    close(m(x)[...,::4,::4], native, 1e-12)

def test_the_way_back_is_open_where_a_conv_is_shared_with_what_runs_by_phases():
    shared = nn.Conv2d(8,8,3,1,1)
    inner = Call(lambda m,x: m.shared(x-m.shared(x).mean((2,3),keepdim=True)), shared=shared)
    net = nn.Sequential(*body(), inner, shared, gate()).double().eval()
    x = image(40,48)
    native = net(x)
    said(set_output_stride, net, 2)
    set_output_stride(net, 8)
    assert net(x).equal(native)

@pytest.mark.parametrize('n', [1,2,4,64//4])
def test_a_weight_is_that_of_all_images(n):
    "Also where there are as many classes as images, or phases"
    net,x = Classes(Similar()).double().eval(),image(37,50,n=n)
    with torch.no_grad():
        native,weight = net(x)
        assert said(set_output_stride, net, 2)==[]
        y,w = net(x)
        close(y[...,::4,::4], native, 1e-12)
        assert w is weight

def test_a_map_of_one_size_beside_a_map_stays_as_it_is():
    "Also where the native map has that size"
    def both(m, x): return x-x.mean((2,3),keepdim=True),F.adaptive_avg_pool2d(x,7)
    net,x = nn.Sequential(*body(), Call(both)).double().eval(),image(56,56)
    with torch.no_grad():
        native = net(x)
        set_output_stride(net, 2)
        for a,b in zip(net(x),(native[0],native[1])): close(a[...,::4,::4] if a.shape[2]>7 else a, b, 1e-12)

def test_a_list_of_whole_numbers_is_warned_of():
    "Codes of a vector quantiser, say; as a map they are compared"
    def codes(m, x): return (x-x.mean((2,3),keepdim=True)).argmax(1).flatten(1)
    net = nn.Sequential(*body(), Call(codes)).eval()
    assert any('whole numbers' in o for o in said(set_output_stride, net, 2))

@pytest.mark.parametrize('d,T', [(24,16),(36,16),(36,8)])
def test_a_far_tap_of_a_function_finds_a_native_position(d, T):
    "DeepLab's rates at 8, as a network of one's own may call them: the trial's image is as long as it takes"
    def far(m, x): return x+F.conv2d(x, m.weight, padding=d, dilation=d)
    down = [nn.Conv2d(3 if i==0 else 4, 4, 3, 2, 1) for i in range(5)]
    net,x = nn.Sequential(*down, Call(far,weight=nn.Parameter(torch.randn(4,4,3,3)))).double().eval(),image(1024,64,n=1)
    every = 32//T
    with torch.no_grad():
        native = net(x)
        assert said(set_output_stride, net, T)==[]
        close(net(x)[...,::every,::every], native, 1e-12)

@torch.library.custom_op('fastai_dilation_test::masked', mutates_args={'out'})
def masked(x:torch.Tensor, mask:torch.Tensor, out:torch.Tensor)->None: out.copy_(x*mask.exp())
masked.register_fake(lambda x,mask,out: None)

def through_foreign(m, x):
    mask,out = torch.zeros_like(x),torch.full_like(x,torch.nan)
    mask[:,:1] = -torch.inf
    masked(x, mask, out)
    return out

def test_a_foreign_operation_may_read_infinity_and_write_over_nan():
    "Only NaN that it reads could end the process"
    is_exact(nn.Sequential(*body(), Call(through_foreign), nn.Conv2d(8,8,3,1,1)), 2)

class Unable(nn.Module):
    "What is inside of it is its own affair, and it raises"
    def __init__(self):
        super().__init__()
        self.spacing = 1
    def forward(self, x): raise NotImplementedError

def instead(m, x):
    try: return m.unable(x)
    except NotImplementedError: return m.wide(x)

def test_a_module_may_raise_and_be_caught():
    "What is called behind it is seen all the same"
    caught = Call(instead, unable=Unable(), wide=nn.Conv2d(8,8,3,1,1))
    is_exact(nn.Sequential(*body(), caught, nn.Conv2d(8,8,3,1,1), gate()), 2)
