"What exported learners say of images, with an import of fastai alone: `load_learners.py FOLDER NAME ...`"
import sys, torch
from fastai.vision.all import get_image_files, load_learner

assert 'fastai_dilation' not in sys.modules
folder,*names = sys.argv[1:]
for name in names:
    learn = load_learner(f'{folder}/{name}.pkl')
    files = get_image_files(f'{folder}/images').sorted()
    with learn.no_bar(): preds = learn.get_preds(dl=learn.dls.test_dl(files))[0]
    torch.save((preds.as_subclass(torch.Tensor),learn.output_stride), f'{folder}/{name}.there.pt')
