import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import topology_program
import torch
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType
from conftest import ROOT, launch
from namespaces import ADDRESSES, CABLE, two_nodes
from small_runs import losses, small_recipe, write_recipe

from genesis_hf.config import PretrainRecipe, build
from genesis_hf.errors import UserError
from genesis_hf.training.distributed import make_accelerator, refuse_unfit

TOLERANCE = 1e-6
"""Relative, in fp32, where the sums' order is all that differs."""


@pytest.fixture(scope="module")
def one_process():
    """The gradients of one process."""
    AcceleratorState._reset_state(reset_partial_state=True)
    return topology_program.gradients(make_accelerator(topology_program.recipe_without_data()))


@pytest.fixture
def values(corpus, tokenizer_folder, tmp_path):
    """A recipe of 6 steps for two processes, as plain values; its rows are padded, each by another length."""
    settings = {"packing": "best_fit", "num_processes": 2, "max_steps": 6, "warmup_steps": 2, "logging_steps": 1}
    return small_recipe(corpus, tokenizer_folder, tmp_path / "run", **settings)


def train(values, **changes):
    return topology_program.train(build(PretrainRecipe, {**values, **changes}, "test"))


def assert_close(one, other):
    mine, theirs = losses(one), losses(other)
    assert sorted(mine) == sorted(theirs)
    for step, numbers in mine.items():
        assert theirs[step] == pytest.approx(numbers, rel=1e-5)


def assert_same_gradients(found, one_process):
    assert sorted(found) == sorted(one_process)
    for case, gradients in found.items():
        large = "micro-batch=".join([case.split("micro-batch=")[0], "8 " + case.split()[-1]])
        expected = one_process[large]
        assert sorted(gradients) == sorted(expected)
        for name in sorted(set(expected) - {"collectives"}):
            difference = torch.linalg.vector_norm(gradients[name] - expected[name])
            assert difference <= TOLERANCE * torch.linalg.vector_norm(expected[name]), f"{case}: {name}"


def assert_one_synchronisation(found):
    """As many collectives whether a step has one micro-batch or many."""
    counts = {case: int(gradients["collectives"]) for case, gradients in found.items()}
    for tied in ("tied=True", "tied=False"):
        assert len({count for case, count in counts.items() if case.startswith(tied)}) == 1, counts


def test_any_micro_batch_gives_the_gradients_of_one_large_batch(one_process):
    assert_same_gradients(one_process, one_process)
    norms = [gradients["lm_head.weight"].norm() for case, gradients in one_process.items() if "tied=False" in case]
    assert min(norms) > 0.01


def test_fsdp2_and_ddp_give_the_gradients_of_one_process(one_process, tmp_path):
    launch("fsdp2_2gpu", "tests/topology_program.py", tmp_path, warm=())
    found = torch.load(tmp_path / "gradients.pt", weights_only=True)
    assert sorted(found) == ["DDP", "FSDP2"]
    for gradients in found.values():
        assert_same_gradients(gradients, one_process)
        assert_one_synchronisation(gradients)


def test_fsdp1_gives_the_gradients_of_one_process_and_resumes_exactly(one_process, values, tmp_path):
    one, whole, parts = (str(tmp_path / name) for name in ("one", "whole", "parts"))
    train(values, output_dir=one)
    recipe = write_recipe(values, tmp_path / "recipe.yaml")
    launch("fsdp1_2gpu", "tests/topology_program.py", tmp_path, recipe, "whole:6", "parts:3", "parts:4")
    found = torch.load(tmp_path / "gradients.pt", weights_only=True)
    assert list(found) == ["FSDP1"]
    assert_same_gradients(found["FSDP1"], one_process)
    assert_one_synchronisation(found["FSDP1"])
    assert_close(one, whole)
    assert losses(parts) == {step: numbers for step, numbers in losses(whole).items() if step <= 4}  # to the last bit
    train(values, output_dir=parts)  # and goes on with one process
    assert_close(one, parts)


def test_hsdp_on_two_nodes_trains_as_one_process_does(values, tmp_path):
    """Two nodes of two processes each: shards within a node, replicas across them."""
    one, nodes = str(tmp_path / "one"), str(tmp_path / "nodes")
    train(values, output_dir=one)
    recipe = write_recipe({**values, "output_dir": nodes}, tmp_path / "recipe.yaml")
    with two_nodes() as prefixes:
        running = [
            subprocess.Popen(
                [
                    *(*prefix, sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch"),
                    *("--config_file", "accelerate_configs/hsdp_multinode.yaml", "--num_machines", "2"),
                    *("--machine_rank", str(rank), "--main_process_ip", ADDRESSES[0], "--num_processes", "4"),
                    *("--parallelism_config_dp_replicate_size", "2", "--parallelism_config_dp_shard_size", "2"),
                    *("scripts/pretrain.py", "--config", str(recipe), "--stop_at_step", "4"),
                ],
                cwd=ROOT,
                env={**os.environ, "GLOO_SOCKET_IFNAME": CABLE},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            for rank, prefix in enumerate(prefixes)
        ]
        try:
            outputs = [process.communicate(timeout=180)[0] for process in running]
        finally:
            for process in running:
                process.kill()
    assert [process.returncode for process in running] == [0, 0], "\n".join(output[-3000:] for output in outputs)
    train(values, output_dir=nodes)
    assert_close(one, nodes)


def test_what_a_topology_cannot_do_is_refused(values):
    fsdp1 = SimpleNamespace(distributed_type=DistributedType.FSDP, is_fsdp2=False)
    fsdp2 = SimpleNamespace(distributed_type=DistributedType.FSDP, is_fsdp2=True)
    muon = build(PretrainRecipe, {**values, "optim": "muon"}, "test")
    with pytest.raises(UserError, match="optim: muon needs whole matrices, which FSDP1 flattens"):
        refuse_unfit(muon, fsdp1)
    refuse_unfit(muon, fsdp2)
    offloading = build(PretrainRecipe, {**values, "cpu_offload": True}, "test")
    with pytest.raises(UserError, match="cpu_offload needs FSDP2"):
        refuse_unfit(offloading, fsdp1)
    with pytest.raises(UserError, match="cpu_offload needs FSDP2"):
        train(values, cpu_offload=True)
    refuse_unfit(offloading, fsdp2)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        (
            {"DP_REPLICATE": "2", "DP_SHARD": "8"},
            "dp_shard_size 8 is not the number of processes, 4",
        ),
        ({"DP_REPLICATE": "4", "DP_SHARD": "1"}, "shards nothing"),
        ({"DP_REPLICATE": "1", "DP_SHARD": "2", "TP": "2"}, "tp_size: 2 is not supported"),
        ({"DP_REPLICATE": "1", "DP_SHARD": "2", "CP": "2"}, "cp_size: 2 is not supported"),
    ],
)
def test_a_mesh_that_is_not_replicas_times_shards_is_refused(monkeypatch, sizes, message):
    """The environment is what `accelerate launch` makes of the YAML."""
    monkeypatch.setenv("ACCELERATE_USE_PARALLELISM_CONFIG", "true")
    monkeypatch.setenv("WORLD_SIZE", "4")
    for name, size in sizes.items():
        monkeypatch.setenv(f"PARALLELISM_CONFIG_{name}_SIZE", size)
    with pytest.raises(UserError, match=message):
        make_accelerator(topology_program.recipe_without_data())
