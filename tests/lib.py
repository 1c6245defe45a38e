"What is under test: fastai_dilation, or, where `TEST_UPSTREAM` is set, a fastai that has it all itself"
import os
if os.environ.get('TEST_UPSTREAM'): from fastai.vision.all import *
else: from fastai_dilation.all import *
