"""Small tensors: one thread is fastest, and its sums are the same every time."""

import signal

import torch

torch.set_num_threads(1)

# A shell that starts the tests in the background has them ignore Ctrl-C, here and in every process they start.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
