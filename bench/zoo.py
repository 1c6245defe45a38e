"What an output stride does to the smallest networks of each family of timm and torchvision: makes docs/networks.md"
import json, re, signal, sys, timm, torch, traceback, warnings
from pathlib import Path
import torchvision.models as tvm
from fastai_dilation.all import *
from fastai_dilation.evaluate import _native_twin
from fastai.vision.all import *
from fastcore.script import call_parse
from fastcore.xdg import xdg_cache_home

sys.path.insert(0, str(Path(__file__).resolve().parent.parent/'tests'))
from util import alive

# the verdicts, the better ones first, and what they mean
verdicts = {'exact':'the native map is there, to float precision',
    'exact with pool_over':"exact after `pool_over(model, 'grid')`, and warned of without it",
    'warned, but exact':'there is a warning, and the last map is exact all the same',
    'warned':'the network changes, and a warning says that it is not exact, and why',
    'refused':'a `ValueError` says why, and the network stays as it was',
    'no map':'no module makes a map at the last stride, so there is nothing to compare',
    'not run':'too large or too slow for this page, or it does not run at all',
    'silent':'not exact, and no warning: a bug',
    'crash':'any other error: a bug'}
bugs,tol = ['silent','crash'],1e-9

class TooSlow(BaseException): "Not an `Exception`, so that nobody between takes it for an error of the network"

def build(lib, name): return timm.create_model(name) if lib=='timm' else tvm.get_model(name, **(dict(init_weights=True) if name in ('googlenet','inception_v3') else {}))

def families():
    "Names of the networks of each family, by library and module"
    res = {('timm',o):timm.list_models(module=o) for o in timm.list_modules()}
    for o in tvm.list_models(module=tvm): res.setdefault(('torchvision',tvm.get_model_builder(o).__module__.split('.')[-1]), []).append(o)
    return res

def size(lib, name):
    "Millions of parameters; some networks cannot be built without memory"
    try:
        with torch.device('meta'): m = build(lib, name)
    except Exception: m = build(lib, name)
    return sum(o.numel() for o in m.parameters())/1e6

def smallest(fams, n=2):
    "The `n` smallest networks of each family, and their sizes, which are kept for the next time"
    f = xdg_cache_home()/'fastai_dilation_zoo.json'
    szs = json.loads(f.read_text()) if f.exists() else {}
    todo = [(lib,o) for (lib,_),names in fams.items() for o in names if f'{lib} {o}' not in szs]
    for o in progress_bar(todo, leave=False): szs[' '.join(o)] = size(*o)
    f.parent.mkdir(parents=True, exist_ok=True)
    f.write_text(json.dumps(szs))
    return [(lib,fam,o,szs[f'{lib} {o}']) for (lib,fam),names in fams.items() for o in sorted(names, key=lambda o: szs[f'{lib} {o}'])[:n]]

def clause(s):
    "What a reader of the table needs of the warning or error `s`"
    s = re.sub(r'^Cannot (follow the strides of|dilate)( this \w+:)? (with a side of \d+, )?|^.*? is not exact: ', '', s.split('\n')[0])
    s = re.sub(r'^`output_stride` of this \w+ can be one of (.*), not \d+$', r'its output strides are \1', s)
    s = s.replace(', which reads several positions by', ' calls').replace(' exactly: ', ': ').replace('|', '/')
    return re.sub(r', and the map has more.*|\. .*', '', s)[:120]

def change(m, T):
    "A copy of `m` at output stride `T`, with the same weights, and what was warned of"
    with warnings.catch_warnings(record=True) as ws:
        warnings.simplefilter('always')
        m = set_output_stride(deepcopy(m, {id(o):o for o in [*m.parameters(), *m.buffers()]}), T)
    return m,first(str(o.message) for o in ws if 'not exact' in str(o.message))

def at(m, T, x):
    "Verdict, error and reason for `m` at output stride `T`"
    try: said = change(m, T)[1]
    except ValueError as e: return 'refused',None,str(e)
    try: err = grid_error(m, T, x)
    except ValueError as e: return ('warned' if said else 'no map'),None,said or str(e)
    if err<=tol: return ('warned, but exact' if said else 'exact'),err,said or ''
    if not said: return 'silent',err,''
    try:
        pooled = pool_over(deepcopy(m), 'grid')
        if not change(pooled, T)[1] and grid_error(pooled, T, x)<=tol: return 'exact with pool_over',err,said
    except ValueError: pass
    return 'warned',err,said

def runs(m, x):
    "Why `m` does not run on `x`"
    try:
        with torch.no_grad(): m(x)
    except Exception as e: return str(e) or repr(e)

def check(lib, fam, name, sz):
    "Strides, verdict, error at the last of the strides, and reason for a network"
    if sz>150: return (),'not run',None,f'{sz:.0f} M parameters'
    m,x = alive(build(lib, name)).double(),torch.randn(1, 3, 161, 193).double()
    if why := runs(m, x):
        x = torch.randn(1, *getattr(m,'default_cfg',{}).get('input_size',(3,224,224))).double()
        if runs(m, x): return (),'not run',None,why
    try: valid = _native_twin(m).strides()[1]
    except ValueError: valid = [8,16]
    Ts = [T for T in (16,8) if T in valid[:-1]] or [o for o in valid[:-1] if 4<=o<8] or [8]
    res = [at(m, T, x) for T in Ts]
    verdict,_,reason = max(res, key=lambda o: list(verdicts).index(o[0]))
    if why and verdict=='refused' and ' says: ' in reason: reason = f'does not run on all image sizes; {x.shape[2]}x{x.shape[3]} is one that it takes'
    return Ts,verdict,res[-1][1],reason

def timed(net, secs=60):
    "A row of the table for `net`, made in one thread, if that takes no longer than `secs`"
    def stop(*_): raise TooSlow
    torch.set_num_threads(1), torch.manual_seed(0), warnings.simplefilter('ignore')
    signal.signal(signal.SIGALRM, stop), signal.alarm(secs)
    try: res = check(*net)
    except TooSlow: res = (),'not run',None,f'takes more than {secs} seconds'
    except Exception as e: res = (),'crash',None,repr(e)+'\n'+traceback.format_exc()
    finally: signal.alarm(0)
    return SimpleNamespace(**dict(zip(['lib','fam','name','sz','strides','verdict','error','reason'], [*net,*res])))

def table(rows):
    "Rows as Markdown, without the columns that are empty"
    def num(e): return '' if e is None else f'{e:.0e}' if e<.01 else f'{e:.2f}'
    cols = {'network':[f'`{o.name}`' for o in rows], 'from':[f'{o.lib} {o.fam}' for o in rows], 'output strides':[', '.join(map(str,o.strides)) for o in rows],
        'error at the last':[num(o.error) for o in rows], 'reason':[clause(o.reason) for o in rows]}
    cols = {k:v for k,v in cols.items() if any(v)}
    return '\n'.join(f"| {' | '.join(o)} |" for o in [cols, ['---']*len(cols), *zip(*cols.values())])

def page(rows):
    "The page: what was done, how many networks have each verdict, and a table for each"
    found = {k:[o for o in rows if o.verdict==k] for k in verdicts}
    return f"""# Which networks

What `set_output_stride` does to the smallest two networks of each module of timm, and of each of torchvision's families, {len(rows)} in all. Each was asked for the
output strides 16 and 8 where it has them, and compared with itself: its last map, on the native grid, with the native one. The error is the largest difference,
as a part of the largest value. Weights are random, and what starts near 0, and so would hide a difference, has ordinary values; 161x193 pixels, double precision.

An *exact* network can change its stride at any time, before training or after. One that is *warned* of works, but is no longer the function that was trained:
train on at the new stride. One that is *refused* stays as it was. Any other network can be asked: `set_output_stride` says what it cannot do, `grid_error` how much is off.

| verdict | networks | meaning |
|---|---|---|
""" + '\n'.join(f'| {k} | {len(found[k])} | {v} |' for k,v in verdicts.items()) + '\n' + ''.join(f'\n## {k.capitalize()}\n\n{table(v)}\n' for k,v in found.items() if v)

@call_parse
def main(
    out:str='docs/networks.md', # the page to write
    quick:bool=False,           # every tenth network, and no page
    only:str='',                # a regular expression for library, module and name, and no page
    n_workers:int=2,            # processes
):
    "Ask the smallest two networks of each family of timm and torchvision for smaller output strides; 1 if any is off in silence, or dies"
    nets = [o for o in smallest(families()) if re.search(only, ' '.join(o[:3]))][::10 if quick else 1]
    rows = parallel(timed, nets, n_workers=n_workers, progress=True)
    for o in rows:
        if only or quick or o.verdict in bugs: print(o.verdict, o.lib, o.name, o.strides, o.error, o.reason)
    print(f'{len(rows)} networks: ' + ', '.join(f'{sum(o.verdict==k for o in rows)} {k}' for k in verdicts))
    if not (only or quick): Path(out).write_text(page(rows))
    sys.exit(any(o.verdict in bugs for o in rows))
