"The invariant over all of fastai's XResNets, output strides and image sizes: largest error on the native grid, by network"
import re, sys, torch
from pathlib import Path
from fastai_dilation.all import *
from fastai.vision.all import *
from fastai.vision.models import xresnet
from fastcore.script import call_parse

sys.path.insert(0, str(Path(__file__).resolve().parent.parent/'tests'))
from util import names, randomize

@call_parse
def main(
    quick:bool=False, # only images up to 97x75
    only:str='',      # only networks whose name fits this expression
):
    "Print the largest error of each network, over all its output strides and five image sizes"
    szs = [(30,31),(64,64),(81,81),(97,75)] + [(224,224)]*(not quick)
    n,worst = 0,(0,)
    for name in names:
        if not re.search(only, name): continue
        torch.manual_seed(0)
        m = randomize(getattr(xresnet,name)())
        strides = [2**i for i in reversed(range(get_output_stride(m).bit_length()-1))]
        errs = [(grid_error(create_body(m), T, torch.randn(1,3,*sz)),name,T,sz) for T in strides for sz in szs]
        n,worst = n+len(errs),max(worst,*errs)
        print(f'| {name} | {len(errs)} | {max(errs)[0]:.1e} | {max(errs)[2]} | {max(errs)[3]} |', flush=True)
    print(f'{n} cases, worst {worst}')
