"What stands in two places says the same in both"
import ast, re
from collections import Counter
from configparser import ConfigParser
from pathlib import Path

root = Path(__file__).parent.parent

def test_the_citation_has_the_package_s_metadata():
    "Title, version, license, author, summary and keywords are those of settings.ini and `__init__.py`"
    ini = ConfigParser(delimiters=['='])
    ini.read(root/'settings.ini', encoding='utf-8')
    cfg,lib = ini['DEFAULT'],ini['DEFAULT']['lib_name']
    version = re.search(r'__version__ = "(.+)"', (root/lib/'__init__.py').read_text())[1]
    lines = [o.strip() for o in (root/'CITATION.cff').read_text(encoding='utf-8').splitlines()]
    assert f'title: {lib}' in lines
    assert f'version: {version}' in lines
    assert f"license: {cfg['license']}" in lines
    assert f'''- name: "{cfg['author']}"''' in lines
    assert f'''abstract: "{cfg['description']}"''' in lines
    assert f"keywords: [{', '.join(cfg['keywords'].split())}]" in lines

def test_every_module_has_a_line_in_contributing():
    "And so does every bench"
    text = (root/'CONTRIBUTING.md').read_text(encoding='utf-8')
    for o in (root/'nbs').glob('[0-9]*.ipynb'): assert f'`{o.stem}`' in text, o.stem
    for o in (root/'bench').glob('*.py'): assert f'bench/{o.name}' in text, o.name

def defined_tests(file):
    "Each test that is defined in `file`"
    nodes = ast.walk(ast.parse(file.read_text(encoding='utf-8')))
    return [o for o in nodes if isinstance(o,ast.FunctionDef) and o.name.startswith('test_')]

def test_each_test_says_in_a_sentence_what_it_protects():
    "In its docstring, or in a name of four words or more; and a failure is found by its name alone: none is there twice"
    tests = [(file.name,o) for file in (root/'tests').glob('test_*.py') for o in defined_tests(file)]
    assert [(f,o.name) for f,o in tests if not ast.get_docstring(o) and o.name.count('_')<4]==[]
    assert [k for k,n in Counter(o.name for _,o in tests).items() if n>1]==[]
