"A dilated network in FOLDER/d.pt, and the same at its native stride again in n.pt: `save_dilated.py FOLDER`"
import sys
from fastai_dilation.all import *
from fastai.vision.all import *

folder,m = sys.argv[1],xresnet18(output_stride=8)
torch.save(m, f'{folder}/d.pt')
torch.save(set_output_stride(m,32), f'{folder}/n.pt')
