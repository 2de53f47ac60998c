#!/usr/bin/env python3
"""What a user would run instead on several GPUs: PyTorch's DistributedDataParallel over NCCL.

The model, the presets and the compiled step are those of torch_gpu.py. f32 weights, gradients reduced as bf16 by
PyTorch's own compression hook: the nearest to rigscale's policy.

    python3 scripts/peers/torch_ddp.py llama-125m,8,2048 2
    scripts/one-gpu-lab 4 -- python3 scripts/peers/torch_ddp.py llama-125m,4,1024 4 --share-gpu --bucket-mib 100

With --share-gpu all ranks are on the first GPU, which takes NCCL 2.30 or newer; preload one where PyTorch brings an
older. --skip-comm leaves out DDP: what the ranks cost each other without talking. One JSON line: the median step over
blocks of steps with one synchronisation each, and tokens/s of all ranks.
"""
import argparse, json, os, socket, statistics, sys

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks
from torch.nn.attention import sdpa_kernel
from torch.nn.parallel import DistributedDataParallel

sys.dont_write_bytecode = True  # the next line would leave a folder beside the scripts
from torch_gpu import BACKENDS, PRESETS, WARM_UP, build, timed


def worker(rank, port, args):
    name, batch, context = args.case.split(",")
    batch, context = int(batch), int(context)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), RANK=str(rank), WORLD_SIZE=str(args.world))
    if args.share_gpu:
        os.environ.setdefault("NCCL_MULTI_RANK_GPU_ENABLE", "1")
    device = torch.device("cuda", 0 if args.share_gpu else rank)
    torch.cuda.set_device(device)
    dist.init_process_group("nccl", rank=rank, world_size=args.world, device_id=device)
    model = build(name, context, "amp")
    reduced = args.world > 1 and not args.skip_comm
    if reduced:
        wrapped = DistributedDataParallel(model, bucket_cap_mb=args.bucket_mib, gradient_as_bucket_view=True,
                                          static_graph=True)
        wrapped.register_comm_hook(None, default_hooks.bf16_compress_hook)
    else:
        wrapped = model
    compiled = torch.compile(wrapped)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    tokens = torch.randint(0, PRESETS[name][5], (batch, context + 1), device=device)

    def step():
        with torch.autocast("cuda", torch.bfloat16):
            loss = compiled(tokens[:, :-1], tokens[:, 1:])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    with sdpa_kernel(BACKENDS[args.backend]):
        for _ in range(WARM_UP):
            step()
        torch.cuda.synchronize()
        dist.barrier()
        ms = statistics.median(timed(step, args.blocks, args.steps))
    if rank == 0:
        print(json.dumps({
            "case": args.case, "world": args.world, "bucket_mib": args.bucket_mib, "reduced": reduced,
            "backend": args.backend, "torch": torch.__version__, "step_ms": round(ms, 3),
            "tokens_per_s": round(args.world * batch * context / ms * 1e3),
        }), flush=True)
    dist.destroy_process_group()


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("case", help="MODEL,BATCH,CONTEXT")
    parser.add_argument("world", type=int, help="ranks")
    parser.add_argument("--bucket-mib", type=int, default=25)
    parser.add_argument("--backend", choices=BACKENDS, default="cudnn")
    parser.add_argument("--blocks", type=int, default=5)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--share-gpu", action="store_true")
    parser.add_argument("--skip-comm", action="store_true")
    args = parser.parse_args()
    mp.spawn(worker, (free_port(), args), nprocs=args.world)


if __name__ == "__main__":
    main()
