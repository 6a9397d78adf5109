import torch


def test_fresh_memory_is_poisoned():
    x = torch.ones(3, 4).t()
    assert torch.empty(1000).isnan().all()
    assert torch.empty_like(x).isnan().all()
    assert torch.ops.aten.empty_like(x, dtype=torch.bfloat16).isnan().all()
    assert (torch.empty(10, dtype=torch.int8) == 127).all()
