"What the benches time, and how two times are compared: `compare.py`, `gpu.py` and `scaling.py` import it"
import numpy as np, torch

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
