"The sum of what an exported learner of seg_data.py's files says of two of them: `predict_masks.py FOLDER`"
import sys
from fastai.vision.all import *

folder = sys.argv[1]
learn = load_learner(f'{folder}/x.pkl')
files = get_image_files(f'{folder}/images')[:2]
with learn.no_bar(): print(learn.get_preds(dl=learn.dls.test_dl(files))[0].sum().item())
