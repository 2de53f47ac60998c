#!/usr/bin/env python3
"""What a user would run instead on a GPU: the same training step in PyTorch, compiled.

The presets and the architecture are rigscale's own, so tokens/s can be compared case by case. Give it
cases as MODEL,BATCH,CONTEXT; each runs under every attention backend and every mode of torch.compile
asked for, and the best is reported beside the others. One JSON line per case. Blocks of steps are timed
with one synchronisation each, so that PyTorch may run ahead.

    python3 scripts/peers/torch_gpu.py llama-125m,16,2048
    python3 scripts/peers/torch_gpu.py llama-125m,16,2048 --backends cudnn --modes reduce-overhead    the best on H100

--precision amp   f32 weights, gradients and moments, bf16 compute: the nearest to rigscale's policy
--precision bf16  weights, gradients and moments in bf16: half the optimizer's traffic, and no master weights
"""
import argparse, gc, itertools, json, os, statistics, time

STARTED = time.time()
os.environ.setdefault("TORCHINDUCTOR_FORCE_DISABLE_CACHES", "1")  # each attention backend compiles afresh
import torch, torch.nn as nn, torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

IMPORT_S = time.time() - STARTED
WARM_UP = 5  # steps after the first, which compiles: CUDA graphs are recorded in them

# name: (layers, width, heads, kv heads, ffn width, vocabulary)
PRESETS = {
    "llama-tiny": (4, 128, 2, 2, 352, 1024),
    "llama-15m": (6, 384, 6, 6, 1024, 6144),
    "llama-125m": (12, 768, 12, 12, 2048, 32000),
    "llama-350m": (24, 1024, 16, 16, 2816, 32000),
    "llama-1b": (22, 2048, 32, 4, 5632, 32000),
    "llama-3b": (28, 3072, 24, 8, 8192, 32000),
    "llama-7b": (32, 4096, 32, 32, 11008, 32000),
    "llama-8b": (32, 4096, 32, 8, 14336, 128256),
    "llama-13b": (40, 5120, 40, 40, 13824, 32000),
}
BACKENDS = {"cudnn": SDPBackend.CUDNN_ATTENTION, "flash": SDPBackend.FLASH_ATTENTION}
MODES = ["default", "reduce-overhead", "max-autotune-no-cudagraphs"]


def rope(x, cos, sin):
    a, b = x.chunk(2, -1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), -1)


class Block(nn.Module):
    def __init__(self, width, heads, kv, ffn):
        super().__init__()
        self.heads, self.kv, self.hd = heads, kv, width // heads
        self.norm1 = nn.Parameter(torch.ones(width))
        self.norm2 = nn.Parameter(torch.ones(width))
        self.qkv = nn.Linear(width, (heads + 2 * kv) * self.hd, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.gate_up = nn.Linear(width, 2 * ffn, bias=False)
        self.down = nn.Linear(ffn, width, bias=False)

    def forward(self, x, cos, sin):
        b, t, d = x.shape
        h = F.rms_norm(x, (d,), self.norm1.to(x.dtype), 1e-5)
        q, k, v = self.qkv(h).split((self.heads * self.hd, self.kv * self.hd, self.kv * self.hd), -1)
        q = rope(q.view(b, t, self.heads, self.hd).transpose(1, 2), cos, sin)
        k = rope(k.view(b, t, self.kv, self.hd).transpose(1, 2), cos, sin)
        v = v.view(b, t, self.kv, self.hd).transpose(1, 2)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=self.kv != self.heads)
        x = x + self.out(y.transpose(1, 2).reshape(b, t, d))
        gate, up = self.gate_up(F.rms_norm(x, (d,), self.norm2.to(x.dtype), 1e-5)).chunk(2, -1)
        return x + self.down(F.silu(gate) * up)


class Llama(nn.Module):
    def __init__(self, layers, width, heads, kv, ffn, vocab, context):
        super().__init__()
        self.embed = nn.Embedding(vocab, width)
        self.blocks = nn.ModuleList(Block(width, heads, kv, ffn) for _ in range(layers))
        self.norm = nn.Parameter(torch.ones(width))
        self.head = nn.Linear(width, vocab, bias=False)
        hd = width // heads
        angle = torch.outer(torch.arange(context), 1 / (10000 ** (torch.arange(0, hd, 2) / hd)))
        self.register_buffer("cos", angle.cos())
        self.register_buffer("sin", angle.sin())
        for p in self.parameters():
            if p.dim() > 1:
                nn.init.normal_(p, std=0.02)

    def forward(self, tokens, targets):
        x = self.embed(tokens)
        cos, sin = self.cos.to(x.dtype), self.sin.to(x.dtype)
        for block in self.blocks:
            x = block(x, cos, sin)
        x = F.rms_norm(x, (x.shape[-1],), self.norm.to(x.dtype), 1e-5)
        return F.cross_entropy(self.head(x).flatten(0, 1).float(), targets.flatten())


def short(dtype):
    return {torch.float32: "f32", torch.bfloat16: "bf16"}.get(dtype, str(dtype))


def types(model, optimizer, precision):
    """What the training really keeps, read from it after a step, while gradients are there."""
    weight = model.head.weight
    state = optimizer.state[weight]
    return {"weights": short(weight.dtype), "gradients": short(weight.grad.dtype),
            "moments": short(state["exp_avg"].dtype),
            "master weights": "the weights themselves" if precision == "amp" else "none", "compute": "bf16"}


def build(name, context, precision):
    torch.manual_seed(0)
    with torch.device("cuda"):
        model = Llama(*PRESETS[name], context)
    return model if precision == "amp" else model.bfloat16()


def timed(step, blocks, steps):
    """Milliseconds of a step in each block."""
    ms = []
    for _ in range(blocks):
        torch.cuda.synchronize()
        begin = time.perf_counter()
        for _ in range(steps):
            step()
        torch.cuda.synchronize()
        ms.append((time.perf_counter() - begin) / steps * 1e3)
    return ms


def run(name, batch, context, precision, backend, mode, blocks, steps):
    layers, width, _, _, _, vocab = PRESETS[name]
    torch.cuda.reset_peak_memory_stats()
    begin = time.perf_counter()
    model = build(name, context, precision)
    params = sum(p.numel() for p in model.parameters())
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    compiled = torch.compile(model, mode=mode)
    tokens = torch.randint(0, vocab, (batch, context + 1), device="cuda")

    def gradients():
        with torch.autocast("cuda", torch.bfloat16, enabled=precision == "amp"):
            loss = compiled(tokens[:, :-1], tokens[:, 1:])
        loss.backward()
        optimizer.step()

    def step():
        gradients()
        optimizer.zero_grad(set_to_none=True)

    with sdpa_kernel(BACKENDS[backend]):
        gradients()
        torch.cuda.synchronize()
        first = time.perf_counter() - begin
        kept = types(model, optimizer, precision)
        optimizer.zero_grad(set_to_none=True)
        for _ in range(WARM_UP):
            step()
        ms = timed(step, blocks, steps)
    median = statistics.median(ms)
    flops = 6 * (params - vocab * width) + 6 * layers * context * width  # per token, causal attention halved
    rate = batch * context / median * 1e3
    return dict(step_ms=round(median, 3), tokens_per_s=round(rate), tflops=round(rate * flops / 1e12, 1),
                peak_gib=round(torch.cuda.max_memory_allocated() / 2**30, 3),
                reserved_gib=round(torch.cuda.max_memory_reserved() / 2**30, 3),
                first_step_s=round(first, 2), block_ms=[round(value, 3) for value in ms], types=kept)


def clean():
    """Leaves nothing of one training to the next."""
    torch._dynamo.reset()
    gc.collect()
    torch.cuda.empty_cache()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="+", help="MODEL,BATCH,CONTEXT")
    parser.add_argument("--precision", choices=["amp", "bf16"], default="amp")
    parser.add_argument("--blocks", type=int, default=5)
    parser.add_argument("--steps", type=int, default=20, help="steps in a block")
    parser.add_argument("--backends", default=",".join(BACKENDS), help="implementations of attention to try")
    parser.add_argument("--modes", default=",".join(MODES), help="modes of torch.compile to try")
    args = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("error: PyTorch sees no GPU")
    torch.set_float32_matmul_precision("high")
    for case in args.cases:
        name, batch, context = case.split(",")
        runs = {}
        for backend, mode in itertools.product(args.backends.split(","), args.modes.split(",")):
            try:
                runs[f"{backend}/{mode}"] = run(name, int(batch), int(context), args.precision, backend, mode,
                                                args.blocks, args.steps)
            except Exception as error:  # a backend may refuse a shape, or memory may run out
                runs[f"{backend}/{mode}"] = {"error": repr(error)[:400]}
            clean()
        good = {how: row for how, row in runs.items() if "error" not in row}
        best = max(good, key=lambda how: good[how]["tokens_per_s"]) if good else None
        print(json.dumps({"case": case, "precision": args.precision, "torch": torch.__version__,
                          "cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version(),
                          "gpu": torch.cuda.get_device_name(), "import_s": round(IMPORT_S, 2), "best": best,
                          "runs": runs}), flush=True)


if __name__ == "__main__":
    main()
