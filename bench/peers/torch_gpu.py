"""The peer of bench/programs/train.mjs and bench/gpu/load.mjs on a GPU: PyTorch, a Transformers model, one rank. Same marks, tokens and work.

usage: torchrun --nproc-per-node 1 torch_gpu.py --api fsdp2 --dir MODEL [--steps 8] [--batch 4] [--length 2048] [--device cuda]
--api: fsdp2 | fsdp2-compile (each layer compiled) train; to-device (safetensors, then .to()) | fsdp2-load
(set_model_state_dict from rank 0) load --rounds times.
Float32 masters, bfloat16 compute, attention by SDPA without a mask (flash where it is there), fused AdamW: our arithmetic.
"""
import argparse, json, os, time

import torch
import torch.distributed as dist

args = argparse.ArgumentParser()
args.add_argument("--api", choices=["fsdp2", "fsdp2-compile", "to-device", "fsdp2-load"], default="fsdp2")
args.add_argument("--dir"), args.add_argument("--device", default="cuda")
args.add_argument("--steps", type=int, default=8), args.add_argument("--batch", type=int, default=4)
args.add_argument("--length", type=int, default=2048), args.add_argument("--clip", type=float, default=1)
args.add_argument("--warm-up", type=int, default=2), args.add_argument("--rounds", type=int, default=4)
args = args.parse_args()
device = torch.device(args.device, 0) if args.device == "cuda" else torch.device("cpu")
if args.device == "cuda":
    torch.cuda.set_device(device)
dist.init_process_group("nccl" if args.device == "cuda" else "gloo")


def wait():
    if args.device == "cuda":
        torch.cuda.synchronize()


def say(mark, **more):
    os.write(1, (json.dumps(dict(mark=mark, rank=0, pid=os.getpid(), **more)) + "\n").encode())


from safetensors.torch import load_file
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from transformers import AutoConfig, AutoModelForCausalLM

config = AutoConfig.from_pretrained(args.dir)
mesh = init_device_mesh(args.device, (1,))


def read():
    names = sorted(name for name in os.listdir(args.dir) if name.endswith(".safetensors"))
    return {key: value for name in names for key, value in load_file(f"{args.dir}/{name}").items()}


def wrapped(dtype, compiled=False):
    policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa", dtype=dtype)
    for layer in model.model.layers:
        if compiled:
            layer.compile()
        fully_shard(layer, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh, mp_policy=policy)
    model.to_empty(device=device)
    model.tie_weights()
    state = read()
    if config.tie_word_embeddings:
        state.setdefault("lm_head.weight", state["model.embed_tokens.weight"])
    state = {name: tensor.to(dtype) for name, tensor in state.items()}
    set_model_state_dict(model, state, options=StateDictOptions(full_state_dict=True, broadcast_from_rank0=True))
    rope = model.model.rotary_emb
    rope.inv_freq.copy_(type(rope)(config).inv_freq)
    return model


def to_device():
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.load_state_dict(read(), strict=False, assign=True)
    model.tie_weights()
    # Buffers are built, not loaded.
    model.model.rotary_emb = type(model.model.rotary_emb)(config)
    return model.to(device)


def load():
    times = []
    for _ in range(args.rounds):
        start = time.perf_counter()
        model = to_device() if args.api == "to-device" else wrapped(torch.bfloat16)
        wait()
        times.append(time.perf_counter() - start)
        del model
    size = sum(os.path.getsize(f"{args.dir}/{name}") for name in os.listdir(args.dir) if name.endswith(".safetensors"))
    warm = sorted(times[1:])
    say("done", seconds=warm[len(warm) // 2], firstSeconds=times[0], bytes=size)


def train():
    say("begin")
    model = wrapped(torch.float32, args.api == "fsdp2-compile")
    say("loaded")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    say("ready")
    state = 1

    def token():
        nonlocal state
        state = state * 48271 % 2147483647
        return state % config.vocab_size

    seconds, losses = [], []
    for _ in range(args.warm_up + args.steps):
        rows = [[token() for _ in range(args.length)] for _ in range(args.batch)]
        start = time.perf_counter()
        ids = torch.tensor(rows).to(device)
        loss = model(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()
        if args.clip > 0:
            torch.nn.utils.clip_grad_norm_(model.parameters(), args.clip)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        wait()  # the optimizer too, as the item of our loss does
        seconds.append(time.perf_counter() - start)
    measured = sorted(seconds[args.warm_up:])
    step = measured[len(measured) // 2]
    peak = torch.cuda.max_memory_allocated() if args.device == "cuda" else None
    say("done", world=1, dpSize=1, stepSeconds=step, tokensPerSecond=args.batch * args.length / step, losses=losses, allocatedPeakBytes=peak)


train() if args.api.startswith("fsdp2") and args.api != "fsdp2-load" else load()
dist.destroy_process_group()
