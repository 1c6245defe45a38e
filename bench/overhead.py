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

timed_import = """
from time import perf_counter
a = perf_counter()
import fastai.vision.all
b = perf_counter()
import fastai_dilation.all
print(b-a, perf_counter()-b)
"""
def imports(n):
    "Median seconds that fastai takes to import in a new process, and this package after it"
    def once(): return [*map(float, subprocess.check_output([sys.executable,'-W','ignore','-c',timed_import]).split())]
    return np.median([once() for _ in range(n)], axis=0)

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
    fastai,ours = imports(min(n,5))
    print(f'import: {ours:.2f} s after fastai, which takes {fastai:.1f} s')
