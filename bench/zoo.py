"What an output stride does to the smallest networks of each family of timm and torchvision: makes docs/networks.md"
import json, os, re, signal, sys, timm, torch, traceback, warnings
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
verdicts = {'exact':'Every native value is on the native grid, to double precision.',
    'exact with pool_over': "Exact after `pool_over(model, 'grid')`: a pool module reads the whole map. Without it, there is a warning.",
    'warned, but exact': 'There is a warning, and the last map is exact all the same.',
    'warned': '`set_output_stride` changes the network and warns that the values are not exact. Train on at that stride.',
    'refused': '`set_output_stride` raises a `ValueError` and changes nothing.',
    'no map': 'No module makes a map at the last stride, so there is nothing to compare.',
    'not run': 'Not measured: the network is too large or too slow for this table, or does not run on its own.',
    'silent': 'Not exact, and not warned of: a bug.',
    'crash': 'An error that is no `ValueError`: a bug.'}
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

def change(m, T):
    "A copy of `m` at output stride `T`, and what was warned of"
    with warnings.catch_warnings(record=True) as ws:
        warnings.simplefilter('always')
        m = set_output_stride(deepcopy(m), T)
    return m,first(str(o.message) for o in ws if 'not exact' in str(o.message))

def clause(s):
    "What a reader of the table needs of a warning, or of an error"
    s = re.sub(r'^.*? is not exact: (.*?), and the map has.*', r'\1', str(s).split('\n')[0])
    return re.sub(r'\s+', ' ', s).replace('|','/')[:150]

def at(m, T, x):
    "Verdict, error and reason for `m` at output stride `T`"
    try: said = change(m, T)[1]
    except ValueError as e: return 'refused',None,clause(e)
    try: err = grid_error(m, T, x)
    except ValueError as e: return 'no map',None,clause(said or e)
    if err<=tol: return ('warned, but exact' if said else 'exact'),err,clause(said or '')
    if not said: return 'silent',err,''
    try:
        pooled = pool_over(deepcopy(m), 'grid')
        if not change(pooled, T)[1] and grid_error(pooled, T, x)<=tol: return 'exact with pool_over',err,clause(said)
    except ValueError: pass
    return 'warned',err,clause(said)

def check(lib, fam, name, sz):
    "A row of the table"
    def row(verdict, why='', strides=(), err=None): return dict(network=name, origin=f'{lib} {fam}', strides=strides, verdict=verdict, error=err, why=clause(why))
    if sz>100: return row('not run', f'too large: {sz:.0f} M parameters')
    m,x = alive(build(lib, name)).double(),torch.randn(1, 3, 161, 193).double()
    try:
        with torch.no_grad(): m(x)
    except Exception as e:
        x,why = torch.randn(1, *getattr(m,'default_cfg',{}).get('input_size',(3,224,224))).double(),e
        try:
            with torch.no_grad(): m(x)
        except Exception: return row('not run', why)
    try:
        valid = _native_twin(m).strides()[1]
        Ts = [T for T in (16,8) if T in valid[:-1]] or [8]
    except ValueError as e: Ts = [8]
    res = {T:at(m, T, x) for T in Ts}
    worst = max(res, key=lambda T: list(verdicts).index(res[T][0]))
    return row(res[worst][0], res[worst][2], Ts, res[Ts[-1]][1])

def timed(net, secs=60):
    "`check(*net)` in one thread, if it takes no longer than `secs`"
    def stop(*_): raise TooSlow
    torch.set_num_threads(1), torch.manual_seed(0), warnings.simplefilter('ignore')
    signal.signal(signal.SIGALRM, stop), signal.alarm(secs)
    row = dict(network=net[2], origin=' '.join(net[:2]), strides=(), error=None)
    try: return check(*net)
    except TooSlow: return dict(row, verdict='not run', why=f'too slow: more than {secs} seconds')
    except Exception as e: return dict(row, verdict='crash', why=clause(repr(e)), trace=traceback.format_exc())
    finally: signal.alarm(0)

def fmt(err): return '' if err is None else f'{err:.0e}' if err<.01 else f'{err:.2g}'

def page(rows):
    "The page, a table for each verdict"
    ns = Counter(o['verdict'] for o in rows)
    res = ['# Which networks', f'The smallest two networks of each of the modules of timm and torchvision, {len(rows)} in all, at output strides 16 and 8. '
        'They have random weights, a part of the network that starts at nearly nothing has ordinary ones, and images are 161x193, in double precision. '
        'Each was compared with itself at its native stride: the last map, on the native grid. The error is the largest difference, as a part of the largest value.',
        '*Exact* networks can be changed at any time, before training or after. One that is *warned* of works, but computes something else than it was trained for, '
        'so train it on at the new stride. One that is *refused* stays as it was, and the reason says what is in the way. Any other network can be asked: '
        '`set_output_stride` says what it is, and `grid_error` how far it is off.',
        '| verdict | networks | |\n|---|---|---|\n' + '\n'.join(f'| {k} | {ns[k]} | {v} |' for k,v in verdicts.items() if ns[k] or k in bugs)]
    for k in verdicts:
        found = [o for o in rows if o['verdict']==k]
        if not found: continue
        cols = {'network':lambda o: f"`{o['network']}`", 'from':lambda o: o['origin'], 'output strides':lambda o: ', '.join(map(str,o['strides']))}
        if any(o['error'] is not None for o in found): cols['error at 8'] = lambda o: fmt(o['error'])
        if any(o['why'] for o in found): cols['reason'] = lambda o: o['why']
        lines = [' | '.join(cols), '---|'*(len(cols)-1)+'---', *[' | '.join(f(o) for f in cols.values()) for o in found]]
        res += [f'## {k.capitalize()}', '\n'.join(f'| {o} |' for o in lines)]
    return '\n\n'.join(res)+'\n'

@call_parse
def main(
    out:str='docs/networks.md', # the page to write
    quick:bool=False,           # only every tenth network, and no page
    only:str='',                # only networks whose library, module or name fits this regular expression, and no page
    n_workers:int=2,            # processes
):
    "Ask the smallest two networks of each family of timm and torchvision for smaller output strides; fails if one is wrong in silence or dies"
    nets = [o for o in smallest(families()) if re.search(only, ' '.join(o[:3]))][::10 if quick else 1]
    rows = list(parallel(timed, nets, n_workers=n_workers, progress=True))
    ns = Counter(o['verdict'] for o in rows)
    for o in rows:
        if o['verdict'] in bugs or only: print(*[o[k] for k in ('verdict','network','origin','strides','error','why')], o.get('trace',''), sep='  ')
    print(f"{len(rows)} networks: {', '.join(f'{ns[k]} {k}' for k in verdicts)}")
    if not (quick or only): Path(out).write_text(page(rows))
    sys.exit(any(ns[k] for k in bugs))
