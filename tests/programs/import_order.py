"The package works, whatever was imported first: `import_order.py ORDER`"
import sys

order = sys.argv[1]
if order=='fastai, package':
    from fastai.vision.all import *
    from fastai_dilation.all import *
elif order=='package, fastai':
    from fastai_dilation.all import *
    from fastai.vision.all import *
elif order=='fastai, names of neither':
    from fastai.vision.all import *
    import fastai_dilation.all
elif order=='modules, fastai, package':
    import fastai_dilation.layers, fastai_dilation.xresnet
    from fastai.vision.all import *
    from fastai_dilation.all import *
else: raise ValueError(order)
from fastai.vision.all import *
import fastai_dilation.layers, inspect

m = create_vision_model(xresnet18, 2, pretrained=False, output_stride=8)
assert m[0](torch.randn(1,3,64,64)).shape[-1]==8
assert isinstance(xresnet18(output_stride=1)[3], fastai_dilation.layers.DilatedPool)
def takes_it(f): return 'output_stride' in inspect.signature(f).parameters
assert all(map(takes_it, (vision_learner,unet_learner,cnn_learner,create_unet_model)))
print('ok')
