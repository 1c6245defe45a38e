"Everything: `from fastai_dilation.all import *`, before or after `from fastai.vision.all import *`"
from .layers import *
from .xresnet import *
from .pretrained import *
from .learner import *
from .evaluate import *
