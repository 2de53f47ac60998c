#!/usr/bin/env python3
"""What a user would run instead on a CPU: the same training step in PyTorch, f32, eager.

The presets and the architecture are rigscale's own, so tokens/s can be compared case by case with
`cargo run --release --example step`. Pin both to the same cores with taskset. Give it cases as
MODEL,BATCH,CONTEXT; each runs under every optimizer implementation and the best is reported beside the
others. One JSON line per case.
"""
import argparse, json, statistics, time

import torch, torch.nn as nn, torch.nn.functional as F

# name: (layers, width, heads, kv heads, ffn width, vocabulary)
PRESETS = {
    "llama-tiny": (4, 128, 2, 2, 352, 1024),
    "llama-15m": (6, 384, 6, 6, 1024, 6144),
}


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
        h = F.rms_norm(x, (d,), self.norm1, 1e-5)
        q, k, v = self.qkv(h).split((self.heads * self.hd, self.kv * self.hd, self.kv * self.hd), -1)
        q = rope(q.view(b, t, self.heads, self.hd).transpose(1, 2), cos, sin)
        k = rope(k.view(b, t, self.kv, self.hd).transpose(1, 2), cos, sin)
        v = v.view(b, t, self.kv, self.hd).transpose(1, 2)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=self.kv != self.heads)
        x = x + self.out(y.transpose(1, 2).reshape(b, t, d))
        gate, up = self.gate_up(F.rms_norm(x, (d,), self.norm2, 1e-5)).chunk(2, -1)
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
        for block in self.blocks:
            x = block(x, self.cos, self.sin)
        x = F.rms_norm(x, (x.shape[-1],), self.norm, 1e-5)
        return F.cross_entropy(self.head(x).flatten(0, 1), targets.flatten())


def run(name, batch, context, implementation, steps):
    torch.manual_seed(0)
    layers, width, _, _, _, vocab = PRESETS[name]
    model = Llama(*PRESETS[name], context)
    params = sum(p.numel() for p in model.parameters())
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=3e-4, betas=(0.9, 0.95), weight_decay=0.1, **{implementation: True})
    tokens = torch.randint(0, vocab, (batch, context + 1))
    ms = []
    for _ in range(steps):
        begin = time.perf_counter()
        optimizer.zero_grad(set_to_none=True)
        loss = model(tokens[:, :-1], tokens[:, 1:])
        loss.backward()
        optimizer.step()
        float(loss.detach())
        ms.append((time.perf_counter() - begin) * 1e3)
    median = statistics.median(ms[steps // 4:])
    flops = 6 * (params - vocab * width) + 6 * layers * context * width  # per token, causal attention halved
    rate = batch * context / median * 1e3
    return dict(step_ms=round(median, 3), tokens_per_s=round(rate, 1), gflops=round(rate * flops / 1e9, 1))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="+", help="MODEL,BATCH,CONTEXT")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--steps", type=int, default=12, help="steps of a run; the first quarter is warm-up")
    parser.add_argument("--adamw", default="fused,foreach", help="implementations of the optimizer to try")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    for case in args.cases:
        name, batch, context = case.split(",")
        runs = {how: run(name, int(batch), int(context), how, args.steps) for how in args.adamw.split(",")}
        best = max(runs, key=lambda how: runs[how]["tokens_per_s"])
        print(json.dumps({"case": case, "threads": args.threads, "torch": torch.__version__, "best": best,
                          "runs": runs}), flush=True)
