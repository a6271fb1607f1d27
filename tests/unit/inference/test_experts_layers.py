from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from scaler_wizard.inference.experts.layers import (
    AdapterWeights,
    StackCache,
    adapters_attached,
    applying,
    group_weights,
    plan_pass,
)

torch.set_num_threads(1)
CPU = torch.device("cpu")
WIDTHS = {"m.q_proj": (6, 8), "m.k_proj": (6, 4), "m.v_proj": (6, 4), "m.o_proj": (8, 6), "gate": (6, 10)}
GENERATOR = torch.Generator().manual_seed(0)


def pairs(rank: int, sites: tuple[str, ...] = tuple(WIDTHS)) -> dict[str, tuple[Tensor, Tensor]]:
    return {
        site: (
            torch.randn(rank, WIDTHS[site][0], generator=GENERATOR),
            torch.randn(rank, WIDTHS[site][1], generator=GENERATOR),
        )
        for site in sites
    }


PAIRS = [pairs(2), pairs(5), pairs(1, ("m.q_proj", "m.o_proj")), pairs(3, ("m.k_proj", "m.v_proj"))]
ADAPTERS = [group_weights(own) for own in PAIRS]
LINEARS = {site: nn.Linear(*width) for site, width in WIDTHS.items()}


@given(st.lists(st.tuples(st.integers(-1, 3), st.integers(1, 40)), min_size=1, max_size=12))
def test_each_token_gets_its_own_adapter_and_no_other(runs: list[tuple[int, int]]) -> None:
    owners = [owner for owner, length in runs for _ in range(length)]
    shared, own = torch.randn(1, len(owners), 6), torch.randn(1, len(owners), 8)
    chosen = plan_pass([None if i < 0 else ADAPTERS[i] for i in owners], StackCache(), CPU)
    assert (chosen is None) == (set(owners) == {-1})
    with torch.inference_mode(), adapters_attached(LINEARS), applying(chosen):
        for site, layer in LINEARS.items():
            x = own if site == "m.o_proj" else shared
            found = layer(x)
            expected = nn.functional.linear(x, layer.weight, layer.bias)
            for at, owner in enumerate(owners):
                if owner >= 0 and site in PAIRS[owner]:
                    a, b = PAIRS[owner][site]
                    expected[0, at] += x[0, at] @ a.T @ b
            torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_the_layers_are_as_before_and_blocks_may_be_nested() -> None:
    x = torch.randn(1, 3, 6)
    plain = LINEARS["gate"](x)
    on = plan_pass([ADAPTERS[0]] * 3, StackCache(), CPU)
    with torch.inference_mode(), adapters_attached(LINEARS):
        with adapters_attached(LINEARS), applying(on):
            once = LINEARS["gate"](x)
        with applying(on):
            torch.testing.assert_close(LINEARS["gate"](x), once)
        torch.testing.assert_close(LINEARS["gate"](x), plain)
    a, b = PAIRS[0]["gate"]
    torch.testing.assert_close(once, plain + x @ a.T @ b)
    assert all("forward" not in vars(layer) for layer in LINEARS.values())


def test_a_stack_is_kept_while_it_serves() -> None:
    cache = StackCache()
    first = cache.of(ADAPTERS)
    assert cache.of(ADAPTERS[:2]) is first
    assert cache.of(ADAPTERS[1:]) is first
    fewer = cache.of(ADAPTERS[:1])
    assert fewer.adapters == (ADAPTERS[0],)
    assert cache.of(ADAPTERS[:2]).adapters == tuple(ADAPTERS[:2])


@pytest.mark.parametrize("rank", [1, 7])
def test_bytes_are_those_of_the_matrices(rank: int) -> None:
    expected = sum(4 * rank * (inputs + outputs) for inputs, outputs in WIDTHS.values())
    adapter: AdapterWeights = group_weights(pairs(rank))
    assert adapter.nbytes == expected
