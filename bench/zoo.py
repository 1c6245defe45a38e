"What an output stride does to the smallest two networks of each family of timm and torchvision; writes docs/networks.md"
import json, re, signal, sys, timm, torch, traceback, warnings
import torchvision.models as tvm
from pathlib import Path
from fastai.vision.all import *
from fastai_dilation.all import *
from fastai_dilation.xresnet import _Twin
from fastcore.script import call_parse
from fastcore.xdg import xdg_cache_home

sys.path.insert(0, str(Path(__file__).resolve().parent.parent/'tests'))
from util import alive

# the better ones first
verdicts = dict(o.split(': ', 1) for o in """exact: the native map is there, to float precision
exact with pool_over: exact after `pool_over(model, 'grid')`, and warned of without it
warned, but exact: there is a warning, and the last map is exact all the same
warned: the network changes, and a warning says that it is not exact, and why
refused: a `ValueError` says why, and the network stays as it was
not compared: it changes, and what it then makes of this image has no map to compare
not run: too large or too slow for this page, or it does not run at all
silent: not exact, and no warning, which is a bug
crash: any other error, which is a bug""".split('\n'))
bugs,tol = ['silent','crash'],1e-9

def build(lib, name): return timm.create_model(name) if lib=='timm' else tvm.get_model(name)

def families():
    "Names of networks, by library and module"
    res = {('timm',o):timm.list_models(module=o) for o in timm.list_modules()}
    for o in tvm.list_models(module=tvm): res.setdefault(('torchvision', tvm.get_model_builder(o).__module__.split('.')[-1]), []).append(o)
    return res

def smallest(fams, n=2):
    "The `n` networks of each family with the fewest parameters, and how many millions they have, which is kept for the next time"
    cache = xdg_cache_home()/'fastai_dilation_zoo.json'
    szs = json.loads(cache.read_text()) if cache.exists() else {}
    for lib,o in progress_bar([(lib,o) for (lib,_),names in fams.items() for o in names if f'{lib} {o}' not in szs], leave=False):
        with torch.device('meta'): szs[f'{lib} {o}'] = sum(p.numel() for p in build(lib,o).parameters())/1e6
    cache.mk_write(json.dumps(szs))
    return [(*fam,o,szs[f'{fam[0]} {o}']) for fam,names in fams.items() for o in sorted(names, key=lambda o: szs[f'{fam[0]} {o}'])[:n]]

def change(m, T):
    "A copy of `m` at output stride `T` that has the same weights, and what was warned of"
    with warnings.catch_warnings(record=True) as ws:
        warnings.simplefilter('always')
        m = set_output_stride(deepcopy(m, {id(o):o for o in [*m.parameters(), *m.buffers()]}), T)
    return m,first(str(o.message) for o in ws if 'not exact' in str(o.message))

def at(m, T, x):
    "Verdict, error and reason for `m` at output stride `T`"
    try: said = change(m, T)[1] or ''
    except ValueError as e: return 'refused',None,str(e)
    try: err = grid_error(m, T, x)
    except ValueError as e: return ('warned' if said else 'not compared'),None,said or str(e)
    if err<=tol: return ('warned, but exact' if said else 'exact'),err,said
    if not said: return 'silent',err,''
    try:
        pooled = pool_over(deepcopy(m), 'grid')
        if not change(pooled, T)[1] and grid_error(pooled, T, x)<=tol: return 'exact with pool_over',err,said
    except ValueError: pass
    return 'warned',err,said

def fails(m, x):
    "Why `m` does not run on `x`, if so"
    try:
        with torch.no_grad(): m(x)
    except Exception as e: return repr(e)

def check(lib, fam, name, sz):
    "Output strides, the worse verdict, the error at the last of the strides, and the reason"
    if sz>150: return (),'not run',None,f'{sz:.0f} M parameters'
    m,x = alive(build(lib, name)).double(),torch.randn(1, 3, 161, 193).double()
    if picky := fails(m, x):
        x = torch.randn(1, *getattr(m,'default_cfg',{}).get('input_size',(3,224,224))).double()
        if why := fails(m, x): return (),'not run',None,why
    try: valid = _Twin(m).strides()[1][:-1]
    except ValueError: valid = []
    Ts = [T for T in (16,8) if T in valid] or [T for T in valid if 4<=T<8] or [8]   # below 4 a map takes too much memory
    res = [at(m, T, x) for T in Ts]
    verdict,_,reason = max(res, key=lambda o: list(verdicts).index(o[0]))
    if picky and verdict=='refused' and fails(m, x[...,::2,::2]): reason = f'it does not run on all sizes of image, but on {x.shape[2]}x{x.shape[3]}'
    return Ts,verdict,res[-1][1],reason

def row(net, secs=60):
    "What `check` says of `net`, in one thread and at most `secs`"
    class TooSlow(BaseException): "No `Exception`, so that nobody on the way takes it for an error of the network"
    def stop(*_): raise TooSlow
    torch.set_num_threads(1), torch.manual_seed(0), warnings.simplefilter('ignore')
    signal.signal(signal.SIGALRM, stop), signal.alarm(secs)
    try: res = check(*net)
    except TooSlow: res = (),'not run',None,f'it takes more than {secs} seconds'
    except Exception as e: res = (),'crash',None,f'{e!r}\n{traceback.format_exc()}'
    finally: signal.alarm(0)
    return SimpleNamespace(**dict(zip(['lib','fam','name','sz','strides','verdict','error','reason'], [*net,*res])))

def clause(s):
    "What a reader needs of the warning or error `s`"
    s = re.sub(r'^Cannot (follow the strides of|dilate)( this \w+:)? |^.*? is not exact: |, with sides of \d+', '', s.split('\n')[0])
    s = re.sub(r'^`output_stride` of this \w+ can be one of (.*), not \d+$', r'its output strides are \1', s)
    s = re.sub(r' exactly( at \d+)?: ', ': ', s).replace('|', '/')
    return re.sub(r', and the map has more.*|[.!] .*', '', s)[:120]

def table(rows):
    "`rows` as Markdown, without columns that are empty"
    cols = {'network':[f'`{o.name}`' for o in rows], 'from':[f'{o.lib} {o.fam}' for o in rows],
        'output strides':[', '.join(map(str,o.strides)) for o in rows],
        'error at the last':['' if o.error is None else f'{o.error:.1g}' for o in rows], 'reason':[clause(o.reason) for o in rows]}
    cols = {k:v for k,v in cols.items() if any(v)}
    return '\n'.join(f"| {' | '.join(o)} |" for o in [cols, ['---']*len(cols), *zip(*cols.values())])

def page(rows):
    "The page: what was done, how many networks have each verdict, and a table for each"
    found = {k:[o for o in rows if o.verdict==k] for k in verdicts}
    counts = '\n'.join(f'| {k} | {len(found[k])} | {v} |' for k,v in verdicts.items())
    return f"""# Which networks

What `set_output_stride` does to the smallest two networks of each module of timm, and of torchvision's classifiers. Each was asked for the output
strides 16 and 8, where it has them, and its last map, on the native grid, was compared with the native one. The error is the largest difference, as a
part of the largest value. Weights are random, and none is near 0, which would hide a difference. Images have 161x193 pixels, in double precision.

An *exact* network can change its stride at any time, before training or after. One that is *warned* of works, but is no longer the function that
was trained: train on at the new stride. One that is *refused* stays as it was. Any other network can be asked: `set_output_stride` says what it
cannot do, and `grid_error` how far a network is off.

| verdict | networks | meaning |
|---|---|---|
{counts}
""" + ''.join(f'\n## {k.capitalize()}\n\n{table(v)}\n' for k,v in found.items() if v)

@call_parse
def main(
    out:str='docs/networks.md', # page to write
    quick:bool=False,           # every tenth network, and no page
    only:str='',                # only networks whose library, module and name fit this expression, and no page
    n_workers:int=2,            # processes
):
    "Ask the smallest two networks of each family for smaller output strides; fails if one is off in silence, or dies"
    warnings.simplefilter('ignore')
    nets = [o for o in smallest(families()) if re.search(only, ' '.join(o[:3]))][::10 if quick else 1]
    rows = parallel(row, nets, n_workers=n_workers, progress=True)
    for o in rows:
        if only or quick or o.verdict in bugs: print(o.verdict, o.lib, o.name, o.strides, o.error, o.reason)
    print(f'{len(rows)} networks: ' + ', '.join(f'{sum(o.verdict==k for o in rows)} {k}' for k in verdicts))
    if not (only or quick): Path(out).write_text(page(rows))
    sys.exit(any(o.verdict in bugs for o in rows))
