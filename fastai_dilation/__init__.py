"""fastai's networks halve the resolution five times: one value for every 32 pixels. To segment, inpaint or detect, one would like larger maps, and keep the pretrained weights. The way is known: set strides to 1, and spread the taps of all later layers apart by what was given up. This package does that for fastai, so that **every value which the native network computes is still there, to float precision, and every weight keeps its name**.

```python
from fastai.vision.all import *
from fastai_dilation.all import *

learn = cnn_learner(dls, xresnet34, output_stride=8)    # or vision_learner, its newer name
learn = unet_learner(dls, resnet34, output_stride=8)    # torchvision's pretrained encoder, dilated
model = xresnet50_deeper(output_stride=16)              # any xresnet, xse_resnet, xresnext, deep and deeper
set_output_stride(model, 8)                             # any network that exists; and back with 512
```

`pretrained=True`, the learners' default, works for `xresnet18`, `34`, `50`, `101`, `152` and `xresnext50`: timm's ImageNet weights fit them tensor by tensor (`pip install "fastai_dilation[timm]"`).

Modules:

- `fastai_dilation.demo`: Real handwritten digits, one network, three output strides: what they cost, and what they give
- `fastai_dilation.evaluate`: Accuracy, time, memory, and where the accuracy goes
- `fastai_dilation.layers`: A pool, a conv layer and a residual block whose taps can be moved apart
- `fastai_dilation.learner`: `output_stride` in fastai's learners, for classification and segmentation, also by the name of a timm network
- `fastai_dilation.pretrained`: ImageNet weights for every XResNet that has a published twin
- `fastai_dilation.upstream`: Add output_stride: trade the strides of a network for dilation, exactly
- `fastai_dilation.xresnet`: `output_stride` for every XResNet, and for any network that exists, trained or not"""

__version__ = "0.0.2"
