"A learner is saved, then with room for half of it: `save_half.py FOLDER HOW`; the process can be `killed` by that"
import ddp, resource, signal, sys
from pathlib import Path

folder,how = sys.argv[1:]
learn = ddp.learner(4, range(16))
learn.path = Path(folder)
n = learn.save('whole').stat().st_size
if how=='killed': signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
resource.setrlimit(resource.RLIMIT_FSIZE, (n//2,n//2))
learn.save('half')
