"""The verdict: is the candidate as good as its parent? The one place that decides, from evidence and the config's limit."""

from __future__ import annotations

from artifacts.evidence import Evidence, Verdict

FEWEST_TOKENS = 500  # below this a perplexity says more about the text than about the model


def judge(evidence: Evidence, evidence_digest: str, max_perplexity_ratio: float) -> Verdict:
    """PASS if the candidate's perplexity stays within the limit; FAIL if it does not or something is broken;
    INCONCLUSIVE if too little was measured to say."""
    ratio = evidence.perplexity_ratio
    figures = (f"perplexity ratio {ratio:.4f} on {evidence.tokens} tokens of {len(evidence.documents)} held-out documents, "
               f"limit {max_perplexity_ratio}")
    broken = []
    if evidence.broken:
        broken.append(f"{evidence.broken} positions have NaN or zero-probability scores")
    if not evidence.same_prompts:
        broken.append("the chat template renders other prompts for the candidate than for its parent")
    if evidence.samples and all(not sample.candidate and sample.parent for sample in evidence.samples):
        broken.append("the candidate answers every prompt with nothing")
    if broken or ratio > max_perplexity_ratio:
        reasons = [*broken, *([f"worse than the limit: {figures}"] if ratio > max_perplexity_ratio else [])]
        outcome = "FAIL"
    elif evidence.tokens < FEWEST_TOKENS:
        outcome, reasons = "INCONCLUSIVE", [f"{evidence.tokens} tokens are too few to judge by, {FEWEST_TOKENS} are needed"]
    else:
        outcome, reasons = "PASS", [f"within the limit: {figures}"]
    return Verdict.model_validate({"outcome": outcome, "reasons": tuple(reasons), "candidate": evidence.candidate, "evidence": evidence_digest})
