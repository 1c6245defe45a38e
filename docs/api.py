"The page with every public name, made from the code: signature, docstring, parameters, and where it is explained"
import ast, importlib, inspect, re
from textwrap import wrap
from fastai.callback.core import Callback
from fastai.vision import learner as fastai_learner
from fastcore.docments import docments
from fastcore.nbio import read_nb
from pages import number, root, slug

def _texts(lines):
    "By name, what stands below it, further in"
    res = {}
    for line in lines.strip().split('\n'):
        if not line.startswith(' '): name,res[line] = line,[]
        else: res[name].append(line.strip())
    return {k:'\n'.join(v) for k,v in res.items()}

# what a user may want, and the names that do it; a new name has to be put under one of these
by_use = _texts("""
Change the stride
    set_output_stride get_output_stride output_strides pool_over in_turn
fastai's learners
    vision_learner unet_learner cnn_learner deeplab_learner GradientCheckpointing Learner.set_output_stride
Ask a network
    grid_error explain receptive_field output_stride_report
Maps
    class_maps ClassMaps smoothed to_pixels ToPixels by_tiles
Models and weights
    create_vision_model create_unet_model create_timm_model create_deeplab_model DeepLab DeepLabPlus load_weights
Errors and warnings
    CannotDilate InexactWarning
A new kind of layer
    Kind DilatedPool GridPool
""")

# lines that run: `net` is a classifier, `body` makes a map, `x` a batch of images; `dls` has classes, `mask_dls` masks
examples = _texts("""
set_output_stride
    set_output_stride(net, 8)       # in place
    set_output_stride(net, (32,8))  # a stride for each axis
    set_output_stride(net, 32)      # and back
get_output_stride
    get_output_stride(net)  # 32
output_strides
    output_strides(net)  # [1, 2, 4, 8, 16, 32]
pool_over
    pool_over(set_output_stride(net, 8), 'grid')  # its answers are the native ones
    pool_over(net, 'all')
vision_learner
    learn = vision_learner(dls, resnet18, pretrained=False, output_stride=16)
unet_learner
    learn = unet_learner(mask_dls, resnet18, pretrained=False, output_stride=8)
deeplab_learner
    learn = deeplab_learner(mask_dls, resnet18, pretrained=False, output_stride=16, rates=(1,2,3))
GradientCheckpointing
    learn = vision_learner(dls, resnet18, pretrained=False, output_stride=8, cbs=GradientCheckpointing())
grid_error
    grid_error(net, 8)  # 5e-7: largest difference, as a part of the largest feature
explain
    explain(net, 8)
receptive_field
    receptive_field(body)  # {2: 4, 4: 24, 8: 56, 16: 112, 32: 224}
class_maps
    maps = class_maps(net, x, 8)  # batch, classes, and sides
ClassMaps
    ask = ClassMaps(net, 8, smooth=True)
    maps = [ask(xb) for xb in x.split(1)]
smoothed
    maps = smoothed(class_maps(net, x, 8), 4)  # at 8, a map of a network of 32 is 4 times as fine
to_pixels
    heat = to_pixels(class_maps(net, x, 8), x.shape[2:], 8, offset=15.5)
by_tiles
    y = by_tiles(body, x, tile=64)
create_deeplab_model
    model = create_deeplab_model(resnet18, 5, pretrained=False, output_stride=16, rates=(1,2,3))
""")

_refuses = """
    `CannotDilate` where the network cannot have that stride: which module, why, and what would do.
    The network stays as it was."""
# what goes wrong, and how
raises = _texts(f"""
set_output_stride{_refuses}
    It warns with `InexactWarning` of what is not exact.
vision_learner{_refuses}
unet_learner{_refuses}
deeplab_learner{_refuses}
    `ValueError` for rates that step over the map.
grid_error{_refuses}
    It warns of layers that it cannot see.
explain{_refuses}
pool_over
    `ValueError` where no pool module reads a whole map.
class_maps
    `ValueError` where no head begins with a global pool module.
receptive_field
    `ValueError` for a network that runs on one size of image.
by_tiles
    `ValueError` where the network makes no map, more than one, or sees all of the image.
""")

def public():
    "Names of `fastai_dilation.all`, with the methods that a module adds to fastai's `Learner`: each object and its module"
    res = {}
    for o in ast.parse((root/'fastai_dilation'/'all.py').read_text()).body:
        if not isinstance(o, ast.ImportFrom): continue
        mod = importlib.import_module(f'fastai_dilation.{o.module}')
        added = re.findall(r'^@patch.*\ndef (\w+)\(self:Learner\b', inspect.getsource(mod), flags=re.M)
        res |= {k.name:(getattr(mod,k.name),o.module) for k in o.names if callable(getattr(mod,k.name))}
        res |= {f'Learner.{k}':(getattr(mod.Learner,k),o.module) for k in added}
    return res

def is_fastais(name): return name in fastai_learner.__all__

def parameters(name, f):
    "Names, `Parameter`s and docments of what `f` takes; of fastai's functions only what must be given, and what is new"
    if isinstance(f,type) and issubclass(f,BaseException): return []
    docs = docments(f, full=True)
    params = {k:p for k,p in inspect.signature(f).parameters.items() if k!='self'}
    def is_told(p): return p.name=='output_stride' or p.default is p.empty and p.kind==p.POSITIONAL_OR_KEYWORD
    if is_fastais(name): params = {k:p for k,p in params.items() if is_told(p)}
    if all(p.kind==p.VAR_POSITIONAL for p in params.values()): return []
    if isinstance(f,type) and issubclass(f,Callback): return []
    return [(k, p, (docs.get(k) or {}).get('docment') or '') for k,p in params.items()]

def _default(p): return '' if p.default is p.empty else getattr(p.default, '__name__', None) or repr(p.default)

def signature(name, f):
    "How `name` is called"
    stars = {inspect.Parameter.VAR_POSITIONAL:'*', inspect.Parameter.VAR_KEYWORD:'**'}
    args = [stars.get(p.kind,'') + k + ('' if p.default is p.empty else f'={_default(p)}') for k,p,_ in parameters(name,f)]
    if is_fastais(name): args.insert(-1, '...')
    return '\n    '.join(wrap(f"{name}({', '.join(args)})", 92))

def about(f): return (inspect.getdoc(f) or '').split('\n')[0]

def entry(name, f, link):
    "Section on `name`, which `link` explains"
    params = parameters(name, f)
    rows = [(k, _default(p), doc.replace('\n',' ').replace('|','\\|')) for k,p,doc in params if doc]
    lines = [f"| `{k}` | {f'`{d}`' if d else ''} | {doc} |" for k,d,doc in rows]
    table = '\n'.join(['| parameter | default | |', '|---|---|---|', *lines])
    url = f'https://docs.fast.ai/vision.learner.html#{name}'
    fastais = f"This is fastai's, with an `output_stride`; [the other parameters]({url}) are as they were. "
    call = f'```python\n{signature(name,f)}\n```' if params else ''
    example = f'```python\n{examples[name]}\n```' if name in examples else ''
    error = f'Raises {raises[name]}' if name in raises else ''
    where = f"{fastais if is_fastais(name) else ''}See {link}."
    parts = [f'### {name}', call, about(f), example, table if rows else '', error, where]
    return '\n\n'.join(o for o in parts if o)

def sections(path):
    "Slugs of the headings of the notebook `path`"
    return {slug(o) for c in read_nb(path).cells if c.cell_type=='markdown' for o in re.findall(r'^#+ +(.*)', c.source, flags=re.M)}

def api(proc):
    "The page, and the names that have no heading of their own in the pages `proc`, or that nobody has put under a use"
    pages,entries = {number(o.stem):o for o in proc.glob('*.ipynb')},public()
    told = {heading:[o for o in names.split() if o in entries] for heading,names in by_use.items()}
    lacking,index,body = [*{*entries}-{o for names in told.values() for o in names}],[],[]
    for heading,names in told.items():
        body.append(f'## {heading}')
        for name in names:
            f,mod = entries[name]
            is_headed = slug(name) in sections(pages[mod])
            if not is_headed: lacking.append(name)
            where = f"the page on {mod}: [{name} explained]({pages[mod].name}{f'#{slug(name)}' if is_headed else ''})"
            index.append(f'| [`{name}`](#{slug(name)}) | {about(f)} |')
            body.append(entry(name, f, where))
    intro = '# API\n\nWhat `from fastai_dilation.all import *` brings, by use. This page is made from the code.'
    table = '\n'.join(['| name | what it does |', '|---|---|', *index])
    return '\n\n'.join([intro, table, *body]) + '\n', lacking
