"""Pointing a stage at an artifact that may be promoted.

A promotion reads the ref, checks everything (`artifacts.registry.proposal`), and writes the ref if
it has not moved meanwhile: one small conditional write, so a kill at any moment leaves the old
state or the new one. Serves nothing.
"""

from __future__ import annotations

from artifacts.registry.change import StageChange, moved
from artifacts.registry.names import check_names, check_words
from artifacts.registry.proposal import Proposal, check_proposal
from artifacts.registry.refs import Decision, Registry
from artifacts.store.protocol import Store
from configs.callbacks import Progress, no_progress
from configs.policy import Policy


def promote(
    store: Store,
    proposal: Proposal,
    decision: Decision,
    policy: Policy,
    progress: Progress = no_progress,
) -> StageChange:
    """Point a stage of a model at an artifact, if everything that has to speak for it does.

    Raises:
        StaleRef: the stage was moved while this looked.
        PromotionRefused, SignatureRefused, StaleRef, ArtifactDamaged, ConfigError: as for
            `check_proposal`.
    """
    where = check_names(proposal.model, proposal.to_stage)
    check_words(where, decision.who, decision.why, proposal.force, decision.approved_by)
    checked = check_proposal(store, proposal, policy, progress)
    before = checked.before
    if checked.there and before is not None:
        return StageChange(checked.seen.ref, before, before, moved=False)
    ref = Registry(store.objects).append(
        checked.seen, checked.report.served, decision, forced=checked.forced
    )
    return moved(store, ref, before)
