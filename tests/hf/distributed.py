"""Training a tied model in several processes, for test_distributed.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from tests.hf.models import compressed_gpt2

STEPS, WORLD = 4, 2


def batches() -> Tensor:
    """Return ids by step and process."""
    generator = torch.Generator().manual_seed(5)
    return torch.randint(4, 200, (STEPS, WORLD, 2, 8), generator=generator)


def fresh() -> Any:
    return compressed_gpt2(attn_pdrop=0, embd_pdrop=0, resid_pdrop=0).train()


def train(model: nn.Module, data: Tensor) -> None:
    """Train on data of shape (steps, batch, length)."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    for ids in data:
        optimizer.zero_grad()
        model(ids, labels=ids).loss.backward()
        optimizer.step()


def run(rank: int, kind: str, folder: str) -> None:
    """Train in one of the processes; the first one saves."""
    torch.set_num_threads(1)
    place = Path(folder)
    rendezvous = f"file://{place / 'rendezvous'}"
    dist.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=WORLD)
    try:
        model = fresh()
        state = (_ddp if kind == "ddp" else _fsdp)(model, batches()[:, rank])
        if rank == 0:
            model.save_pretrained(place / "out", state_dict=state)
    finally:
        dist.destroy_process_group()


def _ddp(model: Any, data: Tensor) -> dict[str, Tensor]:
    train(DistributedDataParallel(model), data)
    found: dict[str, Tensor] = model.state_dict()
    return found


def _fsdp(model: Any, data: Tensor) -> dict[str, Any]:
    mesh = init_device_mesh("cpu", (WORLD,))
    for block in model.transformer.h:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    train(model, data)
    coefficients = model.lm_head.coefficients
    if type(coefficients) is not DTensor or coefficients is not model.transformer.wte.coefficients:
        raise RuntimeError(f"the factors are not sharded as one: {type(coefficients)}")
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    return get_model_state_dict(model, options=options)
