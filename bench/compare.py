"Beside timm, torchvision and segmentation_models.pytorch, same weights and images, in turns: `python bench/compare.py`"
import json, platform, re, sys, warnings
warnings.filterwarnings('ignore')
import numpy as np, pandas as pd, matplotlib.pyplot as plt, segmentation_models_pytorch as smp, timm, torch, torchvision
from collections import defaultdict
from copy import deepcopy
from time import perf_counter
from pathlib import Path
from fastai.vision.all import F, create_body, nn, partial, xresnet18, xresnet34, xresnet50
from fastcore.script import call_parse, store_true
from fastprogress import progress_bar
from skimage import data as photos
from timing import fwd, ratio, step
sys.path.insert(0, str(Path(__file__).resolve().parent.parent/'tests'))
from util import grid_diff, randomize, with_weights
from fastai_dilation.all import DilatedPool, create_deeplab_model, create_unet_model, pool_over, set_output_stride
from fastai_dilation.ask import multiply_adds
from fastai_dilation.evaluate import peak_memory, time_in_turns
from fastai_dilation.phases import DepthwiseConv, Phased

class Last(nn.Module):
    "The last map of an encoder that makes a list of maps"
    def __init__(self, m):
        super().__init__()
        self.m = m
    def forward(self, x): return self.m(x)[-1]

class Out(Last):
    "The map of a segmentation model of torchvision's"
    def forward(self, x): return self.m(x)['out']

class Feats(Last):
    "The last map of a network of timm's"
    def forward(self, x): return self.m.forward_features(x)

# each pair: the native network, ours at `T`, and the peer's at `T`, with the same weights

def timm_pair(ours, name, T):
    "fastai's network beside timm's"
    native = randomize(timm.create_model(name))
    theirs = with_weights(timm.create_model(name, output_stride=T), native)
    return Feats(native),create_body(set_output_stride(with_weights(ours(),native),T), cut=-4),Feats(theirs)

def changed_pair(name, T):
    "timm's network, changed by this library, beside timm's own"
    native = randomize(timm.create_model(name))
    theirs = with_weights(timm.create_model(name, output_stride=T), native)
    return Feats(native),Feats(set_output_stride(deepcopy(native),T)),Feats(theirs)

def tv_pair(T):
    "Bodies of torchvision's resnet50"
    def body(m): return create_body(m, cut=-2)
    native = randomize(torchvision.models.resnet50())
    theirs = torchvision.models.resnet50(replace_stride_with_dilation=[False,T<16,T<32])
    return body(native),set_output_stride(body(deepcopy(native)),T),body(with_weights(theirs,native))

def smp_pair(name, T):
    "Encoders of segmentation_models.pytorch"
    def enc(**kwargs): return smp.encoders.get_encoder(name, weights=None, **kwargs)
    native = randomize(enc())
    return Last(native),set_output_stride(Last(deepcopy(native)),T),Last(with_weights(enc(output_stride=T),native))

def deeplab_pair(T):
    "Bodies and ASPPs of torchvision's DeepLabV3 and ours"
    m = randomize(create_deeplab_model(torchvision.models.resnet50, 21, pretrained=False, output_stride=32))
    native = nn.Sequential(m[0], m[1][0])
    theirs = torchvision.models.segmentation.deeplabv3_resnet50(weights=None, weights_backbone=None, num_classes=21)
    ours = set_output_stride(pool_over(deepcopy(native)), T)
    return native,ours,with_weights(nn.Sequential(Out(theirs.backbone), theirs.classifier[0]), native)

of_timm = {'resnet34d':xresnet34, 'resnet50d':xresnet50}
pairs = {f'{f.__name__}, timm {k}':(partial(timm_pair,f,k),(32,16,8)) for k,f in of_timm.items()}
by_phases = 'mobilenetv2_100','efficientnet_b0','convnext_atto','regnety_002' # depthwise convs, SE, or both
pairs |= {f'timm {o}':(partial(changed_pair,o),(8,)) for o in ('resnet50d',*by_phases)}
pairs |= {'torchvision resnet50':(tv_pair,(16,8)), 'torchvision deeplabv3':(deeplab_pair,(8,))}
pairs |= {f'smp {o}':(partial(smp_pair,o),(16,8)) for o in ('resnet34','resnet50')}
fmt = torch.contiguous_format

def images(sz, n=2):
    "Crops of two photos, with sides of `sz` pixels"
    res = [torch.tensor(o[:400,:400]).permute(2,0,1)[None].float()/127-1 for o in (photos.astronaut(), photos.coffee())]
    return F.interpolate(torch.cat(res)[:n], (sz,sz)).contiguous(memory_format=fmt)

@torch.no_grad()
def error(m, native, x, T):
    "Largest error on the native grid, in parts of the largest feature; nan if there is no such grid"
    return grid_diff(m.eval()(x), native.eval()(x), T)

def side_by_side(a, b, n):
    "`ratio` of the times of `a` and `b`, called as a b b a, so that neither always comes second"
    t = time_in_turns([a,b,b,a], n+1)
    return ratio(np.concatenate([t[0],t[3]]), np.concatenate([t[1],t[2]]))

def compare(name, T, x, n):
    "A row of the table: errors, and time and memory of ours over theirs"
    native,ours,theirs = [m.to(memory_format=fmt) for m in pairs[name][0](T=T)]
    odd = x[...,:-3,:-5]
    # without these, ours and theirs run the same operations, and what differs is noise
    same = not any(isinstance(o,(DilatedPool,DepthwiseConv,Phased)) for o in ours.modules())
    row = {'peer':name, 'output stride':T, 'same ops':same}
    row |= {'error ours':error(ours,native,odd,T), 'error theirs':error(theirs,native,odd,T)}
    for k,f,turns in (('forward',fwd,2*n), ('training',step,n)):
        a,b = (partial(f, m.train(f is step), x) for m in (ours,theirs))
        row[f'{k} time'],row[f'{k} spread'] = side_by_side(a, b, turns)
        row[f'{k} memory'] = peak_memory(a)/peak_memory(b)
    return row

def unets(arch, x, Ts, n):
    "A training step of U-Nets that differ in their output stride alone, in turns"
    def build(T): return create_unet_model(arch, 11, x.shape[-2:], pretrained=False, output_stride=T)
    ms = [build(T).to(memory_format=fmt) for T in Ts]
    fs = [partial(step,m,x) for m in ms]
    ts = time_in_turns(fs, n+1)
    res = []
    for T,m,f,t in zip(Ts, ms, fs, ts):
        r,spread = ratio(t, ts[0])
        params = sum(p.numel() for p in m.parameters())
        res.append({'encoder':arch.__name__, 'output stride':T, 'parameters M':params/1e6,
            'multiply-adds G':multiply_adds(m,x)/1e9, 'step time':r, 'spread':spread, 'step MB':peak_memory(f)/2**20})
    return res

def growth(sz, T, n):
    "A forward of xresnet34, and its multiply-adds, over those of the native one at 224 px, in turns"
    def build(T): return create_body(set_output_stride(xresnet34(),T), cut=-4).eval().to(memory_format=fmt)
    ms,xs = [build(o) for o in (T,32)],[images(o, 1) for o in (sz,224)]
    fs = [partial(fwd,m,x) for m,x in zip(ms,xs)]
    t,spread = side_by_side(*fs, n)
    macs,native_macs = [multiply_adds(m,x) for m,x in zip(ms,xs)]
    mem,native_mem = [peak_memory(f) for f in fs]
    work = macs/native_macs
    res = {'side':sz, 'output stride':T, 'time':t, 'spread':spread}
    return res | {'memory':mem/native_mem, 'multiply-adds':work, 'rate':work/t}

def kind(m):
    "What `m` is called in the table of shares"
    if not isinstance(m,nn.Conv2d): return type(m).__name__
    return f'conv {m.kernel_size[0]}x{m.kernel_size[0]}' + (', dilated' if max(m.dilation)>1 else '')

def profile(arch, T, x, n):
    "Share of each kind of layer in the time of a forward, %"
    m,ts,start = create_body(set_output_stride(arch(),T), cut=-4).eval().to(memory_format=fmt),defaultdict(float),{}
    def before(o, xb): start[o] = perf_counter()
    def after(o, xb, y): ts['whole' if o is m else kind(o)] += perf_counter()-start[o]
    fwd(m, x)
    for o in m.modules():
        if o is m or not isinstance(o,nn.Sequential) and (isinstance(o,DilatedPool) or not [*o.children()]):
            o.register_forward_pre_hook(before), o.register_forward_hook(after)
    for _ in range(n): fwd(m, x)
    total = ts.pop('whole')
    shares = {k:100*v/total for k,v in ts.items()}
    return {'network':arch.__name__, 'output stride':T, **shares, 'rest':100-100*sum(ts.values())/total}

def phases(nf, sz, d, n):
    "A dilated conv over an ordinary one, over the same on `d*d` phases as a batch, and over that without the copies"
    x,pad = torch.randn(2,nf,sz,sz).contiguous(memory_format=fmt),-sz%d
    dilated,ordinary = (nn.Conv2d(nf, nf, 3, padding=o, dilation=o, bias=False).to(memory_format=fmt) for o in (d,1))
    ordinary.load_state_dict(dilated.state_dict())
    def split(x):
        x = F.pad(x, (0,pad,0,pad)).unflatten(3,(-1,d)).unflatten(2,(-1,d))
        return x.permute(3,5,0,1,2,4).flatten(0,2).contiguous(memory_format=fmt)
    def join(x): return x.unflatten(0,(d,d,-1)).permute(2,3,4,0,5,1).flatten(4,5).flatten(2,3)[...,:sz,:sz]
    batch = split(x)
    with torch.no_grad():
        assert torch.allclose(join(ordinary(batch)), dilated(x), atol=1e-4)
        fs = [lambda:dilated(x), lambda:ordinary(x), lambda:join(ordinary(split(x))), lambda:ordinary(batch)]
        t,*ts = time_in_turns(fs, n+1)
    over = zip(('ordinary','space-to-batch','its conv alone'), ts)
    return dict(channels=nf, map=sz, dilation=d) | {f'over {k}':np.median(t/o) for k,o in over}

def dense(sz, T=8):
    "One pass at `T`, over native passes of the image at every shift by `T` pixels, stitched"
    native,k = create_body(randomize(xresnet18()), cut=-4).to(memory_format=fmt),32//T
    ours,x = set_output_stride(deepcopy(native),T),images(sz, 1)
    y = x.new_zeros(1, 512, sz//T, sz//T)
    def shifted():
        for i,j in np.ndindex(k, k):
            part = native(x[...,T*i:,T*j:])
            y[...,i::k,j::k] = part[...,:len(range(i,sz//T,k)),:len(range(j,sz//T,k))]
    with torch.no_grad():
        (t,),(ts,) = time_in_turns([lambda: ours(x), shifted], 2)
        inner = (..., *[slice(sz//T//2-8, sz//T//2+8)]*2)   # what has the border in sight differs
        err = ((ours(x)-y)[inner].abs().max()/y[inner].abs().max()).item()
    macs = multiply_adds(native, x)
    shifts = sum(multiply_adds(native, x[...,T*i:,T*j:]) for i,j in np.ndindex(k, k))
    costs = {'time over passes':t/ts, 'multiply-adds over native':multiply_adds(ours,x)/macs}
    costs['passes over native'] = shifts/macs
    return dict(side=sz, stride=T, passes=k*k, error=err) | costs

def draw(p, g, path):
    "The tables of peers `p` and of growth `g`, as a picture"
    fig,axs = plt.subplots(1, 3, figsize=(15,4.5))
    for i,k in enumerate(('forward','training')):
        axs[0].errorbar(p[f'{k} time'], np.arange(len(p))+.2*i, xerr=p[f'{k} spread']/2, fmt='o', label=k)
    axs[0].axvline(1, c='gray', lw=1)
    labels = [f'{a} at {T}'+'*'*(not o) for a,T,o in zip(p.peer,p['output stride'],p['same ops'])]
    xlabel = 'time, ours over theirs (middle half)\n* the operations differ'
    axs[0].set(yticks=range(len(p)), yticklabels=labels, xlabel=xlabel)
    axs[0].invert_yaxis()
    axs[0].legend(loc='upper left')
    for ax,(k,o) in zip(axs[1:], (('side',g[g['output stride']==32]), ('output stride',g[g.side==224]))):
        for y in ('time','memory','multiply-adds'): ax.plot(o[k], o[y], marker='o', label=y)
        ax.set(xlabel='side of the image, px' if k=='side' else k, ylabel='over xresnet34 at 32, 224 px')
        ax.set(xscale='log', yscale='log', xticks=o[k])
        ax.set_xticklabels(o[k])
        ax.set_yticks([.25,.5,1,2,4,8,16], ['1/4','1/2',1,2,4,8,16])
        ax.set_ylim(.2, 20)
        ax.minorticks_off()
        ax.legend()
    fig.tight_layout()
    fig.savefig(path, dpi=110)

def verdict(x, limit=1.005, noise=0.):
    "Do all of `x` keep the `limit`, or pass it by no more than `noise`?"
    if x.max()<=limit: word = 'holds'
    elif x.max()<=limit+noise: word = f'holds, within the noise of {noise:.3f}'
    else: word = 'MISSED'
    return f'{word} ({x.max():.3g} at worst, {x.median():.3g} in the middle)'

def show(title, df): print(f'\n### {title}\n\n{df.to_markdown(index=False, floatfmt=".3g")}')

@call_parse
def main(
    quick:store_true=False,         # two minutes: smaller images, fewer turns, output stride 8 alone
    out:str='compare',              # folder for the JSON and the chart
    channels_last:store_true=False, # memory format
    only:str='',                    # only the peers whose name fits this expression, and no other table
    turns:int=2,                    # times that ours, theirs, theirs, ours are called; a forward pass twice as often
):
    "Compare, and print Markdown"
    global fmt
    fmt = torch.channels_last if channels_last else torch.contiguous_format
    sz,n = (128,1) if quick else (224,turns)
    x,sides,Ts = images(sz),(128,224,320) if quick else (128,192,224,320,512),(32,8) if quick else (32,16,8,4)
    archs = (xresnet34,) if quick else (xresnet34,xresnet50)
    chosen = {k:o for k,o in pairs.items() if re.search(only,k)}
    beside_peers = [partial(compare,k,T,x,n) for k,(_,o) in chosen.items() for T in o if T==8 or not quick]
    if only:
        show('Ours over theirs', pd.DataFrame([f() for f in progress_bar(beside_peers)]))
        return
    steps_of_unets = [partial(unets,a,x[:1],(32,16,8),2) for a in archs]
    parts = {'Ours over theirs':beside_peers, 'U-Nets: a training step, over the one at 32':steps_of_unets,
        'How cost grows':[partial(growth,s,32,2*n) for s in sides]+[partial(growth,224,T,2*n) for T in Ts[1:]],
        'Share of a forward, %':[partial(profile,a,T,x,4*n) for a in (xresnet34,xresnet50) for T in (32,8)],
        'Dense evaluation, over shifted native passes':[partial(dense,512 if quick else 1024)],
        'A dilated conv':[partial(phases,c,s,d,6*n) for c,s,d in ((256,28,2),(512,14,2),(512,28,2),(512,28,4))]}
    done = iter([f() for f in progress_bar([f for fs in parts.values() for f in fs])])
    def as_list(o): return o if isinstance(o,list) else [o]
    def rows(fs): return [r for _ in fs for r in as_list(next(done))]
    dfs = {k:pd.DataFrame(rows(fs)) for k,fs in parts.items()}
    about = {o.__name__:o.__version__ for o in (torch,torchvision,timm,smp)}
    about |= dict(python=platform.python_version(), cpu=torch.backends.cpu.get_cpu_capability())
    about |= dict(threads=torch.get_num_threads(), memory_format=str(fmt), images=list(x.shape))
    print('\n'+', '.join(f'{k} {v}' for k,v in about.items()))
    for k,df in dfs.items(): show(k, df)
    p,_,g,prof,*_ = dfs.values()
    dilated = g[(g.side==224) & (g['output stride']<32)]
    targets = {'error at most 1e-5':verdict(p['error ours'], 1e-5)}
    for k in ('forward','training'):
        same,other = [p[o][f'{k} time'] for o in (p['same ops'],~p['same ops'])]
        noise = (same-1).abs().max()
        targets[f'{k} time at most 1.00 of the peer, where the operations differ'] = verdict(other, noise=noise)
        targets[f'{k} memory at most 1.00 of the peer'] = verdict(p[f'{k} memory'])
    targets['time per multiply-add at most 1/0.95 of native'] = verdict(1/dilated.rate, 1/.95)
    targets['dilated pools at most 2 % of a forward'] = verdict(prof.DilatedPool.dropna(), 2)
    print('\n'+'\n'.join(f'- {k}: {v}' for k,v in targets.items()))
    out = Path(out)
    out.mkdir(exist_ok=True, parents=True)
    draw(p, g, out/'compare.png')
    tables = {k:json.loads(df.to_json(orient='records')) for k,df in dfs.items()}
    (out/'compare.json').write_text(json.dumps(dict(about=about, targets=targets, **tables), indent=1))
    print(f'\n{(out/"compare.png").resolve()}')
