"What a user calls: `from fastai_dilation.all import *`, before or after `from fastai.vision.all import *`"
from .layers import CannotDilate,DilatedPool,GridPool
from .output_stride import InexactWarning,get_output_stride,output_strides,pool_over,set_output_stride
from .pretrained import load_weights
from .learner import GradientCheckpointing,cnn_learner,create_timm_model,create_unet_model,create_vision_model,unet_learner,vision_learner
from .deeplab import DeepLab,ToPixels,create_deeplab_model,deeplab_learner,to_pixels
from .evaluate import class_maps,explain,grid_error,output_stride_report

__all__ = ['CannotDilate', 'DilatedPool', 'GridPool', 'InexactWarning', 'get_output_stride', 'output_strides',
    'pool_over', 'set_output_stride', 'load_weights', 'GradientCheckpointing', 'cnn_learner', 'create_timm_model',
    'create_unet_model', 'create_vision_model', 'unet_learner', 'vision_learner', 'DeepLab', 'ToPixels',
    'create_deeplab_model', 'deeplab_learner', 'to_pixels', 'class_maps', 'explain', 'grid_error',
    'output_stride_report']
