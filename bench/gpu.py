"Dilated against by phases, and this library beside timm, on a GPU, in eight minutes: `python bench/gpu.py`"
import json, platform, sys, traceback, warnings
warnings.filterwarnings('ignore')
import numpy as np, pandas as pd, timm, torch
from contextlib import contextmanager
from copy import deepcopy
from functools import lru_cache, partial
from itertools import product
from pathlib import Path
from time import perf_counter
from torch import nn
from fastai.vision.all import create_body, xresnet50
from fastcore.script import call_parse, store_true
from timing import fwd, ratio, step
sys.path[:0] = [str(Path(__file__).resolve().parent.parent/o) for o in ('tests','')]
from util import alive, grid_diff, with_weights
from fastai_dilation.all import set_output_stride
from fastai_dilation.evaluate import peak_memory
from fastai_dilation.layers import phases_in
from fastai_dilation.phases import Phases, merge, split
from fastai_dilation.search import Search, apply_plan, make_plan, outermost_only, restored
from fastai_dilation.strides import follow
from fastai_dilation.trial import difference

device = torch.device('cuda')
formats = {'contiguous':torch.contiguous_format, 'channels_last':torch.channels_last}
precisions = 'float32','TF32','bfloat16'
convs = { # channels, kernel, groups
    'depthwise 3x3':(960,3,960),                # mobilenetv3
    'depthwise 5x5':(672,5,672),                # efficientnet_b0
    'depthwise 7x7':(384,7,384),                # convnext_tiny
    'grouped 3x3, 8 channels each':(368,3,46),  # regnety_002
    'grouped 3x3, 16 channels each':(512,3,32), # resnext50
    'dense 3x3':(256,3,1)}                      # resnet50
nets = 'resnet50d','efficientnet_b0','xresnet50','convnext_atto'

# --- time

def span(f, k):
    "Start `k` calls of `f`, and return what will say how many milliseconds each took"
    if device.type=='cpu':
        start = perf_counter()
        for _ in range(k): f()
        ms = 1000*(perf_counter()-start)/k
        return lambda: ms
    a,b = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    a.record()
    for _ in range(k): f()
    b.record()
    return lambda: a.elapsed_time(b)/k

def wait():
    if device.type=='cuda': torch.cuda.synchronize()

def in_turns(fs, secs):
    "Milliseconds of each of `fs`, called as a b c c b a for about `secs`, after a warm-up: an array for each"
    for f in fs*2: f()
    wait()
    start = perf_counter()
    for f in fs: f()
    wait()
    once = perf_counter()-start
    k = int(np.ceil(.002*len(fs)/once))             # a span takes 2 ms or more
    n = int(np.clip(secs/(k*once), 4 if secs>.1 else 2, 20))//2*2 # as many turns one way round as the other
    ts = [[None]*n for _ in fs]
    for turn in range(n):
        for i in range(len(fs))[::-1 if turn%2 else 1]: ts[i][turn] = span(fs[i], k)
    wait()
    return np.array([[o() for o in t] for t in ts])

@contextmanager
def settings(precision, benchmark, autocast=False):
    "TF32 only if the `precision` is not 'float32'; cudnn measures its algorithms if `benchmark`"
    torch.backends.cudnn.benchmark = benchmark
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = precision!='float32'
    with torch.autocast(device.type, torch.bfloat16, enabled=autocast and precision=='bfloat16'): yield

# --- convs

def grads(f, params, g): return lambda: torch.autograd.grad(f(), params, g)


def time_conv(kind, d, side, fmt, precision, benchmark, bs, secs):
    "A conv whose taps are `d` apart, and the native conv on the phases: with the copies, and between them"
    (nf,ks,groups),p = convs[kind],Phases(d)
    dtype = torch.bfloat16 if precision=='bfloat16' else torch.float32
    as_asked = dict(device=device, memory_format=formats[fmt], dtype=dtype)
    def conv(d): return nn.Conv2d(nf, nf, ks, padding=d*(ks//2), dilation=d, groups=groups, bias=False)
    dilated,native = [conv(o).to(**as_asked) for o in (d,1)]
    native.load_state_dict(dilated.state_dict())
    x = torch.randn(bs, nf, side, side).to(**as_asked).requires_grad_()
    phases = split(x.detach(), p).requires_grad_()
    fs = [lambda: dilated(x), lambda: merge(native(split(x,p)), p, p.sides(x)), lambda: native(phases)]
    row = dict(kind=kind, spacing=d, side=side, memory=fmt, precision=precision, benchmark=benchmark)
    with settings(precision, benchmark):
        with torch.no_grad(): error,forward = difference(fs[1](), fs[0]()),in_turns(fs, secs)
        ys = [torch.randn_like(fs[0]().detach())]*2
        ys.append(split(ys[0], p))
        leaves = [(x,dilated.weight), (x,native.weight), (phases,native.weight)]
        both = in_turns([*map(grads, fs, leaves, ys)], secs)
    calls = {'forward':forward, 'forward+backward':both}
    return [dict(row, call=call, error=error, **ratios(ts)) for call,ts in calls.items()]

def ratios(ts):
    "Median times, and by phases over dilated"
    res = dict(zip(('dilated ms','by phases ms','between the copies ms'), np.median(ts, 1)))
    res['by phases'],res['spread'] = ratio(ts[1], ts[0])
    return res | {'between the copies':ratio(ts[2], ts[0])[0]}

# --- networks

class Feats(nn.Module):
    "The last map of a network of timm"
    def __init__(self, m):
        super().__init__()
        self.m = m
    def forward(self, x): return self.m.forward_features(x)

def body(m): return Feats(m) if hasattr(m,'forward_features') else create_body(m, cut=-4)

def by_phases(net, T):
    "A copy of `net`, which is at output stride `T`, whose blocks run by phases wherever they can"
    net = deepcopy(net)
    found = {n:p for n,p in phases_in(net).items() if p.n>1}
    strides = follow(restored(net))
    plan = make_plan(strides, T)
    wanted = {n:Phases(d) for n,(d,_) in plan.items() if strides.own[n]==1}
    apply_plan(net, plan, Search(net, strides, plan).enlarged(outermost_only({**found,**wanted})))
    return net

@lru_cache(None)
def variants(name, T):
    "`name` at 32, ours at `T`, timm's own at `T`, and ours with all blocks by phases: the same weights"
    theirs = 'resnet50d' if name=='xresnet50' else name # which is the same network
    torch.manual_seed(0)
    base = alive(timm.create_model(theirs))
    res = dict(native=with_weights(xresnet50(),base) if name=='xresnet50' else base)
    start = perf_counter()
    if T<32: res['ours'] = set_output_stride(deepcopy(res['native']).to(device), T)
    secs = perf_counter()-start
    res['timm'] = with_weights(timm.create_model(theirs, output_stride=T), base)
    if T<32: res['by phases'] = by_phases(res['ours'], T)
    return {k:body(m).to(device) for k,m in res.items()},secs

def errors(name, T):
    "Largest difference on the native grid from the map of the native network, as a part of its largest value"
    ms,secs = variants(name, T)
    rows = []
    for dtype in (torch.float64,torch.float32):
        x = torch.randn(2, 3, 97, 129, dtype=dtype, device=device)
        def of(m): return deepcopy(m).eval().to(dtype)(x)
        with settings('float32', False), torch.no_grad(): maps = {k:of(m) for k,m in ms.items()}
        native = maps.pop('native')
        errs = {k:grid_diff(y, native, T) for k,y in maps.items()}
        finite = native.isfinite().all().item()
        rows.append(dict(network=name, T=T, dtype=str(dtype)[6:], finite=finite, seconds_to_set=secs, **errs))
    return rows

def images(bs, sz, fmt): return torch.randn(bs, 3, sz, sz, device=device).to(memory_format=formats[fmt])

def time_net(name, T, fmt, precision, calls, bs, sz, secs):
    "Time and peak memory of each variant, over timm's and over the native network"
    ms,x,rows = variants(name, T)[0],images(bs, sz, fmt),[]
    for m in ms.values(): m.to(memory_format=formats[fmt])
    for call in calls:
        train = call=='training'
        fs = {k:partial(step if train else fwd, m.train(train), x) for k,m in ms.items()}
        with settings(precision, True, autocast=True):
            ts = dict(zip(fs, in_turns([*fs.values()], secs)))
            mem = {k:peak_memory(f, device.type=='cuda')/2**20 for k,f in fs.items()}
        row = dict(network=name, T=T, memory=fmt, precision=precision, call=call)
        row |= {f'{k} ms':np.median(t) for k,t in ts.items()} | {f'{k} MB':o for k,o in mem.items()}
        rows.append(row | compared(ts, 'ours' if T<32 else 'native'))
    return rows

def compared(ts, us):
    "Times of `us` over timm's and over the native network's"
    res = {}
    res['over timm'],res['spread'] = ratio(ts[us], ts['timm'])
    if us=='ours': res['over native'] = ratio(ts[us], ts['native'])[0]
    if 'by phases' in ts: res['by phases over ours'] = ratio(ts['by phases'], ts['ours'])[0]
    return res

def time_compiled(name, T, fmt, precision, bs, sz, secs):
    "A forward of ours and of timm's, compiled; and over the same without it"
    ms,x = variants(name, T)[0],images(bs, sz, fmt)
    torch._dynamo.reset()
    fs,compile_secs = {},{}
    with settings(precision, True, autocast=True):
        for k in ('ours','timm'):
            m = ms[k].to(memory_format=formats[fmt]).eval()
            f,start = partial(fwd, torch.compile(m, fullgraph=True), x),perf_counter()
            f(), wait()
            compile_secs[f'{k} compile s'] = perf_counter()-start
            fs[k],fs[f'{k}, eager'] = f,partial(fwd, m, x)
        ts = dict(zip(fs, in_turns([*fs.values()], secs)))
    res = dict(network=name, T=T, memory=fmt, precision=precision) | compile_secs
    res |= {f'{k} ms':np.median(t) for k,t in ts.items()}
    res['over timm'],res['spread'] = ratio(ts['ours'], ts['timm'])
    for k in ('ours','timm'): res[f'{k}, over eager'] = ratio(ts[k], ts[f'{k}, eager'])[0]
    return [res]

# --- all of it

def jobs(quick, parts, conv_side, conv_batch):
    "What there is to measure, the most important first: name of the part, and a function that makes rows"
    bs,sz,secs = (2,64,.01) if quick else (64,224,.12)
    net = dict(bs=bs, sz=sz, secs=4*secs)
    both = 'forward','training'
    modes = [('channels_last','bfloat16',both), ('channels_last','TF32',both), ('contiguous','TF32',both),
        ('contiguous','bfloat16',both), ('contiguous','float32',both[:1])][:2 if quick else 5]
    def convs_at(side, benchmark):
        for case in [*product(convs, (2,4), [side], formats, precisions)][::7 if quick else 1]:
            yield 'convs',partial(time_conv, *case, benchmark, bs=conv_batch, secs=secs)
    def nets_at(names, Ts):
        for n in names:
            for T in Ts:
                if T<32: yield 'errors',partial(errors, n, T)
            for T,mode in product(Ts, modes): yield 'nets',partial(time_net, n, T, *mode, **net)
    def compiled(names):
        for n in names: yield 'compiled',partial(time_compiled, n, 8, 'channels_last', 'bfloat16', **net)
    if quick: res = [*convs_at(conv_side, False), *nets_at(nets[1:2], [8])]   # compiling alone takes minutes
    else: res = [*convs_at(conv_side, False), *nets_at(nets[:3], (8,16,32)), *compiled(nets[:2]),
        *nets_at(nets[3:], [8]), *convs_at(conv_side, True), *(convs_at(28, False) if conv_side!=28 else [])]
    return [o for o in res if o[0] in parts]

def run(jobs, end, save):
    "Rows of all `jobs`, by part, until the time `end`; what fails is noted, and the next one goes on"
    rows,failed,left_out = {},[],{}
    for part,f in jobs:
        if perf_counter()>end:
            left_out[part] = left_out.get(part,0)+1
            continue
        start = perf_counter()
        try:
            new = f()
            new[0]['seconds'] = perf_counter()-start
            rows.setdefault(part,[]).extend(new)
        except Exception: failed.append(dict(part=part, args=[str(o) for o in f.args], error=traceback.format_exc()))
        save(rows, failed)
    return rows,failed,left_out

def show(title, df):
    if len(df): print(f'\n### {title}\n\n{df.to_markdown(floatfmt=".2f", index=False)}')

def wide(df, index, columns, value):
    "A table with a column for each of `columns`, in the order of the rows"
    df = df.dropna(subset=[value])
    df = df.assign(**{o:pd.Categorical(df[o], df[o].unique()) for o in (*index,*columns)})
    res = df.pivot(index=index, columns=columns, values=value)
    res.columns = [', '.join(o) if isinstance(o,tuple) else o for o in res.columns]
    return res.reset_index()

def spread(df): return f'spread {df.spread.median():.2f}, {df.spread.max():.2f} at most'

def show_convs(df):
    "The tables of single convs"
    at = ['kind','spacing','memory']
    for (side,benchmark,call),o in df.groupby(['side','benchmark','call'], sort=False):
        both = o['by phases'].map('{:.2f}'.format)+' / '+o['between the copies'].map('{:.2f}'.format)
        about = f'cudnn.benchmark {"on" if benchmark else "off"}, map {side}x{side}, {spread(o)}'
        title = f'By phases over dilated, {call}: each conv by itself / between the copies ({about})'
        show(title, wide(o.assign(both=both), at, ['precision'], 'both'))
        if not benchmark: show(f'ms of the dilated conv, {call}', wide(o, at, ['precision'], 'dilated ms'))
    worst = df.groupby('precision', sort=False).error.max()
    print('\nLargest difference of the two: '+', '.join(f'{k} {v:.1g}' for k,v in worst.items()))

def show_nets(df):
    "The tables of networks"
    df = df.assign(ms=df['ours ms'].fillna(df['native ms']), MB=df['ours MB'].fillna(df['native MB']))
    df = df.assign(more=df.MB/df['timm MB'])
    titles = {'over timm':f'Time of ours, over timm ({spread(df)})', 'over native':'Time of ours, over native',
        'by phases over ours':'Time by phases, over ours', 'ms':'Time of ours, ms',
        'MB':'Peak memory of ours, MB', 'more':'Peak memory of ours, over timm'}
    for k,title in titles.items(): show(title, wide(df, ['network','T','call'], ['precision','memory'], k))

def copy_rate():
    "TB/s that a copy on the card moves, read and written; it takes a second, so the clocks are up then"
    a = torch.randn(2**28, device=device)
    b = torch.empty_like(a)
    return 2*a.nbytes/np.median(in_turns([lambda: b.copy_(a)]*50, 1))/1e9

def about(bs):
    "The machine and the settings"
    res = dict(torch=torch.__version__, timm=timm.__version__, python=platform.python_version())
    if device.type=='cuda':
        GB = round(torch.cuda.get_device_properties(0).total_memory/2**30)
        res |= dict(card=torch.cuda.get_device_name(), memory_GB=GB, cuda=torch.version.cuda,
            cudnn=torch.backends.cudnn.version(), copy_TB_per_s=round(copy_rate(),2))
    return res | dict(batch=bs, cudnn_benchmark_of_networks='on')

@call_parse
def main(
    device:str='cuda',                      # or 'cpu'
    quick:store_true=False,                 # small sizes, to see that all of it works
    out:str='gpu.json',                     # file for all rows
    minutes:float=7,                        # nothing new is begun after so many
    parts:str='convs,errors,nets,compiled', # what to measure
    conv_side:int=64,                       # side of the maps of the convs
    conv_batch:int=16,                      # and how many there are
):
    "Measure, and print Markdown"
    start,globals()['device'] = perf_counter(),torch.device(device)
    info = about(2 if quick else 64)|dict(parts=parts)
    def save(rows, failed): Path(out).write_text(json.dumps(dict(about=info, failed=failed, **rows), indent=1))
    if quick: conv_side,conv_batch = 16,1
    todo = jobs(quick, parts.split(','), conv_side, conv_batch)
    rows,failed,left_out = run(todo, start+60*minutes, save)
    info |= dict(seconds=round(perf_counter()-start), left_out=left_out)
    save(rows, failed)
    dfs = {k:pd.DataFrame(v) for k,v in rows.items()}
    if 'convs' in dfs: show_convs(dfs['convs'])
    if 'nets' in dfs: show_nets(dfs['nets'])
    if 'compiled' in dfs: show('Compiled, forward', dfs['compiled'].drop(columns='seconds'))
    if 'errors' in dfs:
        df = dfs['errors'].drop(columns='seconds')
        print('\n### Exactness\n\n'+df.to_markdown(index=False, floatfmt='.1g'))
    for o in failed: print(f'\nFAILED {o["part"]} {o["args"]}\n{o["error"]}')
    print('\n'+', '.join(f'{k} {v}' for k,v in info.items()))
