"Print what fastai's blocks, and networks made of them, say: `fastais_blocks.py [MODULE]` imports a module first"
import importlib, sys, torch
from fastai.layers import ConvLayer, ResBlock
from fastai.vision.models.xresnet import XResNet
for o in sys.argv[1:]: importlib.import_module(o)

def say(name, make, *sides):
    "Print the map's sides and values, the layers, and what random number is next; or the error"
    torch.manual_seed(0)
    x = torch.randn(2, 8, *sides, dtype=torch.double)
    try:
        m = make().double().eval()
        for o in m.modules():
            if isinstance(o, torch.nn.BatchNorm2d): torch.nn.init.uniform_(o.weight, .5, 1.5)
        y = m(x)
        said = f'{tuple(y.shape[2:])} {y.square().sum().item():.12e} {torch.rand(1).item()} {m}'
    except RuntimeError as e: said = f'error: {e}'
    print(name, sides, said)

kws = [dict(dilation=2,padding=2), dict(dilation=(1,2),padding=(1,2)), dict(stride=2,dilation=2,padding=2)]
kws += [dict(dilation=[2,2],padding=2), dict(dilation=2,padding='same'), dict(dilation=2,padding=2,transpose=True)]
kws += [dict(dilation=2,ks=1), dict(stride=2,dilation=2,ks=1), dict(dilation=3,padding=6,ks=5)]
kws += [dict(dilation=(2,2)), dict(dilation=2,padding=1), dict(padding=1), dict(stride=2)]
for kw in kws:
    for expansion,ni,nf in ((1,8,8),(1,8,16),(4,2,2)):
        for sides in ((16,16),(15,11)): say(f'ResBlock {expansion,ni,nf} {kw}', lambda: ResBlock(expansion, ni, nf, **kw), *sides)
for kw in (dict(dilation=2), dict(dilation=(1,2)), dict(dilation=2,ks=1), dict(dilation=2,transpose=True), dict(dilation=2,stride=2)):
    say(f'ConvLayer {kw}', lambda: ConvLayer(8, 8, **kw), 16, 16)

class Dilated(XResNet):
    "Has dilation in the place of its last stride, as fastai alone allows"
    def _make_layer(self, ni, nf, blocks, stride, sa, **kwargs):
        if nf<64: return super()._make_layer(ni, nf, blocks, stride, sa, **kwargs)
        first = super()._make_layer(ni, nf, 1, 1, sa, **kwargs)
        rest = super()._make_layer(nf, nf, blocks-1, 1, sa, dilation=2, padding=2, **kwargs)
        return torch.nn.Sequential(*first, *rest)

class Own(XResNet):
    "Has an `output_stride` and `weights` of its own"
    def _make_blocks(self, layers, block_szs, sa, stride, output_stride=32, **kwargs):
        return super()._make_blocks(layers, block_szs, sa, 1 if output_stride==4 else stride, **kwargs)
    def _make_layer(self, ni, nf, blocks, stride, sa, weights='few', **kwargs):
        return super()._make_layer(ni, nf, blocks+(weights=='many'), stride, sa, **kwargs)

for cls,kw in ((Dilated,{}), (Own,{}), (Own,dict(output_stride=4)), (Own,dict(weights='many'))):
    def body(): return torch.nn.Sequential(*[*cls(ResBlock, 1, [2,2,2,2], c_in=8, widen=.125, stem_szs=(8,8,64), **kw)][:-4])
    say(f'{cls.__name__} {kw}', body, 65, 49)
