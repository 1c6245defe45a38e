"How long the package takes to import after fastai, as a part of fastai's own time"
import time
from importlib import import_module

a = time.perf_counter()
from fastai.vision.all import *
b = time.perf_counter()
import_module('fastai_dilation.all')
print((time.perf_counter()-b)/(b-a))
