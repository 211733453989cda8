"""The peer of bench/programs/ops.mjs: the same cases with torch.  usage: python torch_ops.py CASES THREADS SAMPLES MILLISECONDS

Backward is what autograd runs over a kept graph. Attention is scaled_dot_product_attention, as Transformers calls it.
"""
import json, os, sys

import torch
import torch.nn.functional as F

from timing import time_calls

cases, threads, samples, milliseconds = (json.loads(text) for text in sys.argv[1:])
torch.set_num_threads(threads)
torch.manual_seed(0)


def normal(*shape, dtype, std=1.0, grad=False):
    return (torch.randn(*shape) * std).to(getattr(torch, dtype)).requires_grad_(grad)


def backward(y, inputs):
    dy = torch.randn_like(y)
    return lambda: torch.autograd.grad(y, inputs, dy, retain_graph=True)


def labels(rows, vocab):
    return torch.arange(rows) * 7919 % vocab


def linear(dtype, rows, out, **sizes):
    return normal(rows, sizes["in"], dtype=dtype), normal(out, sizes["in"], dtype=dtype, std=0.02), normal(rows, out, dtype=dtype)


def linear_forward(**sizes):
    x, w, _ = linear(**sizes)
    return lambda: F.linear(x, w)


def linear_backward_input(**sizes):
    _, w, dy = linear(**sizes)
    return lambda: dy @ w


def linear_backward_weight(**sizes):
    x, _, dy = linear(**sizes)
    return lambda: dy.t() @ x


def attention(dtype, rows, length, heads, kvHeads, headDim, grad):
    # (batch, length, heads, head_dim), seen as (batch, heads, length, head_dim): how projections leave it
    tensors = [normal(rows // length, length, h, headDim, dtype=dtype).transpose(1, 2).requires_grad_(grad) for h in (heads, kvHeads, kvHeads)]
    return tensors, lambda: F.scaled_dot_product_attention(*tensors, is_causal=True, enable_gqa=True)


def attention_forward(**sizes):
    return attention(**sizes, grad=False)[1]


def attention_backward(**sizes):
    tensors, forward = attention(**sizes, grad=True)
    return backward(forward(), tensors)


def rms_norm_forward(dtype, rows, dim):
    x, w = normal(rows, dim, dtype=dtype), normal(dim, dtype=dtype)
    return lambda: F.rms_norm(x, (dim,), w, 1e-6)


def rms_norm_backward(dtype, rows, dim):
    x, w = normal(rows, dim, dtype=dtype, grad=True), normal(dim, dtype=dtype, grad=True)
    return backward(F.rms_norm(x, (dim,), w, 1e-6), [x, w])


def swiglu_forward(dtype, rows, dim):
    gate, up = normal(rows, dim, dtype=dtype), normal(rows, dim, dtype=dtype)
    return lambda: F.silu(gate) * up


def swiglu_backward(dtype, rows, dim):
    gate, up = normal(rows, dim, dtype=dtype, grad=True), normal(rows, dim, dtype=dtype, grad=True)
    return backward(F.silu(gate) * up, [gate, up])


def cross_entropy(dtype, rows, vocab):
    logits, ids = normal(rows, vocab, dtype=dtype, grad=True), labels(rows, vocab)
    return lambda: torch.autograd.grad(F.cross_entropy(logits, ids), logits)


def head_and_loss(dtype, rows, dim, vocab):
    x, w, ids = normal(rows, dim, dtype=dtype, grad=True), normal(vocab, dim, dtype=dtype, std=0.02, grad=True), labels(rows, vocab)
    return lambda: torch.autograd.grad(F.cross_entropy(F.linear(x, w).float(), ids), [x, w])


def adamw(dtype, numel):
    parameter = torch.nn.Parameter(normal(numel, dtype=dtype, std=0.02))
    parameter.grad = normal(numel, dtype=dtype)
    return torch.optim.AdamW([parameter], lr=1e-4, weight_decay=0.01, fused=True).step


times = {}
for case in cases:
    name, op = case.pop("name"), case.pop("op")
    call = globals()[op](**case)
    with torch.set_grad_enabled("forward" not in op):
        times[name] = time_calls(call, samples, milliseconds)
os.write(1, (json.dumps(dict(mark="done", rank=0, pid=os.getpid(), times=times)) + "\n").encode())
