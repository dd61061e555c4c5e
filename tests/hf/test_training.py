"""Training compressed models: Trainer, resuming, chosen factors, checkpointing, autocast."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import kflats
from tests.hf.models import IDS, compressed_bert, compressed_gpt2, logits
from tests.promises import assert_same_model

pytest.importorskip("accelerate")

from transformers import Trainer, TrainingArguments

MODELS = {
    "gpt2": compressed_gpt2,
    "bert": compressed_bert,
}
kinds = pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)


def texts(n: int = 64) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(3)
    rows = torch.randint(4, 200, (n, 8), generator=generator)
    return [{"input_ids": row, "labels": row} for row in rows]


def trainer(model: Any, folder: Path, **changes: Any) -> Trainer:
    settings: dict[str, Any] = {
        "max_steps": 50, "save_steps": 25, "per_device_train_batch_size": 4, "seed": 1,
        "learning_rate": 1e-2, "use_cpu": True, "report_to": [], "disable_tqdm": True,
        "logging_strategy": "no",
    }  # fmt: skip
    arguments = TrainingArguments(str(folder), **{**settings, **changes})
    return Trainer(model, arguments, train_dataset=texts(), eval_dataset=texts(8))


def trained(model: Any, folder: Path, **changes: Any) -> Any:
    trainer(model, folder, **{"max_steps": 5, "save_strategy": "no", **changes}).train()
    return model


def changed(model: Any, before: dict[str, Tensor]) -> set[str]:
    state = model.state_dict()
    return {key for key in state if not torch.equal(state[key], before[key])}


def snapshot(model: Any) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in model.state_dict().items()}


@kinds
def test_resumed_training_ends_with_equal_weights(make: Any, tmp_path: Path) -> None:
    model, resumed = make(), make()
    before = snapshot(model)
    trainer(model, tmp_path / "whole").train()
    with torch.no_grad():
        for parameter in resumed.parameters():
            parameter.zero_()
    checkpoint = tmp_path / "whole" / "checkpoint-25"
    assert (checkpoint / "optimizer.pt").exists()
    trainer(resumed, tmp_path / "half").train(resume_from_checkpoint=str(checkpoint))
    assert changed(resumed, model.state_dict()) == set()
    factors = {"coefficients", "bases"}
    assert {key.rpartition(".")[2] for key in changed(model, before)} >= factors
    last = type(model).from_pretrained(tmp_path / "whole" / "checkpoint-50")
    assert_same_model(last, model.eval(), logits)


def test_best_checkpoint_is_loaded_at_the_end(tmp_path: Path) -> None:
    compressed_gpt2().save_pretrained(tmp_path / "start")
    model = type(compressed_gpt2()).from_pretrained(tmp_path / "start")
    settings: dict[str, Any] = {"max_steps": 6, "save_steps": 2, "eval_strategy": "steps",
                "eval_steps": 2, "learning_rate": 2e2, "load_best_model_at_end": True}  # fmt: skip
    running = trainer(model, tmp_path / "run", **settings)
    running.train()
    best = running.state.best_model_checkpoint
    assert best is not None
    assert not best.endswith("checkpoint-6")  # such a rate makes the model worse and worse
    expected = type(model).from_pretrained(best)
    assert_same_model(model.eval(), expected, logits)


@kinds
@pytest.mark.parametrize("factor", ["coefficients", "bases"])
def test_only_the_chosen_factor_trains(make: Any, factor: str, tmp_path: Path) -> None:
    model = make().requires_grad_(False)
    kflats.set_trainable(model, [factor])
    before = snapshot(model)
    found = changed(trained(model, tmp_path), before)
    assert len(found) == 2  # the table and the head that shares it
    assert {key.rpartition(".")[2] for key in found} == {factor}
    head, table = model.get_output_embeddings(), model.get_input_embeddings()
    assert head.coefficients is table.coefficients
    assert head.bases is table.bases


def test_tables_alone_can_be_frozen(tmp_path: Path) -> None:
    model = kflats.set_trainable(compressed_gpt2(), [])
    before = snapshot(model)
    found = changed(trained(model, tmp_path), before)
    assert found
    assert not {key for key in found if "wte" in key or "lm_head" in key}


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning")
def test_gradient_checkpointing_gives_the_same_weights(tmp_path: Path) -> None:
    models = [compressed_gpt2(attn_pdrop=0, embd_pdrop=0, resid_pdrop=0) for _ in range(2)]
    trained(models[0], tmp_path / "plain")
    trained(models[1], tmp_path / "checkpointed", gradient_checkpointing=True)
    assert models[1].is_gradient_checkpointing
    for key, value in models[0].state_dict().items():
        torch.testing.assert_close(models[1].state_dict()[key], value)


def test_autocast_trains_float32_factors(tmp_path: Path) -> None:
    model = compressed_gpt2()
    kinds = set()
    model.lm_head.register_forward_hook(lambda *hook: kinds.add(hook[2].dtype))
    before = snapshot(model)
    found = changed(trained(model, tmp_path, bf16=True), before)
    assert kinds == {torch.bfloat16}
    assert {"transformer.wte.coefficients", "transformer.wte.bases"} <= found
    assert model.transformer.wte.coefficients.dtype == torch.float32


def test_inputs_can_require_gradients() -> None:
    model = compressed_gpt2().requires_grad_(False)
    seen: list[Tensor] = []
    model.enable_input_require_grads()
    model.transformer.h[0].register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    model(IDS, labels=IDS).loss.backward()
    assert seen[0].requires_grad
    model.disable_input_require_grads()
    assert not model(IDS, labels=IDS).loss.requires_grad


def test_loss_falls_under_a_plain_optimizer() -> None:
    model = compressed_gpt2().train()
    kflats.set_trainable(model.requires_grad_(False), ["coefficients", "bases"])
    factors = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(factors, lr=1e-2)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = model(IDS, labels=IDS).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]
