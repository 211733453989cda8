"""The peer of bench/programs/collectives.mjs: gloo through torch.distributed.  usage: torchrun torch_collectives.py SIZE,SIZE SAMPLES"""
import json, os, statistics, sys, time

import torch
import torch.distributed as dist

from timing import calls_for

sizes, samples = [int(size) for size in sys.argv[1].split(",")], int(sys.argv[2])
torch.set_num_threads(1)
dist.init_process_group("gloo")
rank, world = dist.get_rank(), dist.get_world_size()
times = {}
for size in sizes:
    part_numel = max(1, size // 4 // world)
    full = torch.empty(part_numel * world).fill_(0)
    part = torch.empty(part_numel).fill_(0)
    ops = {
        "all_reduce": lambda later: dist.all_reduce(full, async_op=later),
        "broadcast": lambda later: dist.broadcast(full, 0, async_op=later),
        "all_gather": lambda later: dist.all_gather_into_tensor(full, part, async_op=later),
        "reduce_scatter": lambda later: dist.reduce_scatter_tensor(part, full, async_op=later),
    }
    for name, op in ops.items():
        calls = calls_for(size, samples)
        waited = []
        for i in range(calls + 1):
            dist.barrier()
            start = time.perf_counter()
            op(False)
            if i > 0:
                waited.append(time.perf_counter() - start)
        dist.barrier()
        start = time.perf_counter()
        for work in [op(True) for _ in range(calls)]:
            work.wait()
        enqueued = (time.perf_counter() - start) / calls
        times[f"{name} {size}"] = dict(waited=1e6 * statistics.median(waited), enqueued=1e6 * enqueued)
os.write(1, (json.dumps(dict(mark="done", rank=rank, pid=os.getpid(), times=times)) + "\n").encode())
dist.barrier()
dist.destroy_process_group()
