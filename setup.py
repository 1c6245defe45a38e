"Package metadata: all of it is read from settings.ini, and the version from `fastai_dilation/__init__.py`"
import re
from configparser import ConfigParser
from pathlib import Path
from setuptools import setup, find_packages

root = Path(__file__).parent
ini = ConfigParser(delimiters=['='])
ini.read(root/'settings.ini', encoding='utf-8')
cfg = ini['DEFAULT']
lib = cfg['lib_name']

entry_points = dict(console_scripts=cfg['console_scripts'].split(), nbdev=[f'{lib}={lib}._modidx:d'])
classifiers = [f"Development Status :: {cfg['status']}", 'Intended Audience :: Developers', 'Programming Language :: Python :: 3']
version = re.search(r'__version__ = "(.+)"', (root/lib/'__init__.py').read_text())[1]

setup(name=lib, version=version, description=cfg['description'], keywords=cfg['keywords'].split(), author=cfg['author'],
    license=cfg['license'], classifiers=classifiers, long_description=(root/'README.md').read_text(encoding='utf-8'),
    long_description_content_type='text/markdown', python_requires=f">={cfg['min_python']}", packages=find_packages(include=[lib]),
    install_requires=cfg['requirements'].split(), extras_require={k[:-len('_requirements')]:v.split() for k,v in cfg.items() if k.endswith('_requirements')}, entry_points=entry_points,
    project_urls=dict(Repository=cfg['git_url']) if 'git_url' in cfg else {})
