"""Most networks halve the resolution five times, so their last map has one value for every 32x32 pixels: the *output stride* is 32. `set_output_stride(model, 8)` takes the last two strides away and dilates the layers behind them. **In evaluation mode, every value of the map that the network made before (the *native* map) is among those of the finer one, to float precision, and every weight keeps its name.** A network for which that does not hold is refused (`CannotDilate`) or warned of (`InexactWarning`), with the name of the layer. An XResNet's forward pass takes 1.2 to 1.3 of the time at 16 and 2.9 to 3.5 at 8 on one CPU thread; on an H200 a `resnet50d` takes 2 to 2.3 at 8.

timm and torchvision dilate some networks, when they are built. This changes one that exists, and works on nearly all.

Modules:

- `fastai_dilation.ask`: Is the last map exact, what becomes of each layer, what does that cost, and where does a classifier see what?
- `fastai_dilation.checkpointing`: Train at a finer stride with the memory of a coarser one
- `fastai_dilation.deeplab`: A learner whose dilation rates follow the output stride, for each body that can be dilated
- `fastai_dilation.demo`: The demo: ImageNet weights on photos, and small networks on handwritten digits, at output strides from 32 to 4
- `fastai_dilation.detectors`: Tell the core where the strides of a whole detector are, and its pooler that they have changed
- `fastai_dilation.evaluate`: Accuracy, time, memory, and where the accuracy goes
- `fastai_dilation.holders`: Tell the core of fastai's `Learner` and U-Net
- `fastai_dilation.layers`: Pools with a distance between their taps, and what has to be known of each kind of layer to trade its stride for dilation
- `fastai_dilation.learner`: `output_stride` in fastai's learners: classification, segmentation, and timm networks by name
- `fastai_dilation.output_stride`: Trade the strides of a network that exists, trained or not, and take them back
- `fastai_dilation.phases`: Split a finer map into the maps that the native network would see, run a module on them as it is, and merge what it makes
- `fastai_dilation.pixels`: Resize a map to the image, with each value at the pixel that it is about
- `fastai_dilation.pretrained`: fastai's XResNets with timm's ResNet-D weights, checked tensor by tensor
- `fastai_dilation.reach`: Measure the receptive field of each level, and make the map of an image that is too large for one pass, tile by tile
- `fastai_dilation.resizes`: Resize a finer map so that each value stays at its place, wherever a network calls `F.interpolate`
- `fastai_dilation.search`: Dilate the layers that are known, try the network, and run by phases what the trial finds
- `fastai_dilation.strides`: The rule that says what becomes of each layer, and how to find the strides that it needs, in any network
- `fastai_dilation.trial`: Run the changed network beside the native one, and see which module does not do what it did
- `fastai_dilation.upstream`: Add output_stride to XResNet and vision_learner
- `fastai_dilation.xresnet`: `output_stride` for every XResNet; `dilation` and `first_dilation` for `ResBlock`"""

__version__ = "0.1.0"

from .layers import CannotDilate
from .output_stride import InexactWarning,get_output_stride,in_turn,output_strides,pool_over,set_output_stride
from .pixels import to_pixels
from .ask import ClassMaps,class_maps,explain,grid_error,smoothed
from .reach import by_tiles,receptive_field
