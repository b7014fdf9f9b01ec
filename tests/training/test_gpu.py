"""What needs a GPU, run by make gpu-check: steps that do not wait for it, float16's scaler, the numbers of a CPU."""

from dataclasses import replace

import pytest
import torch

from saol_lib.training import RunConfig, load_model, train
from saol_lib.training.loop import Trainer

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")]
ALL = RunConfig(arm="saol_cutmix_ss_sd", train_images=200, epochs=1, backbone="resnet-8-8", batch_size=40, lr=0.05)
ARMS = ("gap_fc", "saol_cutmix_ss_sd", "abn_cutmix")


@pytest.mark.parametrize("arm", ARMS)
@pytest.mark.parametrize("schedule", ["paired", "batch"])
def test_a_step_does_not_wait_for_the_gpu(tmp_path, arm, schedule):
    trainer = Trainer(replace(ALL, arm=arm, cutmix_schedule=schedule, device="cuda"), tmp_path)
    trainer.model.train()
    batch = next(trainer.train_batches.epoch(40, 0, 0))
    trainer.step(0, 0, *batch)
    torch.cuda.set_sync_debug_mode("error")
    try:
        trainer.step(0, 1, *batch)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("arm", ARMS)
def test_a_step_in_float64_is_that_of_a_cpu(tmp_path, arm):
    found = {}
    for device in ("cpu", "cuda"):
        trainer = Trainer(replace(ALL, arm=arm, device=device), tmp_path / device, dtype=torch.float64)
        trainer.model.train()
        trainer.step(0, 0, *next(trainer.train_batches.epoch(40, 0, 0)))
        found[device] = [parameter.grad.cpu() for parameter in trainer.model.parameters()]
    for one, other in zip(found["cpu"], found["cuda"], strict=True):
        assert (one - other).abs().max() <= 1e-10 * max(1.0, one.abs().max().item())


def test_float16_scales_its_gradients_and_trains(tmp_path):
    run = train(replace(ALL, autocast="float16", device="cuda"), tmp_path, progress=False)
    assert run.status == "finished" and run.epochs[0]["loss_total"] < 20
    assert load_model(run, tmp_path, device="cuda").training is False
