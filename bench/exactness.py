"The invariant over all of fastai's XResNets, output strides and image sizes: largest error on the native grid"
import math, re, sys, torch
from pathlib import Path
from fastai_dilation.all import *
from fastai.vision.all import *
from fastai.vision.models import xresnet
from fastcore.script import call_parse

sys.path.insert(0, str(Path(__file__).resolve().parent.parent/'tests'))
from util import close, names, randomize, settled

@torch.no_grad()
def rounded(body, x):
    "Largest difference that a change of the image by float32's precision makes, as a part of the largest feature"
    return close(body(x*(1+torch.finfo(x.dtype).eps)), body(x), math.inf)

@call_parse
def main(
    quick:bool=False, # only images up to 97x75
    only:str='',      # only networks whose name fits this expression
):
    """Print the largest error of each network, over all its output strides and five image sizes

    The last column is what a rounding error of the input does. Random gates (`xse_*`) are ill-conditioned, even
    where norms fit their features. `tests/test_xresnet.py` has these networks in double precision."""
    szs = [(30,31),(64,64),(81,81),(97,75)] + [(224,224)]*(not quick)
    n,worst = 0,(0,)
    print('| network | cases | largest error | at | image | input rounded |\n|---|---|---|---|---|---|')
    for name in names:
        if not re.search(only, name): continue
        torch.manual_seed(0)
        m = randomize(getattr(xresnet,name)())
        if name.startswith('xse_'): settled(m, torch.randn(8,3,64,64))
        body,xs = create_body(m),[torch.randn(1,3,*sz) for sz in szs]
        strides = [2**i for i in reversed(range(get_output_stride(m).bit_length()-1))]
        errs = [(grid_error(body, T, x),name,T,tuple(x.shape[2:])) for T in strides for x in xs]
        n,worst = n+len(errs),max(worst,*errs)
        err,_,T,sz = max(errs)
        inevitable = max(rounded(body,x) for x in xs)
        print(f'| {name} | {len(errs)} | {err:.1e} | {T} | {sz[0]}x{sz[1]} | {inevitable:.1e} |', flush=True)
    print(f'{n} cases, worst {worst}')
