"""A network at chance is refused, whoever asks and however many classes there are."""

import pytest
import torch

from effvl_cli.core.cache import Cache
from effvl_cli.core.chance import least_top1, refuse_chance
from effvl_cli.core.errors import ModelError
from effvl_cli.core.report import ReportBuilder
from effvl_cli.core.run import Run


@pytest.mark.parametrize(("classes", "bound"), [(1000, 0.0015), (10, 0.15), (5, 0.25), (2, 0.55)])
def test_the_bound_is_half_again_and_at_most_five_points(classes, bound):
    assert least_top1(classes) == pytest.approx(bound)


def test_refused_without_force_and_warned_of_with_it(tmp_path):
    cpu = torch.device("cpu")
    report = ReportBuilder(command="toy", run_id="x", seed=0, config_sha256="", recipe=None, device=cpu)
    run = Run(tmp_path, "toy", cpu, Cache(tmp_path), report)
    about = {"images": "40 val images", "force": False}
    refuse_chance(run, "net", 0.16, 10, **about)
    refuse_chance(run, "net", 0.7, 2, **about)  # 1.5 times chance would refuse it
    refuse_chance(run, "net", 1.0, 1, **about)
    with pytest.raises(ModelError, match=r"net has 15.0% top-1 on 40 val images, and chance is 10.0%"):
        refuse_chance(run, "net", 0.15, 10, **about)
    assert not report.warnings
    refuse_chance(run, "net", 0.15, 10, images="40 val images", force=True)
    assert report.warnings == ["net has 15.0% top-1 on 40 val images, and chance is 10.0%"]
