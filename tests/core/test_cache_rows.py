"""Rows of tensors in the cache."""

import torch

from effvl_cli.core.cache import Cache, Rows


def test_rows_come_back_by_what_they_belong_to(tmp_path):
    warned = []
    entry = Cache(tmp_path).entry("things", {"format": 1})
    rows = Rows(entry, warned.append)
    assert rows.load(("rank",)) == {}
    names = [bytes([k]) * 16 for k in range(3)]
    rank = torch.arange(12).view(3, 4)
    rows.save(names[:2], {"rank": rank[:2], "passes": torch.tensor([5, 6])})
    rows.save(names[2:], {"rank": rank[2:], "passes": torch.tensor([7])})
    found = Rows(entry, warned.append).load(("rank", "passes"))
    assert found.keys() == set(names)
    assert [found[name][0].tolist() for name in names] == rank.tolist()
    assert [int(found[name][1]) for name in names] == [5, 6, 7]
    next(entry.folder.glob("*.safetensors")).write_bytes(b"damaged")
    assert len(rows.load(("rank",))) in (1, 2)
    assert len(warned) == 1
