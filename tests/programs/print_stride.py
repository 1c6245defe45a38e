"The stride of a conv of the last stage of a network in a file, read with torch alone: `print_stride.py FILE`"
import sys, torch

print(torch.load(sys.argv[1], weights_only=False)[7][0].convpath[0][0].stride)
