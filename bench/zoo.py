"What an output stride does to the smallest two networks of each family of timm and torchvision, and to the best-known ones; writes docs/networks.md"
import json, re, signal, sys, timm, torch, traceback, warnings
import fastai.vision.models.xresnet as xresnets, torchvision.models as tvm
from pathlib import Path
from fastai.vision.all import *
from fastai_dilation.all import *
from fastai_dilation.ask import before_pixels, last_maps
from fastai_dilation.layers import CannotDilate
from fastai_dilation.output_stride import native_strides
from fastai_dilation.strides import closed_inside
from fastcore.script import call_parse
from fastcore.xdg import xdg_cache_home

sys.path.insert(0, str(Path(__file__).resolve().parent.parent/'tests'))
from util import alive

# the better ones first
verdicts = dict(o.split(': ', 1) for o in """exact: the native map is there, to float precision, and there is no warning
warned, but exact: there is a warning, and the last map is exact all the same
warned: the network changes, and a warning says that it is not exact, and why
refused: an error says why, and the network stays as it was
not compared: it changes, and what it then makes of these images has no map to compare
not run: too large or too slow for this page, or it does not run at all
silent: not exact, and no warning, which is a bug
crash: any other error, which is a bug""".split('\n'))
bugs,tol = ['silent','crash'],1e-9
# native sides are odd in the first image, and even in the second; what does not run on those has its own size
sides = (65,129),(64,128)
much_used = '''resnet50 resnet50d seresnet50 ecaresnet26t resnext50_32x4d resnetblur18 resnetrs50 convnext_tiny
densenet121 efficientnet_b0 efficientnet_lite0 tf_efficientnet_b0 tf_efficientnetv2_b0 tf_efficientnet_lite0
tf_mobilenetv3_small_100 tf_mixnet_s mobilenetv2_100 mobilenetv3_large_100 mobilenetv4_conv_small
mobilenetv4_hybrid_medium regnety_008'''.split()

# what most people use, by family; `--popular` makes the page's first table of it
best_known = """ResNet: timm resnet18, resnet34, resnet50, resnet50d; torchvision resnet18, resnet34, resnet50; fastai xresnet34, xresnet50
ResNeXt: timm resnext50_32x4d
SE-ResNet: timm seresnet50
RegNet: timm regnety_008
DenseNet: timm densenet121; torchvision densenet121
VGG: timm vgg16_bn
Inception: timm inception_v3
EfficientNet: timm efficientnet_b0, tf_efficientnet_lite0; torchvision efficientnet_b0
MobileNet: timm mobilenetv2_100, mobilenetv3_large_100; torchvision mobilenet_v3_large
ConvNeXt: timm convnext_tiny; torchvision convnext_tiny
HRNet: timm hrnet_w18
ViT: timm vit_base_patch16_224
Swin: timm swin_tiny_patch4_window7_224
U-Net, built: fastai resnet18"""

def build(lib, name):
    if lib=='fastai' and name=='resnet18': return create_unet_model(models.resnet18, 11, (224,224), pretrained=False)
    if lib=='fastai': return getattr(xresnets, name)()
    return timm.create_model(name) if lib=='timm' else tvm.get_model(name)

def families():
    "Names of networks, by library and module"
    res = {('timm',o):timm.list_models(module=o) for o in timm.list_modules()}
    for o in tvm.list_models(module=tvm):
        module = tvm.get_model_builder(o).__module__.split('.')[-1]
        res.setdefault(('torchvision',module), []).append(o)
    return res

def millions(lib, name):
    "Millions of parameters; without making them, where the network can be built on the meta device"
    try:
        with torch.device('meta'): m = build(lib, name)
    except NotImplementedError: m = build(lib, name)
    return sum(p.numel() for p in m.parameters())/1e6

def smallest(fams, n=2):
    "The `n` networks of each family with the fewest parameters, and their millions, which are kept for the next time"
    cache = xdg_cache_home()/'fastai_dilation_zoo.json'
    szs = json.loads(cache.read_text()) if cache.exists() else {}
    new = [(lib,o) for (lib,_),names in fams.items() for o in names if f'{lib} {o}' not in szs]
    for lib,o in progress_bar(new, leave=False): szs[f'{lib} {o}'] = millions(lib, o)
    cache.mk_write(json.dumps(szs))
    def of_family(lib, module, names):
        sized = sorted([(szs[f'{lib} {o}'],i,o) for i,o in enumerate(names)])
        return [(lib,module,o,sz) for sz,_,o in sized[:n]]
    return [o for fam,names in fams.items() for o in of_family(*fam,names)]

def inputs(m):
    "Images that `m` runs on: one with odd and one with even native sides, if it does"
    own = tuple(getattr(m,'default_cfg',{}).get('input_size',(3,224,224))[1:])
    runs = [torch.randn(1,3,*sz) for sz in sides if fails(m, torch.randn(1,3,*sz)) is None]
    return runs or [torch.randn(1,3,*own)]

def at(m, T):
    "Verdict, error and reason for `m` at output stride `T`"
    m = deepcopy(m)
    with warnings.catch_warnings(record=True) as ws:
        warnings.simplefilter('always')
        try: set_output_stride(m, T)
        except CannotDilate as e: return 'refused',None,str(e)
    said,xs = first(str(o.message) for o in ws if o.category is InexactWarning) or '',inputs(m)
    try: err = max(grid_error(m.double(), T, x.double()) for x in xs)
    except ValueError as e: return ('warned' if said else 'not compared'),None,said or str(e)
    if err<=tol: return ('warned, but exact' if said else 'exact'),err,said
    return ('warned' if said else 'silent'),err,said

def fails(m, x):
    "Why `m` does not run on `x`, if so"
    try:
        with torch.no_grad(): m(x)
    except Exception as e: return repr(e)

def check(lib, fam, name, sz):
    "Output strides, the worse verdict, the error at the last of the strides, and the reason"
    if sz>150: return (),'not run',None,f'{sz:.0f} M parameters'
    m = alive(build(lib, name))
    if why := fails(m, inputs(m)[0]): return (),'not run',None,why
    try: possible = output_strides(m)[:-1]
    except CannotDilate as e: return (),'refused',None,str(e)
    # below 4 a map takes too much memory
    Ts = [T for T in (16,8) if T in possible] or [T for T in possible if 4<=T<8] or [8]
    res = [at(m, T) for T in Ts]
    verdict,_,reason = max(res, key=lambda o: list(verdicts).index(o[0]))
    return Ts,verdict,res[-1][1],reason

def row(net, secs=90):
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

def map_side(net, strides, x):
    "Side of the last map that `net` makes of `x`"
    found = last_maps(net, strides, (x,), before_pixels(net,strides)-closed_inside(net))
    name,maps = [*found.values()][-1]
    return maps[0].shape[-1]

def known_row(fam, lib, name):
    "What the page's first table says of a network: exact or not at 16 and 8, and the sides of its maps"
    torch.manual_seed(0)
    m = alive(build(lib, name))
    try: strides = native_strides(m)
    except CannotDilate as e: return fam,name,lib,'refused','refused','',clause(str(e))
    cells,why,sides = [],'',[map_side(m,strides,torch.randn(1,3,224,224))]
    for T in (16,8):
        verdict,err,reason = at(m, T)
        cells.append(verdict if err is None else f'{verdict}, {err:.1g}')
        if verdict=='refused': why = clause(reason)
        else: sides.append(map_side(set_output_stride(deepcopy(m),T,warn=False), strides, torch.randn(1,3,224,224)))
    return fam,name,lib,*cells,', '.join(map(str,sides)) if len(sides)==3 else '',why

marks = '<!-- made by `python bench/zoo.py --popular` -->','<!-- end -->'

def known_part(path):
    "The page's first table, as it stands in `path`"
    old = Path(path).read_text() if Path(path).exists() else ''
    return old[old.index(marks[0])+len(marks[0]):old.index(marks[1])] if marks[0] in old else '\n'

def popular_table():
    "Ask the best-known networks, one after the other"
    torch.set_num_threads(1), warnings.simplefilter('ignore')
    rows = []
    for line in best_known.split('\n'):
        fam,libs = line.split(': ')
        for lib,names in (o.split(' ',1) for o in libs.split('; ')):
            for name in names.split(', '):
                rows.append(known_row(fam, lib, name))
                print(*rows[-1], flush=True)
    return best_known_tables(rows)

def best_known_tables(rows):
    "What `known_row` says of networks as Markdown: those that change, and those that are refused, with the reason"
    rows = [(fam,f'`{name}`',*o) for fam,name,*o in rows]
    def lines(cols, rows): return '\n'.join(f"| {' | '.join(o)} |" for o in [cols, ['---']*len(cols), *rows])
    changed = lines(['family','network','from','at 16','at 8','224 px, at 32, 16, 8'], [o[:-1] for o in rows if not o[-1]])
    return f"{changed}\n\n{lines(['family','network','from','why refused'], [(*o[:3],o[-1]) for o in rows if o[-1]])}"

def clause(s):
    "What a reader needs of the warning or error `s`"
    s = re.sub(r'^Cannot dilate (`\S+`): it ', r'\1 ', s.split('\n')[0])
    s = re.sub(r'^At output_stride=\d+ this \w+ is not exact: ', '', s).replace(', and cannot run by phases', '')
    s = re.sub(r'^`output_stride` of this \w+ can be one of (.*), not \d+$', r'its output strides are \1', s)
    return re.sub(r'[.:] [A-Z`].*', '', s.replace('|', '/'))[:160]

def table(rows):
    "`rows` as Markdown, without columns that are empty"
    cols = {'network':[f'`{o.name}`' for o in rows], 'from':[f'{o.lib} {o.fam}' for o in rows],
        'output strides':[', '.join(map(str,o.strides)) for o in rows]}
    cols['error at the last'] = ['' if o.error is None else f'{o.error:.1g}' for o in rows]
    cols['reason'] = [clause(o.reason) for o in rows]
    cols = {k:v for k,v in cols.items() if any(v)}
    return '\n'.join(f"| {' | '.join(o)} |" for o in [cols, ['---']*len(cols), *zip(*cols.values())])

def page(rows, known):
    "The page: the table `known`, what was done, how many networks have each verdict, and a table for each"
    found = {k:[o for o in rows if o.verdict==k] for k in verdicts}
    counts = '\n'.join(f'| {k} | {len(found[k])} | {v} |' for k,v in verdicts.items())
    return f"""# Which networks

## The best-known ones

*Exact*: on its native grid, the last map is the native one, to the error that stands beside it (in double precision, as below). Another network is
asked by `python -m fastai_dilation NAME 8`. The last column has
the sides of its maps of an image of 224 pixels. Where they are not 7, 14 and 28, they follow from exactness: a layer that does not pad its border has
fewer positions (ConvNeXt, Inception), and timm's VGG has its last map behind a conv that reads 7x7 values at once. So resize a map by its stride
(`to_pixels`), and not to the image's size.

{marks[0]}{known}{marks[1]}

## How this was measured

What `set_output_stride` does to the smallest two networks of each module of timm, and of torchvision's classifiers, and to some of timm's best-known
ones. Each was asked for the output strides 16 and 8, where it has them, and its last map, on the native grid, was compared with the native one. The
error is the largest difference, as a part of the largest value. Weights are random, and none is near 0, which would hide a difference. There are two
images, in double precision: one of 65x129 pixels, of which the native maps have odd sides, and one of 64x128, of which they have even ones.

An *exact* network can change its stride at any time, before training or after. One that is *warned* of works, but \
is no longer the function that
was trained: train on at the new stride. One that is *refused* stays as it was. Any other network can be asked: \
`set_output_stride` says what it
cannot do, and `grid_error` how far a network is off.

| verdict | networks | meaning |
|---|---|---|
{counts}
""" + ''.join(f'\n## {k.capitalize()}\n\n{table(v)}\n' for k,v in found.items() if v)

@call_parse
def main(
    out:str='docs/networks.md', # page to write
    quick:bool=False,           # every tenth network, and no page
    popular:bool=False,         # the best-known networks alone, for the page's first table
    only:str='',                # only networks whose library, module and name fit this expression, and no page
    n_workers:int=2,            # processes
):
    "Ask the smallest networks of each family, and the popular ones, for finer strides; fails if one is off in silence"
    warnings.simplefilter('ignore')
    if popular:
        old,table = Path(out).read_text(),popular_table()
        return Path(out).write_text(old.replace(marks[0]+known_part(out)+marks[1], f'{marks[0]}\n\n{table}\n\n{marks[1]}'))
    named = [('timm','popular',o,millions('timm',o)) for o in much_used]
    nets = [o for o in (*smallest(families()),*named) if re.search(only, ' '.join(o[:3]))][::10 if quick else 1]
    rows = parallel(row, nets, n_workers=n_workers, progress=True)
    for o in rows:
        if only or quick or o.verdict in bugs: print(o.verdict, o.lib, o.name, o.strides, o.error, o.reason)
    print(f'{len(rows)} networks: ' + ', '.join(f'{sum(o.verdict==k for o in rows)} {k}' for k in verdicts))
    if not (only or quick): Path(out).write_text(page(rows, known_part(out)))
    sys.exit(any(o.verdict in bugs for o in rows))
