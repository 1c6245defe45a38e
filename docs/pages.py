"Notebooks as pages of the site: what nbdev has made of them, for Sphinx, with code that a reader can copy"
import ast, builtins, importlib, re, symtable, yaml
from configparser import ConfigParser
from pathlib import Path
from fastcore.nbio import mk_cell, read_nb, write_nb
from nbdev.process import NBProcessor
from nbdev.processors import FilterDefaults, exec_show_docs

root = Path(__file__).resolve().parent.parent
ini = ConfigParser(delimiters=['='])
ini.read(root/'settings.ini', encoding='utf-8')
settings = ini['DEFAULT']
# Where the repository is. There is no address yet; a line `git_url = https://github.com/OWNER/fastai_dilation` in settings.ini turns on
# the links to sources, to the repository and to "edit this page", and setup.py tells it to PyPI (`branch = main` is the default)
git_url,branch = settings.get('git_url','').rstrip('/'),settings.get('branch','main')

def without_quick(src):
    "`src` with `b` for each `a if quick else b`, and without each `if quick:`: what the tests need is of no use to a reader"
    def is_quick(o): return isinstance(o,(ast.IfExp,ast.If)) and isinstance(o.test,ast.Name) and o.test.id=='quick'
    while 'quick' in src and (found := [o for o in ast.walk(ast.parse(src)) if is_quick(o)]): src = _without(src, found[0])
    return src

def _without(src, node):
    b,lines = src.encode(),src.encode().splitlines(keepends=True)
    def at(row, col): return sum(map(len, lines[:row-1]))+col
    start,stop = at(node.lineno,node.col_offset),at(node.end_lineno,node.end_col_offset)
    if isinstance(node, ast.If):
        assert not node.orelse, f'`if quick` with an `else`: write it as an expression\n{src}'
        return (b[:at(node.lineno,0)] + b[stop:].lstrip(b'\n')).decode()
    new = ast.get_source_segment(src, node.orelse).encode()
    # brackets around `a if quick else b` have to go if `b` needs none; those of a call have to stay
    is_atom = isinstance(node.orelse, (ast.Constant,ast.Name,ast.Tuple,ast.List))
    if is_atom and re.search(rb'(^|[^\w\])])\($', b[:start]) and b[stop:stop+1]==b')': start,stop = start-1,stop+1
    return (b[:start] + new + b[stop:]).decode()

def made_by_star(src):
    "Names that the star imports in `src` bring"
    mods = [importlib.import_module(o.module) for o in ast.walk(ast.parse(src)) if isinstance(o,ast.ImportFrom) and o.names[0].name=='*']
    return {k for m in mods for k in getattr(m, '__all__', [k for k in vars(m) if k[0]!='_'])}

def names(src):
    "Global names that `src` uses, and those that it makes"
    used,made = set(),made_by_star(src)
    def collect(table):
        for o in table.get_symbols():
            if table.get_type()!='module' and not o.is_global(): continue
            if o.is_referenced(): used.add(o.get_name())
            if o.is_assigned() or o.is_imported(): made.add(o.get_name())
        for t in table.get_children(): collect(t)
    collect(symtable.symtable(src, 'cell', 'exec'))
    return used,made

def undefined(cells):
    "Names that the sources `cells` use, of which neither the same cell nor one before makes them"
    known,missing = set(dir(builtins)),set()
    for src in cells:
        used,made = names(src)
        known |= made
        missing |= used-known
    return sorted(missing)

def visible_code(nb): return [c.source for c in nb.cells if c.cell_type=='code']

def is_imports(src): return all(isinstance(o, (ast.Import,ast.ImportFrom)) for o in ast.parse(src).body)

def with_imports(cells, mod):
    "The first of `cells`, with what they need of module `mod`, whose exported cells a page does not show; `None` if they need nothing"
    missing,used = set(undefined(cells)),set().union(*[names(o)[0] for o in cells])
    if not missing: return
    others,ours = [],[]
    for o in ast.parse((root/'fastai_dilation'/f'{mod}.py').read_text()).body:
        if not isinstance(o, (ast.Import,ast.ImportFrom)): continue
        is_ours = getattr(o,'level',0)
        if is_ours: o.module,o.level = f'fastai_dilation.{o.module}',0
        # a star import of fastai's may have brought another thing by the name of one of ours
        if made := names(ast.unparse(o))[1] & (used if is_ours else missing):
            if o.names[0].name!='*': o.names = [k for k in o.names if (k.asname or k.name.split('.')[0]) in made]
            (ours if is_ours else others).append(ast.unparse(o))
            missing -= made
    ours.append(f'from fastai_dilation.{mod} import *')
    missing -= made_by_star(ours[-1])
    private = sorted(missing & set(vars(importlib.import_module(f'fastai_dilation.{mod}'))))
    if private: ours.append(f"from fastai_dilation.{mod} import {','.join(private)}")
    return '\n'.join([*others, *([cells[0]] if is_imports(cells[0]) else []), *ours])

def source_link(name, mod):
    "Where the repository has the definition of `name`, if it has an address"
    if not git_url: return ''
    path = Path('fastai_dilation')/f'{mod}.py'
    found = re.search(rf"^ *(?:class|def) {name.split('.')[-1]}\b", (root/path).read_text(), flags=re.M)
    line = f"#L{found.string[:found.start()].count(chr(10))+1}" if found else ''
    return f'[source]({git_url}/blob/{branch}/{path.as_posix()}{line})\n\n'

def doc_cell(c, mod):
    "A cell of `show_doc` as Markdown, its heading the name that a user types"
    name = re.search(r'show_doc\(([\w.]+)', c.source)[1]
    md = ''.join(c.outputs[0]['data']['text/markdown']) if c.outputs else ''
    return mk_cell(f'### {name}\n\n' + source_link(name,mod) + re.split(r'^###.*\n+', md, maxsplit=1, flags=re.M)[-1], 'markdown')

def number(stem): return re.sub(r'^\d+[a-z]?_', '', stem)

def slug(name): return re.sub(r'[^\w-]', '', name.lower())

def linked(md, stems, depth):
    "`md` with links to pages of the site, of which `stems` are the notebooks, from `depth` folders down; nbdev writes `/name.html#heading`"
    up = '../'*depth
    def page_of(m): return f']({up}{stems[m[1]]}.ipynb' + (f'#{slug(m[2])}' if m[2] else '') + ')' if m[1] in stems else m[0]
    md = re.sub(r'\[(`_\w+`)\]\(/[^)]*\)', r'\1', md)   # what is private has no heading
    md = re.sub(r'\]\(/([\w/]+)\.html(?:#([\w.]+))?\)', page_of, md)
    return re.sub(rf'\]\({up}\.\./(?:docs/)?(\w+\.md)', rf']({up}\1', md)

def page(path, proc):
    "Make of nbdev's page, which it writes for Quarto, one for Sphinx: a title, docs as Markdown, links, and code that can be copied"
    nb,rel = read_nb(path),path.relative_to(proc)
    names = [o.relative_to(proc).with_suffix('').as_posix() for o in proc.rglob('*.ipynb')]
    stems = {number(o):o for o in names}
    exported = re.search(r'#\| *default_exp (\w+)', (root/'nbs'/rel).read_text(encoding='utf-8'))
    mod = exported and exported[1]
    nb.metadata['language_info'] = dict(name='python')
    if nb.cells[0].cell_type=='raw':
        meta = next(yaml.safe_load_all(nb.cells[0].source))
        nb.cells[0] = mk_cell(f"# {meta['title']}\n\n{meta['description']}", 'markdown')
    nb.cells = [doc_cell(c,mod) if c.cell_type=='code' and 'echo: false' in c.source else c for c in nb.cells]
    for c in nb.cells:
        for d,k in ((c.metadata,'execution'), (c,'has_sd')): d.pop(k, None)
        c.source = re.sub(r'^#\|.*\n', '', c.source, flags=re.M)
        c.source = without_quick(c.source) if c.cell_type=='code' else linked(c.source, stems, len(rel.parts)-1)
    if mod and (code := with_imports(visible_code(nb),mod)):
        first = next(i for i,c in enumerate(nb.cells) if c.cell_type=='code')
        nb.cells[first:first+is_imports(nb.cells[first].source)] = [mk_cell(code)]
    write_nb(nb, path)

def plain_pages(path, proc):
    "Pages in `proc` of the notebooks in `path`, as nbdev makes them but without running anything for their docs: for tests, in seconds"
    procs = [o for o in FilterDefaults().base_procs() if o is not exec_show_docs]
    files = [o for o in path.rglob('*.ipynb') if not any(k[0] in '._' for k in o.relative_to(path).parts)]
    for o in files:
        nb,dest = read_nb(o),proc/o.relative_to(path)
        NBProcessor(nb=nb, procs=procs, rm_directives='quarto').process()
        dest.parent.mkdir(parents=True, exist_ok=True)
        write_nb(nb, dest)
    for o in files: page(proc/o.relative_to(path), proc)
    return sorted(proc.rglob('*.ipynb'))
