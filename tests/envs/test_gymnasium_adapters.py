"""Our worlds through Gymnasium and Stable-Baselines3: their checkers, seeds, autoreset and a little learning."""

import subprocess
import sys
import warnings

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode

from decisionrl.envs import register_envs
from decisionrl.envs.gymnasium import InventorySingleEnv, InventoryVectorEnv
from decisionrl.envs.inventory.env import ActionError, order_limits
from decisionrl.envs.inventory.scenarios import take
from decisionrl.envs.inventory.setting import SettingError, available_settings, load_setting
from decisionrl.envs.inventory.simulator import InfeasibleOrderError

IDS = sorted(name for name, spec in gymnasium.registry.items() if "setting" in spec.kwargs)
LOST = "decisionrl/OneStoreLost-v0"
WAREHOUSE = "decisionrl/OneWarehouseLostDemand-v0"


def actions(space, steps, seed=0):
    space.seed(seed)
    return [space.sample() for _ in range(steps)]


def same(first, second):
    """Whether two nested results are equal, arrays and their types included."""
    assert type(first) is type(second)
    if isinstance(first, dict):
        assert first.keys() == second.keys()
        for key in first:
            same(first[key], second[key])
    elif isinstance(first, tuple):
        assert len(first) == len(second)
        for a, b in zip(first, second, strict=True):
            same(a, b)
    elif isinstance(first, np.ndarray) and first.dtype == object:
        same(tuple(first), tuple(second))
    else:
        assert np.asarray(first).dtype == np.asarray(second).dtype
        np.testing.assert_array_equal(first, second)


# --------------------------------------------------------------------------------------------- registration


def test_every_setting_that_needs_no_files_has_an_id():
    loads = []
    for name in available_settings():
        try:
            load_setting(name)
        except SettingError:
            continue
        loads.append(name)
    assert {gymnasium.spec(name).kwargs["setting"] for name in IDS} == set(loads)
    assert len(IDS) == 8
    assert LOST in IDS
    assert "decisionrl/ManyWarehousesRealDataLostDemand-v0" in IDS
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        register_envs()  # again, without a warning of an override


def test_registering_is_light_and_an_id_can_name_its_module():
    code = (
        "import sys, decisionrl.envs\n"
        "assert 'torch' not in sys.modules\n"
        "import gymnasium\n"
        f"gymnasium.spec({LOST!r})\n"
        "assert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    code = f"import gymnasium; gymnasium.make('decisionrl.envs:{LOST}').reset(seed=0)"
    subprocess.run([sys.executable, "-W", "error::UserWarning", "-c", code], check=True)


def test_an_unknown_id_gets_gymnasiums_suggestion():
    with pytest.raises(gymnasium.error.NameNotFound, match=r"Did you mean: `OneStoreLost`"):
        gymnasium.make("decisionrl/OneStoreLots-v0")


# ------------------------------------------------------------------------------------------------- checkers


@pytest.mark.parametrize("name", IDS)
def test_gymnasium_checks(name):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # Stock and backlog have no bound of their own.
        warnings.filterwarnings("ignore", message=r".*Box observation space m(in|ax)imum value is -?infinity")
        check_env(gymnasium.make(name).unwrapped)


@pytest.mark.parametrize("name", IDS)
def test_stable_baselines_checks(name):
    checker = pytest.importorskip("stable_baselines3.common.env_checker")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        checker.check_env(gymnasium.make(name).unwrapped)


def test_stable_baselines_trains_on_a_single_env():
    sb3 = pytest.importorskip("stable_baselines3")
    trains(sb3.PPO("MlpPolicy", LOST, n_steps=64, batch_size=32, n_epochs=2, seed=0, device="cpu"), 256)


@pytest.mark.parametrize("name", [WAREHOUSE, "decisionrl/OneStoreRealDataLostDemand-v0"])
def test_stable_baselines_trains_through_its_vector_env(name):
    sb3 = pytest.importorskip("stable_baselines3")
    from stable_baselines3.common.env_util import make_vec_env
    from stable_baselines3.common.vec_env import VecNormalize

    envs = VecNormalize(make_vec_env(name, n_envs=3, seed=1, env_kwargs={"periods": 20}))
    trains(sb3.PPO("MlpPolicy", envs, n_steps=32, batch_size=48, n_epochs=2, seed=0, device="cpu"), 384)


def trains(model, steps):
    """Learn, and check that the weights moved and stayed finite."""
    before = {name: value.clone() for name, value in model.policy.state_dict().items()}
    model.learn(steps)
    after = model.policy.state_dict()
    assert all(bool(value.isfinite().all()) for value in after.values())
    assert any(not before[name].equal(after[name]) for name in before)
    assert len(model.ep_info_buffer) > 0
    assert all(np.isfinite(info["r"]) for info in model.ep_info_buffer)


# --------------------------------------------------------------------------------------------- single env


def test_single_env_rewards_and_details():
    env = gymnasium.make(WAREHOUSE, periods=5)
    observation, info = env.reset(seed=3)
    assert (observation.dtype, observation.shape, info) == (np.float32, env.observation_space.shape, {})
    total = 0.0
    for step, action in enumerate(actions(env.action_space, 5), start=1):
        observation, reward, terminated, truncated, info = env.step(action)
        assert isinstance(reward, float)
        assert (terminated, truncated) == (False, step == 5)
        assert {name: value.shape for name, value in info.items()} == {"orders": (6,), "demand": (5,), "level": (6,)}
        assert info["orders"][0] == pytest.approx((action[0] + 1) / 2 * order_limits(env.unwrapped.world.setting)[0])
        total += reward
    assert total < 0
    with pytest.raises(RuntimeError, match=r"is over; call reset"):
        env.step(action)


def test_seeds_begin_the_stream_again():
    first, second = gymnasium.make(LOST, seed=5), gymnasium.make(LOST, seed=5)
    same(first.reset(), second.reset())
    same(first.reset(seed=7), second.reset(seed=7))
    again, _ = first.reset()
    assert not np.array_equal(again, first.reset(seed=7)[0])
    same((again, {}), first.reset())


def test_actions_are_units_if_asked():
    plain = gymnasium.make(LOST, normalize_actions=False)
    high = order_limits(load_setting("one_store_lost"))
    np.testing.assert_allclose(plain.action_space.high, high, rtol=1e-6)
    assert (plain.action_space.low == 0).all()
    scaled = gymnasium.make(LOST, max_order=20.0)
    plain.reset(seed=1), scaled.reset(seed=1)
    first = plain.step(np.array([5.0], dtype=np.float32))
    second = scaled.step(np.array([-0.5], dtype=np.float32))
    same(first, second)
    with pytest.raises(ValueError, match=r"max_order = \[1\.0, 2\.0\]; valid is a positive finite number, or one for"):
        InventorySingleEnv("one_store_lost", max_order=np.array([1.0, 2.0]))
    with pytest.raises(ValueError, match=r"max_order = inf"):
        InventorySingleEnv("one_store_lost", max_order=float("inf"))


def test_results_are_fresh_arrays_and_actions_are_not_kept():
    env = InventorySingleEnv("one_store_lost", normalize_actions=False, feasibility="assert")
    observation, _ = env.reset(seed=0)
    action = np.array([4.0], dtype=np.float32)
    second, _, _, _, info = env.step(action)
    kept = second.copy()
    for array in (observation, second, action, *info.values()):
        array[...] = 1e6
    third, *_ = env.step(np.array([1.0], dtype=np.float32))
    assert third.max() < 100
    assert third[-2] == 4.0
    assert third[0] == pytest.approx(max(0.0, kept[0] - env.world.scenario.demand[1, 0, 0].item()) + kept[1])


def test_infeasible_orders_are_refused_if_asked():
    env = InventorySingleEnv("one_warehouse_lost_demand", feasibility="assert")
    env.reset(seed=0)
    with pytest.raises(InfeasibleOrderError, match=r"'one_warehouse_lost_demand'.*node 'warehouse' ships"):
        env.step(np.ones(6, dtype=np.float32))


@pytest.mark.parametrize(
    ("action", "message"),
    [
        (np.zeros(2, dtype=np.float32), r"world 'one_store_lost', step 0: action has shape \(2,\); valid: \(1,\)"),
        (np.float32(0.0), r"step 0: action has shape \(\); valid: \(1,\)"),
        (np.array([np.nan], dtype=np.float32), r"step 0: action = nan over edge supplier->store of copy 0"),
    ],
)
def test_a_wrong_action_is_one_clear_error(action, message):
    env = InventorySingleEnv("one_store_lost")
    env.reset(seed=0)
    with pytest.raises(ActionError, match=message):
        env.step(action)


def test_an_unknown_reset_option_is_named():
    env = gymnasium.make(LOST)
    with pytest.raises(ValueError, match=r"reset options = \['scenaro'\]; valid: 'scenario'"):
        env.reset(options={"scenaro": None})


# --------------------------------------------------------------------------------------------- vector env


@pytest.mark.parametrize("name", IDS)
def test_make_vec_is_native(name):
    envs = gymnasium.make_vec(name, num_envs=8, periods=3)
    assert isinstance(envs.unwrapped, InventoryVectorEnv)
    observation, _ = envs.reset(seed=0)
    assert observation in envs.observation_space
    assert envs.observation_space.shape == (8, *envs.single_observation_space.shape)
    for action in actions(envs.action_space, 7):
        observation, reward, terminated, truncated, _ = envs.step(action)
        assert observation in envs.observation_space
        assert (reward.dtype, reward.shape) == (np.float64, (8,))
        assert terminated.dtype == truncated.dtype == np.bool_
    envs.close()


@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP])
@pytest.mark.parametrize("name", [LOST, WAREHOUSE, "decisionrl/OneStoreRealDataLostDemand-v0"])
def test_one_copy_does_all_that_gymnasiums_vector_env_of_the_single_one_does(name, mode):
    options = {"periods": 4}
    ours = gymnasium.make_vec(name, autoreset_mode=mode, **options)
    theirs = gymnasium.make_vec(name, vectorization_mode="sync", vector_kwargs={"autoreset_mode": mode}, **options)
    assert ours.metadata["autoreset_mode"] == theirs.metadata["autoreset_mode"] == mode
    same(ours.reset(seed=11), theirs.reset(seed=11))
    for action in actions(ours.action_space, 14):
        same(ours.step(action), theirs.step(action))


def test_a_copy_of_many_is_the_single_env_in_the_same_scenario():
    envs = gymnasium.make_vec(WAREHOUSE, num_envs=5, autoreset_mode=AutoresetMode.SAME_STEP, periods=6)
    env = gymnasium.make(WAREHOUSE)
    many, _ = envs.reset(seed=2)
    for _ in range(3):  # three episodes
        start = take(envs.unwrapped.world.scenario, slice(3, 4))
        one, _ = env.reset(options={"scenario": start})
        np.testing.assert_allclose(one, many[3], rtol=1e-6)
        for action in actions(envs.action_space, 6):
            many, rewards, _, over, infos = envs.step(action)
            one, reward, _, truncated, _ = env.step(action[3])
            assert over[3] == truncated
            assert rewards[3] == pytest.approx(reward, rel=1e-5)
            np.testing.assert_allclose(one, infos["final_obs"][3] if truncated else many[3], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP])
def test_gymnasiums_vector_wrappers_take_it(mode):
    envs = gymnasium.make_vec(WAREHOUSE, num_envs=4, autoreset_mode=mode, periods=5)
    envs = gymnasium.wrappers.vector.RecordEpisodeStatistics(envs)
    if mode == AutoresetMode.NEXT_STEP:
        envs = gymnasium.wrappers.vector.NormalizeObservation(envs)
    envs.reset(seed=0)
    total = np.zeros(4)
    for action in actions(envs.action_space, 5):
        _, rewards, _, _, infos = envs.step(action)
        total += rewards
    np.testing.assert_allclose(infos["episode"]["r"], total)
    assert infos["episode"]["l"].tolist() == [5] * 4


def test_vector_env_errors():
    envs = InventoryVectorEnv("one_store_lost", num_envs=2)
    envs.reset(seed=0)
    with pytest.raises(ActionError, match=r"step 0: action has shape \(1,\); valid: \(2, 1\)"):
        envs.step(np.zeros(1, dtype=np.float32))
    with pytest.raises(ValueError, match=r"autoreset_mode = DISABLED; valid: NEXT_STEP, SAME_STEP"):
        InventoryVectorEnv("one_store_lost", num_envs=2, autoreset_mode=AutoresetMode.DISABLED)


@pytest.mark.slow
def test_ppo_learns_to_order():
    sb3 = pytest.importorskip("stable_baselines3")
    from stable_baselines3.common.env_util import make_vec_env
    from stable_baselines3.common.evaluation import evaluate_policy

    envs = make_vec_env(LOST, n_envs=8, seed=0)
    model = sb3.PPO("MlpPolicy", envs, n_steps=128, batch_size=256, gamma=0.98, seed=0, device="cpu")
    before, _ = evaluate_policy(model, make_vec_env(LOST, n_envs=1, seed=9), n_eval_episodes=40)
    model.learn(40_000)
    after, _ = evaluate_policy(model, make_vec_env(LOST, n_envs=1, seed=9), n_eval_episodes=40)
    assert after > before + 50
