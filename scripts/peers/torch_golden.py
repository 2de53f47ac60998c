#!/usr/bin/env python3
"""Whether rigscale on a GPU learns what PyTorch learns: the same weights, the same tokens, step by step.

PyTorch trains in eager mode with f32 master weights and bf16 autocast, as `torch_gpu.py` does, by rigscale's rule:
AdamW with betas 0.9 and 0.95, epsilon 1e-8, decoupled weight decay 0.1 on matrices alone, gradients clipped to norm 1.
Its losses are set beside those of a rank file, both smoothed over 20 steps.

    rigscale train --device cuda --world 1 --model llama-125m --batch 16 --context 2048 --steps 200 --seed 1 \\
        --learning-rate 3e-4 --checkpoints -o DIR
    cargo run --release --example batches llama-125m 16 2048 200 1 TOKENS
    python3 scripts/peers/torch_golden.py llama-125m 16 2048 --learning-rate 3e-4 --tokens TOKENS \\
        --checkpoint DIR/runs/launch-1_ddp-1/checkpoint-0.safetensors --rank-file DIR/runs/launch-1_ddp-1/rank-0.jsonl

Prints one JSON line with both losses. Exit codes: 0 where they agree to 0.5 %, 3 where they do not, 1 where nothing
could be compared.
"""
import argparse, json, math, struct, sys, time

import torch

sys.dont_write_bytecode = True  # the next line would leave a folder beside the scripts
from torch_gpu import PRESETS, Llama

BETAS, EPSILON, DECAY = (0.9, 0.95), 1e-8, 0.1
SMOOTHED = 20  # steps in a mean
LIMIT = 0.005  # relative difference of smoothed losses


def fail(text):
    sys.exit(f"error: {text}")


def checkpoint(path):
    """Tensors of a safetensors file by name: 8 bytes of length, a JSON header, then raw numbers."""
    with open(path, "rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
        data = torch.frombuffer(bytearray(file.read()), dtype=torch.uint8)
    header.pop("__metadata__", None)
    tensors = {}
    for name, tensor in header.items():
        if tensor["dtype"] != "F32":
            fail(f"{path}: {name} is {tensor['dtype']}, wanted F32")
        begin, end = tensor["data_offsets"]
        tensors[name] = data[begin:end].clone().view(torch.float32).reshape(tensor["shape"])
    return tensors


def token_file(path, batch, context):
    """tokens[steps, batch, context + 1] of a file of u32."""
    with open(path, "rb") as file:
        ids = bytearray(file.read())
    if not ids or len(ids) % (4 * batch * (context + 1)):
        fail(f"{path}: {len(ids)} bytes are no whole number of steps of {batch} x {context + 1} tokens")
    return torch.frombuffer(ids, dtype=torch.int32).view(-1, batch, context + 1)


def rank_file(path):
    """Head and steps of a rank file."""
    with open(path) as file:
        lines = [json.loads(line) for line in file if line.strip()]
    head = next((line for line in lines if line["line"] == "run"), None)
    steps = [line for line in lines if line["line"] == "step"]
    if head is None or not steps:
        fail(f"{path}: no head or no step in it")
    return head, steps


def check(head, args):
    """Refuses a rank file of another training than the one that follows here."""
    config = head["config"]
    clip = config.get("clip_norm") or 0.0
    wanted = dict(model=args.model, batch=args.batch, context=args.context, accumulate=1, weight_decay=DECAY,
                  learning_rate=args.learning_rate)
    for name, value in wanted.items():
        if config[name] != value:
            fail(f"{args.rank_file}: its {name} is {config[name]}, here it is {value}")
    if clip != args.clip_norm:
        fail(f"{args.rank_file}: its clip_norm is {clip}, here it is {args.clip_norm}")
    if head["world"] != 1:
        fail(f"{args.rank_file}: {head['world']} ranks trained, wanted 1")


def load(args, device):
    with torch.device(device):
        model = Llama(*PRESETS[args.model], args.context)
    missing, unknown = model.load_state_dict(checkpoint(args.checkpoint), strict=False)
    if unknown or set(missing) != {"cos", "sin"}:
        fail(f"{args.checkpoint}: lacks {sorted(set(missing) - {'cos', 'sin'})}, has beyond the model {unknown}")
    return model


def optimizer_of(model, learning_rate):
    matrices = [p for p in model.parameters() if p.dim() > 1]
    gains = [p for p in model.parameters() if p.dim() == 1]
    groups = [dict(params=matrices, weight_decay=DECAY), dict(params=gains, weight_decay=0.0)]
    return torch.optim.AdamW(groups, lr=learning_rate, betas=BETAS, eps=EPSILON)


def train(model, tokens, args, device):
    """Losses and gradient norms before clipping, step by step."""
    optimizer = optimizer_of(model, args.learning_rate)
    clip = args.clip_norm or math.inf
    losses, norms = [], []
    for index, sequences in enumerate(tokens):
        sequences = sequences.to(device).long()
        with torch.autocast(device, torch.bfloat16, enabled=args.precision == "amp"):
            loss = model(sequences[:, :-1], sequences[:, 1:])
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.item())
        norms.append(norm.item())
        if not math.isfinite(losses[-1]):
            fail(f"PyTorch diverged at step {index}")
    return losses, norms


def smoothed(losses):
    width = min(SMOOTHED, len(losses))
    return [sum(losses[at:at + width]) / width for at in range(len(losses) - width + 1)]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=PRESETS)
    parser.add_argument("batch", type=int)
    parser.add_argument("context", type=int)
    parser.add_argument("--checkpoint", required=True, help="weights before the first step, f32, safetensors")
    parser.add_argument("--tokens", required=True, help="u32 tokens[steps, batch, context + 1]")
    parser.add_argument("--rank-file", required=True, help="what rigscale recorded")
    parser.add_argument("--learning-rate", type=float, required=True)
    parser.add_argument("--clip-norm", type=float, default=1.0, help="0 for never")
    parser.add_argument("--steps", type=int, help="only so many; as many as both files have if not given")
    parser.add_argument("--precision", choices=["amp", "f32"], default="amp", help="f32 is for a rank file of the CPU")
    parser.add_argument("--device", choices=["cuda", "cpu"], help="cuda where there is a GPU if not given")
    args = parser.parse_args()
    device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    head, recorded = rank_file(args.rank_file)
    check(head, args)
    tokens = token_file(args.tokens, args.batch, args.context)
    steps = min(len(recorded), len(tokens), args.steps or len(recorded))
    begin = time.perf_counter()
    losses, norms = train(load(args, device), tokens[:steps], args, device)
    ours = [step["loss"] for step in recorded[:steps]]
    pairs = list(zip(smoothed(ours), smoothed(losses)))
    differences = [abs(a - b) / b for a, b in pairs]
    worst = max(range(len(differences)), key=differences.__getitem__)
    agree = differences[worst] <= LIMIT
    print(json.dumps(dict(case=f"{args.model},{args.batch},{args.context}", steps=steps, device=device,
                          precision=args.precision, torch=torch.__version__, smoothed_over=min(SMOOTHED, steps),
                          largest_difference=differences[worst], limit=LIMIT, agree=agree,
                          largest_single_difference=max(abs(a - b) / b for a, b in zip(ours, losses)),
                          rigscale=ours, pytorch=losses, rigscale_norm=[step["grad_norm"] for step in recorded[:steps]],
                          pytorch_norm=norms)), flush=True)
    for at in sorted({*range(0, len(pairs), SMOOTHED), len(pairs) - 1}):
        print(f"steps {at:3} on  rigscale {pairs[at][0]:8.5f}  PyTorch {pairs[at][1]:8.5f}  "
              f"{100 * differences[at]:.3f} %", file=sys.stderr)
    print(f"first step: loss {ours[0]:.5f} and {losses[0]:.5f}, gradient norm {recorded[0]['grad_norm']:.5f} and "
          f"{norms[0]:.5f}", file=sys.stderr)
    print(f"largest difference of losses smoothed over {min(SMOOTHED, steps)} steps: {100 * differences[worst]:.3f} % "
          f"at step {worst}, wanted <= {100 * LIMIT} %: {'reached' if agree else 'MISSED'} "
          f"({time.perf_counter() - begin:.0f} s)", file=sys.stderr)
    return 0 if agree else 3


if __name__ == "__main__":
    sys.exit(main())
