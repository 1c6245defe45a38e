"Packages of which the import of this package, after fastai's, loads modules that were not there"
import sys
from importlib import import_module
from fastai.vision.all import *

before = {*sys.modules}
import_module('fastai_dilation.all')
new = {*sys.modules}-before
print(len(new), *sorted({o.partition('.')[0] for o in new}))
