"""What the doctor makes of what nodes say: green, or red with a remedy that fits."""

from dataclasses import replace

import pytest

from starec_ray.cluster.memory import GIB
from starec_ray.doctor import checks
from starec_ray.doctor.checks import Wanted
from starec_ray.doctor.probe import NodeFacts, NodeProbe
from starec_ray.doctor.survey import Node

VERSIONS = {"python": "3.11.9", "code": "abc", "ray": "2.60.0", "vllm": "0.32.0"}
WANTED = Wanted(
    bundles=[{"CPU": 4, "GPU": 2}] * 2 + [{"CPU": 1, "GPU": 1}] * 4,
    weight_bytes=14 * GIB,
    runner_bytes=7 * GIB,
    learner_bytes=30 * GIB,
    runner_gpus=2,
    learner_gpus=1,
    num_runners=2,
    num_learners=4,
    shares_gpus=False,
    gpu_memory_utilization=0.85,
    through_object_store=True,
)


def node(name: str, gpus: int = 4, **facts) -> Node:
    own = NodeFacts(
        versions=VERSIONS,
        gpus=[80 * GIB] * gpus,
        gpu_fault="",
        cpus=32,
        memory_bytes=256 * GIB,
        shm_bytes=64 * GIB,
        storage={"/mnt/shared": ""},
        inputs={"/mnt/shared/data/manifest.json": "1"},
        model="",
    )
    resources = {"CPU": 32.0, "GPU": float(gpus), "object_store_memory": 60.0 * GIB}
    return Node(name, f"10.0.0.{name[-1]}", resources, facts=own | facts)


TWO = [node("n1"), node("n2")]


def only(finding, level, *told):
    assert finding.level == level, finding
    assert bool(finding.remedy) == (level != "good")
    for text in told:
        assert text in finding.text + finding.remedy


def test_a_sound_cluster_is_green_in_every_check():
    found = [
        checks.check_nodes(TWO),
        checks.check_versions(TWO, VERSIONS),
        checks.check_devices(TWO),
        checks.check_object_store(TWO, WANTED, may_grow=False),
        checks.check_ports(TWO),
        checks.check_storage("/mnt/shared", TWO, ""),
        checks.check_inputs(TWO, {"/mnt/shared/data/manifest.json": "1"}),
        checks.check_model("a/b", TWO),
        *checks.check_wanted(WANTED, TWO, may_grow=False),
    ]
    assert [f.level for f in found] == ["good"] * 10
    assert not any(f.remedy for f in found)


def test_a_node_that_does_not_answer_is_named_and_left_out_of_the_rest():
    silent = Node("n3", "10.0.0.3", {"CPU": 32.0}, fault="no answer within 60 s")
    only(checks.check_nodes([*TWO, silent]), "bad", "n3: no answer within 60 s")
    only(checks.check_versions([*TWO, silent], VERSIONS), "good")


def test_other_versions_and_other_code_on_a_node_are_told():
    old = node("n2", versions=VERSIONS | {"vllm": "", "code": "abd"})
    told = "n2: code abd instead of abc, vllm missing instead of 0.32.0"
    only(checks.check_versions([node("n1"), old], VERSIONS), "bad", told)
    only(checks.check_versions(TWO, VERSIONS | {"vllm": ""}), "bad", "here vllm isn't installed")


def test_gpus_that_torch_does_not_see_are_red_and_too_many_logical_cpus_yellow():
    blind = node("n2", gpus=4, gpu_fault="torch 2.13.0+cpu sees none")
    only(checks.check_devices([node("n1"), blind]), "bad", "n2: torch 2.13.0+cpu sees none")
    fewer = replace(node("n2"), facts=node("n2", gpus=3).facts)
    only(checks.check_devices([fewer]), "bad", "Ray counts 4 GPUs, torch sees 3")
    only(checks.check_devices([node("n1", cpus=2)]), "warning", "32 CPUs are 2 cores")


def test_the_object_store_has_to_hold_the_weights_and_to_lie_in_memory():
    large = replace(WANTED, weight_bytes=140 * GIB)
    told = "140.0 GiB", "--object-store-memory="
    only(checks.check_object_store(TWO, large, may_grow=False), "bad", *told)
    only(checks.check_object_store(TWO, large, may_grow=True), "bad", *told)
    tight = replace(WANTED, weight_bytes=40 * GIB)  # the version before is still there
    only(checks.check_object_store(TWO, tight, may_grow=False), "warning", "80.0 GiB", "the disk")
    by_nccl = replace(large, through_object_store=False)
    only(checks.check_object_store(TWO, by_nccl, may_grow=False), "good")
    cramped = [node("n1", shm_bytes=GIB)]
    only(checks.check_object_store(cramped, None, may_grow=False), "warning", "--shm-size")


def test_the_object_store_of_a_node_without_room_for_an_actor_may_be_small():
    head = node("n1", gpus=0)
    head.resources["object_store_memory"] = GIB
    fine = checks.check_object_store([head, node("n2")], WANTED, may_grow=False)
    only(fine, "good", "60.0 GiB or more where actors have room")
    # A learner that is no actor is the driver's, and that may be anywhere.
    local = replace(WANTED, num_learners=0)
    only(checks.check_object_store([head, node("n2")], local, may_grow=False), "bad", "1.0 GiB")
    only(checks.check_object_store([head], WANTED, may_grow=False), "bad", "no node that has room")
    only(checks.check_object_store([head], WANTED, may_grow=True), "warning", "when one is")


def test_storage_that_a_node_sees_otherwise_is_red():
    apart = node("n2", storage={"/mnt/shared": "not the same folder here"})
    only(checks.check_storage("/mnt/shared", [node("n1"), apart], ""), "bad", "n2: not the same")
    only(checks.check_storage("/x", TWO, "Permission denied"), "bad", "/x can't be written")


def test_closed_ports_other_data_and_a_missing_model_name_their_nodes():
    shut = replace(node("n2"), unreachable=["10.0.0.1"])
    only(checks.check_ports([node("n1"), shut]), "bad", "n2: can't reach 10.0.0.1")
    here = {"/mnt/shared/data/manifest.json": "2"}
    only(checks.check_inputs(TWO, here), "bad", "n1, n2: /mnt/shared/data/manifest.json is another")
    none = node("n1", inputs={"/mnt/shared/data/manifest.json": ""})
    only(checks.check_inputs([none], here), "bad", "is not there")
    only(checks.check_inputs([none], {next(iter(here)): ""}), "bad", "n1: /mnt/shared/data/")
    only(checks.check_model("a/b", [node("n1", model="no network")]), "bad", "n1: no network")


@pytest.mark.parametrize(("may_grow", "level"), [(False, "bad"), (True, "warning")])
def test_what_the_cluster_lacks_is_told_before_anything_waits_for_it(may_grow, level):
    [few, _] = checks.check_wanted(WANTED, [node("n1")], may_grow)
    only(few, level, "8 GPUs are wanted and there are 4")
    scattered = [node(f"n{i}", gpus=1) for i in range(1, 9)]
    [apart, _] = checks.check_wanted(WANTED, scattered, may_grow)
    only(apart, level, "no node has 4 CPUs, 2 GPUs left")


def test_weights_and_states_that_no_gpu_holds_are_red():
    only(
        checks.check_memory(replace(WANTED, learner_bytes=90 * GIB), TWO, False),
        "bad",
        "90.0 GiB of the smallest GPU's 80.0 GiB",
        "zero_stage",
    )
    only(
        checks.check_memory(replace(WANTED, runner_bytes=70 * GIB), TWO, False),
        "bad",
        "70.0 GiB of each GPU, of which vLLM may use 68.0 GiB",
        "tensor_parallel_size",
    )
    in_turns = replace(WANTED, shares_gpus=True, runner_gpus=0.6, learner_gpus=0.4)
    only(
        checks.check_memory(in_turns, TWO, False),
        "bad",
        "30.0 GiB, which stay while the engine on its GPU samples, and vLLM may use 68.0 GiB",
        "gpu_memory_utilization",
    )
    only(checks.check_memory(replace(in_turns, gpu_memory_utilization=0.5), TWO, False), "good", "")
    bare = [node("n1", gpus=0)]
    # GPUs that are wanted and aren't up yet say nothing of what they will hold.
    only(checks.check_memory(WANTED, bare, True), "warning", "no node with a GPU is up")
    on_cpus = replace(WANTED, learner_gpus=0, runner_gpus=0)
    only(checks.check_memory(on_cpus, bare, False), "good", "134.0 GiB, the nodes have 256.0 GiB")
    larger = replace(on_cpus, learner_bytes=64 * GIB)
    only(checks.check_memory(larger, bare, False), "bad", "270.0 GiB")


def test_a_node_sees_files_folders_models_and_ports_as_they_are(tmp_path):
    probe = NodeProbe()
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared" / "token").touch()
    (tmp_path / "local").mkdir()
    folders = [str(tmp_path / name) for name in ("shared", "local", "none")]
    facts = probe.look(
        counted_gpus=0, storage=folders, token="token", inputs=[__file__, "/none"], model=folders[1]
    )
    assert [facts["storage"][f] for f in folders] == ["", "not the same folder here", "not there"]
    assert len(list((tmp_path / "shared").iterdir())) == 2  # what this node left there
    assert len(facts["inputs"][__file__]) == 64 and facts["inputs"]["/none"] == ""
    assert facts["model"] == "no such folder, or no config.json in it"
    assert facts["versions"]["ray"] and facts["versions"]["code"]
    port = probe.listen()
    assert probe.unreachable([("127.0.0.1", port), ("127.0.0.1", 1)]) == ["127.0.0.1"]
