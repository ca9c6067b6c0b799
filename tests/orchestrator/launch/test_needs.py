"""Pods that a recipe needs: hand-counted GPUs on nodes, memory, and refusals."""

from __future__ import annotations

import pytest
from shipped import CONFIGS

from orchestrator.compare.recipe import load_comparison
from orchestrator.config import Recipe, load
from orchestrator.errors import BadInput
from orchestrator.evaluation.suite import load_suite
from orchestrator.launch.base import Pods
from orchestrator.launch.needs import Needs, Node, longest_grace_s, needs_of, needs_of_evaluation, node_of
from orchestrator.launch.targets import SlurmTarget
from orchestrator.plan.gpus import CPU_RANK, GPUS

NODE = Node(gpu=GPUS["H100"], gpus=8, cpus=96, memory_gib=1000)
WITHOUT_GPUS = Node(gpu=CPU_RANK, gpus=1, cpus=16, memory_gib=64)


def recipe(name: str, *overrides: str) -> Recipe:
    return load(CONFIGS / f"{name}.yaml", overrides)


def worker(needs: Needs) -> Pods:
    return needs.pods[1]


def test_seventy_billions_take_whole_nodes() -> None:
    # 32 ranks of the policy, 16 of the reference, 4 engines of 4 GPUs: 64 GPUs, 8 nodes
    needs = needs_of([recipe("70b/iterative_dpo")], NODE)
    assert (worker(needs).count, worker(needs).gpus, needs.gpus, needs.idle_gpus) == (8, 8, 64, 0)
    assert (worker(needs).cpus, worker(needs).memory_gib) == (96, 1000)
    # 8192 prompts of 8 completions of at most 4096 tokens, 32 bytes each, twice: 16 GiB; one for each of 8 ranks
    assert worker(needs).shm_gib == 16 + 8
    assert needs.pods[0] == Pods(role="head", count=1, gpus=0, cpus=8, memory_gib=16 + 24, shm_gib=24)


def test_a_part_of_a_node_has_its_share() -> None:
    needs = needs_of([recipe("8b/grpo_lora")], NODE)
    assert (worker(needs).count, worker(needs).gpus) == (1, 4)
    assert (worker(needs).cpus, worker(needs).memory_gib) == (48, 500)


def test_processes_of_several_gpus_leave_gaps() -> None:
    # 2 engines of 4 GPUs, 5 ranks of the policy, 4 of the reference: 8 + 5 | 4, that is 17 GPUs on 3 nodes of 8
    sizes = ("rollout.num_engines=2", "rollout.tensor_parallel_size=4", "policy.num_ranks=5", "reference.num_ranks=4")
    needs = needs_of([recipe("8b/iterative_dpo", *sizes)], NODE)
    assert (worker(needs).count, needs.gpus, needs.idle_gpus) == (3, 24, 7)


def test_the_largest_stage_decides() -> None:
    # the base has 2 ranks; then 2 ranks of the policy and an engine
    assert worker(needs_of([recipe("quickstart/grpo")], NODE)).gpus == 3


def test_a_comparison_takes_what_there_is() -> None:
    comparison = load_comparison(CONFIGS / "8b" / "compare.yaml")
    recipes = [run.recipe for run in comparison.runs]
    assert needs_of(recipes, NODE, given=64).gpus == 64
    assert needs_of(recipes, NODE).gpus == 16


def test_without_gpus_all_processes_share_a_pod() -> None:
    # 2 ranks of the policy, an engine, a reward worker: 4 processes of a core; the base has 2 ranks and an encoder
    head, pods = needs_of([recipe("quickstart/grpo")], WITHOUT_GPUS).pods
    assert pods == Pods(role="worker", count=1, gpus=0, cpus=4, memory_gib=2 + 4 * 4, shm_gib=2)
    assert (head.gpus, head.cpus) == (0, 2)


def test_small_nodes_without_gpus_are_several() -> None:
    target = SlurmTarget(engine="slurm", gpus_per_node=0, cpus_per_node=2)
    pods = worker(needs_of([recipe("quickstart/grpo")], node_of(target)))
    assert (pods.count, pods.cpus, pods.gpus) == (2, 2, 0)


def test_an_evaluation_answers_and_then_scores() -> None:
    # 2 engines of 4 GPUs and a reward worker on the CPU answer; then 4 ranks score
    sizes = ["rollout.num_engines=2", "rollout.tensor_parallel_size=4", "scoring.num_ranks=4"]
    needs = needs_of_evaluation(load_suite(CONFIGS / "eval" / "maths.yaml", sizes), NODE)
    assert (worker(needs).count, worker(needs).gpus, worker(needs).cpus) == (1, 8, 96)
    larger = load_suite(CONFIGS / "eval" / "maths.yaml", [*sizes[:2], "scoring.num_ranks=12"])
    more = needs_of_evaluation(larger, NODE)
    assert (worker(more).count, more.gpus, more.idle_gpus) == (2, 16, 4)
    with pytest.raises(BadInput, match="16 GPUs are needed, 8 given"):
        needs_of_evaluation(larger, NODE, given=8)


def test_an_evaluation_without_gpus_needs_a_pod_for_its_processes() -> None:
    # an engine and a reward worker
    pods = worker(needs_of_evaluation(load_suite(CONFIGS / "eval" / "quickstart.yaml"), WITHOUT_GPUS))
    assert (pods.count, pods.gpus, pods.cpus, pods.memory_gib) == (1, 0, 2, 2 + 4 * 2)


def test_the_grace_has_room_for_an_update_and_a_checkpoint() -> None:
    assert needs_of([recipe("8b/dpo")], NODE).grace_s == 600
    # 70B on 16 nodes with checkpoints of 12 bytes per parameter: 840 GB at 1 GB/s for each node, twice, and an update
    slow = needs_of([recipe("70b/dpo", "policy.num_ranks=16", "reference.num_ranks=48")], NODE).grace_s
    assert slow > 2 * 840 / 2
    assert slow % 60 == 0


@pytest.mark.parametrize(
    ("name", "overrides", "given", "words"),
    [
        ("70b/iterative_dpo", (), 32, "64 GPUs are needed, 32 given"),
        ("8b/grpo", ("rollout.tensor_parallel_size=16",), None, "one process asks for 16 GPUs"),
        ("8b/dpo", ("cluster.cpus_per_worker=40",), None, "a worker needs 360 CPUs"),  # 8 ranks, an encoder
    ],
)
def test_what_does_not_fit_is_refused(name: str, overrides: tuple[str, ...], given: int | None, words: str) -> None:
    with pytest.raises(BadInput) as caught:
        needs_of([recipe(name, *overrides)], NODE, given=given)
    assert caught.value.problems[0].what == words
    assert caught.value.problems[0].fix


def test_a_recipe_for_gpus_is_refused_without_any() -> None:
    with pytest.raises(BadInput, match="computes on GPUs"):
        needs_of([recipe("8b/dpo", "cluster.device=cuda")], WITHOUT_GPUS)


def test_a_recipe_for_cpus_takes_no_gpus() -> None:
    on_cpus = ("cluster.device=cpu", "stages.quickstart-base.cluster.device=cpu")
    assert needs_of([recipe("quickstart/offline_dpo", *on_cpus)], NODE).gpus == 0


def test_on_unknown_gpus_the_slowest_sets_the_grace() -> None:
    graces = [needs_of([recipe("70b/iterative_dpo")], Node(gpu=gpu, gpus=8)).grace_s for gpu in GPUS.values()]
    assert longest_grace_s([recipe("70b/iterative_dpo")]) == max(graces) > min(graces)
    assert longest_grace_s([recipe("quickstart/grpo")]) == longest_grace_s([]) == 600
