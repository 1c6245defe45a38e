"What the package itself costs, on a CPU: seconds of a change of stride, the pools' part of a forward, and the import's"
import subprocess, sys, warnings
warnings.filterwarnings('ignore')
import numpy as np, torch
from functools import partial
from time import perf_counter
from fastai.vision.models import xresnet
from fastcore.script import call_parse
from timing import fwd, ratio
from fastai_dilation.all import DilatedPool, set_output_stride
from fastai_dilation.evaluate import time_in_turns

def change(name, n):
    "Median seconds of a change from the native stride to 8, and those back"
    m = getattr(xresnet,name)()
    return [np.median(o) for o in time_in_turns([partial(set_output_stride,m,T) for T in (8,32)], n+1)]

def pools(name, side, n):
    "The dilated pools' part of a forward at 8: its median, and the spread of the middle half"
    m,x,inside = getattr(xresnet,name)(output_stride=8).eval(),torch.randn(1,3,side,side),[]
    for o in m.modules():
        if not isinstance(o,DilatedPool): continue
        o.register_forward_pre_hook(lambda *_: inside.append(-perf_counter()))
        o.register_forward_hook(lambda *_: inside.append(perf_counter()))
    def share():
        inside.clear()
        start = perf_counter()
        fwd(m, x)
        return sum(inside),perf_counter()-start
    share()
    return ratio(*np.array([share() for _ in range(n)]).T)

whats = dict(torch='import torch', core='import fastai_dilation', fastai='import fastai.vision.all', all='import fastai_dilation.all')

def imports(n):
    "Median seconds of a new process that imports torch, the core, fastai, and all of this package, in turns"
    def start(line): subprocess.run([sys.executable,'-W','ignore','-c',line], check=True)
    secs = time_in_turns([partial(start,o) for o in whats.values()], n+1)
    return dict(zip(whats, map(np.median, secs)))

@call_parse
def main(
    threads:int=2, # Threads of torch
    side:int=224,  # Of the images
    n:int=9,       # Of how many the median is taken
):
    "Print a line for each"
    torch.set_num_threads(threads)
    for name in ('xresnet18','xresnet50','xse_resnet18'):
        there,back = change(name, n)
        print(f'{name}: to 8 in {there:.2f} s, back in {back:.2f} s')
    for name in ('xresnet18','xresnet34','xresnet50'):
        share,spread = pools(name, side, n)
        print(f'{name} at 8: its dilated pools take {100*share:.1f} % of a forward (spread {100*spread:.1f})')
    secs = imports(min(n,5))
    print('import, a new process: ' + ', '.join(f'{k} {s:.1f} s' for k,s in secs.items()))
    print(f"the core over torch: {secs['core']/secs['torch']:.2f}; all over fastai: {secs['all']/secs['fastai']:.2f}")
