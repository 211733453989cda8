"""The peer of bench/programs/calls.mjs: what the like costs in Python with torch.  usage: python torch_calls.py CALLS SAMPLES"""
import json, os, sys, time

import torch

calls, samples = (int(text) for text in sys.argv[1:])
torch.set_num_threads(1)
x, y = torch.zeros(1), torch.zeros(1)
cases = {
    "native call without work": x.data_ptr,
    "enqueue of a tiny op": lambda: x.fill_(1),
    "tensor, made and disposed": lambda: torch.empty(1),
    "op with a result, disposed": lambda: torch.add(x, y),
    "tiny op, waited for": lambda: x.fill_(1),
}
times = {}
for name, call in cases.items():
    seen = []
    for sample in range(-3, samples):
        start = time.perf_counter()
        for _ in range(calls):
            call()
        if sample >= 0:
            seen.append(1e6 * (time.perf_counter() - start) / calls)
    seen.sort()
    times[name] = dict(least=seen[0], median=seen[len(seen) // 2])
os.write(1, (json.dumps(dict(mark="done", rank=0, pid=os.getpid(), times=times)) + "\n").encode())
