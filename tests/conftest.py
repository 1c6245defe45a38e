import os, sys, warnings
from pathlib import Path
import pytest, torch

sys.path.insert(0, str(Path(__file__).parent))
warnings.filterwarnings('ignore')
if 'PYTEST_XDIST_WORKER' in os.environ: torch.set_num_threads(1)

@pytest.fixture(autouse=True)
def seed(): torch.manual_seed(0)
