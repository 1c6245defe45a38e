"This library beside timm, torchvision and segmentation_models.pytorch, same weights, same images, in turns: `python bench/compare.py`"
import json, platform, sys, warnings
warnings.filterwarnings('ignore')
import numpy as np, pandas as pd, matplotlib.pyplot as plt, segmentation_models_pytorch as smp, timm, torch, torchvision
from copy import deepcopy
from pathlib import Path
from fastai.vision.all import create_body, nn, partial, xresnet34, xresnet50
from fastcore.script import call_parse, store_true
from fastprogress import progress_bar
from skimage import data as photos
sys.path.insert(0, str(Path(__file__).resolve().parent.parent/'tests'))
from util import randomize
from fastai_dilation.all import create_unet_model, multiply_adds, peak_memory, set_output_stride, time_in_turns

class Last(nn.Module):
    "The last map of an encoder that makes a list of maps"
    def __init__(self, m):
        super().__init__()
        self.m = m
    def forward(self, x): return self.m(x)[-1]

class Feats(Last):
    def forward(self, x): return self.m.forward_features(x)

def with_weights(m, like):
    m.load_state_dict(dict(zip(m.state_dict(), like.state_dict().values())))
    return m

def timm_pair(ours, name, T):
    native = randomize(timm.create_model(name))
    theirs = with_weights(timm.create_model(name, output_stride=T), native)
    return Feats(native),create_body(set_output_stride(with_weights(ours(),native),T), cut=-4),Feats(theirs)

def tv_pair(T):
    def body(m): return create_body(m, cut=-2)
    native = randomize(torchvision.models.resnet50())
    theirs = torchvision.models.resnet50(replace_stride_with_dilation=[False,T<16,T<32])
    return body(native),set_output_stride(body(deepcopy(native)),T),body(with_weights(theirs,native))

def smp_pair(name, T):
    def enc(**kwargs): return smp.encoders.get_encoder(name, weights=None, **kwargs)
    native = randomize(enc())
    return Last(native),set_output_stride(Last(deepcopy(native)),T),Last(with_weights(enc(output_stride=T),native))

pairs = {'timm resnet34d':(partial(timm_pair,xresnet34,'resnet34d'),(32,16,8)), 'timm resnet50d':(partial(timm_pair,xresnet50,'resnet50d'),(32,16,8)),
    'torchvision resnet50':(tv_pair,(16,8)), 'smp resnet34':(partial(smp_pair,'resnet34'),(16,8)), 'smp resnet50':(partial(smp_pair,'resnet50'),(16,8))}

def images(sz, n=2):
    "Crops of two photos, with odd sides: `sz+1` pixels"
    res = [torch.tensor(o[:400,:400]).permute(2,0,1)[None].float()/127-1 for o in (photos.astronaut(), photos.coffee())]
    return torch.nn.functional.interpolate(torch.cat(res)[:n], (sz+1,sz+1))

def step(m, x):
    m.zero_grad()
    m(x).mean().backward()

@torch.no_grad()
def fwd(m, x): m(x)

@torch.no_grad()
def error(m, native, x, r):
    "Largest error on the native grid, every `r`th position, in parts of the largest feature; nan if there is no such grid"
    y,want = m.eval()(x)[...,::r,::r],native.eval()(x)
    return ((y-want).abs().max()/want.abs().max()).item() if y.shape==want.shape else np.nan

def ratio(a, b):
    "Median of the paired ratios `a/b`, and how far the middle half of them is spread"
    q = np.quantile(a/b, (.25,.5,.75))
    return q[1],q[2]-q[0]

def compare(name, T, x, n):
    native,ours,theirs = pairs[name][0](T=T)
    row = {'peer':name, 'output stride':T, 'error ours':error(ours,native,x,32//T), 'error theirs':error(theirs,native,x,32//T)}
    for k,f,mode in (('forward',fwd,False), ('training',step,True)):
        a,b = (partial(f, m.train(mode), x) for m in (ours,theirs))
        row[f'{k} time'],row[f'{k} spread'] = ratio(*time_in_turns([a,b], n+1))
        row[f'{k} memory'] = peak_memory(a)/peak_memory(b)
    return row

def unet(arch, T, x, n):
    m = create_unet_model(arch, 11, x.shape[-2:], pretrained=False, output_stride=T)
    base = create_unet_model(arch, 11, x.shape[-2:], pretrained=False)
    t,spread = ratio(*time_in_turns([partial(step,o,x) for o in (m,base)], n+1))
    return {'encoder':arch.__name__, 'output stride':T, 'parameters M':sum(p.numel() for p in m.parameters())/1e6, 'step time over 32':t, 'spread':spread,
        'step memory MB':peak_memory(partial(step,m,x))/2**20}

def growth(sz, T, n):
    "A forward and the multiply-adds of xresnet34 over those of the native one at 224 px, in turns"
    ms,xs = [create_body(set_output_stride(xresnet34(),t), cut=-4).eval() for t in (T,32)],[images(o, 1)[...,:-1,:-1] for o in (sz,224)]
    fs = [partial(fwd,m,x) for m,x in zip(ms,xs)]
    t,spread = ratio(*time_in_turns(fs, n+1))
    macs,mem = [multiply_adds(m,x) for m,x in zip(ms,xs)],[peak_memory(f) for f in fs]
    return {'side':sz, 'output stride':T, 'time':t, 'spread':spread, 'memory':mem[0]/mem[1], 'multiply-adds':macs[0]/macs[1], 'rate':macs[0]/macs[1]/t}

def draw(df, path):
    fig,axs = plt.subplots(1, 2, figsize=(10,4))
    for ax,(k,o) in zip(axs, (('side',df[df['output stride']==32]), ('output stride',df[df.side==224]))):
        for y in ('time','memory','multiply-adds'): ax.plot(o[k], o[y], marker='o', label=y)
        ax.set(xlabel=f'{k} (px)', ylabel='over xresnet34 at 32, 224 px', xscale='log', yscale='log', xticks=o[k])
        ax.set_xticklabels(o[k])
        ax.minorticks_off()
        ax.legend()
    fig.tight_layout()
    fig.savefig(path, dpi=110)

def show(title, df): print(f'\n### {title}\n\n{df.to_markdown(index=False, floatfmt=".3g")}')

@call_parse
def main(
    quick:store_true=False,         # two minutes: smaller images, fewer turns
    out:str='compare',              # folder for the JSON and the chart
    channels_last:store_true=False, # memory format
):
    "Compare, and print Markdown"
    out,sz,n = Path(out),128 if quick else 224,3 if quick else 7
    out.mkdir(exist_ok=True, parents=True)
    fmt = torch.channels_last if channels_last else torch.contiguous_format
    x = images(sz).to(memory_format=fmt)
    jobs = [partial(compare,k,T,x,n) for k,(_,Ts) in pairs.items() for T in Ts]
    ux = images(sz, 1)[...,:-1,:-1].to(memory_format=fmt)
    unets = [partial(unet,a,T,ux,1) for a in (xresnet34,xresnet50) for T in (32,16,8)]
    sides,Ts = ((128,224,320),(32,16,8)) if quick else ((128,192,224,320,512),(32,16,8,4))
    grows = [partial(growth,s,32,n) for s in sides]+[partial(growth,224,T,n) for T in Ts[1:]]
    done = [f() for f in progress_bar(jobs+unets+grows)]
    dfs = [pd.DataFrame(o) for o in (done[:len(jobs)], done[len(jobs):-len(grows)], done[-len(grows):])]
    about = {o.__name__:o.__version__ for o in (torch,torchvision,timm,smp)}
    about |= dict(python=platform.python_version(), threads=torch.get_num_threads(), memory_format=str(fmt), images=list(x.shape))
    print('\n'+', '.join(f'{k} {v}' for k,v in about.items()))
    for t,df in zip(('Ours over theirs','U-Nets: a training step','How cost grows'), dfs): show(t, df)
    p,_,g = dfs
    targets = {'error at most 1e-5':p['error ours'].max()<=1e-5, **{f'{k} at most 1.00 of the peer, within the spread':bool((p[k]<=1+p[k.replace('time','spread')]).all()) for k in ('forward time','training time')},
        **{f'{k} at most 1.00 of the peer':bool((p[k]<=1.005).all()) for k in ('forward memory','training memory')}, 'multiply-add rate at least 0.95':bool((g[g.side==224].rate>=.95).all())}
    print('\n'+'\n'.join(f'- {k}: {"holds" if v else "MISSED"}' for k,v in targets.items()))
    draw(g, out/'compare.png')
    (out/'compare.json').write_text(json.dumps(dict(about=about, targets={k:bool(v) for k,v in targets.items()}, **{k:df.to_dict('records') for k,df in zip(('peers','unets','growth'),dfs)}), indent=1))
    print(f'\n{(out/"compare.png").resolve()}')
