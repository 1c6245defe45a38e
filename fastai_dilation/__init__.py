"""fastai's networks halve the resolution five times: a feature map has one value for every 32 pixels. Who segments or detects would like larger maps, and keep the pretrained weights. `output_stride=8` sets the last two strides to 1 and spreads the taps of the layers behind them. **Every value that the native network computes is still there, to float precision, and every weight keeps its name.** (Where that is not so, the library says so: see below.)

```python
from fastai.vision.all import *
from fastai_dilation.all import *

learn = vision_learner(dls, xresnet34, output_stride=8)     # and cnn_learner
learn = unet_learner(dls, resnet34, output_stride=8)        # torchvision's pretrained encoder, dilated
learn = deeplab_learner(dls, resnet50, output_stride=16)    # DeepLabV3; learn.set_output_stride(8) after training
model = xresnet50_deeper(output_stride=16)                  # any xresnet, xse_resnet, xresnext, deep and deeper
set_output_stride(model, 8)                                 # a network that exists; and back
```

`pretrained=True`, the learners' default, works for `xresnet18`, `34`, `50`, `101`, `152` and `xresnext50`, too: timm's ImageNet weights fit them tensor by tensor (`pip install "fastai_dilation[timm]"`).

Modules:

- `fastai_dilation.deeplab`: A learner whose rates follow the output stride, and maps whose values stay in their place
- `fastai_dilation.demo`: The demo: real handwritten digits at output strides from 32 to 4
- `fastai_dilation.evaluate`: Accuracy, time, memory, and where the accuracy goes
- `fastai_dilation.layers`: A pool, a conv layer and a residual block whose taps can be moved apart
- `fastai_dilation.learner`: `output_stride` in fastai's learners, for classification and segmentation, also by the name of a timm network
- `fastai_dilation.pretrained`: ImageNet weights for every XResNet that has a published twin
- `fastai_dilation.upstream`: Add output_stride: trade the strides of a network for dilation, exactly
- `fastai_dilation.xresnet`: `output_stride` for every XResNet, and for any network that exists, trained or not"""

__version__ = "0.0.2"
