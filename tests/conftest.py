import sys, warnings
from pathlib import Path
import pytest, torch

sys.path.insert(0, str(Path(__file__).parent))
warnings.filterwarnings('ignore')

@pytest.fixture(autouse=True)
def seed(): torch.manual_seed(0)
