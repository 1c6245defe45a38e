"The invariant over all exact networks, output strides and image sizes: largest error on the native grid, by network"
import sys, torch
from pathlib import Path
from fastai_dilation.all import *
from fastai.vision.all import *
from fastai.vision.models import xresnet
from fastcore.script import call_parse

sys.path.insert(0, str(Path(__file__).resolve().parent.parent/'tests'))
from util import names, randomize

def grid_errors(m, xs, strides):
    "Error of `m` by output stride and image of `xs`, as a part of the largest native feature"
    body,T0 = create_body(m),get_output_stride(m)
    with torch.no_grad():
        native = [body(x) for x in xs]
        for T in strides:
            set_output_stride(m, T)
            for x,f in zip(xs,native):
                g = body(x)[(..., *[slice(None,None,T0//T)]*(x.ndim-2))]
                assert g.shape==f.shape, (T, x.shape, g.shape, f.shape)
                yield T,tuple(x.shape[2:]),((g-f).abs().max()/f.abs().max()).item()
    set_output_stride(m, T0)

@call_parse
def main(
    quick:bool=False, # only images up to 97x75
):
    "Print the largest error of each network, over all its output strides and five image sizes"
    szs = [(30,31),(64,64),(81,81),(97,75)] + [(224,224)]*(not quick)
    n,worst = 0,(0,)
    for name in names:
        if name.startswith('xse_'): continue
        torch.manual_seed(0)
        m = randomize(getattr(xresnet,name)())
        strides = [2**i for i in reversed(range(get_output_stride(m).bit_length()-1))]
        errs = [(e,name,T,sz) for T,sz,e in grid_errors(m, [torch.randn(1,3,*sz) for sz in szs], strides)]
        n,worst = n+len(errs),max(worst,*errs)
        print(f'| {name} | {len(errs)} | {max(errs)[0]:.1e} | {max(errs)[2]} | {max(errs)[3]} |', flush=True)
    print(f'{n} cases, worst {worst}')
