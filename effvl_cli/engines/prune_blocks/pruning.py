"""Score, remove, verify, fine-tune: until a target is met or nothing more can be removed."""

from dataclasses import dataclass, replace
from typing import Any, Literal

from effvl_cli.config.prune_blocks import EMBEDDED, Lookahead, PruneBlocksConfig
from effvl_cli.core.errors import UsageError
from effvl_cli.core.phases import Phases
from effvl_cli.engines.prune_blocks import baseline, candidates, importance, lookahead, network_latency
from effvl_cli.engines.prune_blocks.context import Context
from effvl_cli.engines.prune_blocks.lookahead import Trial
from effvl_cli.engines.prune_blocks.removal_step import finetune, original_figures, settle, size_of
from effvl_cli.engines.prune_blocks.surgery import cut
from effvl_cli.engines.prune_blocks.training import Recipe
from effvl_cli.models.pruned_network import State
from effvl_cli.techniques.prune_blocks.choices import Candidate, Found, describe
from effvl_cli.techniques.prune_blocks.score import STACKED
from effvl_cli.techniques.prune_blocks.step_row import StepRow
from effvl_cli.techniques.prune_blocks.targets import Size, Targets, largest_removal, spread_over_stages

EMBEDDED_REMOVED = 2
Stopped = Literal["target_reached", "max_drop", "exhausted"]
UNSCORED: dict[str, Any] = {
    **{"rows": [], "reason": ""},
    **dict.fromkeys(("seconds", "images", "images_needed", "sharing", "cost_model")),
}


@dataclass
class Result:
    """Result of the loop.

    Attributes:
        state: the pruned network.
        steps: a row for each step.
        stopped: why.
    """

    state: State
    steps: list[StepRow]
    stopped: Stopped


class Pruning:
    """The loop over steps.

    Args:
        context: network, data and options.
        phases: results of earlier attempts.
        start: the network to begin with.

    Attributes:
        original: size of the network that the job began with.
        size: of the one that it has now.
    """

    def __init__(self, context: Context[PruneBlocksConfig], phases: Phases, start: State) -> None:
        self.here, self.phases, self.start = context, phases, start
        self.original = self.size = size_of(context, context.module)
        self.targets = _targets_of(context.config, context.data)
        self.lookahead = Lookahead.of(context.config)
        self.ranking: list[str] = []  # original paths by the first scoring, for --rescore once
        self.steps: list[StepRow] = []

    def check(self) -> None:
        """Refuse impossible requests before anything is trained or scored.

        Raises:
            UsageError: a target that cannot be met.
            ModelError: nothing can be removed.
        """
        context, state = self.here, self.start
        self.allowed, found = candidates.survey(context, state.origins)
        self.first = found
        candidates.refuse_none(context, found)
        described = describe(found)
        self.first_cost: float = described["cost_model"]["ratio"]
        context.run.report.technique.update(described)
        self._check_targets(found)

    def run(self) -> Result:
        """Prune, and fine-tune at the end.

        Raises:
            ModelError: the network is no better than chance.
        """
        context, state, found = self.here, self.start, self.first
        if baseline.wanted(context.config):  # once trained, it may give units inputs of other signs
            found = candidates.find(context, state.module, state.origins, self.allowed)
        self.candidates = found.candidates
        self.baseline = original_figures(context, self.phases)
        stopped: Stopped = "target_reached"
        while not self._reached(state):
            if self.steps:
                found = candidates.find(context, state.module, state.origins, self.allowed)
            if not found.candidates:
                stopped = "exhausted"
                break
            pruned, row = self._step(state, found)
            self.steps.append(row)
            if self._fell_too_far(row):
                context.run.log(f"step {row.k} is undone: it costs more than --max-drop")
                self.steps[-1] = replace(row, rejected=True)
                stopped = "max_drop"
                break
            state, self.size = pruned, Size(row.params, row.macs)
        return Result(self._finish(state), self.steps, stopped)

    def _check_targets(self, found: Found) -> None:
        most, count = largest_removal([c.saving for c in found.candidates], found.room)

        def latency_without() -> float:
            return self._latency(cut(self.here, self.start, found.as_many_as_can_go(), step=1))

        short = self.targets.shortfall(self.original, most, count, latency_without)
        if short:
            bound = f"{short.attainable:.4g}"
            raise UsageError(
                f"--{short.name} is {short.goal}, and at most {bound} {short.of} can be removed",
                f"Give {bound} or less",
            )

    def _reached(self, state: State) -> bool:
        return self.targets.reached(self._removed(state), self.original, self.size, lambda: self._latency(state))

    def _removed(self, state: State) -> int:
        return len(state.removals) - len(self.start.removals)

    def _latency(self, state: State) -> float:
        """Of one image through the pruned network, over the original's."""
        names = ",".join(removal.original_path for removal in state.removals)
        return float(
            self.phases.timed(f"latency without {names}", lambda: network_latency.share_of(self.here, state.module))
        )

    def _fell_too_far(self, row: StepRow) -> bool:
        limit = self.here.config.max_drop
        return limit is not None and self.baseline["score"]["top1"] - row.top1_score_after_ft > limit

    def _step(self, state: State, found: Found) -> tuple[State, StepRow]:
        """One round; finished parts of an earlier attempt are reused."""
        k, context, config = len(self.steps) + 1, self.here, self.here.config
        number = k + max((removal.step for removal in self.start.removals), default=0)
        count = self.targets.at_most(self._removed(state), config.blocks_per_step)
        scored = self.phases.once(f"step {k} scores", lambda: self._score(state, found, k, count))
        picked = self._pick(scored, found, count)
        tried: list[Trial] = []
        if self.lookahead:
            tried = lookahead.try_out(
                context, self.phases, state, self._shortlist(scored, found), self.lookahead, k, number
            )
            picked = [min(tried, key=lambda trial: trial.rank).candidate]
        context.run.log(f"step {k}: removing {', '.join(candidate.original for candidate in picked)}")
        pruned = cut(context, state, picked, step=number)
        tuned = next((trial.load() for trial in tried if trial.candidate in picked), None)
        row = settle(context, self.phases, pruned, k=k, count=len(picked), original=self.original, tuned=tuned)
        direct = config.criterion == "direct"
        return pruned, replace(
            row,
            importance=scored["rows"],
            criterion=config.criterion,
            metric=config.metric,
            sharing=scored["sharing"],
            score_bn=config.score_bn if direct else None,
            bit_exact=int(config.race == "none" and scored["sharing"] != STACKED) if direct else None,
            cost_model=scored.get("cost_model"),  # runs started by an older version have neither
            images_needed=scored.get("images_needed"),
            score_seconds=scored["seconds"],
            score_images=scored["images"],
            lookahead=[trial.row() for trial in tried],
            latency=self._latency(pruned) if self.targets.latency is not None else None,
        )

    def _score(self, state: State, found: Found, k: int, count: int) -> dict[str, Any]:
        if self.here.config.rescore == "once" and k > 1:
            places = {c.original: index for index, c in enumerate(found.candidates)}
            order = [places[name] for name in self.ranking if name in places]
            return UNSCORED | {"order": order}
        scored = importance.measure(self.here, state.module, found, k, count)
        if scored["reason"]:
            self.here.run.warn(f"step {k}: candidates share less: {scored['reason']}")
        return scored

    def _pick(self, scored: dict[str, Any], found: Found, count: int) -> list[Candidate]:
        if self.here.config.search != "single":
            return [found.candidates[index] for index in scored["sets"][scored["order"][0]]]
        if not self.ranking:
            self.ranking = [found.candidates[index].original for index in scored["order"]]
        stages = [candidate.unit.stage for candidate in found.candidates]
        picked = spread_over_stages(scored["order"], stages, found.room, count)
        return [found.candidates[index] for index in picked]

    def _shortlist(self, scored: dict[str, Any], found: Found) -> list[Candidate]:
        assert self.lookahead is not None
        return [found.candidates[index] for index in scored["order"][: self.lookahead.candidates]]

    def _finish(self, state: State) -> State:
        config = self.here.config
        if self._removed(state):
            recipe = Recipe(config.final_epochs, config.final_lr, config.finetune_batch_size)
            finetune(self.here, self.phases, state.module, "final", recipe)
        return state


def _targets_of(config: PruneBlocksConfig, data: str) -> Targets:
    """Goals of the options.

    Raises:
        UsageError: none given, on data other than the embedded data.
    """
    given = (config.remove, config.target_params, config.target_macs, config.target_latency)
    if any(goal is not None for goal in given):
        return Targets(*given, all_of_them=config.stop == "all")
    if data != EMBEDDED:
        raise UsageError(
            "nothing says how much to remove", "Give --remove, --target-params, --target-macs or --target-latency"
        )
    return Targets(EMBEDDED_REMOVED, None, None, None, all_of_them=True)
