"What the benches time, and how two times are compared: `compare.py`, `gpu.py` and `scaling.py` import it"
import numpy as np, torch
from fastai_dilation.evaluate import peak_memory, time_in_turns

def step(m, x):
    "A training step, without an optimizer"
    m(x).float().mean().backward()
    m.zero_grad()

@torch.no_grad()
def fwd(m, x): m(x)

def ratio(a, b):
    "Median of the paired ratios `a/b`, and how far the middle half of them is spread"
    q = np.quantile(a/b, (.25,.5,.75))
    return q[1],q[2]-q[0]

def costs(fs, n=4):
    "Median seconds and largest bytes of each of `fs`, called in `n` turns of which the first does not count"
    return [np.median(t) for t in time_in_turns(fs, n)],[peak_memory(f) for f in fs]
