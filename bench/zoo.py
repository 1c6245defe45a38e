"Every network of timm and torchvision, by name, at finer strides: a row for each in docs/networks.jsonl, which docs/networks.py reads"
import faulthandler, itertools, json, math, multiprocessing.connection, os, re, resource, signal, subprocess, sys, time, warnings
import fastai, fastai.vision.models.xresnet as xresnets, timm, torch, torchvision, torchvision.models as tvm
from pathlib import Path
from fastai.vision.all import *
from fastai_dilation.all import *
from fastai_dilation.ask import before_pixels, last_maps
from fastai_dilation.layers import CannotDilate, phases_in
from fastai_dilation.output_stride import native_strides,network_of
from fastai_dilation.strides import as_tuple, closed_inside, first_line, is_map
from fastai_dilation.trial import difference, has_native_size, native_part
from fastcore.script import call_parse
from fastcore.xdg import xdg_cache_home

root = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(root/'docs'), str(root/'tests')]
from networks import best_known, bugs, counted, key, read, verdicts, write
from util import alive

most = 60               # millions of parameters; larger ones are not asked
gigabytes = 10          # for one network
idle = 600              # seconds without work after which one hangs
tol = {torch.double:1e-6, torch.float:1e-4}
# native sides are odd in the first image, and even in the second; what does not run on those has its own size
odd_and_even = (65,129),(64,128)

# All names

def all_names():
    "Library, family and name of every network"
    def file_of(name): return tvm.get_model_builder(name).__module__.split('.')[-1]
    yield from [('timm',fam,o) for fam in timm.list_modules() for o in timm.list_models(module=fam)]
    yield from [('torchvision',file_of(o),o) for o in tvm.list_models(module=tvm)]
    yield from [('torchvision','segmentation',o) for o in tvm.list_models(module=tvm.segmentation)]
    yield from [('torchvision','detection',o) for o in tvm.list_models(module=tvm.detection)]
    yield from [('fastai','xresnet',o) for o in xresnets.__all__ if re.match('xse|xres', o)]
    yield 'fastai','unet','unet_resnet18'

def body_of(detector):
    "What changes of a `detector`, or all of one that is refused"
    try: return network_of(detector)
    except CannotDilate: return detector

def forms(lib, fam, name):
    "Ways to build a network, by name; each is for one that is refused as the form before"
    unet = partial(create_unet_model, models.resnet18, 11, (224,224), pretrained=False)
    if lib=='fastai': return dict(whole=unet if fam=='unet' else getattr(xresnets,name))
    if lib=='timm':
        maps = partial(timm.create_model, name, features_only=True, out_indices=[-1])
        return dict(whole=partial(timm.create_model,name), features=maps)
    is_dense = fam in ('segmentation','detection')
    whole = partial(tvm.get_model, name, weights=None, **(dict(weights_backbone=None) if is_dense else {}))
    if fam=='segmentation': return dict(whole=whole, backbone=lambda: whole().backbone)
    # a detector resizes what it reads
    if fam=='detection': return dict(body=lambda: body_of(whole()))
    return dict(whole=whole)

def first_form(net): return next(iter(forms(*net).values()))

def millions(net):
    "Millions of parameters; without making them, where the network can be built on the meta device; 0 if it cannot be built"
    for device in ('meta','cpu'):
        try:
            with torch.device(device): return sum(p.numel() for p in first_form(net)().parameters())/1e6
        except Exception: pass
    return 0.

def sized(nets):
    "The millions of each of `nets`, which are kept for the next time"
    cache = xdg_cache_home()/'fastai_dilation_zoo.json'
    szs = json.loads(cache.read_text()) if cache.exists() else {}
    def known_as(lib, fam, name): return f'{lib} {name}'
    if new := [o for o in nets if known_as(*o) not in szs]:
        print(f'counting the parameters of {len(new)} networks', flush=True)
        for o in new: szs[known_as(*o)] = millions(o)
        cache.mk_write(json.dumps(szs))
    return {o:szs[known_as(*o)] for o in nets}

def in_order(szs, each_family):
    "The networks of `szs`, small ones first; before them the best-known ones, and before all the smallest of each family"
    nets = sorted(szs, key=lambda o: (szs[o],o))
    firsts = {}
    for o in nets: firsts.setdefault(o[:2], o)
    known = {(lib,name) for _,lib,name in best_known}
    def rank(net):
        if each_family and net==firsts[net[:2]]: return 0
        return 1 if (net[0],net[2]) in known else 2
    return sorted(nets, key=rank)

# One network

def digits(x, n=2): return float(f'{x:.{n}g}')

def clause(s):
    "What a reader needs of the warning or error `s`"
    s = re.sub(r'^Cannot dilate (`\S+`): it ', r'\1 ', s.split('\n')[0])
    s = re.sub(r'^At output_stride=\d+ this \w+ (is not|may not be) exact: ', '', s)
    s = re.sub(r', and cannot run by phases', '', s).replace('|', '/')
    s = re.sub(r'[.] .*', '', s) # what to do instead
    return s if len(s)<160 else s[:157].rpartition(' ')[0]+' …'

def crash(e):
    "An error in words, and the innermost function of the library that it came through"
    ours,tb = '',e.__traceback__
    while tb:
        code = tb.tb_frame.f_code
        if 'fastai_dilation' in Path(code.co_filename).parts: ours = f' in `{code.co_name}`'
        tb = tb.tb_next
    return f'{type(e).__name__}{ours}: {first_line(e)}'[:200]

def fails(m, x):
    "Why `m` does not run on `x`, if so"
    try:
        with torch.no_grad(): m(x)
    except Exception as e: return crash(e)

def image(sides): return torch.randn(1, 3, *sides)

def own_sides(m, strides):
    "Those of the image that `m` was made for"
    cfgs = [getattr(o,'default_cfg',None) or {} for o in m.modules()]
    named = [o['input_size'][1:] for o in cfgs if 'input_size' in o]
    return tuple(strides.sides or first(named) or (224,224))

def asked(possible):
    "16 and 8, if a network can have them, or the next to them"
    less = possible[:-1]
    if not less: raise CannotDilate(None, f'its output stride of {possible[-1]} cannot be another one')
    return [T for T in (16,8) if T in less] or [max(less)]

def last_map(m, strides, x, names):
    "The `LastMap` of all that the modules `names` make"
    with torch.no_grad(): found = last_maps(m, strides, (x,), names)
    return [*found.values()][-1] if found else None

def change(m, T):
    "A copy of `m` at output stride `T`, the warning, and the seconds that it took"
    m = deepcopy(m)
    with warnings.catch_warnings(record=True) as ws:
        warnings.simplefilter('always')
        start = time.process_time()
        set_output_stride(m, T)
        secs = time.process_time()-start
    return m,first(str(o.message) for o in ws if issubclass(o.category,InexactWarning)) or '',secs

def off(native, changed, strides, T, x):
    "How far the last map of `changed` is off the native one, as a part of its largest value"
    new = last_map(changed, strides, x, before_pixels(changed,strides)-closed_inside(changed))
    if new is None: return None
    old = last_map(native, strides, x, {new.name})
    def error(t, n, grid):
        if not n.isfinite().all(): raise OverflowError('with random weights its map is not finite')
        return difference(native_part(t,grid,T), n) if has_native_size(t,n,grid,T) else math.inf
    return max(error(*o) for o in zip(new.tensors,old.tensors,new.grids) if is_map(o[-1]))

def verdict(err, said, tol):
    if err is None: return 'warned' if said else 'no map'
    if err<=tol: return 'warned, but exact' if said else 'exact'
    return 'warned' if said else 'silent'

def how(m):
    "How `m` runs, and the native passes that it takes, if it runs by phases as a whole"
    phased = {n:p.n_all for n,p in phases_in(m).items() if p.n_all>1}
    if '' in phased: return dict(how='whole', passes=phased[''])
    return dict(how='by phases' if phased else 'dilated')

def paired(native, changed, x, secs=6):
    "Median of the ratios of seconds, `changed` and native in turns; the first turn counts only if it is the one"
    def took(m):
        start = time.perf_counter()
        with torch.no_grad(): m(x)
        return time.perf_counter()-start
    def is_enough(turns): return len(turns)==8 or sum(map(sum,turns))>(1 if len(turns)>=4 else secs)
    turns = []
    while not is_enough(turns): turns.append((took(changed),took(native)))
    return np.median([a/b for a,b in turns[1:] or turns])

def side(m, strides, x, name):
    "The last side of the map that module `name` of `m` makes of `x`; of several, of the one that is natively the coarsest"
    o = last_map(m, strides, x, {name})
    maps = [(t,g) for t,g in zip(o.tensors,o.grids) if is_map(g)]
    t,g = max(maps, key=lambda o: as_tuple(o[1].stride,3))
    return t.shape[g.dims[-1]]

def ask_form(m, tell):
    "Tell what becomes of `m`: first whether it is exact, then what it costs"
    strides = native_strides(network_of(m))
    Ts = asked(strides.possible)
    tell(strides=[strides.possible[-1],*Ts], at='a native pass')
    own = own_sides(m, strides)
    all_sides = [o for o in odd_and_even if fails(m,image(o)) is None] or [own]
    if why := fails(m, image(all_sides[0])): return tell(verdict='not run', why=why)
    is_double = fails(m.double(), image(all_sides[0]).double()) is None
    dtype = torch.double if is_double else torch.float
    if not is_double: tell(single=True)
    worst,changed,errs,secs = 'exact',[],[],[]
    for T in Ts:
        tell(at=f'the change to {T}')
        new,said,took = change(m.float(), T)
        changed.append(new), secs.append(digits(took))
        tell(secs=secs, at=f'a pass at {T}', **how(new))
        err = max([off(m.to(dtype),new.to(dtype),strides,T,image(o).to(dtype)) for o in all_sides], key=lambda o: (o is None,o))
        errs.append(digits(err,1) if err is not None and math.isfinite(err) else None)
        worst = max(worst, verdict(err,said,tol[dtype]), key=[*verdicts].index)
        tell(errors=errs, **(dict(why=clause(said)) if said else {}))
        # whatever it is at the next one
        if worst=='silent': return tell(verdict=worst, why=f'at {T}, which is taken without a warning')
    tell(verdict=worst)
    if None in errs: return # there is no map to ask what it costs
    x = first(o for o in (image((224,224)),image(own)) if fails(m.float(),o) is None)
    last = last_map(changed[-1].float(), strides, x, before_pixels(changed[-1],strides)-closed_inside(changed[-1]))
    sides = [side(o.float(),strides,x,last.name) for o in (m,*changed)]
    tell(px=x.shape[-1], sides=sides)
    times = []
    for o in changed:
        times.append(digits(paired(m,o,x)))
        tell(times=times)

def peak():
    "Gigabytes that this process has taken at most"
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss/2**20

draws = 3 # of random weights, where the first may be to blame that nothing moves

def ask_draws(make, form, row, tell):
    "Tell what becomes of what `make` makes, with other weights if the first are to blame; why it cannot be made, or is refused"
    for seed in range(draws):
        row.clear()
        torch.manual_seed(seed)
        try: m = alive(make())
        except Exception as e: return 'not run',crash(e)
        tell(form=form)
        try: return ask_form(m, tell)
        except CannotDilate as e: why = str(e)
        if 'Random weights' not in why: break
    return 'no map' if 'makes no map' in why else 'refused',clause(why)

def ask(net, row, tell):
    "Tell what becomes of the network in the first of its `forms` that is not refused; `row` is what was told"
    refused = None
    for form,make in forms(*net).items():
        found = ask_draws(make, form, row, tell)
        if found is None: return
        verdict,why = found
        if verdict=='not run' and refused: break # there is no such form
        if verdict=='not run': return tell(verdict=verdict, why=why)
        refused = {**row} | dict(verdict=verdict, why=why)
    # the library takes any error for a size of image on which a network does not run
    if peak()>.8*gigabytes: raise MemoryError
    row.clear()
    tell(**refused)

# Each network in a process of its own: one that dies has a line, too

def child(conn, net, secs):
    "Send what is known of `net`, each time that it is more"
    # seconds of the processor, so that it makes no difference what else runs on the machine
    resource.setrlimit(resource.RLIMIT_CPU, (secs,secs+5))
    resource.setrlimit(resource.RLIMIT_DATA, (gigabytes<<30,)*2)
    resource.setrlimit(resource.RLIMIT_CORE, (0,0))
    torch.set_num_threads(1), torch.manual_seed(0), warnings.simplefilter('ignore')
    faulthandler.disable()
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1), os.dup2(null, 2)
    row = {}
    def tell(**kw):
        row.update(kw)
        conn.send(row)
    try: ask(net, row, tell)
    except OverflowError as e: tell(verdict='not run', why=str(e))
    except Exception as e:
        is_full = isinstance(e,MemoryError) or 'allocate memory' in str(e)
        if is_full: tell(verdict='out of memory', why=f'it takes more than {gigabytes} GB at {row.get("at")}')
        else: tell(verdict='crash', why=f'{crash(e)}; at {row.get("at")}')

class Asked:
    "A network that is asked in a process of its own, and what is known of it"
    def __init__(self, net, secs):
        mp = multiprocessing.get_context('fork')
        self.net,self.secs,self.row = net,secs,{}
        self.conn,there = mp.Pipe(duplex=False)
        self.p = mp.Process(target=child, args=(there,net,secs), daemon=True)
        self.p.start(), there.close()
        self.work,self.since = '',time.time()

    def hangs(self):
        "Has it taken nothing of a processor for a long time? On a busy machine it may take little"
        work = subprocess.run(['ps','-o','time=','-p',str(self.p.pid)], capture_output=True, text=True).stdout
        if work!=self.work: self.work,self.since = work,time.time()
        return time.time()-self.since>idle

    def is_over(self):
        "Take what it has to say, if that is something; has it come to its end?"
        try:
            while self.conn.poll(): self.row = self.conn.recv()
        except EOFError: return True
        return self.hangs()

    def end(self):
        "What there is to know of it"
        self.p.join(5) # it says its last a little before it ends
        in_time = not self.p.is_alive()
        self.p.kill(), self.p.join()
        row,code = self.row,self.p.exitcode
        at = row.pop('at','its start')
        if 'verdict' in row: return row # the times alone may be missing
        if not in_time: return row | dict(verdict='out of time', why=f'it hangs, at {at}')
        is_slow = code==-signal.SIGXCPU
        if is_slow: return row | dict(verdict='out of time', why=f'it takes more than {self.secs} seconds, at {at}')
        return row | dict(verdict='crash', why=f'its process dies, signal {-code}, at {at}')

def ask_all(szs, nets, secs, workers, note):
    "Ask `nets`, so many at a time, and `note` a row of each"
    todo,going = iter(nets),[]
    try:
        while True:
            going += [Asked(o,secs) for o in itertools.islice(todo, workers-len(going))]
            if not going: return
            multiprocessing.connection.wait([o.conn for o in going], timeout=5)
            over = [o for o in going if o.is_over()]
            for o in over: note(row_of(o.net, szs[o.net], **o.end()))
            going = [o for o in going if o not in over]
    finally:
        for o in going: o.p.kill()

def row_of(net, sz, **kw):
    lib,fam,name = net
    return dict(library=lib, family=fam, name=name, millions=digits(sz,3)) | kw

def heads(nets):
    "How many names each library has, and in which version"
    of = dict(fastai=fastai.__version__, timm=timm.__version__, torchvision=torchvision.__version__.split('+')[0])
    return [dict(library=k, version=v, names=sum(o[0]==k for o in nets)) for k,v in of.items()]

def warm_up():
    "What the first change of a process imports is not a matter of a network"
    set_output_stride(timm.create_model('test_resnet'), 8)

def stop(*_):
    "End as if by itself, with rows in order; who stops it may say so twice"
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sys.exit(1)

@call_parse
def main(
    only:str='',            # only networks whose library, family and name fit this expression
    workers:int=1,          # networks at a time
    secs:int=120,           # of a processor, for one network
    each_family:bool=False, # first the smallest network of each family, before all others
    again:bool=False,       # ask those too that have a row
    summary:bool=False,     # ask nothing, and say what the rows say
    out:Path=root/'docs'/'networks.jsonl', # a row for each network
):
    "Ask networks for finer strides, and go on where the last run ended; ends with 1 if a row says silent or crash"
    warnings.simplefilter('ignore')
    out = Path(out)
    if not summary:
        nets = [*all_names()]
        has_row = set() if again else {key(o) for o in read(out)[1]}
        szs = sized(nets)
        todo = [o for o in in_order(szs,each_family) if o not in has_row and re.search(only,' '.join(o))]
        signal.signal(signal.SIGTERM, stop)
        write(out, heads(nets), read(out)[1])
        with out.open('a') as f:
            def note(row):
                print(json.dumps(row), file=f, flush=True)
                print(*key(row), row['verdict'], row.get('why',''), flush=True)
            for net in todo:
                if szs[net]>most: note(row_of(net, szs[net], verdict='too large'))
            warm_up()
            try: ask_all(szs, [o for o in todo if szs[o]<=most], secs, workers, note)
            finally: write(out, heads(nets), read(out)[1])
    rows = read(out)[1]
    print(counted(rows))
    found = [o for o in rows if o['verdict'] in bugs]
    for o in found: print(*key(o), o['verdict'], o.get('errors',''), o.get('why',''))
    sys.exit(bool(found))
