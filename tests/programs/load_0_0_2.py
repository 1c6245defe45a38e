"A network of version 0.0.2 loads, and goes to another stride and back: `load_0_0_2.py FILE`"
import sys, torch

m = torch.load(sys.argv[1], weights_only=False)
from fastai.vision.all import *
from fastai_dilation.all import *

assert get_output_stride(m)==8
assert get_output_stride(set_output_stride(m,16))==16
assert repr(set_output_stride(m,32))==repr(xresnet18())
assert not any({'_native','_undo'} & vars(o).keys() for o in m.modules())
