"""What lies where, found without a GPU: tensors of two devices do not mix if they have no values."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import WeightAveraging
from lightning.pytorch.strategies import Strategy
from timm.layers import BatchNormAct2d, SyncBatchNormAct
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from defectcls.data.batches import Batch
from defectcls.errors import UserError
from defectcls.model.classifier import Classifier
from defectcls.model.likeness import Likeness, fit_likeness
from defectcls.model.memory import Memory
from defectcls.settings import TrainSettings
from defectcls.training import build, inspection, run
from tests.conftest import command, composed

GPU = torch.device("cuda", 0)


def classifier(head: str, *overrides: str, name: str = "test_efficientnet.r160_in1k") -> Classifier:
    given = ("dataset=synthetic", "finetune=probe", "augment=any_angle", "model=timm", f"model.name={name}")
    settings = composed(*given, f"model.head={head}", *overrides)
    arguments: Any = {name: settings[name] for name in ("model", "loss", "finetune", "optim", "augment", "seed")}
    classes = {"sound": False, "defective": True}
    members = 1 if head == "linear" else 5
    return Classifier(**arguments, class_weights=[0.5, 2.0], classes=classes, image_size=(64, 64), members=members)


def batch() -> Batch:
    index = torch.tensor([7, 3])
    return {"image": torch.zeros(2, 3, 64, 64, dtype=torch.uint8), "target": torch.tensor([0, 1]), "index": index}


def as_if_on_a_gpu(module: nn.Module) -> None:
    for owner in module.modules():
        for held in (owner._parameters, owner._buffers):
            for name, value in held.items():
                if value is not None:
                    there = torch.empty(value.shape, dtype=value.dtype, device=GPU)
                    held[name] = nn.Parameter(there) if isinstance(value, nn.Parameter) else there


@pytest.mark.parametrize("head", ["linear", "joined", "memory"])
@pytest.mark.parametrize("folds", [None, [-1, 2]])
def test_nothing_is_left_on_the_cpu(head: str, folds: list[int] | None) -> None:
    network = classifier(head)
    photos, count = 7, network.backbone.feature_count
    learned = [torch.rand(size, count + 5) for size in (photos, 9)]
    remembered: dict[str, Any] = fit_likeness(*(one.numpy() for one in learned), np.zeros((9, photos), bool))
    remembered["measured"] = {"photos": 9, "low": [0.0] * 7, "high": [1.0] * 7, "paths": [*"abcdefg"]}
    network.likeness = Likeness(remembered | {"defective": torch.tensor([True] + 6 * [False])}, count)
    with FakeTensorMode():
        as_if_on_a_gpu(network)
        moved = network.transfer_batch_to_device(batch(), GPU, 0)
        if head == "linear":
            as_if_on_a_gpu(network.loss)
            loss = network.loss(network.train()(network.augment(moved["image"])), moved["target"])
            assert loss.device == GPU
        network.eval()
        body = network.backbone
        look = lambda image: body.seen(body.body, body.normalise(image), with_map=True)  # noqa: E731
        seen = look(moved["image"])
        of_folds = None if folds is None else torch.tensor(folds)
        logits = network.judge([seen], of_folds)
        assert (logits.device, logits.dtype, logits.shape) == (GPU, torch.float32, (2, 2))
        assert {one.device for one in network.answer(moved["image"], look)} == {GPU}
        if network.joined is not None:
            assert network.joined.unusual(network.joined.memory(seen[1]), of_folds).device == GPU


def test_the_index_stays_on_the_cpu() -> None:
    """To fetch it from a GPU at every step would make the host wait."""
    moved = classifier("linear").transfer_batch_to_device(batch(), torch.device("meta"), 0)
    devices = {name: values.device.type for name, values in moved.items()}
    assert devices == {"image": "meta", "target": "meta", "index": "cpu"}
    assert moved["index"].tolist() == [7, 3]


def test_a_memory_looks_at_many_images_at_a_time_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    original = torch.addmm
    monkeypatch.setattr(torch, "addmm", lambda *given, **more: calls.append(given) or original(*given, **more))
    for device, pieces in ((torch.device("cpu"), 20), (GPU, 2)):  # 16 and 4 of 20
        with FakeTensorMode():
            with device:
                memory = Memory(12, 5)
            calls.clear()
            assert memory(torch.zeros(20, 12, 4, 4, device=device)).shape == (20, 5, 4, 4)
            assert len(calls) == 5 * pieces  # in each of the five parts


@pytest.mark.parametrize("precision", ["32", "bf16"])
def test_what_the_first_process_has_solved_is_everybodys(monkeypatch: pytest.MonkeyPatch, precision: str) -> None:
    """And where `auto` is another precision for another process, all of them say so."""
    first, other = classifier("joined"), classifier("joined")
    for seed, one in enumerate((first, other)):
        for value in (*one.head.state_dict().values(), *one.joined.state_dict().values()):  # type: ignore[union-attr]
            value.copy_(torch.full(value.shape, seed + 1))
    first.out_of_fold = torch.ones(3, 2)
    shared: list[Any] = []
    strategy = SimpleNamespace(broadcast=lambda said: shared.append(said) or shared[0], reduce_boolean_decision=bool)
    for one, own in ((first, "32"), (other, precision)):
        trainer = SimpleNamespace(world_size=2, strategy=strategy, precision=f"{own}-mixed" if own == "bf16" else "32")
        monkeypatch.setattr(type(one), "trainer", trainer)
        if own == "bf16":
            with pytest.raises(UserError, match="^not all processes compute best in 32: trainer.precision=32, "):
                one.setup("fit")
            return
        one.setup("fit")
    assert other.out_of_fold is first.out_of_fold
    for name, value in first.state_dict().items():
        if not name.startswith("backbone."):
            assert torch.equal(other.state_dict()[name], value), name


def test_after_each_evaluation_a_run_goes_on_where_it_computes(
    tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lightning leaves the network on the CPU: an average of its weights would be kept there, heat maps computed there.

    And what a frozen network was looked at by is let go of before all of it trains.
    """
    here, found = [True], dict[str, bool]()
    teardown, to = Strategy.teardown, Classifier.to
    monkeypatch.setattr(Strategy, "teardown", lambda self: here.clear() or teardown(self))
    monkeypatch.setattr(Classifier, "to", lambda self, *given: here.append(True) or to(self, *given))

    def watch(owner: Any, name: str) -> None:
        original = getattr(owner, name)

        def noted(*given: Any, **named: Any) -> Any:
            if owner is not WeightAveraging or named.get("stage", given[-1]) == "fit":
                found[name] = found.get(name, True) and bool(here)
            return original(*given, **named)

        monkeypatch.setattr(owner, name, noted)

    watch(WeightAveraging, "setup")
    watch(run, "learn_likeness")
    watch(inspection, "heat_maps")
    held = []
    step = Classifier.training_step
    frozen = lambda self: held.append(self.stored_features._look)  # noqa: E731
    monkeypatch.setattr(Classifier, "training_step", lambda self, *given: frozen(self) or step(self, *given))
    given = ("finetune.probe=true", "finetune.stages.full.epochs=1", "callbacks=ema", "inspect.heat_maps=true")
    assert command("train", *tiny, *given, f"hydra.run.dir={tmp_path / 'run'}").code == 0
    assert found == {"setup": True, "learn_likeness": True, "heat_maps": True}
    assert set(held) == {None}


# Which torch refuses on a GPU where it is to be deterministic, of those that look at images.
INDETERMINATE = {"median.dim", "kthvalue", "adaptive_max_pool2d_backward", "_adaptive_avg_pool2d_backward", "put_"}
INDETERMINATE |= {"upsample_bilinear2d_backward", "grid_sampler_2d_backward", "reflection_pad2d_backward", "cumsum"}


@pytest.mark.parametrize("head", ["linear", "joined"])
def test_what_is_deterministic_on_a_cpu_can_be_so_on_a_gpu(head: str) -> None:
    """With a pool that torch can compute so; where it cannot, it says so, and the user is told what to type."""

    class Called(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            called.add(str(func).removeprefix("aten.").removesuffix(".default"))
            return func(*args, **kwargs or {})

    called: set[str] = set()
    levels = ("model.levels=[0.5,0.75,1]", "model.pool=fastcatavgmax")
    network, images = classifier(head, *levels), torch.randint(0, 256, (30, 3, 64, 64), dtype=torch.uint8)
    with Called():
        if head == "linear":
            network.loss(network.train()(network.augment(images)), torch.arange(30) % 2).backward()
        else:
            assert network.joined is not None
            maps = network.eval().backbone.inference(with_map=True)(images)[1]
            network.joined.learn(lambda: [maps], None, np.arange(30) > 19, np.arange(30) % 5, 0)
    assert {"linear": "convolution_backward", "joined": "sort"}[head] in called
    assert not called & INDETERMINATE


# --- arguments of Lightning's Trainer ---------------------------------------------------------------------------------


def settings_of(*overrides: str) -> TrainSettings:
    return TrainSettings(**composed("dataset=synthetic", "trainer=cpu", "trainer.precision=32", *overrides))


def test_arguments_of_the_trainer_pass(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    before = torch.are_deterministic_algorithms_enabled()
    given = {"num_nodes": 2, "deterministic": True, "accumulate_grad_batches": 4}
    found: dict[str, Any] = {}
    original = L.Trainer.__init__
    monkeypatch.setattr(L.Trainer, "__init__", lambda self, **of: found.update(of) or original(self, **of))
    overrides = [f"+trainer.{name}={value}" for name, value in given.items()]
    try:
        trainer = build.build_trainer(settings_of(*overrides, "trainer.strategy=ddp", "trainer.devices=3"), tmp_path)
        assert {name: found[name] for name in given} == given
        assert (trainer.num_nodes, trainer.world_size, trainer.accumulate_grad_batches) == (2, 6, 4)
        assert torch.are_deterministic_algorithms_enabled()
    finally:
        torch.use_deterministic_algorithms(before)


@pytest.mark.parametrize(
    ("variables", "told"),
    [
        ({"SLURM_NTASKS_PER_NODE": "4", "SLURM_NNODES": "2"}, "devices=2.*--ntasks-per-node=4.*Set `devices=4`"),
        ({"SLURM_NTASKS_PER_NODE": "2", "SLURM_NNODES": "3"}, "num_nodes=2.*--nodes=3.*Set `num_nodes=3`"),
        ({}, "--ntasks-per-node=4"),  # which is to be given
    ],
)
def test_what_slurm_has_otherwise_is_told_before_the_data_is_read(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any, variables: dict[str, str], told: str
) -> None:
    job = {"SLURM_NTASKS": "4", "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0", "SLURM_JOB_ID": "7"}
    for name, value in (job | variables).items():
        monkeypatch.setenv(name, value)
    two = settings_of("trainer.strategy=ddp", "trainer.devices=2", "+trainer.num_nodes=2")
    with pytest.raises(UserError, match=f"^Lightning's Trainer: .*{told}"):
        build.build_trainer(two, tmp_path)


def test_synchronised_norms_keep_their_activations(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of timm's hold them: torch's own conversion, which Lightning calls, drops them."""
    settings = settings_of("+trainer.sync_batchnorm=true", "model.pretrained=false", "dataset.image_count=8")
    plain = classifier("linear")
    norms = [module for module in plain.backbone.modules() if isinstance(module, BatchNormAct2d)]
    assert norms
    monkeypatch.setattr(build, "named", lambda *_: lambda **__: plain)
    monkeypatch.setattr(build, "class_weights", lambda *_: None)
    monkeypatch.setattr(build, "knows_few", lambda *_: False)
    image = torch.randint(0, 256, (2, 3, 64, 64), generator=torch.Generator().manual_seed(0))
    expected, names = plain.eval()(image), [*plain.state_dict()]
    data: Any = type("Data", (), {"classes": plain.classes, "image_size": (64, 64)})
    built = build.build_classifier(settings, data)
    found = [module for module in built.backbone.modules() if isinstance(module, SyncBatchNormAct)]
    assert len(found) == len(norms)
    torch.testing.assert_close(built(image), expected)
    torch.testing.assert_close(built.inference()(image), expected, rtol=1e-3, atol=1e-4)  # folded all the same
    assert [*built.state_dict()] == names


@pytest.mark.parametrize("strategy", ["fsdp", "deepspeed_stage_3"])
def test_weights_are_not_split(strategy: str) -> None:
    with pytest.raises(ValueError, match=f"trainer.strategy={strategy} splits the weights .*: trainer=ddp"):
        settings_of(f"trainer.strategy={strategy}")
