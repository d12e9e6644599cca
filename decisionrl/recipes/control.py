"""What the policy-gradient recipes share: the world, the policy, the optimizer and how they become an Experiment."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypedDict, cast, get_args

import gymnasium
import torch
from gymnasium import spaces
from gymnasium.vector import VectorEnv
from torch import Tensor, nn

from decisionrl.callbacks import OnProgress
from decisionrl.envs.copies import Copies
from decisionrl.envs.linear_mdp import LinearMDP
from decisionrl.envs.make import EnvLike, env_name, make_world
from decisionrl.envs.text import TEXT
from decisionrl.envs.text.task import TextTask, success_of
from decisionrl.envs.world import World
from decisionrl.evaluation.episodes import ReturnEvaluator
from decisionrl.experience.acting import ActingPolicy
from decisionrl.experience.episodes import EpisodeSource
from decisionrl.experience.rollouts import RolloutSource
from decisionrl.experience.source import Source
from decisionrl.experiment import Experiment
from decisionrl.learner import GradientLearner, Objective
from decisionrl.minibatches import MinibatchLearner, Unit
from decisionrl.pipeline import PipelineStep
from decisionrl.pipeline.curricula import FreshStarts
from decisionrl.pipeline.finished import FinishedEpisodes
from decisionrl.policies.actor_critic import ActorCritic
from decisionrl.policies.encoders import Activation
from decisionrl.policies.linear import SoftmaxLinear
from decisionrl.policies.recurrent import RecurrentActorCritic
from decisionrl.recipes.schedules import linear_decay
from decisionrl.seeding import generator

if TYPE_CHECKING:
    from decisionrl.llm.world import TextWorld
    from decisionrl.policies.language import LanguagePolicy
    from decisionrl.recipes.language import Language

OBJECT = "task object "
"""Before the name of a text task that was given as an object, in a run's settings; no environment is called so."""

STARTS = 64
"""Of an endless number, where a recipe remembers each."""

Network = Literal["mlp", "linear"]
ControlPolicy: TypeAlias = "ActorCritic | RecurrentActorCritic | SoftmaxLinear | LanguagePolicy"


class ControlOptions(TypedDict, total=False):
    """The arguments that every recipe on environments takes; see :class:`Control` for what they mean."""

    env: EnvLike | TextTask
    setting: str | None
    env_options: dict[str, Any]
    num_envs: int
    workers: int
    max_steps: int | None
    steps: int
    network: Network
    hidden: list[int]
    activation: Activation
    recurrent: bool
    shared: bool
    squash: bool
    dependent_std: bool
    initial_log_std: float
    normalize_observations: bool
    learning_rate: float
    anneal: bool
    adam_epsilon: float
    clip_norm: float | None
    entropy_coefficient: float
    model: str | None
    lora_rank: int | None
    temperature: float
    gradient_checkpointing: bool
    share_prompts: bool
    prefix_attention: Literal["sdpa", "flex"]
    log_probs: Literal["recomputed", "sampled"]
    held_out: float
    seed: int
    device: str


@dataclass(frozen=True, kw_only=True)
class Control:
    """An environment, the networks and the optimizer.

    Attributes:
        env: a Gymnasium id, ``module:Class``, a function that makes an environment, or a VectorEnv; or a text task, by
            name, ``text/NAME``, or as a :class:`~decisionrl.envs.text.task.TextTask`. Then the policy is a language
            model, its actions are tokens, and the networks' options are not looked at.
        setting: an inventory setting instead, by name or TOML file.
        env_options: keyword arguments of the environment.
        num_envs: copies that are stepped side by side; of text, responses that are written side by side.
        workers: 0 steps them in this process, ``num_envs`` each in its own.
        max_steps: truncate episodes of as many steps; needed where an environment never ends one. Of text, the tokens
            after which a response is over; by default the task's.
        steps: environment steps to train for.
        network: "mlp" (convolutions first, for images), or "linear" in the features of a linear MDP, a
            softmax with weights for every stage; its other networks' options are not looked at.
        hidden: widths of the hidden layers (after the convolutions, for images).
        activation: "tanh", "relu" or "elu".
        recurrent: a GRU behind the encoder.
        shared: actor and critic share their hidden layers.
        squash: Gaussian actions through tanh onto the box.
        dependent_std: the Gaussian's standard deviation is a network output, not one number for each action.
        initial_log_std: of the Gaussian.
        normalize_observations: to running mean 0 and variance 1.
        learning_rate: of Adam.
        anneal: lower it linearly to 0 over the run.
        adam_epsilon: of Adam.
        clip_norm: the largest gradient norm.
        entropy_coefficient: of a bonus for the policy's entropy.
        model, lora_rank, temperature, gradient_checkpointing, share_prompts, prefix_attention, log_probs, held_out: of
            a language model, see :class:`~decisionrl.recipes.language.Language`.
    """

    env: EnvLike | TextTask = "CartPole-v1"
    setting: str | None = None
    env_options: Mapping[str, Any] | None = None
    num_envs: int = 8
    workers: int = 0
    max_steps: int | None = None
    steps: int = 100_000
    network: Network = "mlp"
    hidden: Sequence[int] = (64, 64)
    activation: Activation = "tanh"
    recurrent: bool = False
    shared: bool = False
    squash: bool = False
    dependent_std: bool = False
    initial_log_std: float = 0.0
    normalize_observations: bool = False
    learning_rate: float = 3e-4
    anneal: bool = False
    adam_epsilon: float = 1e-5
    clip_norm: float | None = 0.5
    entropy_coefficient: float = 0.0
    model: str | None = None
    lora_rank: int | None = None
    temperature: float = 1.0
    gradient_checkpointing: bool = False
    share_prompts: bool = False
    prefix_attention: Literal["sdpa", "flex"] = "sdpa"
    log_probs: Literal["recomputed", "sampled"] = "recomputed"
    held_out: float = 0.0
    seed: int = 0
    device: str = "cpu"

    def __post_init__(self) -> None:
        for name in ("num_envs", "steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} = {getattr(self, name)}; valid: a whole number >= 1")
        if self.seed < 0:
            raise ValueError(f"seed = {self.seed}; valid: a whole number >= 0")
        if not 0 <= self.adam_epsilon < float("inf"):
            raise ValueError(f"adam_epsilon = {self.adam_epsilon}; valid: a number >= 0")
        if not 0 < self.learning_rate < float("inf"):
            raise ValueError(f"learning_rate = {self.learning_rate}; valid: a positive number")

    @cached_property
    def language(self) -> Language | None:
        """The task and the model, where actions are tokens."""
        if isinstance(self.env, str) and self.env.startswith(OBJECT):
            raise ValueError(
                f"env = {self.env!r}, which was given as an object; valid: the task itself, as in "
                "load_run(directory, env=task)"
            )
        if not (isinstance(self.env, TextTask) or (isinstance(self.env, str) and self.env.startswith(TEXT))):
            return None
        from decisionrl.recipes.language import Language

        if isinstance(self.env, TextTask) and self.env_options:
            raise ValueError(f"env_options = {self.env_options}; valid with a task that has been made: none")
        if self.recurrent:
            raise ValueError("recurrent = True; valid with text: False, a language model has a memory of its own")
        return Language(
            env=self.env,
            env_options=self.env_options or {},
            model=self.model,
            lora_rank=self.lora_rank,
            temperature=self.temperature,
            gradient_checkpointing=self.gradient_checkpointing,
            share_prompts=self.share_prompts,
            prefix_attention=self.prefix_attention,
            log_probs=self.log_probs,
            held_out=self.held_out,
            num_envs=self.num_envs,
            max_tokens=self.max_steps,
            seed=self.seed,
            device=self.device,
        )

    @property
    def remembers(self) -> bool:
        """The policy needs its sequences whole."""
        return self.recurrent or self.language is not None

    @cached_property
    def world(self) -> World | TextWorld:
        """The copies to train on."""
        return self.make_world(self.num_envs) if self.language is None else self.language.world(self.num_envs)

    def make_world(self, num_envs: int) -> World:
        """As many copies."""
        assert not isinstance(self.env, TextTask)
        env = self.env if self.setting is None else f"inventory/{self.setting}"
        return make_world(
            env,
            num_envs=num_envs,
            workers=num_envs if self.workers else 0,
            options=self.env_options,
            max_steps=self.max_steps,
            device=self.device,
        )

    def policy(self, *, critic: bool) -> ControlPolicy:
        """The networks, with or without a critic.

        Raises:
            ValueError: network is neither, or linear and the environment has no features.
        """
        if self.language is not None:
            return self.language.policy(critic=critic)
        if self.network not in get_args(Network):
            raise ValueError(f"network = {self.network!r}; valid: {', '.join(get_args(Network))}")
        if self.network == "linear":
            return self._linear(critic=critic)
        kind = RecurrentActorCritic if self.recurrent else ActorCritic
        return kind(
            self.world.observation_space,
            self.world.action_space,
            hidden=tuple(self.hidden),
            activation=self.activation,
            critic=("shared" if self.shared else "separate") if critic else None,
            std="dependent" if self.dependent_std else "independent",
            squash=self.squash,
            initial_log_std=self.initial_log_std,
            normalize_observations=self.normalize_observations,
            generator=generator(self.seed, "policy"),
        ).to(self.device)

    def _linear(self, *, critic: bool) -> SoftmaxLinear:
        mdp = getattr(self.world.envs[0].unwrapped, "mdp", None) if isinstance(self.world, Copies) else None
        if not isinstance(mdp, LinearMDP):
            raise ValueError(
                f"network = 'linear'; valid with an environment of decisionrl.envs.linear_mdp in this process, "
                f"not with {self.world.name}"
            )
        return SoftmaxLinear(mdp.features, horizon=mdp.horizon, critic=critic, dtype=torch.float32).to(self.device)

    def optimizer(self, policy: nn.Module) -> torch.optim.Adam:
        """Adam on all of the policy that is to be trained."""
        trained = [each for each in policy.parameters() if each.requires_grad]
        return torch.optim.Adam(trained, self.learning_rate, eps=self.adam_epsilon, fused=True)

    def stream(self, policy: ControlPolicy, *, horizon: int, pipeline: Sequence[PipelineStep]) -> Source:
        """Windows of ``horizon`` steps of every copy; of text, a whole response to each of ``num_envs`` prompts."""
        if self.language is not None:
            starts = FreshStarts(groups=self.num_envs, group_size=1)
            return EpisodeSource(self.world, policy, starts=starts, pipeline=pipeline, seed=self.seed)
        return self._rollouts(policy, horizon, pipeline)

    def windows(self, policy: ControlPolicy, *, horizon: int, estimator: PipelineStep, gamma: float) -> Source:
        """Windows of ``horizon`` steps, with advantages by ``estimator``, and behind them the episodes that have ended,
        from which values are to be learned."""
        if self.language is None:
            return self._rollouts(policy, horizon, [estimator, FinishedEpisodes(gamma=gamma)])
        from decisionrl.llm.windows import TokenWindows

        return TokenWindows(
            self.language.world(self.num_envs),
            cast("LanguagePolicy", policy),
            horizon=horizon,
            pipeline=[estimator],
            gamma=gamma,
            seed=self.seed,
        )

    def entropy_temperature(self, *, tau: float, rho: float) -> Sequence[PipelineStep]:
        """HAPO's temperature of tokens, as steps to stand in the pipeline; none unless the actions are tokens."""
        if self.language is None or not tau:
            return ()
        from decisionrl.llm.temperature import EntropyTemperature

        heat = EntropyTemperature(tau=tau, rho=rho)
        cast("TextWorld", self.world).temperature = heat.at
        return (heat,)

    def starts(self, count: int | None) -> int:
        """So many, or all where the world has fewer: what is remembered of a start must not be spread over several.

        None: all, or 64 of an endless number.
        """
        there: int | None = getattr(self.world, "num_starts", None)
        if there is None:
            return STARTS if count is None else count
        return there if count is None else min(count, there)

    def solved_examples(self, *, shown: int, success: float, in_loss: bool) -> Sequence[PipelineStep]:
        """XRPO's examples before prompts, as steps to stand in the pipeline; none unless the actions are tokens."""
        if shown < 0:
            raise ValueError(f"shown = {shown}; valid: a whole number >= 0")
        if self.language is None or not shown:
            return ()
        from decisionrl.llm.examples import SolvedExamples

        if not in_loss and self.log_probs == "sampled":
            raise ValueError("log_probs = 'sampled'; valid with shown_in_loss = False: 'recomputed'")
        examples = SolvedExamples(success=success, shown=shown, in_loss=in_loss)
        cast("TextWorld", self.world).examples = examples
        return (examples,)

    def _rollouts(self, policy: ControlPolicy, horizon: int, pipeline: Sequence[PipelineStep]) -> RolloutSource:
        world, acting = cast(World, self.world), cast(ActingPolicy, policy)
        return RolloutSource(world, acting, horizon=horizon, pipeline=pipeline, seed=self.seed)

    def unit(self, minibatch: int, horizon: int) -> tuple[Unit, int]:
        """Single steps, ``minibatch`` of them; where the policy remembers, about as many in whole sequences."""
        _check_minibatch(minibatch)
        if not self.remembers:
            return "step", minibatch
        longest = horizon if self.language is None else self.language.task.max_tokens
        return "sequence", max(1, minibatch // longest)

    def require_probabilities(self, what: str) -> None:
        """Refuse environments whose actions have a density instead of probabilities."""
        if isinstance(self.world.action_space, spaces.Box):
            raise ValueError(
                f"{what} needs probabilities of actions, which are at most 1; {self.world.name} has actions in "
                f"{self.world.action_space}, of which a policy has a density. Valid: Discrete, MultiDiscrete or "
                "MultiBinary actions"
            )

    def require_entropy(self, what: str) -> None:
        """Refuse policies whose entropy has no closed form."""
        if self.squash:
            raise ValueError(f"{what} needs the entropy of the policy, which has none with squash = True; valid: False")

    def success(self, given: float | None) -> float:
        """The return from which an episode succeeds: ``given``, by default the environment's reward threshold.

        Raises:
            ValueError: there is neither.
        """
        if given is None and self.language is not None:
            given = success_of(self.language.task)
        if given is None and isinstance(self.env, str) and self.env in gymnasium.registry:
            given = gymnasium.spec(self.env).reward_threshold
        if given is None:
            raise ValueError(f"success = None; valid: the return from which an episode of {self.world.name} succeeds")
        return given

    def success_score(self, given: float | None) -> Callable[[Tensor], Tensor]:
        """1 for an episode that succeeds, else 0; see :meth:`success`."""
        threshold = self.success(given)
        return lambda returns: (returns >= threshold).to(returns.dtype)

    def experiment(
        self,
        recipe: str,
        *,
        policy: ControlPolicy,
        source: Source,
        objective: Objective,
        optimizer: torch.optim.Optimizer | None = None,
        epochs: int,
        minibatch: int | None,
        unit: Unit,
        target_kl: float | None = None,
        metadata: Mapping[str, Any],
        options: Mapping[str, Any],
        on_progress: Sequence[Callable[[float], None]] = (),
    ) -> Experiment:
        """The parts as an Experiment.

        optimizer: by default :meth:`optimizer`. options: the recipe's own arguments, for the config. on_progress: told
        how far the training is.
        """
        _check_minibatch(minibatch)
        if options.get("group_size") == 1:
            raise ValueError(
                "group_size = 1; valid: at least 2, since episodes of a group are compared with each other"
            )
        optimizer = optimizer or self.optimizer(policy)
        learner = GradientLearner(policy, objective, optimizer, clip_norm=self.clip_norm)
        if self.anneal:
            on_progress = (linear_decay(optimizer, self.learning_rate), *on_progress)
        config = {each.name: getattr(self, each.name) for each in fields(self) if each.name != "device"}
        config["env"] = None if self.setting is not None else self._env_name
        return Experiment(
            policy=policy,
            source=source,
            learner=MinibatchLearner(
                learner, epochs=epochs, size=minibatch, unit=unit, target_kl=target_kl, seed=self.seed
            ),
            callbacks=(OnProgress(*on_progress),) if on_progress else (),
            config={"recipe": recipe, **config, **options},
            metadata=metadata,
            evaluate=self._evaluator,
        )

    @property
    def _env_name(self) -> str:
        if isinstance(self.env, str):
            return self.env
        return OBJECT + self.env.name if isinstance(self.env, TextTask) else env_name(self.env)

    @property
    def _evaluator(self) -> Callable[..., dict[str, Any]] | None:
        if self.language is not None:
            return self.language.evaluator()
        return None if isinstance(self.env, VectorEnv) else ReturnEvaluator(self.make_world)


def _check_minibatch(minibatch: int | None) -> None:
    if minibatch is not None and minibatch < 1:
        raise ValueError(f"minibatch = {minibatch}; valid: a whole number >= 1, or None")


def own_options(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """``own_options(locals())``, as the first statement of a recipe: its arguments without the common ones."""
    return {name: value for name, value in arguments.items() if name != "common"}
