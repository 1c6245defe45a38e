import os, sys, warnings
from pathlib import Path
import pytest, torch

sys.path.insert(0, str(Path(__file__).parent))
warnings.filterwarnings('ignore')
torch.set_num_threads(int(os.environ.get('OMP_NUM_THREADS',1)))

@pytest.fixture(autouse=True)
def seed(): torch.manual_seed(0)
