"fastai's own blocks and networks, without an output stride, are what they are without this package"
import pytest, torch
from fastai.layers import ConvLayer, ResBlock
from fastai.vision.models.xresnet import XResNet
from fastai_dilation.all import get_output_stride, set_output_stride
from test_package import run
from util import close, randomize

@pytest.mark.slow
def test_as_in_fastai_alone():
    "Sizes, values, layers and random numbers of blocks, layers and subclasses are those of a process without the package"
    alone = run('fastais_blocks', path=())
    assert run('fastais_blocks', 'fastai_dilation.all')==alone
    assert alone.count('convpath')>50

def sides(m): return tuple(m(torch.randn(2,8,16,16)).shape[2:])

fastais = [(dict(dilation=2,padding=2),(16,16)), (dict(dilation=(1,2),padding=(1,2)),(16,16))]
fastais += [(dict(stride=2,dilation=2,padding=2),(8,8)), (dict(dilation=2,padding='same'),(16,16))]
fastais += [(dict(dilation=2,ks=1),(16,16)), (dict(stride=2,dilation=2,ks=1),(8,8))]
@pytest.mark.parametrize('kw,size', fastais, ids=str)
def test_fastais_dilation(kw, size):
    "A `dilation` that ran in fastai alone reaches the convs as it is given"
    block = ResBlock(1, 8, 8, **kw)
    assert sides(block)==size
    convs = [o for o in block.modules() if isinstance(o, torch.nn.Conv2d)]
    assert {o.dilation for o in convs}=={kw['dilation'] if isinstance(kw['dilation'],tuple) else (2,2)}

def test_conv_layer_is_fastais():
    "A dilated `ConvLayer` is padded for a kernel that is not, as fastai does it"
    assert 'fastai_dilation' not in ConvLayer.__init__.__module__ and not hasattr(ConvLayer, '_orig___init__')
    assert sides(ConvLayer(8, 8, dilation=2))==(14,14)
    assert sides(ConvLayer(8, 8, dilation=(1,2)))==(16,14)

def test_dilation_alone():
    "What raised an error in fastai alone is a block that keeps its map's size, and so is one of 1x1 convs"
    assert sides(ResBlock(1, 8, 8, dilation=2))==sides(ResBlock(1, 8, 8, dilation=2, first_dilation=2, ks=1))==(16,16)
    given = ResBlock(1, 8, 8, dilation=4, first_dilation=2, padding=1)
    assert sides(given)==(16,16) and given.convpath[1][0].padding==(4,4)

class OwnLayers(XResNet):
    "Its stages begin with a block that has no stride"
    def _make_layer(self, ni, nf, blocks, stride, sa, **kwargs):
        first = super()._make_layer(ni, nf, 1, 1, sa, **kwargs)
        return torch.nn.Sequential(*first, *super()._make_layer(nf, nf, blocks, stride, sa, **kwargs))

class OwnBlocks(XResNet):
    "Its stages come in twos"
    def _make_blocks(self, layers, block_szs, sa, stride, **kwargs):
        stages = super()._make_blocks(layers, block_szs, sa, stride, **kwargs)
        return [torch.nn.Sequential(a,b) for a,b in zip(stages[::2],stages[1::2])]

def small(cls, **kwargs): return cls(ResBlock, 1, [1,1,1,1], widen=.125, stem_szs=(8,8,64), n_out=3, **kwargs)

@pytest.mark.parametrize('cls', [OwnLayers,OwnBlocks])
def test_subclass(cls):
    "A subclass that makes its blocks in its own way is exact at another output stride"
    native = randomize(small(cls)).double()
    dilated = small(cls, output_stride=8).eval().double()
    dilated.load_state_dict(native.state_dict())
    x = torch.randn(2, 3, 97, 65, dtype=torch.double)
    a,b = [torch.nn.Sequential(*[*m][:-4])(x) for m in (dilated,native)]
    assert get_output_stride(dilated)==8
    close(a[...,::4,::4], b, 1e-12)

class OwnStride(XResNet):
    "Has an `output_stride` of its own"
    def _make_blocks(self, layers, block_szs, sa, stride, output_stride=32, **kwargs):
        self.told = output_stride
        return super()._make_blocks(layers, block_szs, sa, stride, **kwargs)

def test_own_output_stride():
    "An `output_stride` that a subclass takes itself is left to it, and the network can be changed later"
    m = small(OwnStride, output_stride=8)
    assert (m.told,get_output_stride(m))==(8,32)
    assert get_output_stride(set_output_stride(m, 8))==8

def test_block_with_a_keyword():
    "`weights` that a block takes itself are left to it"
    given = []
    def block(*args, weights=None, **kwargs):
        given.append(weights)
        return ResBlock(*args, **kwargs)
    XResNet(block, 1, [1], widen=.125, stem_szs=(8,8,64), weights='mine')
    assert given==['mine']
