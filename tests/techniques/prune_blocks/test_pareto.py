"""Points of the front of a removal, against rows written by hand."""

from dataclasses import replace

from effvl_cli.techniques.prune_blocks.pareto import ParetoPoint, pareto_points, with_latencies
from effvl_cli.techniques.prune_blocks.step_row import StepRow, treatment_of
from effvl_cli.techniques.prune_blocks.surgery import Removal
from effvl_cli.techniques.prune_blocks.targets import Size


def step(k, params, top1, **more):
    unknown = dict.fromkeys(
        (
            *("top1_score_before_ft", "top1_score_after_bn_recal", "top1_score_after_ft", "top1_test_before_ft"),
            *("flops", "params_removed", "macs_removed", "ft", "checkpoint"),
        )
    )
    removed = [Removal(f"layer1.{k}", "layer1.1", "delete", k)]
    row = {"k": k, "removed": removed, "params": params, "macs": 10 * params, "top1_test_after_ft": top1}
    return StepRow(**unknown | row | {"treatment": ""} | more)


def test_points_are_the_original_each_step_and_the_result_of_further_training():
    rows = [step(1, 90, 0.75), step(2, 80, 0.5), step(3, 70, 0.25, rejected=True)]
    original = ParetoPoint(0, 100, 1000, 0.875)
    first, second = ParetoPoint(1, 90, 900, 0.75), ParetoPoint(2, 80, 800, 0.5)
    assert pareto_points(rows, 0.875, 0.5, Size(100, 1000)) == [original, first, second]
    found = pareto_points(rows, 0.875, 0.625, Size(100, 1000))
    assert found == [original, first, second, replace(second, step="final", top1=0.625)]


def test_latencies_are_those_of_the_network_with_their_intervals():
    points = [ParetoPoint(0, 3, 3, 0.9, latency_ort=7.0), ParetoPoint(1, 2, 2, 0.8), ParetoPoint("final", 2, 2, 0.85)]
    times = {("step 4", "torch"): (2.0, 1.0, 4.0), ("step 1", "onnxruntime"): (3.0, 2.5, 3.5)}
    original, first, final = with_latencies(points, times, "step 4")
    assert (original.latency_torch, original.latency_torch_low, original.latency_torch_high) == (2.0, 1.0, 4.0)
    assert original.latency_ort is None and first.latency_torch is None
    assert (final.latency_ort, final.latency_ort_low, final.latency_ort_high) == (3.0, 2.5, 3.5)
    assert ParetoPoint(**final.to_dict()) == final


def test_a_step_is_written_as_json_has_it():
    kept, taken_back = step(1, 90, 0.75), step(2, 80, 0.5, rejected=True)
    removal = {"original_path": "layer1.1", "path_at_step": "layer1.1", "mode": "delete", "step": 1}
    assert kept.to_dict()["removed"] == [removal] and kept.names == ["layer1.1"]
    assert "rejected" not in kept.to_dict() and taken_back.to_dict()["rejected"] is True
    assert treatment_of(["", "fine-tuned"]) == "fine-tuned" and treatment_of([]) == ""
