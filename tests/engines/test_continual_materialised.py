"""The plain network of a task: its weights by hand, and the same network whatever is learned after it."""

import pytest
import torch

from effvl_cli.engines.continual.materialised import materialised, probe_images
from effvl_cli.engines.continual.state import State
from tests.engines.continual_states import MODEL, add_task, with_tasks

KEY = "layer2.0.conv1.weight"


def test_weights_are_own_ones_picked_older_ones_and_zeros():
    state = with_tasks(3)
    base, owner, picked = state.base[KEY], state.owner[KEY], state.picks(2)[KEY]
    assert 0.5 < picked[owner == 1].float().mean() < 0.9 and not picked[owner != 1].any()
    found = materialised(state, 2).module.state_dict()
    assert torch.equal(found[KEY][owner == 2], base[owner == 2])
    assert torch.equal(found[KEY][picked], base[picked])
    assert not found[KEY][(owner != 2) & ~picked].any()
    own = state.task_tensors[1]
    assert torch.equal(found["fc.weight"], own["fc.weight"]) and torch.equal(found["bn1.bias"], own["bn1.bias"])


def test_a_task_stays_what_it_was_whatever_is_learned_after_it(workdir):
    state = with_tasks(2)
    before = [(plain.digest, plain.probe) for plain in (materialised(state, 1), materialised(state, 2))]
    for number in (3, 4):
        state = add_task(state, number)
        state.commit(workdir / "state")
        read = State.read(workdir / "state")
        for number, (digest, logits) in enumerate(before, 1):
            plain = materialised(read, number)
            assert plain.digest == digest == read.tasks[number - 1].tensor_digest
            assert torch.equal(plain.probe, logits)


def test_the_probe_is_drawn_by_numpy_alone():
    images = probe_images(materialised(with_tasks(1), 1).network.preprocess, torch.device("cpu"))
    assert images.shape == (16, 3, 32, 32) and images.dtype == torch.float32
    assert [round(float(x), 6) for x in images[0, 0, 0, :3]] == [0.12573, -0.132105, 0.640423]


@pytest.mark.parametrize("model", [MODEL, "vgg:11,width=4,hidden=24,size=64", "vit:nano/8@16"])
def test_growth_changes_nothing_of_earlier_tasks(model, workdir):
    """Their tensors and their logits, bit for bit; and their picks are counted at their own width.

    Columns behind a flattened map and rows of a joint query, key and value matrix are no leading blocks.
    """
    state = with_tasks(2, model=model)
    before = [materialised(state, number) for number in (1, 2)]
    grown = add_task(add_task(state, 3, width=2.0, model=model), 4, width=2.0, model=model)
    assert [geometry.width for geometry in grown.geometries] == [1, 2]
    assert all(grown.base[key].numel() > value.numel() for key, value in state.base.items() if ".proj" not in key)
    grown.commit(workdir / "state")
    read = State.read(workdir / "state")
    for number, plain in enumerate(before, 1):
        again = materialised(read, number)
        assert again.digest == plain.digest and torch.equal(again.probe, plain.probe)
        assert all(
            torch.equal(a, b) for a, b in zip(read.picks(number).values(), state.picks(number).values(), strict=True)
        )
    last = materialised(read, 4).module.state_dict()
    assert all(last[key].shape == value.shape for key, value in grown.base.items())


def test_a_grown_state_that_lost_a_weight_is_refused():
    state = with_tasks(1)
    grown = add_task(state, 2, width=1.5)
    place = (grown.owner[KEY] == 1).nonzero()[0].tolist()
    base = {key: value.clone() for key, value in grown.base.items()}
    base[KEY][tuple(place)] += 1
    with pytest.raises(ValueError, match="has changed where earlier tasks own it"):
        state.add(
            grown.tasks[1], geometry=grown.geometries[1], base=base, owner=grown.owner,
            picks=grown.picks(2), task_tensors={},
        )  # fmt: skip
