"Networks that ask for no stride: `build_nets.py FILE [before|after]`, where fastai_dilation is imported, if at all"
import pickle, sys, torch

out,when = [*sys.argv[1:],'never'][:2]
if when=='before': from fastai_dilation.all import *
from fastai.vision.all import *
if when=='after': from fastai_dilation.all import *

def seeded(f):
    "What `f` makes after a seed, in evaluation mode"
    torch.manual_seed(0)
    return f().eval()

x,ms = torch.linspace(-1,1,3*64*64).view(1,3,64,64),[]
for f in (xresnet18, xse_resnext18, xresnet18_deeper):
    m = seeded(f)
    with torch.no_grad(): ms.append((m, torch.rand(1), m(x)))
unet = seeded(lambda: create_unet_model(xresnet18, 2, (64,64), pretrained=False))
classifier = seeded(lambda: create_vision_model(xresnet18, 2, pretrained=False))
mods = [o for m in (*[m for m,*_ in ms],unet,classifier) for o in m.modules()]
assert not any(type(o).__module__.startswith('fastai_dilation') for o in mods)
answers = [m(torch.ones(2,3,64,64)).detach() for m in (unet,classifier)]
with open(out,'wb') as f: pickle.dump((ms, answers, torch.rand(1)), f)
