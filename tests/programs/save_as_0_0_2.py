"A dilated network that keeps its native settings as version 0.0.2 did: `save_as_0_0_2.py FILE`"
import sys
from fastai.vision.all import *
from fastai_dilation.all import *

m = xresnet18(output_stride=8)
for o in m.modules():
    if undo := vars(o).pop('_undo', None): o._native = {k:before for k,(before,_) in undo.items()}
torch.save(m, sys.argv[1])
