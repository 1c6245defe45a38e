"What a user calls: `from fastai_dilation.all import *`, before or after `from fastai.vision.all import *`"
from .layers import CannotDilate,DilatedPool,GridPool,Kind,kinds
from .output_stride import InexactWarning,get_output_stride,in_turn,output_strides,pool_over,set_output_stride
from .pixels import ToPixels,to_pixels
from .ask import ClassMaps,class_maps,explain,grid_error,smoothed
from .reach import by_tiles,receptive_field
from .pretrained import load_weights
from .learner import cnn_learner,create_timm_model,create_unet_model,create_vision_model,unet_learner,vision_learner
from .checkpointing import GradientCheckpointing
from .deeplab import DeepLab,DeepLabPlus,create_deeplab_model,deeplab_learner
from .evaluate import output_stride_report

__all__ = ['CannotDilate', 'DilatedPool', 'GridPool', 'Kind', 'kinds', 'InexactWarning', 'get_output_stride', 'in_turn',
    'output_strides', 'pool_over', 'set_output_stride', 'ToPixels', 'to_pixels', 'ClassMaps', 'class_maps', 'explain',
    'grid_error', 'smoothed', 'by_tiles', 'receptive_field', 'load_weights', 'cnn_learner', 'create_timm_model',
    'create_unet_model', 'create_vision_model', 'unet_learner', 'vision_learner', 'GradientCheckpointing',
    'DeepLab', 'DeepLabPlus', 'create_deeplab_model', 'deeplab_learner', 'output_stride_report']
