"What an exported learner says of a file, with an import of fastai alone: `predict.py LEARNER ITEM OUT`"
import sys, torch
from fastai.vision.all import *

learner,item,out = sys.argv[1:]
learn = load_learner(learner)
with learn.no_bar(): torch.save(learn.predict(Path(item))[-1], out)
print(learn.output_stride)
