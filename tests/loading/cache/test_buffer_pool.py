import gc

import torch

from cbd_fast.loading.cache.buffer_pool import BufferPool


def test_memory_is_used_again_when_nothing_uses_it():
    memory = BufferPool(max_free=2)
    first = memory.take((4, 3), torch.float32)
    assert (first.shape, first.dtype) == ((4, 3), torch.float32)
    address, part = first.data_ptr(), first[1:2].permute(1, 0)
    del first
    second = memory.take((4, 3), torch.float32)
    assert second.data_ptr() != address  # a part of the first is still there
    part.fill_(7)
    second.fill_(1)
    assert part.tolist() == [[7], [7], [7]]
    del part
    assert memory.take((4, 3), torch.float32).data_ptr() == address
    assert memory.take((4, 3), torch.float64).data_ptr() != address  # of another size


def test_little_is_kept_that_nobody_uses():
    memory = BufferPool(max_free=2)
    taken = [memory.take((1000,), torch.uint8) for _ in range(10)]
    addresses = {tensor.data_ptr() for tensor in taken}
    assert len(addresses) == 10
    del taken
    gc.collect()
    assert len(memory._free) == 2
