"Layers: sizes, phases and edges over many kernels, dilations and shapes"
from itertools import product
import os, pickle
import pytest, torch
from hypothesis import assume, given, settings, strategies as st
from torch import nn
from fastai.layers import AvgPool, MaxPool, ResBlock, SEBlock, SEResNeXtBlock, SeparableBlock
from fastai_dilation.all import DilatedPool, GridPool
from util import close, randomize

def phases(x, d): return product(*(range(min(d,n)) for n in x.shape[2:]))
def every(x, ph, d): return x[(..., *(slice(a,None,d) for a in ph))]

@settings(max_examples=int(os.environ.get('MAX_EXAMPLES',100)), deadline=None)
@given(st.data())
def test_pool_phases(data):
    "Every phase of the map is pooled as the native pool does it"
    draw = data.draw
    ndim,d,s = draw(st.integers(1,3)),draw(st.sampled_from([1,2,3,4,8])),draw(st.integers(1,4))
    k,avg,ceil_mode = draw(st.integers(1,5)),draw(st.booleans()),draw(st.booleans())
    # what an XResNet and its peers use: no padding, or half of an odd kernel
    p = draw(st.sampled_from([0,k//2])) if k%2 else 0
    kw = dict(count_include_pad=p>0 or draw(st.booleans())) if avg else dict(dilation=draw(st.sampled_from([1,1,2])))
    if kw.get('dilation')==2: p = 0
    pool = getattr(nn, f"{'Avg' if avg else 'Max'}Pool{ndim}d")(k, s, p, ceil_mode=ceil_mode, **kw)
    x = torch.randn(2, 3, *(draw(st.integers(1,{1:60,2:25,3:12}[ndim])) for _ in range(ndim)))
    try: native = pool(every(x, (0,)*ndim, d))
    except RuntimeError: assume(False)
    y = DilatedPool(pool, d)(x)
    assert every(y, (0,)*ndim, d*s).shape==native.shape
    for ph in phases(x, d):
        try: native = pool(every(x, ph, d))
        except RuntimeError: continue
        got = every(y, ph, d*s)
        both = (..., *(slice(min(a,b)) for a,b in zip(got.shape[2:],native.shape[2:])))
        torch.testing.assert_close(got[both], native[both], rtol=1e-5, atol=1e-6)

@pytest.mark.parametrize('dtype,tol', [(torch.float32,1e-6), (torch.bfloat16,2e-2), (torch.float16,2e-3)])
@pytest.mark.parametrize('memory_format', [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize('pool', [AvgPool(2,ceil_mode=True), MaxPool(3,2,1), AvgPool(3,ceil_mode=True)])
def test_pool_formats(pool, dtype, tol, memory_format):
    "Types of numbers and memory formats stay, and values are native ones"
    x = torch.randn(2, 8, 29, 37).to(dtype).contiguous(memory_format=memory_format)
    y,s = DilatedPool(pool, 4)(x),pool.stride
    assert y.dtype==dtype and y.is_contiguous(memory_format=memory_format)
    torch.testing.assert_close(y[...,::4*s,::4*s].float(), pool(x[...,::4,::4].float()), rtol=tol, atol=tol)

def test_pool_small_map():
    "A map smaller than the dilation has nothing to average over but each position itself"
    for sz in ((1,1),(2,5),(7,3)):
        x = torch.randn(1,2,*sz)
        assert DilatedPool(AvgPool(2,ceil_mode=True), 64)(x).equal(x)

refused = [(nn.AvgPool2d(2,divisor_override=3),'does not divide')]
refused += [(nn.AvgPool2d(3,1,1,count_include_pad=False),'does not divide')]
refused += [(nn.MaxPool2d(2,return_indices=True),'indices')]
refused += [(nn.LPPool2d(2,2),'LPPool2d.*nothing is known'), (nn.AdaptiveAvgPool2d(1),'nothing is known')]
@pytest.mark.parametrize('pool,why', refused, ids=str)
def test_pool_refused(pool, why):
    "Pools that do not count each tap alike are refused, and the error says why"
    with pytest.raises(ValueError, match=why): DilatedPool(pool, 2)

def test_block_refuses_a_pool():
    "A shortcut that pools in a way that is not known: natively it works"
    class Blur(nn.Module):
        def __init__(self, stride, ndim=2, ceil_mode=False):
            super().__init__()
            self.stride,self.pad = stride,nn.ReflectionPad2d(1)
        def forward(self, x): return self.pad(x)[...,1:-1:self.stride,1:-1:self.stride]
    assert ResBlock(1, 8, 8, stride=2, pool=Blur)(torch.randn(2,8,8,8)).shape[-1]==4
    with pytest.raises(ValueError, match='Blur'): ResBlock(1, 8, 8, dilation=2, first_dilation=1, pool=Blur)

def test_pickle_of_0_0_1():
    "Its pools had other attributes: refused in words"
    old = {**vars(nn.AvgPool2d(2)), 'pool':nn.AvgPool2d(2), 'dilation':2, 'pool_stride':2}
    with pytest.raises(ValueError, match='0.0.1.*state_dict'): DilatedPool.__new__(DilatedPool).__setstate__(old)
    new = pickle.loads(pickle.dumps(DilatedPool(nn.AvgPool2d(2), 3)))
    assert (new.spacing,new.pool_type,new.kernel_size)==(3,nn.AvgPool2d,2)

pools = [(AvgPool(2,ceil_mode=True),1), (AvgPool(2,ceil_mode=True),3), (AvgPool(3,2,1),2), (MaxPool(3,2,1),2)]
pools += [(AvgPool(2,ndim=1,ceil_mode=True),2)]
@pytest.mark.parametrize('pool,d', pools, ids=str)
def test_pool_gradient(pool, d):
    "By finite differences, in one dimension and two"
    x = torch.randn(1,2,*[9]*(1 if isinstance(pool,nn.AvgPool1d) else 2), dtype=torch.double, requires_grad=True)
    assert torch.autograd.gradcheck(DilatedPool(pool,d), x)

def test_pool_no_loop():
    "The hot pool is a handful of ops, whatever the dilation"
    from torch.utils._python_dispatch import TorchDispatchMode
    class Count(TorchDispatchMode):
        n = 0
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.n += 1
            return func(*args, **(kwargs or {}))
    def ops(d):
        with Count() as c: DilatedPool(AvgPool(2,ceil_mode=True), d)(torch.randn(1,4,64,64))
        return c.n
    assert ops(16)==ops(1)<60

block_kws = [dict(), dict(expansion=4), dict(ni=8,nf=8), dict(pool=MaxPool), dict(ks=5,pool_first=False)]
@pytest.mark.parametrize('ndim', (1,2,3))
@pytest.mark.parametrize('first,d', [(1,2),(2,4),(1,3),(2,2),(4,4)])
@pytest.mark.parametrize('kw', block_kws)
def test_resblock(ndim, first, d, kw):
    "On the native grid a dilated block is the strided block"
    kw,s = {**dict(expansion=1,ni=8,nf=16,ndim=ndim),**kw},d//first
    torch.manual_seed(0)
    native = randomize(ResBlock(stride=s, **kw))
    torch.manual_seed(0)
    block = ResBlock(dilation=d, first_dilation=first, **kw).eval()
    assert list(block.state_dict())==list(native.state_dict())
    block.load_state_dict(native.state_dict())
    x = torch.randn(2, kw['ni']*kw['expansion'], *[24 if ndim<3 else 12]*ndim)
    close(every(block(x),(0,)*ndim,d), native(every(x,(0,)*ndim,first)))

@pytest.mark.parametrize('f', [SEBlock, SEResNeXtBlock, SeparableBlock])
def test_other_blocks(f):
    "What is made of `ResBlock` takes dilations too"
    assert f(1, 64, 64, dilation=4, first_dilation=2)(torch.randn(2,64,9,9)).shape==(2,64,9,9)

def test_resblock_1x1_undilated():
    "A kernel of one tap has nothing to move"
    convs = [o for o in ResBlock(4, 16, 16, dilation=4).modules() if isinstance(o,nn.Conv2d)]
    assert [o.dilation for o in convs if o.kernel_size==(1,1)]==[(1,1)]*2
    assert [o.dilation for o in convs if o.kernel_size==(3,3)]==[(4,4)]

wrong_kws = [dict(stride=2,dilation=2), dict(dilation=3,first_dilation=2), dict(dilation=0)]
wrong_kws += [dict(dilation=2,first_dilation=0)]
@pytest.mark.parametrize('kw', wrong_kws)
def test_resblock_errors(kw):
    "Dilations that do not divide, and a stride beside one"
    with pytest.raises(ValueError, match='dilation'): ResBlock(1, 8, 8, **kw)

class Mine(nn.MaxPool2d): pass

@pytest.mark.parametrize('pool', [nn.MaxPool2d(3,2,1), nn.AvgPool2d(2), nn.MaxPool1d(2), Mine(2)], ids=repr)
def test_an_image_without_a_batch_is_pooled_as_in_one(pool):
    "PyTorch's layers take it too, and natively it is no other function"
    ndim = 1 if isinstance(pool,nn.MaxPool1d) else 2
    x = torch.randn(3, *(13,18)[:ndim])
    assert DilatedPool(pool,2)(x).equal(DilatedPool(pool,2)(x[None])[0])
    grid = GridPool(nn.AdaptiveAvgPool2d(1) if ndim==2 else nn.AdaptiveAvgPool1d(1))
    grid.spacing = 2
    assert grid(x).equal(grid(x[None])[0])

class Scaled(nn.AdaptiveAvgPool2d):
    "A pool of one's own: it calls the one that it is made of, and a method beside"
    scale = 2.
    def scaled(self, x): return super().forward(x)*self.scale
    def forward(self, x): return self.scaled(x)

def test_a_pool_that_calls_the_class_that_it_is_made_of_pools_over_the_grid():
    pool = Scaled(1)
    x = torch.randn(2, 3, 9, 14)
    want = pool(x[...,::2,::2])
    grid = GridPool(pool)
    grid.spacing = 2
    assert grid(x).equal(want)
    grid.scale = 3. # what is set on it counts
    close(grid(x), want*3/2, 1e-6)
    assert torch.compile(grid, fullgraph=True, backend='aot_eager')(x).equal(grid(x))
