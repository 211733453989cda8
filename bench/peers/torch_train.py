"""The peer of bench/programs/train.mjs: PyTorch on CPU ranks over gloo, or in one process alone. Same marks, tokens and work.

usage: torchrun --nproc-per-node W torch_train.py --api fsdp2 --dir MODEL [--precision bfloat16] [--steps 8] ...
--api: fsdp1 | fsdp2 | ddp (torchrun), or alone: a plain Transformers model. `alone` in bfloat16 computes under autocast over
float32 parameters; `alone-cast` keeps parameters, gradients and optimizer state in bfloat16 (less work than ours).
--lora R: an adapter of PEFT on all linear layers (fsdp2); every rank loads then, which PEFT wants.
FSDP1 refuses sync_module_states on the CPU; its check is switched off here so that it can be measured at all.
"""
import argparse, contextlib, functools, json, os, time

import torch

args = argparse.ArgumentParser()
args.add_argument("--api", choices=["fsdp1", "fsdp2", "ddp", "alone", "alone-cast"], default="fsdp2")
args.add_argument("--dir"), args.add_argument("--config")
args.add_argument("--precision", choices=["float32", "bfloat16"], default="float32")
args.add_argument("--steps", type=int, default=8), args.add_argument("--batch", type=int, default=2)
args.add_argument("--length", type=int, default=256), args.add_argument("--strategy", default="FULL_SHARD")
args.add_argument("--threads", type=int, default=1), args.add_argument("--clip", type=float, default=1)
args.add_argument("--read", action="store_true"), args.add_argument("--lora", type=int, default=0)
args = args.parse_args()
torch.set_num_threads(args.threads)
bf16 = args.precision == "bfloat16"
rank, world = 0, 1
if not args.api.startswith("alone"):
    import torch.distributed as dist
    dist.init_process_group("gloo")
    rank, world = dist.get_rank(), dist.get_world_size()
barrier = (lambda: dist.barrier()) if world > 1 else (lambda: None)


def say(mark, **more):
    # One write, so that lines of ranks do not mix.
    os.write(1, (json.dumps(dict(mark=mark, rank=rank, pid=os.getpid(), **more)) + "\n").encode())


from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

barrier()
say("begin")
config = LlamaConfig(**json.loads(args.config)) if args.config else AutoConfig.from_pretrained(args.dir)
make = lambda: AutoModelForCausalLM.from_config(config, attn_implementation="sdpa", dtype=torch.float32)
load = lambda dtype=torch.float32: AutoModelForCausalLM.from_pretrained(args.dir, dtype=dtype, attn_implementation="sdpa") if args.dir else make()


def fsdp1():
    from torch.distributed.fsdp import FullyShardedDataParallel, MixedPrecision, ShardingStrategy, _init_utils
    from torch.distributed.fsdp.wrap import transformer_auto_wrap_policy
    _init_utils._check_module_states_for_sync_module_states = lambda states: None
    if rank == 0:
        model = load()
    else:
        from accelerate import init_empty_weights
        with init_empty_weights():
            model = make()
    return FullyShardedDataParallel(
        model, device_id=torch.device("cpu"), sync_module_states=True, use_orig_params=True,
        sharding_strategy=ShardingStrategy[args.strategy],
        auto_wrap_policy=functools.partial(transformer_auto_wrap_policy, transformer_layer_cls={LlamaDecoderLayer}),
        mixed_precision=MixedPrecision(torch.bfloat16, torch.float32) if bf16 else None,
        param_init_fn=(lambda m: m.to_empty(device="cpu", recurse=False)) if rank else None)


def fsdp2():
    from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
    mesh = init_device_mesh("cpu", (world,))
    policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32) if bf16 else MixedPrecisionPolicy()
    if args.lora:
        return adapted(lambda module, keep: fully_shard(module, mesh=mesh, mp_policy=policy, reshard_after_forward=keep))
    with torch.device("meta"):
        model = make()
    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh, mp_policy=policy, reshard_after_forward=args.strategy == "FULL_SHARD")
    fully_shard(model, mesh=mesh, mp_policy=policy)
    model.to_empty(device="cpu")
    if args.dir:
        from safetensors.torch import load_file
        full = load_file(f"{args.dir}/model.safetensors") if rank == 0 else {}
        set_model_state_dict(model, full, options=StateDictOptions(full_state_dict=True, broadcast_from_rank0=True))
    else:
        for name, parameter in model.named_parameters():
            torch.nn.init.ones_(parameter) if "norm" in name else torch.nn.init.normal_(parameter, std=config.initializer_range)
    rope = model.model.rotary_emb
    rope.inv_freq.copy_(rope.compute_default_rope_parameters(config, "cpu")[0])
    return model


def adapted(shard):
    import peft
    model = peft.get_peft_model(load(), peft.LoraConfig(r=args.lora, lora_alpha=2 * args.lora, target_modules="all-linear", task_type="CAUSAL_LM"))
    for layer in model.base_model.model.model.layers:
        shard(layer, args.strategy == "FULL_SHARD")
    shard(model, True)
    return model


def ddp():
    return torch.nn.parallel.DistributedDataParallel(load())


def alone():
    return load(torch.bfloat16 if args.api == "alone-cast" else torch.float32)


model = dict(fsdp1=fsdp1, fsdp2=fsdp2, ddp=ddp).get(args.api, alone)()
barrier()
say("loaded")
optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4, fused=True)
say("ready")
if args.read:
    local = lambda p: p.to_local() if hasattr(p, "to_local") else p.detach()
    if args.api == "fsdp1":
        from torch.distributed.fsdp import FullyShardedDataParallel
        shards = [unit._handle.flat_param.detach() for unit in FullyShardedDataParallel.fsdp_modules(model)]
    else:
        shards = [local(p) for p in model.parameters()]
    total = sum(torch.linalg.vector_norm(shard).item() ** 2 for shard in shards)
    barrier()
    say("read", sumOfSquares=total)

autocast = torch.autocast("cpu", dtype=torch.bfloat16) if bf16 and args.api in ("alone", "ddp") else contextlib.nullcontext()
state = 1 + rank


def token():
    global state
    state = state * 48271 % 2147483647
    return state % config.vocab_size


seconds, losses = [], []
warm_up = 2 if args.steps else 0
for _ in range(warm_up + args.steps):
    rows = [[token() for _ in range(args.length)] for _ in range(args.batch)]
    start = time.perf_counter()
    ids = torch.tensor(rows)
    with autocast:
        loss = model(input_ids=ids, labels=ids).loss
    loss.backward()
    if args.clip > 0:
        model.clip_grad_norm_(args.clip) if args.api == "fsdp1" else torch.nn.utils.clip_grad_norm_([p for p in model.parameters() if p.requires_grad], args.clip)
    optimizer.step()
    optimizer.zero_grad()
    losses.append(loss.item())
    seconds.append(time.perf_counter() - start)
measured = sorted(seconds[warm_up:])
step = measured[len(measured) // 2] if measured else None
say("done", world=world, dpSize=world, stepSeconds=step, tokensPerSecond=step and args.batch * args.length / step, losses=losses)
if not args.api.startswith("alone"):
    barrier()
    dist.destroy_process_group()
