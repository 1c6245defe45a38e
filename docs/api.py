"The page with every public name, made from the code: signature, docstring, parameters, and where it is explained"
import ast, importlib, inspect, re
from textwrap import wrap
from fastai.vision import learner as fastai_learner
from fastcore.docments import docments
from fastcore.nbio import read_nb
from pages import number, root, slug

def public():
    "Names of `fastai_dilation.all` by module, in its order, with the methods that a module adds to fastai's `Learner`"
    res = {}
    for o in ast.parse((root/'fastai_dilation'/'all.py').read_text()).body:
        if not isinstance(o, ast.ImportFrom): continue
        mod = importlib.import_module(f'fastai_dilation.{o.module}')
        added = re.findall(r'^@patch.*\ndef (\w+)\(self:Learner\b', inspect.getsource(mod), flags=re.M)
        res[o.module] = {k.name:getattr(mod,k.name) for k in o.names if callable(getattr(mod,k.name))} | {f'Learner.{k}':getattr(mod.Learner,k) for k in added}
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
    parts = [f'### {name}', call, about(f), table if rows else '', f"{fastais if is_fastais(name) else ''}Explained in {link}."]
    return '\n\n'.join(o for o in parts if o)

def sections(path):
    "Slugs of the headings of the notebook `path`"
    return {slug(o) for c in read_nb(path).cells if c.cell_type=='markdown' for o in re.findall(r'^#+ +(.*)', c.source, flags=re.M)}

def api(proc):
    "The page, and the names that have no heading of their own in the pages `proc`"
    pages,lacking = {number(o.stem):o for o in proc.glob('*.ipynb')},[]
    index,body = [],[]
    for mod,objs in public().items():
        path = pages[mod]
        has = sections(path)
        title = re.search(r'^# (.*)', read_nb(path).cells[0].source, flags=re.M)[1]
        body.append(f'## {mod}\n\n{title}: [the page]({path.name}).')
        for name,f in objs.items():
            if slug(name) not in has: lacking.append(name)
            link = f"[{mod}]({path.name}{f'#{slug(name)}' if slug(name) in has else ''})"
            index.append(f'| [`{name}`](#{slug(name)}) | {about(f)} |')
            body.append(entry(name, f, link))
    intro = '# API\n\nWhat `from fastai_dilation.all import *` brings. This page is made from the code.'
    table = '\n'.join(['| name | what it does |', '|---|---|', *index])
    return '\n\n'.join([intro, table, *body]) + '\n', lacking
