"All modules are reloaded twice, and what was built before can still be changed, pickled and taken back"
import sys
from fastai.vision.all import *
import importlib, pickle

importlib.import_module('fastai_dilation.all')
m,se = xresnet18(output_stride=8),xse_resnet18(output_stride=8)
mods = 'layers strides phases trial output_stride pretrained xresnet learner evaluate all'.split()
for _ in range(2):
    for o in mods: importlib.reload(sys.modules[f'fastai_dilation.{o}'])
from fastai_dilation.all import *

assert get_output_stride(m)==8
set_output_stride(m, 4)
n = pickle.loads(pickle.dumps(m))
set_output_stride(n, 32)
assert repr(n)==repr(xresnet18())
assert get_output_stride(se)==8
assert repr(set_output_stride(se,32))==repr(xse_resnet18())
assert ResBlock(1,8,8,dilation=2)(torch.randn(1,8,9,9)).shape[-1]==9
m = create_vision_model(xresnet18, 2, pretrained=False, output_stride=8)
assert m[0](torch.randn(1,3,64,64)).shape[-1]==8
print('ok')
