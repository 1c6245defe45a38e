"How cost grows with the map and the batch, and what a second process brings: `python bench/scaling.py`, on a CPU"
import os, platform, subprocess, sys, warnings
warnings.filterwarnings('ignore')
import numpy as np, pandas as pd, torch
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from time import perf_counter
from fastai.vision.all import Callback, CrossEntropyLossFlat, DataLoaders, Learner, rank_distrib, xresnet34, xresnet50
from fastai.data.load import DataLoader
from fastcore.script import call_parse
from timing import costs, fwd, step
sys.path.append(str(Path(__file__).resolve().parent.parent/'tests'))
from ddp import broadcast_on_cpu, launch
from fastai_dilation.all import set_output_stride

# --- the output stride

def finer(arch, Ts, side, bs, n):
    "Time and memory at the output strides `Ts`, over those at the first, in turns: a row for each"
    x,rows = torch.randn(bs,3,side,side),[{'network':arch.__name__, 'batch':bs, 'output stride':T} for T in Ts]
    ms = [set_output_stride(arch(),T) for T in Ts]
    for call,f in (('forward',fwd), ('training',step)):
        fs = [partial(f, m.train(f is step), x) for m in ms]
        secs,mem = costs(fs, n+1)
        for row,t,b in zip(rows, secs, mem): row |= {f'{call} time':t/secs[0], f'{call} memory':b/mem[0]}
    return rows

# --- the batch

def batches(T, sizes, side, n):
    "Time for each image and memory of a batch, over those of one image, in turns: a row for each size"
    m,rows = set_output_stride(xresnet34(), T),[]
    xs = [torch.randn(o,3,side,side) for o in sizes]
    for call,f in (('forward',fwd), ('training',step)):
        fs = [partial(f, m.train(f is step), x) for x in xs]
        secs,mem = costs(fs, n+1)
        for bs,t,b in zip(sizes, secs, mem):
            rows.append({'output stride':T, 'call':call, 'batch':bs, 'time of an image':t/bs/secs[0], 'memory':b/mem[0]})
    return rows

# --- two processes

class Rate(Callback):
    "Images per second of this process, without the first batches"
    def __init__(self, n_warm=3): self.n_warm = n_warm
    def before_train(self): self.n = 0
    def before_batch(self):
        if self.iter==self.n_warm: self.start = perf_counter()
    def after_batch(self):
        if self.iter>=self.n_warm: self.n += len(self.x)
    def after_train(self): self.rate = self.n/(perf_counter()-self.start)

def child(T, side, bs, n):
    "Train on `n` batches in each process, and let the first one print the images per second of all"
    broadcast_on_cpu()
    n_procs = int(os.environ['WORLD_SIZE'])
    x = torch.randn(3,side,side)
    def loader(n, bs): return DataLoader([(x,torch.tensor(0))]*n*n_procs, bs=bs, num_workers=0)
    dls = DataLoaders(loader(n*bs,bs), loader(1,1))
    rate = Rate()
    learn = Learner(dls, set_output_stride(xresnet34(n_out=10),T), loss_func=CrossEntropyLossFlat(), cbs=rate)
    context = nullcontext() if n_procs==1 else learn.distrib_ctx(sync_bn=False)
    with learn.no_bar(), learn.no_logging(), context: learn.fit(1)
    rates = torch.tensor([rate.rate])
    if n_procs>1: torch.distributed.all_reduce(rates)
    if rank_distrib()==0: print('images per second', rates.item())

def rate_of(n_procs, *args):
    "Images per second of `n_procs` processes with a thread each"
    env = os.environ | dict(WORLD_SIZE='1', ACCELERATE_USE_CPU='true', OMP_NUM_THREADS='1', PYTHONWARNINGS='ignore')
    how = launch(n_procs) if n_procs>1 else []
    res = subprocess.run([sys.executable, *how, __file__, *map(str,args)], env=env, capture_output=True, text=True)
    if res.returncode: raise RuntimeError(res.stderr[-3000:])
    return float(res.stdout.split('images per second')[1])

def processes(T, side, bs, n, turns):
    "Two processes over one, as 1 2 2 1"
    args = '--strides',T,'--side',side,'--bs',bs,'--n',n
    ratios = []
    for _ in range(turns):
        one,two,two_again,one_again = [rate_of(o, *args) for o in (1,2,2,1)]
        ratios += [two/one, two_again/one_again]
    return {'output stride':T, 'images per second, two processes over one':np.median(ratios), 'from':min(ratios), 'to':max(ratios)}

@call_parse
def main(
    strides:str='32 8',     # output strides
    sizes:str='1 2 4 8 16', # batches
    side:int=128,           # of the images, pixels
    finer_side:int=224,     # of the images for the table of output strides
    bs:int=8,               # images in a batch of each process
    n:int=8,                # batches of each process
    turns:int=1,            # how many times one, two, two, one process
):
    "Print Markdown"
    Ts = [*map(int,strides.split())]
    if 'WORLD_SIZE' in os.environ: return child(*Ts, side, bs, n) # started by `accelerate`
    torch.set_num_threads(1)
    def show(rows): print('\n'+pd.DataFrame(rows).to_markdown(index=False, floatfmt='.3g'), flush=True)
    print(f'torch {torch.__version__}, python {platform.python_version()}, one thread a process')
    print(f'output strides: {finer_side} px; batches and processes: xresnet34, {side} px')
    show([row for arch in (xresnet34,xresnet50) for b in (1,8) for row in finer(arch, (32,16,8), finer_side, b, 4)])
    show([row for T in Ts for row in batches(T, [*map(int,sizes.split())], side, 4)])
    show([processes(T, side, bs, n, turns) for T in Ts])
