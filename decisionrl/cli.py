"""The ``decisionrl`` command. Exit status: 0 done, 1 something failed, 2 the request was wrong."""

from __future__ import annotations

import importlib
import json
import logging
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

import click

import decisionrl
from decisionrl.names import UnknownNameError, pick

SUITES = {
    "inventory": "decisionrl.benchmarks.inventory",
    "control": "decisionrl.benchmarks.control",
    "robust": "decisionrl.benchmarks.robust",
    "preferences": "decisionrl.benchmarks.preferences",
    "robotics": "decisionrl.benchmarks.robotics",
    "icrl": "decisionrl.benchmarks.icrl",
    "llm": "decisionrl.benchmarks.llm",
}
"""Suite name -> module with ``cases(profile, data) -> list[Case]``."""

SET_HELP = "Any argument of the recipe; store.lead_time=2 sets a field of the setting. May be repeated."

DIRECTORY = click.Path(path_type=Path, file_okay=False)

MEASURED = ("mean_cost", "mean_return", "gap", "normalized_score")
"""What is told of an evaluation during the training."""

PASSED_ON = ("seed", "device", "steps")
"""Recipe arguments with an option of their own."""


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(decisionrl.__version__, prog_name="decisionrl")
def cli() -> None:
    """Train control and decision policies, and produce the evidence for them."""


LISTED = ["recipes", "envs", "policies", "suites", "datasets"]


@cli.command("list")
@click.argument("kind", type=click.Choice(LISTED), required=False)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def list_command(kind: str | None, as_json: bool) -> None:
    """What there is: recipes, envs, policies, suites, datasets."""
    content = {name: _catalogue(name) for name in ([kind] if kind else LISTED)}
    if as_json:
        click.echo(json.dumps(content, indent=1, ensure_ascii=False))
        return
    for name, entries in content.items():
        if len(content) > 1:
            click.secho(name, bold=True)
        width = max((len(entry) for entry in entries), default=0)
        for entry, text in entries.items():
            click.echo(f"  {entry:<{width}}  {text}")
        if name == "envs":
            click.echo("  and with --env any Gymnasium id, or module:Class")
        if name == "datasets":
            files = "any Minari dataset, an .hdf5, .h5 or .npz file in the form of D4RL, or made learning histories"
            click.echo(f"  and with --data {files}")


@cli.command()
@click.argument("recipe")
@click.option("--env", help="Gymnasium id, module:Class or text/NAME, for recipes on environments.")
@click.option("--setting", help="Inventory setting: a shipped name or a .toml file.")
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    help="Recorded data: a lab, a Minari dataset, a D4RL file, learning histories; or real series for the setting "
    "(.pt, .npy, .csv, ...).",
)
@click.option(
    "--steps", type=click.IntRange(min=1), help="How long to train: environment steps, or updates of hdpo and its kind."
)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@click.option("--device", default="cpu", show_default=True)
@click.option("--out", type=DIRECTORY, help="Run directory [default: runs/RECIPE-SETTING-POLICY-SEED].")
@click.option("--resume", type=DIRECTORY, help="Go on with the run in this directory, as it was asked for.")
@click.option(
    "--set",
    "assignments",
    multiple=True,
    metavar="KEY=VALUE",
    help=SET_HELP,
)
@click.option(
    "--checkpoint-every", type=click.IntRange(min=1), help="In steps [default: a tenth of them, at least 200]."
)
@click.option("--threads", type=click.IntRange(min=1), help="torch threads [default: 1 for small networks].")
def train(
    recipe: str,
    env: str | None,
    setting: str | None,
    data: Path | None,
    steps: int | None,
    seed: int,
    device: str,
    out: Path | None,
    resume: Path | None,
    assignments: tuple[str, ...],
    checkpoint_every: int | None,
    threads: int | None,
) -> None:
    """Train RECIPE and leave the run in a directory.

    \b
    decisionrl train hdpo --setting one_store_lost --set policy=mlp
    decisionrl train ppo --env CartPole-v1
    decisionrl train ppo --env my_module:MyEnv --steps 200000
    decisionrl train grpo --env text/modular-addition
    decisionrl train cpl --data lab/point
    decisionrl train ptp --data lab/return-side
    """
    import torch

    from decisionrl.recipes import recipe as find_recipe
    from decisionrl.recipes.saved import own_arguments, read_config

    torch.set_num_threads(threads or 1)
    function = find_recipe(recipe)
    _check_device(device)
    given = {"env": env, "setting": setting, "data": data, "steps": steps, "out": out, "set": assignments or None}
    if resume is not None:
        extra = [f"--{key}" for key, value in given.items() if value is not None]
        source = click.get_current_context().get_parameter_source("seed")
        extra += ["--seed"] if source is click.core.ParameterSource.COMMANDLINE else []
        if extra:
            raise click.UsageError(f"--resume goes on with the run as it was asked for; not with {', '.join(extra)}")
        config = read_config(resume)
        if config.get("recipe") != recipe:
            raise click.UsageError(f"{resume} is a run of recipe {config.get('recipe')!r}, not {recipe!r}")
        arguments = own_arguments(function, config) | _arguments(recipe, function, {"device": device}, ())
        out = resume
    else:
        options = {"env": env, "setting": setting, "data": data, "steps": steps, "seed": seed, "device": device}
        arguments = _arguments(recipe, function, options, assignments)
        _check_device(arguments.get("device", device))
    with _messages("decisionrl.llm"):
        experiment = _built(function, arguments)
    if out is None:
        out = _default_directory(experiment.config)
    _fit(experiment, out, resume=resume is not None, checkpoint_every=checkpoint_every)


@cli.command()
@click.argument("directory", type=DIRECTORY)
@click.option("--episodes", type=click.IntRange(min=2), help="How many [default: the recipe's].")
@click.option("--seed", type=click.IntRange(min=0), default=1, show_default=True)
@click.option("--video", type=click.Path(path_type=Path, dir_okay=False), help="Also film one episode (.mp4 or .gif).")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def evaluate(directory: Path, episodes: int | None, seed: int, video: Path | None, as_json: bool) -> None:
    """Measure the trained policy of a run directory.

    Of text, episodes are responses, as many to each prompt: 8, or more where there are not prompts enough.
    """
    import torch

    from decisionrl.envs.text import TEXT
    from decisionrl.recipes.saved import load_run

    torch.set_num_threads(1)
    with _messages("decisionrl.llm"):
        experiment = _built(load_run, {"directory": directory})
    if experiment.evaluate is None:
        raise click.UsageError(f"the recipe of {directory} has no evaluation")
    env = experiment.config.get("env")
    if video is not None and (env is None or env.startswith(TEXT)):
        raise click.UsageError(f"the recipe of {directory} has no environment to film")
    result = experiment.evaluate(experiment.policy, episodes=episodes, seed=seed)
    if video is not None:
        from decisionrl.evaluation.video import film

        options = experiment.config.get("env_options")
        result["video"] = str(film(experiment.policy, env, video, env_options=options, seed=seed))
    if as_json:
        click.echo(json.dumps(result, indent=1))
    else:
        _print_result(result)


@cli.command()
@click.argument("suite", default="inventory")
@click.option("--profile", type=click.Choice(["quick", "full"]), default="quick", show_default=True)
@click.option("--only", multiple=True, metavar="GLOB", help="Cases to run, as case/method; may be repeated.")
@click.option("--seeds", type=click.IntRange(min=1), default=1, show_default=True)
@click.option("--data", type=click.Path(path_type=Path), help="Real series for the cases that take them.")
@click.option("--jobs", type=click.IntRange(min=1), help="Parallel worker processes [default: the machine's cores].")
@click.option("--device", default="cpu", show_default=True)
@click.option("--out", type=DIRECTORY, help="Where results go [default: results/SUITE-PROFILE].")
@click.option("--ray", "ray_address", help="Run the cases as tasks of this Ray cluster ('auto' or host:port).")
@click.option("--json", "as_json", is_flag=True, help="Print the rows as JSON.")
def bench(
    suite: str,
    profile: str,
    only: tuple[str, ...],
    seeds: int,
    data: Path | None,
    jobs: int | None,
    device: str,
    out: Path | None,
    ray_address: str | None,
    as_json: bool,
) -> None:
    """Run a benchmark suite; stopped and run again, it goes on where it was."""

    from decisionrl.benchmarks.executors import on_ray, usable_cores
    from decisionrl.benchmarks.suite import run_suite

    module = importlib.import_module(pick("suite", suite, SUITES))
    _check_device(device)
    status = run_suite(
        suite,
        module.cases(profile, data),
        profile=profile,
        only=only,
        seeds=seeds,
        jobs=jobs or usable_cores(),
        device=device,
        data=data,
        out=out,
        json_output=as_json,
        executor=None if ray_address is None else on_ray(ray_address),
    )
    sys.exit(status)


@cli.command("make-dataset")
@click.argument("maker")
@click.option(
    "--env",
    required=True,
    help="Gymnasium id or module:Class; for clones a Meta-World task, for histories a family of tasks.",
)
@click.option("--steps", type=click.IntRange(min=1), help="How long the maker trains, in environment steps.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@click.option("--out", type=DIRECTORY, default=Path("data"), show_default=True, help="Folder of the data sets.")
@click.option(
    "--set", "assignments", multiple=True, metavar="KEY=VALUE", help="Any argument of the maker. May be repeated."
)
def make_dataset(maker: str, env: str, steps: int | None, seed: int, out: Path, assignments: tuple[str, ...]) -> None:
    """Record data sets for offline learning with MAKER: sac, clones, demonstrations or histories.

    \b
    decisionrl make-dataset sac --env Hopper-v5 --steps 300000
    decisionrl make-dataset sac --env HalfCheetah-v5 --set hidden=[128,128] --set batch_size=128
    decisionrl make-dataset clones --env plate-slide
    decisionrl make-dataset demonstrations --env decisionrl/ReturnSide-v0
    decisionrl make-dataset histories --env darkroom --set noise=0.3
    """
    import torch

    from decisionrl.recording import maker as find_maker

    torch.set_num_threads(1)
    function = find_maker(maker)
    options = {"env": env, "steps": steps, "seed": seed, "out": out}
    arguments = _arguments(maker, function, options, assignments, kind="maker")
    with _messages("decisionrl.recording"):
        directories = _built(function, arguments)
    for directory in directories:
        click.echo(_histories_line(directory) if maker == "histories" else _data_set_line(directory))


@cli.command()
@click.argument("directory", type=DIRECTORY)
def report(directory: Path) -> None:
    """Write results.md, report.html and the figures again from DIRECTORY/results.json."""
    from decisionrl.evaluation.reports import write_report

    for path in write_report(directory):
        click.echo(path)


def main() -> None:
    """Entry point: requests that cannot be carried out give one line and exit status 2."""
    try:
        cli(standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(2)
    except click.exceptions.Exit as status:
        sys.exit(status.exit_code)
    except click.Abort:
        sys.exit(130)
    except Exception as error:
        code = 2 if _is_request_error(error) else 1 if _is_failed_run(error) else None
        if code is None or os.environ.get("DECISIONRL_TRACEBACK"):
            raise
        notes = "".join(f" ({note})" for note in getattr(error, "__notes__", ()))
        click.secho(f"decisionrl: {error}{notes}", fg="red", err=True)
        sys.exit(code)


def _is_request_error(error: Exception) -> bool:
    """Errors that say what was wrong with the request; anything else is a defect and keeps its traceback."""
    from decisionrl.evaluation.results import ResultsError

    kinds: tuple[type[Exception], ...] = (UnknownNameError, ResultsError)
    if "torch" in sys.modules:
        from decisionrl.benchmarks.suite import RequestError
        from decisionrl.checkpoint import CheckpointError
        from decisionrl.envs.inventory.demand import DemandError
        from decisionrl.envs.inventory.network import NetworkError
        from decisionrl.envs.inventory.setting import SettingError
        from decisionrl.envs.make import EnvironmentNameError
        from decisionrl.envs.world import UnsupportedSpaceError
        from decisionrl.evaluation.video import VideoError
        from decisionrl.experience.store import DatasetError
        from decisionrl.run import RunError

        if "decisionrl.llm.generation" in sys.modules:
            from decisionrl.envs.text.prompts import PromptError
            from decisionrl.envs.text.tokenizer import UnknownCharacterError
            from decisionrl.llm.generation import ContextLengthError
            from decisionrl.policies.prefix_sharing import PrefixAttentionError

            kinds += (PromptError, UnknownCharacterError, ContextLengthError, PrefixAttentionError)
        kinds += (EnvironmentNameError, UnsupportedSpaceError, VideoError, DatasetError)
        kinds += (RequestError, CheckpointError, DemandError, NetworkError, SettingError, RunError)
    return isinstance(error, kinds)


def _is_failed_run(error: Exception) -> bool:
    """Runs that went wrong for a reason the message names: numbers that are not finite, impossible orders."""
    if "torch" not in sys.modules:
        return False
    from decisionrl.envs.inventory.simulator import InfeasibleOrderError
    from decisionrl.envs.world import EnvironmentFault
    from decisionrl.learner import NonFiniteError
    from decisionrl.recording import RecordingError

    return isinstance(error, (EnvironmentFault, InfeasibleOrderError, NonFiniteError, RecordingError))


# ------------------------------------------------------------------------------------------------ arguments


def _arguments(
    name: str, function: Any, given: Mapping[str, Any], assignments: tuple[str, ...], *, kind: str = "recipe"
) -> dict[str, Any]:
    """The recipe's (or maker's) keyword arguments from options and --set, all checked against its signature."""
    from decisionrl.recipes.signatures import parameters

    hints = parameters(function)
    arguments: dict[str, Any] = {}
    for key, value in given.items():
        if value is None:
            continue
        if key not in hints:
            if kind == "recipe" and key in PASSED_ON:
                continue
            raise click.UsageError(f"{kind} {name} takes no --{key}")
        arguments[key] = str(value) if isinstance(value, Path) else value
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not equals or not key:
            raise click.UsageError(f"--set {assignment!r}: valid is KEY=VALUE")
        value = _value(text)
        head, _, leaf = key.partition(".")
        if leaf and head in hints:
            arguments.setdefault(head, {})[leaf] = value
        elif leaf and "overrides" in hints:
            arguments.setdefault("overrides", {})[key] = value
        else:
            pick(f"argument of {kind} {name}", key, hints)
            arguments[key] = value
    for key, value in arguments.items():
        if not _fits(value, hints[key]):
            raise click.UsageError(f"{key} = {value!r} is no argument of {kind} {name}; valid: {_shown(hints[key])}")
    return arguments


def _fits(value: Any, hint: Any) -> bool:
    """Whether a plain value may be passed where ``hint`` is asked for; choices are left to the recipe."""
    kind = get_origin(hint) or hint
    if kind in (Union, UnionType):
        return any(_fits(value, each) for each in get_args(hint))
    if kind is Literal:
        return any(type(value) is type(each) for each in get_args(hint))
    if isinstance(value, bool) or kind is Any:
        return kind in (bool, Any)
    if kind is list and isinstance(value, list):
        return all(_fits(each, *get_args(hint)) for each in value)
    return isinstance(value, (int, float) if kind is float else kind)


def _shown(hint: Any) -> str:
    """A type as a person writes it."""
    if get_origin(hint) in (Union, UnionType):
        return " or ".join(_shown(each) for each in get_args(hint))
    if get_origin(hint) is Literal:
        return ", ".join(map(str, get_args(hint)))
    return "none" if hint is type(None) else getattr(hint, "__name__", str(hint))


def _built(function: Callable[..., Any], arguments: Mapping[str, Any]) -> Any:
    """The recipe's experiment, or the maker's directories; a value that it refuses is a wrong request, and so is one
    that needs a package which is not installed."""
    from decisionrl.benchmarks.suite import RequestError

    try:
        return function(**arguments)
    except ImportError as error:
        if "pip install" not in str(error):
            raise
        raise RequestError(str(error)) from error
    except ValueError as error:
        raise RequestError(str(error)) from error


def _check_device(device: str) -> None:
    """RequestError if there is no such device here."""
    import torch

    from decisionrl.benchmarks.suite import RequestError

    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise RequestError(f"--device {device}: cannot be used here ({str(error).splitlines()[0]})") from None


def _value(text: str) -> Any:
    """JSON where it is JSON, else the text itself."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def _default_directory(config: Mapping[str, Any]) -> Path:
    """runs/RECIPE-SETTING-DATA-POLICY-seedN or runs/RECIPE-ENV-seedN, with a number behind it if that is taken."""
    words = [config.get("recipe"), config.get("setting"), config.get("data") or config.get("env"), config.get("policy")]
    name = "-".join(_stem(Path(str(word))) for word in words if word).replace(":", "-")
    name += f"-seed{config.get('seed', 0)}"
    path, number = Path("runs") / name, 1
    while path.exists():
        number += 1
        path = Path("runs") / f"{name}-{number}"
    return path


def _stem(path: Path) -> str:
    """Without the ending, which a directory's name has not, whatever dots there are in it."""
    return path.name if path.is_dir() else path.stem


# -------------------------------------------------------------------------------------------------- running


def _fit(experiment: Any, out: Path, *, resume: bool, checkpoint_every: int | None) -> None:
    from decisionrl.callbacks import Checkpoint, Evaluate, JsonlMetrics, Progress, TensorBoard
    from decisionrl.checkpoint import save_weights
    from decisionrl.evaluation.figures import learning_curve
    from decisionrl.evaluation.results import write_json
    from decisionrl.run import FINAL
    from decisionrl.trainer import Trainer

    steps = experiment.config["steps"]
    often = max(1, steps // 200)
    callbacks = [
        Progress(show=("cost", "episode_return", "accuracy")),
        JsonlMetrics(every=often),
        TensorBoard(every=often),
        Checkpoint(every=checkpoint_every or max(200, steps // 10)),
    ]
    if experiment.evaluate is not None:
        quick = experiment.evaluate

        def measured(policy: Any) -> dict[str, float]:
            values = quick(policy, seed=0, long=False)
            return {k: v for k, v in values.items() if k in MEASURED and v is not None}

        callbacks.append(Evaluate(measured, every=max(1, steps // 8)))
    trainer = Trainer(experiment, callbacks=callbacks, out=out, seed=experiment.config.get("seed"), resume=resume)
    trainer.fit(steps)
    save_weights(experiment.policy, out / FINAL)
    curve = learning_curve(out)
    click.echo(f"run: {out}" + ("" if curve is None else f"  learning curve: {curve}"))
    if experiment.evaluate is not None:
        result = experiment.evaluate(experiment.policy)
        write_json(out / "evaluation.json", result)
        _print_result(result)


@contextmanager
def _messages(name: str) -> Iterator[None]:
    """What the logger of that name has to tell goes to stderr, line by line."""
    logger, handler = logging.getLogger(name), logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s  %(message)s", "%H:%M:%S"))
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.setLevel(level)
        logger.removeHandler(handler)


def _data_set_line(directory: Path) -> str:
    from decisionrl.experience.minari import load_minari

    store = load_minari(directory)
    mean = float(store.returns.mean())
    text = f"{directory}  {store.num_episodes} episodes  {store.num_steps} steps  mean return {mean:.5g}"
    if {"random_score", "expert_score"} <= store.info.keys():
        text += f"  normalized score {store.normalized_score(mean):.1f}"
    return text


def _histories_line(directory: Path) -> str:
    from decisionrl.experience.histories import open_histories

    made = open_histories(directory)
    returns = made.episode_returns()
    first, last = float(returns[..., 0].mean()), float(returns[..., -1].mean())
    text = f"{directory}  {made.num_tasks} tasks  {made.num_histories} histories each, of {made.episodes} episodes"
    return f"{text}  mean return {first:.5g} in the first, {last:.5g} in the last"


def _print_result(result: Mapping[str, Any]) -> None:
    key = next(k for k in ("mean_profit", "mean_cost", "success_rate", "mean_return") if k in result)
    value, low, high = result[key], result["low"], result["high"]
    if key == "mean_profit":
        low, high = -high, -low
    text = f"{key.replace('_', ' ')} {value:.5g}"
    if result["episodes"] and low is None:
        text += f"  ({result['episodes']} episodes; of one task there is no interval)"
    elif result["episodes"]:
        text += f"  95 % interval {low:.5g} to {high:.5g}  ({result['episodes']} episodes)"
    else:
        text += f"  exact, {low:.5g} to {high:.5g} over runs"
    if result.get("reference") is not None:
        text += f"\n{result['reference_kind']} reference {result['reference']:.5g}  gap {100 * result['gap']:.3f} %"
    if "pass_1" in result:
        rates = "  ".join(f"pass@{key[5:]} {value:.4g}" for key, value in result.items() if key.startswith("pass_"))
        text += f"\n{rates}  mean length {result['mean_length']:.4g} tokens"
    if "normalized_score" in result:
        text += f"\nnormalized score {result['normalized_score']:.1f}"
        text += f"  95 % interval {result['score_low']:.1f} to {result['score_high']:.1f}  (0: random, 100: expert)"
    click.echo(text)


def _catalogue(kind: str) -> dict[str, str]:
    if kind == "recipes":
        from decisionrl.recipes import RECIPES, metadata

        return {name: _recipe_line(metadata(name)) for name in RECIPES}
    if kind == "envs":
        from decisionrl.envs.inventory.setting import available_settings, setting_title
        from decisionrl.envs.text import TASKS

        texts = {name: importlib.import_module(module).__doc__ or "" for name, (module, _) in TASKS.items()}
        return {
            **{name: setting_title(name) for name in available_settings()},
            **{name: text.splitlines()[0] for name, text in texts.items()},
        }
    if kind == "policies":
        from decisionrl.recipes.inventory_policies import BUILDERS

        return {name: (builder.__doc__ or "").splitlines()[0] for name, builder in BUILDERS.items()}
    if kind == "datasets":
        from decisionrl.experience.data import DEMONSTRATIONS, HISTORIES, LABS
        from decisionrl.recording import MAKERS
        from decisionrl.recording import metadata as maker_metadata

        labs = {name: (make.__doc__ or "").splitlines()[0] for name, make in LABS.items()}
        shown = {name: f"Demonstrations of {env} by a scripted expert." for name, env in DEMONSTRATIONS.items()}
        shown |= {name: _histories_lab(given) for name, given in HISTORIES.items()}
        made = {f"make-dataset {name}": _recipe_line(maker_metadata(name)) for name in MAKERS}
        return {**labs, **shown, **made}
    return {name: (importlib.import_module(module).__doc__ or "").splitlines()[0] for name, module in SUITES.items()}


def _histories_lab(arguments: Mapping[str, Any]) -> str:
    source, env = arguments.get("source", "ppo"), arguments.get("env", "darkroom")
    at_random = f", {100 * arguments['noise']:.0f} % of them at random" if "noise" in arguments else ""
    return f"Learning histories of {source} in {env}{at_random}."


def _recipe_line(about: Mapping[str, Any]) -> str:
    source = f" (arXiv {about['arxiv']})" if about["arxiv"] else ""
    return f"{about['title']}{source}; for {about['kinds']}"


if __name__ == "__main__":
    main()
