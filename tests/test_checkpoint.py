"""Checkpoints: complete or absent, detected when damaged, exact when restored.

Run as a program it is a job of one or several processes: `tests/test_checkpoint.py JOB RUN`.
"""

import errno
import json
import os
import pickle
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from conftest import launch, run_script
from hub_upload_server import HubUploadServer
from huggingface_hub import constants
from small_models import byte_tokenizer, random_model

from genesis_hf.checkpoint import space, writer
from genesis_hf.checkpoint.checkpointer import Checkpointer
from genesis_hf.checkpoint.contents import verify_contents
from genesis_hf.checkpoint.copies import copy_checkpoint
from genesis_hf.checkpoint.folders import apply_retention, checkpoint_folder, complete_checkpoints, read_trainer_state
from genesis_hf.checkpoint.manifest import newest_good_checkpoint, verify_checkpoint, verify_files, write_manifest
from genesis_hf.checkpoint.reader import load_state
from genesis_hf.checkpoint.restore import load_model, restore_checkpoint
from genesis_hf.checkpoint.save import save_checkpoint
from genesis_hf.checkpoint.staging import Staging
from genesis_hf.checkpoint.state import training_tensors
from genesis_hf.config import PretrainRecipe, Source
from genesis_hf.errors import UserError
from genesis_hf.training.distributed import make_accelerator

SMALL = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 2, "num_key_value_heads": 1}


class Training:
    """A small model, its optimizers, and steps that are the same each time."""

    def __init__(self, run: Path, muon: bool = False, **settings: object) -> None:
        (run.parent / "tokenizer").mkdir(exist_ok=True)
        self.tokenizer = byte_tokenizer(run.parent / "tokenizer")
        self.recipe = PretrainRecipe(
            output_dir=str(run),
            model={},
            tokenizer="",
            sources=[Source(name="text", paths=["*.txt"])],
            max_steps=1000,
            bf16=False,
            **settings,
        )
        self.model = random_model(tied=True, **SMALL).train()
        parameters = list(self.model.parameters())
        if muon:
            matrices = [p for p in parameters[1:] if p.ndim == 2]
            others = [p for p in parameters if all(p is not matrix for matrix in matrices)]
            self.optimizers = [torch.optim.Muon(matrices, lr=0.02), torch.optim.AdamW(others, lr=1e-3, fused=True)]
        else:
            self.optimizers = [torch.optim.AdamW(parameters, lr=1e-3, fused=True)]

    def step(self) -> None:
        for index, optimizer in enumerate(self.optimizers):
            for group in optimizer.param_groups:
                group["lr"] = group["lr"] * 0.9 + 1e-5 * index
        ids = torch.randint(0, 256, (2, 32))
        self.model(input_ids=ids, labels=ids).loss.backward()
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad()

    def save(self, folder: Path, step: int) -> None:
        save_checkpoint(folder, self.model, self.optimizers, {"step": step}, "max_steps: 9\n", self.tokenizer)

    def values(self) -> dict:
        """Every tensor and number of model and optimizers."""
        return flat(training_tensors(self.model, self.optimizers))


def flat(value: object, prefix: str = "") -> dict:
    if isinstance(value, (dict, list)):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        return {name: found for key, inside in items for name, found in flat(inside, f"{prefix}/{key}").items()}
    value = value.to_local() if hasattr(value, "to_local") else value
    return {prefix: value.clone() if torch.is_tensor(value) else value}


def assert_same(one: dict, other: dict) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert torch.equal(value, other[name]) if torch.is_tensor(value) else value == other[name], name


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with good checkpoints of steps 1 and 2, which tests copy before they damage it."""
    run = tmp_path_factory.mktemp("finished") / "run"
    training = Training(run, muon=True)
    for step in (1, 2):
        training.step()
        training.save(checkpoint_folder(run, step), step)
    return run


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


# ------------------------------------------------------------------------------------------------- damage


def flip(folder: Path, rng: random.Random) -> None:
    path = any_file(folder, rng)
    content = bytearray(path.read_bytes())
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    path.write_bytes(content)


def truncate(folder: Path, rng: random.Random) -> None:
    path = any_file(folder, rng)
    os.truncate(path, rng.randrange(path.stat().st_size))


def delete(folder: Path, rng: random.Random) -> None:
    any_file(folder, rng).unlink()


def add(folder: Path, rng: random.Random) -> None:
    (any_file(folder, rng).parent / f"extra-{rng.random()}").write_bytes(b"")


def any_file(folder: Path, rng: random.Random) -> Path:
    return rng.choice(sorted(path for path in folder.rglob("*") if path.is_file()))


def other_state(folder: Path, change: Callable[[dict], None]) -> None:
    """Write model and optimizer anew, changed, with an index and a manifest that fit them."""
    training = Training(folder.parent / "other", muon=True)
    state = training_tensors(training.model, training.optimizers)
    load_state(state, folder / "state")
    change(state)
    shutil.rmtree(folder / "state")
    torch.distributed.checkpoint.save(state, checkpoint_id=folder / "state")
    write_manifest(folder, {})


def empty_optimizer(folder: Path, rng: random.Random) -> None:
    other_state(folder, lambda state: state["optimizer"]["state"].clear())


def partial_optimizer(folder: Path, rng: random.Random) -> None:
    def change(state: dict) -> None:
        kept = state["optimizer"]["state"][rng.choice(sorted(state["optimizer"]["state"]))]
        del kept[rng.choice(sorted(kept))]

    other_state(folder, change)


def other_shape(folder: Path, rng: random.Random) -> None:
    def change(state: dict) -> None:
        name = rng.choice(sorted(state["optimizer"]["state"]))
        kept = rng.choice([state["model"], *[state["optimizer"]["state"][name]] * 2])
        name = name if kept is state["model"] else next(key for key in kept if key != "step")
        kept[name] = kept[name][1:].clone()

    other_state(folder, change)


def other_counters(folder: Path, rng: random.Random) -> None:
    def change(state: dict) -> None:
        counters = [kept["step"] for kept in state["optimizer"]["state"].values() if "step" in kept]
        rng.choice(counters).add_(rng.choice([-1, 1, 1000]))

    other_state(folder, change)


def no_generators(folder: Path, rng: random.Random) -> None:
    (folder / "rng_rank_0.pt").unlink()
    write_manifest(folder, {})


class Exploit:
    def __reduce__(self) -> tuple:
        return os.mkdir, ("exploited",)


def stranger(folder: Path, rng: random.Random) -> None:
    """An index that runs a program when it is unpickled."""
    (folder / "state" / ".metadata").write_bytes(pickle.dumps(Exploit()))
    write_manifest(folder, {})


def outside(folder: Path, rng: random.Random) -> None:
    """A manifest that names a file outside of the folder."""
    (folder.parent / "secret").write_text("secret")
    text = (folder / "manifest.json").read_text()
    (folder / "link").symlink_to("../secret")
    assert "link" not in text
    write_manifest(folder, {})
    entries = json.loads((folder / "manifest.json").read_text())["files"]
    entries["../secret"] = entries.pop("link")
    (folder / "link").unlink()
    from genesis_hf.checkpoint.manifest import manifest_text

    (folder / "manifest.json").write_text(manifest_text(entries))


SIMPLE = [flip, flip, flip, flip, truncate, truncate, delete, add]
"""Damage that the manifest shows."""
CONSISTENT = [empty_optimizer, partial_optimizer, other_shape, other_counters, no_generators, stranger, outside]
"""Damage with a manifest that agrees with it."""


def test_every_damage_is_detected_and_fallen_back_from(run: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    older, newest = checkpoint_folder(run, 1), checkpoint_folder(run, 2)
    whole = shutil.copytree(newest, tmp_path / "whole")
    assert newest_good_checkpoint(run) == newest
    cases = [SIMPLE[case % len(SIMPLE)] for case in range(160)] + [CONSISTENT[case % 7] for case in range(42)]
    for case, damage in enumerate(cases):
        shutil.rmtree(newest, ignore_errors=True)
        shutil.copytree(whole, newest)
        damage(newest, random.Random(case))
        assert verify_checkpoint(newest), (case, damage)
        if case % 20 == 0 or damage in CONSISTENT[:1]:
            assert newest_good_checkpoint(run) == older
            assert str(newest) in capsys.readouterr().out
        if damage in SIMPLE:
            with pytest.raises(UserError):
                load_model(newest)
    assert not Path("exploited").exists()


@pytest.mark.parametrize("damage", [empty_optimizer, partial_optimizer, other_shape, other_counters, stranger])
def test_a_restore_refuses_what_is_not_whole(run: Path, tmp_path: Path, monkeypatch, damage: Callable) -> None:
    """Even unverified."""
    monkeypatch.chdir(tmp_path)
    folder = checkpoint_folder(run, 2)
    damage(folder, random.Random(1))
    training = Training(tmp_path / "other", muon=True)
    with pytest.raises(UserError, match=r"choose another|this run needs"):
        restore_checkpoint(folder, training.model, training.optimizers)
    assert not Path("exploited").exists()


def test_an_optimizer_that_comes_back_empty_is_refused(run: Path, tmp_path: Path, monkeypatch) -> None:
    """What a library did in silence once."""
    training = Training(tmp_path / "other", muon=True)
    monkeypatch.setattr("genesis_hf.checkpoint.restore.set_state_dict", lambda *args, **settings: None)
    for optimizer in training.optimizers:
        monkeypatch.setattr(optimizer, "load_state_dict", lambda *args: None)
    training_state = training_tensors(training.model, training.optimizers)
    monkeypatch.setattr("genesis_hf.checkpoint.restore.training_tensors", lambda *args: training_state)
    for optimizer in training.optimizers:
        optimizer.state.clear()
    with pytest.raises(UserError, match="came back without"):
        restore_checkpoint(checkpoint_folder(run, 2), training.model, training.optimizers)


def test_state_of_the_run_is_in_the_checkpoint(run: Path) -> None:
    folder = checkpoint_folder(run, 2)
    state = read_trainer_state(folder)
    assert (state["step"], state["num_processes"]) == (2, 1)
    assert state["versions"]["torch"] == torch.__version__
    assert set(state["versions"]) == {"genesis_hf", "torch", "transformers", "accelerate", "python", "git"}
    assert str(run).encode() not in (folder / "state" / ".metadata").read_bytes()


def test_optimizer_steps_may_differ_from_steps(tmp_path: Path) -> None:
    """As when a step was skipped."""
    training = Training(tmp_path / "run")
    training.step()
    folder = checkpoint_folder(tmp_path / "run", 5)
    state = {"step": 5, "optimizer_steps": 1}
    save_checkpoint(folder, training.model, training.optimizers, state, "", training.tokenizer)
    assert verify_checkpoint(folder) == []
    assert restore_checkpoint(folder, training.model, training.optimizers)["optimizer_steps"] == 1


# ---------------------------------------------------------------------------------------------- exactness


@pytest.mark.parametrize("muon", [False, True])
def test_asynchronous_equals_synchronous(tmp_path: Path, monkeypatch, muon: bool) -> None:
    """The copy begins when the optimizer's next step already has; it must wait for it."""
    in_step = threading.Event()
    copy = Staging.copy
    monkeypatch.setattr(Staging, "copy", lambda self: (in_step.wait(), copy(self)))
    training = Training(tmp_path / "async", muon=muon, save_async=True)
    training.optimizers[0].register_step_pre_hook(lambda *_: in_step.set())
    checkpoints = Checkpointer(training.recipe, training.model, training.optimizers, training.tokenizer)
    for step in (1, 3, 5):  # another step is made while each is written
        training.step()
        in_step.clear()
        training.save(checkpoint_folder(tmp_path / "sync", step), step)
        expected = training.values()
        torch.manual_seed(step)
        generator = torch.get_rng_state()
        folder = checkpoints.save({"step": step})
        training.step()
        checkpoints.wait()
        assert checkpoints.take_stall() > 0
        for kind in ("sync", "async"):
            other = Training(tmp_path / "other", muon=muon)
            restore_checkpoint(checkpoint_folder(tmp_path / kind, step), other.model, other.optimizers)
            assert_same(other.values(), expected)
        assert torch.equal(torch.get_rng_state(), generator)
    checkpoints.close()
    assert verify_checkpoint(folder) == []
    files = [
        {path.name: path.read_bytes() for path in (checkpoint_folder(tmp_path / kind, 5) / "state").glob("*.distcp")}
        for kind in ("sync", "async")
    ]
    assert files[0] == files[1]


def job_training(run: Path, **settings: object) -> tuple[Training, Checkpointer, Callable[[], None]]:
    """A `Training` under Accelerate, and its step."""
    main = int(os.environ["RANK"]) == 0
    training = Training(run if main else run.with_name("rank1") / "run", **settings) if main else None
    recipe_holder = PretrainRecipe(
        output_dir=str(run),
        model={},
        tokenizer="",
        sources=[Source(name="text", paths=["*.txt"])],
        max_steps=1000,
        bf16=False,
        **settings,
    )
    accelerator = make_accelerator(recipe_holder)
    accelerator.wait_for_everyone()
    if training is None:
        training = Training(run, **settings)
    training.model, *training.optimizers = accelerator.prepare(training.model, *training.optimizers)

    def step(seed: int) -> None:
        torch.manual_seed(seed + accelerator.process_index)
        ids = torch.randint(0, 256, (2, 32))
        accelerator.backward(training.model(input_ids=ids, labels=ids).loss)
        for optimizer in training.optimizers:
            optimizer.step()
            optimizer.zero_grad()

    checkpoints = Checkpointer(training.recipe, training.model, training.optimizers, training.tokenizer)
    return training, checkpoints, step


def job_save(run: Path) -> None:
    """Saves while it trains, fails once on rank 1 alone, saves again, and restores bit by bit."""
    training, checkpoints, step = job_training(run, save_total_limit=None)
    step(1)
    expected = flat(training_tensors(training.model, [o.optimizer for o in training.optimizers]))
    folder = checkpoints.save({"step": 1})
    step(2)
    checkpoints.wait()
    assert checkpoints.failed is None, checkpoints.failed

    write = writer.HashingStream.write
    if dist.get_rank() == 1:

        def full(self: object, data: object) -> int:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "rank1.distcp")

        writer.HashingStream.write = full
    checkpoints.save({"step": 2})
    checkpoints.wait()
    assert f"{run}/checkpoints/step_000000002 could not be written: No space left on device: rank1.distcp" in (
        checkpoints.failed
    )
    assert "step_000000001 stays" in checkpoints.failed
    writer.HashingStream.write = write
    assert [path.name for path in (run / "checkpoints").iterdir() if "step_" in path.name] == [folder.name]

    step(3)
    checkpoints.save({"step": 3})
    checkpoints.close()
    assert checkpoints.failed is None
    assert newest_good_checkpoint(run) == checkpoint_folder(run, 3)
    restore_checkpoint(folder, training.model, training.optimizers)
    assert_same(flat(training_tensors(training.model, [o.optimizer for o in training.optimizers])), expected)
    print("done", flush=True)


@pytest.mark.parametrize("topology", ["fsdp2_2gpu", "ddp_2gpu"])
def test_two_processes_save_while_training_and_fail_alike(tmp_path: Path, topology: str) -> None:
    result = launch(topology, __file__, "job_save", tmp_path / "run")
    assert result.stdout.count("done") == 2
    assert all(verify_checkpoint(folder) == [] for folder in complete_checkpoints(tmp_path / "run"))
    shards = (tmp_path / "run").glob("checkpoints/*3/state/*.distcp")
    assert {shard.name[:4] for shard in shards} == {"__0_", "__1_"}
    other = Training(tmp_path / "other")
    restore_checkpoint(checkpoint_folder(tmp_path / "run", 3), other.model, other.optimizers)


# ------------------------------------------------------------------------------------------------- crashes


def in_a_child(work: Callable[[], None], kill_at: int) -> bool:
    """Do something in a copy of this process, killed at its n-th change of a file or folder; False if it got through"""
    child = os.fork()
    if child == 0:
        seen = [0]

        def watch(event: str, arguments: tuple) -> None:
            changes = event in ("os.rename", "os.remove", "os.rmdir", "os.mkdir")
            changes |= event == "open" and isinstance(arguments[2], int) and bool(arguments[2] & os.O_WRONLY)
            if changes:
                seen[0] += 1
                if seen[0] == kill_at:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(watch)
        try:
            work()
        finally:
            os._exit(0)
    return os.waitpid(child, 0)[1] == signal.SIGKILL


def test_a_kill_at_any_file_operation_leaves_a_usable_run(tmp_path: Path) -> None:
    """The save is of the same step as the one checkpoint that stands, so nothing but this one would be left."""
    run = tmp_path / "run"
    training = Training(run, save_async=False, save_total_limit=1)
    training.step()
    training.save(checkpoint_folder(run, 1), 1)
    training.step()

    def save() -> None:
        checkpoints = Checkpointer(training.recipe, training.model, training.optimizers, training.tokenizer)
        checkpoints.save({"step": 1, "optimizer_steps": 2})

    seen = []
    while in_a_child(save, kill_at=len(seen) + 1):
        seen.append(newest_good_checkpoint(run))
        assert seen[-1] == checkpoint_folder(run, 1)
    assert len(seen) > 40
    assert read_trainer_state(seen[-1])["optimizer_steps"] == 2
    assert not list((run / "checkpoints").glob(".step*"))


def test_a_replaced_checkpoint_comes_back(run: Path) -> None:
    """A kill between the two renames of a second save of the same step."""
    folder = checkpoint_folder(run, 2)
    folder.rename(folder.with_name(".step_000000002.replaced"))
    assert newest_good_checkpoint(run) == folder


# ---------------------------------------------------------------------------------------- retention, disk


def empty_checkpoints(run: Path, steps: list[int]) -> None:
    for step in steps:
        checkpoint_folder(run, step).mkdir(parents=True)
        (checkpoint_folder(run, step) / "manifest.json").write_text("{}")


def steps_of(run: Path) -> list[int]:
    return sorted(int(folder.name[5:]) for folder in complete_checkpoints(run))


def test_retention(tmp_path: Path) -> None:
    empty_checkpoints(tmp_path, [1, 2, 3, 4, 5, 6])
    apply_retention(tmp_path, None)
    assert steps_of(tmp_path) == [1, 2, 3, 4, 5, 6]
    apply_retention(tmp_path, 2, {2}, in_use={checkpoint_folder(tmp_path, 1)})
    assert steps_of(tmp_path) == [1, 2, 5, 6]
    apply_retention(tmp_path, 2, {2})
    assert steps_of(tmp_path) == [2, 5, 6]


def test_retention_keeps_what_a_run_that_went_back_has_just_saved(tmp_path: Path) -> None:
    empty_checkpoints(tmp_path, [2, 3, 9])
    apply_retention(tmp_path, 1, step=3)
    assert steps_of(tmp_path) == [3, 9]


def test_milestones_stay(tmp_path: Path) -> None:
    training = Training(tmp_path / "run", save_total_limit=1, keep_steps=[2])
    checkpoints = Checkpointer(training.recipe, training.model, training.optimizers, training.tokenizer)
    for step in (1, 2, 3, 4):
        training.step()
        checkpoints.save({"step": step})
    checkpoints.close()
    assert steps_of(tmp_path / "run") == [2, 4]
    assert (tmp_path / "run" / "checkpoints" / "latest").read_text() == "step_000000004\n"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 12 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=12m", "tmpfs", str(folder)]
    if os.geteuid() or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a small disk takes root")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(disk: Path, leave: int) -> None:
    """A file that leaves so many bytes free."""
    (disk / "other").unlink(missing_ok=True)
    with open(disk / "other", "wb") as file:
        file.write(bytes(shutil.disk_usage(disk).free - leave))


@pytest.mark.parametrize("save_async", [True, False])
def test_a_full_disk(small_disk: Path, tmp_path: Path, monkeypatch, capfd, save_async: bool) -> None:
    monkeypatch.setattr(space, "MARGIN", 1 << 19)
    run = small_disk / "run"
    training = Training(run, save_async=save_async, save_total_limit=None, keep_steps=[1])
    checkpoints = Checkpointer(training.recipe, training.model, training.optimizers, training.tokenizer)

    def save(step: int) -> str | None:
        training.step()
        checkpoints.save({"step": step})
        checkpoints.wait()
        return checkpoints.failed

    assert [save(step) for step in (1, 2, 3, 4)] == [None] * 4
    size = sum(path.stat().st_size for path in checkpoint_folder(run, 4).rglob("*") if path.is_file())

    # Room for none: the oldest that may go go, the milestone and the newest stay.
    fill(small_disk, leave=size // 4)
    assert save(5) is None
    assert 1 in steps_of(run)
    assert 5 in steps_of(run)
    assert "nearly full" in capfd.readouterr().out

    # No room even then: refused before a byte is written.
    (small_disk / "other").unlink()
    shutil.rmtree(checkpoint_folder(run, 4), ignore_errors=True)
    fill(small_disk, leave=size // 4)
    problem = save(6)
    assert re.search(r"step_000000006 could not be written: 0.00 GiB are free \(it takes 0.0\d GiB\)", problem)
    assert "step_000000005 stays" in problem

    # It fills up in the middle of the write.
    monkeypatch.setattr(space, "MARGIN", -(1 << 30))
    for leave in (0, 4096, size // 3, size - (48 << 10), size - (40 << 10), size - (32 << 10), size - 4096):
        fill(small_disk, leave)
        problem = save(7)
        assert "No space left on device" in problem
        assert "step_000000005 stays" in problem
        assert steps_of(run) == [1, 5]
        assert not list((run / "checkpoints").glob(".step*"))
    assert verify_checkpoint(newest_good_checkpoint(run)) == []
    assert "Traceback" not in capfd.readouterr().err

    (small_disk / "other").unlink()
    monkeypatch.setattr(space, "MARGIN", 1 << 19)
    for _ in range(6):
        training.step()
    training.recipe.save_total_limit = 1
    checkpoints.save({"step": 16, "optimizer_steps": 16})
    checkpoints.close()
    assert steps_of(run) == [1, 16]


def test_close_says_that_the_last_write_failed(tmp_path: Path, monkeypatch) -> None:
    training = Training(tmp_path / "run")
    checkpoints = Checkpointer(training.recipe, training.model, training.optimizers, training.tokenizer)
    monkeypatch.setattr(space, "MARGIN", 1 << 60)
    training.step()
    checkpoints.save({"step": 1})
    with pytest.raises(UserError, match=r"GiB are free \(it takes \d+.* GiB\); there is no other"):
        checkpoints.close()
    assert not list((tmp_path / "run" / "checkpoints").glob("*step*"))


# -------------------------------------------------------------------------------------------------- copies


def test_copies_on_another_disk(tmp_path: Path, capsys) -> None:
    run, disk = tmp_path / "run", tmp_path / "disk"
    disk.write_text("no folder yet")
    settings = {"save_copy_dir": str(disk), "save_total_limit": 1, "keep_steps": [1]}
    training = Training(run, **settings)
    checkpoints = Checkpointer(training.recipe, training.model, training.optimizers, training.tokenizer)
    training.step()
    checkpoints.save({"step": 1})
    checkpoints.close()
    assert checkpoints.failed is None
    warnings = [line for line in capsys.readouterr().out.splitlines() if "WARNING" in line]
    assert len(warnings) == 1
    assert "copy of step_000000001 failed" in warnings[0]

    disk.unlink()
    checkpoints = Checkpointer(training.recipe, training.model, training.optimizers, training.tokenizer)
    for step in (2, 3):
        training.step()
        checkpoints.save({"step": step})
    checkpoints.close()
    assert "WARNING" not in capsys.readouterr().out
    assert steps_of(disk) == [1, 3]
    assert (disk / "checkpoints" / "latest").read_text() == "step_000000003\n"
    for folder in complete_checkpoints(disk):
        assert verify_checkpoint(folder) == []

    assert newest_good_checkpoint(run, disk) == checkpoint_folder(run, 3)
    flip(checkpoint_folder(run, 3), random.Random(0))
    assert newest_good_checkpoint(run, disk) == checkpoint_folder(disk, 3)
    shutil.rmtree(run)
    assert newest_good_checkpoint(run, disk) == checkpoint_folder(disk, 3)
    assert newest_good_checkpoint(run) is None


def test_a_damaged_checkpoint_is_not_copied(run: Path, tmp_path: Path) -> None:
    (checkpoint_folder(run, 2) / "recipe.yaml").write_text("other")
    with pytest.raises(OSError, match=r"recipe.yaml has 5 bytes"):
        copy_checkpoint(checkpoint_folder(run, 2), tmp_path / "copy", 3, ())
    assert list((tmp_path / "copy" / "checkpoints").iterdir()) == []


def test_upload_to_a_branch_of_its_own(finished: Path, tmp_path: Path) -> None:
    program = (
        "import sys, pathlib; from genesis_hf.checkpoint.upload import upload_checkpoint;"
        "upload_checkpoint(pathlib.Path(sys.argv[1]), 'someone/model', private=True)"
    )
    folder = checkpoint_folder(finished, 2)
    with HubUploadServer() as hub:
        environment = {**hub.environment(tmp_path), "HF_TOKEN": "hf_secret"}
        result = run_script("-c", program, folder, **environment)
    assert "hf_secret" not in result.stdout + result.stderr
    assert hub.repositories["someone/model"].private
    uploaded = hub.files("someone/model", "step-000002")
    files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert {path: uploaded[f"checkpoint/{path}"] for path in files} == files
    assert set(uploaded) - {f"checkpoint/{path}" for path in files} == {".gitattributes", "run/recipe.yaml"}
    assert set(hub.files("someone/model")) == {".gitattributes"}


@pytest.mark.parametrize("missing", ["server", "token"])
def test_an_upload_that_fails_is_one_warning(tmp_path: Path, monkeypatch, capfd, missing: str) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret" if missing == "server" else "")
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    monkeypatch.setattr("genesis_hf.publishing.repository.pause", lambda _: None)
    training = Training(tmp_path / "run", push_to_hub=True, hub_model_id="someone/model")
    checkpoints = Checkpointer(training.recipe, training.model, training.optimizers, training.tokenizer)
    training.step()
    checkpoints.save({"step": 1})
    checkpoints.close()
    assert verify_checkpoint(checkpoint_folder(tmp_path / "run", 1)) == []
    printed = capfd.readouterr()
    assert printed.out.count("WARNING: upload of step_000000001 failed") == 1
    assert ("no token for the Hub" in printed.out) == (missing == "token")
    assert "Later: python scripts/push_to_hub.py --model" in printed.out
    assert "hf_secret" not in printed.out + printed.err
    assert "Traceback" not in printed.err


def test_old_and_incomplete_contents_are_named(run: Path) -> None:
    folder = checkpoint_folder(run, 2)
    assert verify_contents(folder) == verify_files(folder) == []
    empty_optimizer(folder, random.Random(0))
    assert verify_files(folder) == []
    assert "optimizer's state of model.embed_tokens.weight is missing" in verify_contents(folder)[0]


if __name__ == "__main__":
    globals()[sys.argv[1]](Path(sys.argv[2]))
