"""Counts the memory of tensors while a body runs."""

import weakref

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter


class Alive(TorchDispatchMode):
    """The most bytes of new tensors that are alive at once, in `most`."""

    def __init__(self):
        super().__init__()
        self.now = self.most = 0
        self.known = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        inside = {x.untyped_storage().data_ptr() for x in tree_iter((args, kwargs)) if isinstance(x, torch.Tensor)}
        for tensor in tree_iter(found):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                if storage.data_ptr() not in self.known | inside:
                    self._born(storage)
        self.most = max(self.most, self.now)
        return found

    def _born(self, storage):
        place, size = storage.data_ptr(), storage.nbytes()
        self.known.add(place)
        self.now += size

        def gone():
            self.known.discard(place)
            self.now -= size

        weakref.finalize(storage, gone)
