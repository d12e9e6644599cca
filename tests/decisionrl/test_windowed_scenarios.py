"""Windows of finite series with stock that walks along."""

import pytest
import torch

from decisionrl.envs.inventory.scenarios import make_simulator, series_scenarios
from decisionrl.envs.inventory.setting import Setting, load_setting
from decisionrl.experience.scenarios import WindowedScenarios
from decisionrl.learner import Update
from decisionrl.seeding import generator


def setting(items: int = 30) -> Setting:
    overrides = {"demand.generator": {"items": items, "periods": 171, "seed": 5}}
    return load_setting("one_store_real_data_lost_demand", overrides)


def source(
    chosen: Setting, *, batch: int = 12, periods: int = 20, redraw: float = 0.125, redraw_every: int = 10
) -> WindowedScenarios:
    return WindowedScenarios(
        chosen,
        make_simulator(chosen),
        batch=batch,
        periods=periods,
        generator=generator(0, "scenarios"),
        redraw=redraw,
        redraw_every=redraw_every,
    )


def places(windows: WindowedScenarios, chosen: Setting) -> list[tuple[int, int]]:
    """(item, first column of demand) of each lane of the next sample, found by search in the training split."""
    batch = windows.sample()
    everything = series_scenarios(chosen, windows.simulator, "train")
    length = batch.history + windows.periods
    views = everything.demand[..., 0].T.unfold(1, length, 1)  # [items, starts, length]
    found = []
    for lane in range(batch.batch):
        match = (views == batch.demand[:, lane, 0]).all(-1).nonzero()
        assert len(match) == 1
        item, start = match[0].tolist()
        found.append((item, start))
        assert batch.time is not None
        assert everything.time is not None
        assert torch.equal(batch.time[:, lane], everything.time[start : start + windows.periods])
        assert torch.equal(batch.parameters.underage_cost[lane], everything.parameters.underage_cost[item])
        assert torch.equal(batch.parameters.lead_time[lane], everything.parameters.lead_time[item])
    return found


def give_back(windows: WindowedScenarios, stock: float) -> None:
    slots = tuple(torch.full_like(slot, stock) for slot in windows.simulator.empty_slots(windows.batch))
    windows.observe(Update({}, slots))


def test_windows_walk_through_the_training_columns_with_their_stock() -> None:
    chosen = setting()
    windows = source(chosen, redraw=0.0)
    before = places(windows, chosen)
    for stock in (3.0, 4.0, 5.0, 6.0, 7.0):
        give_back(windows, stock)
        sample_slots = windows._slots
        after = places(windows, chosen)
        for lane, ((item, start), (next_item, next_start)) in enumerate(zip(before, after, strict=True)):
            if start + 20 <= 95 - 20:
                assert (next_item, next_start) == (item, start + 20)
                assert float(sample_slots[0][lane, 0]) == stock
        before = after


def test_stock_is_scaled_to_the_item_that_follows() -> None:
    chosen = setting()
    windows = source(chosen, periods=95, redraw=0.0)  # every rollout ends at the last column
    everything = series_scenarios(chosen, windows.simulator, "train").demand[..., 0]
    before = places(windows, chosen)
    old = torch.stack([everything[-16:, item].mean() for item, _ in before])
    give_back(windows, 2.0)
    slots = windows._slots
    new = torch.stack([everything[start : start + 16, item].mean() for item, start in places(windows, chosen)])
    assert torch.allclose(slots[0][:, 0], 2.0 * new.clamp(min=1) / old.clamp(min=1), rtol=1e-4)


def test_a_share_of_the_lanes_is_replaced_in_turn() -> None:
    chosen = setting()
    windows = source(chosen, batch=8, periods=1, redraw=0.25, redraw_every=1)
    before = places(windows, chosen)
    replaced = []
    for _ in range(4):
        give_back(windows, 1.0)
        after = places(windows, chosen)
        walked = [a == (item, start + 1) for a, (item, start) in zip(after, before, strict=True)]
        replaced.append([lane for lane, same in enumerate(walked) if not same])
        before = after
    assert sorted(lane for lanes in replaced for lane in lanes) == list(range(8))
    assert all(len(lanes) == 2 for lanes in replaced)


def test_runaway_stock_is_replaced() -> None:
    chosen = setting()
    windows = source(chosen)
    windows.sample()
    give_back(windows, 1e9)
    assert max(float(slot.max()) for slot in windows._slots) < 1e6


def test_source_resumes_bit_identically() -> None:
    chosen = setting()
    first, second = source(chosen, redraw_every=2), source(chosen, redraw_every=2, batch=12)
    for _ in range(3):
        first.sample()
        give_back(first, 2.0)
    second.sample()
    second.load_state_dict(first.state_dict())
    for _ in range(6):
        expected, got = first.sample(), second.sample()
        assert torch.equal(expected.demand, got.demand)
        assert all(torch.equal(a, b) for a, b in zip(expected.slots, got.slots, strict=True))
        for windows in (first, second):
            give_back(windows, 2.0)


def test_windows_longer_than_the_training_split_are_refused() -> None:
    with pytest.raises(ValueError, match="periods = 96; valid: 1 to 95"):
        source(setting(), periods=96)
    with pytest.raises(ValueError, match="redraw = 2"):
        source(setting(), redraw=2.0)
