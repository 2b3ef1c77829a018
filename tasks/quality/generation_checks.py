"""Generation checks: damage that perplexity does not show. A model may score held-out text well and
still, once it speaks for itself, repeat itself without end, say nothing, slip into another script,
call functions wrongly, or be fed another chat template.

`check` sets a candidate's answers to the probes (`tasks.quality.probes`) beside its parent's. The
candidate fails only where its parent does better: a parent that loops on a prompt is no evidence
against its candidate.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from artifacts.records.checks import CheckResult, Example, ProbeAnswer, ProbeAnswers
from tasks.quality.answer_text import MIXED, calls_well, has_keys, repeats, script
from tasks.quality.mcnemar import mcnemar
from tasks.quality.probes import JSON_KEYS, TOOLS

ALPHA = 0.05
TOLERATED_SHARE = 0.1
SHOWN, LONGEST = 3, 300  # examples, characters of each text
Pairs = Sequence[tuple[ProbeAnswer, ProbeAnswer]]  # the parent's answer and the candidate's
Failures = Sequence[tuple[bool, bool]]  # whether the parent fails, and whether the candidate does


def check(parent: ProbeAnswers, candidate: ProbeAnswers) -> tuple[CheckResult, ...]:
    """All checks of a candidate's answers beside its parent's: template, empty, repetition, script,
    function call, JSON.

    Raises:
        ValueError: the two were asked different questions, or within different limits.
    """
    if _questions(parent) != _questions(candidate):
        raise ValueError("parent and candidate were asked different probes")
    return (
        _same_template(parent, candidate),
        *check_answers(parent.free, candidate.free),
        _calls(parent, candidate),
        _ability(
            "JSON object",
            parent.json_objects,
            candidate.json_objects,
            lambda text: has_keys(text, JSON_KEYS),
            f"an object with the keys {', '.join(JSON_KEYS)}",
        ),
    )


def _questions(answers: ProbeAnswers) -> tuple[int, list[str], list[str]]:
    """What was asked, and within which limit. Functions are not offered by every template."""
    return (
        answers.new_tokens,
        [answer.prompt for answer in answers.free],
        [answer.prompt for answer in answers.json_objects],
    )


def check_answers(
    parent: Sequence[ProbeAnswer], candidate: Sequence[ProbeAnswer]
) -> tuple[CheckResult, ...]:
    """The checks of free answers to the same prompts: empty answers, endless repetition, the
    script.

    One new empty answer fails: to end at once, the end token must have overtaken every word, which
    no rounding error does to an answer. Loops and scripts of small models flip both ways by chance,
    so there one more than before is tolerated, and beyond that as many as are neither significant
    (one-sided exact McNemar test, 5 %) nor a tenth of the prompts.
    """
    pairs = list(zip(parent, candidate, strict=True))
    empty = [(_is_empty(before), _is_empty(after)) for before, after in pairs]
    loops = [(_loops(before), _loops(after)) for before, after in pairs]
    scripts = [(pair, _wrong_script(*pair)) for pair in pairs]
    readable = [(pair, wrong) for pair, wrong in scripts if wrong is not None]
    return (
        _result("empty answers", pairs, empty, 0),
        _result("endless repetition", pairs, loops, None),
        _result(
            "script of the answers",
            [pair for pair, _ in readable],
            [wrong for _, wrong in readable],
            None,
        ),
    )


def _is_empty(answer: ProbeAnswer) -> bool:
    return not answer.text.strip()


def _loops(answer: ProbeAnswer) -> bool:
    return repeats(answer.text, answer.ended)


def _wrong_script(parent: ProbeAnswer, candidate: ProbeAnswer) -> tuple[bool, bool] | None:
    """Whether each of the two is in a wrong script; None if one of the texts is too short to say.

    Right are the prompt's script, and for the candidate also its parent's: a prompt may ask for a
    translation.
    """
    asked = script(parent.prompt)
    before = script(parent.text)
    after = script(candidate.text)
    if before is None or after is None:
        return None
    right = asked or before
    if before not in (right, MIXED) and after not in (right, before):
        return False, True  # what the parent does may be what was asked for; a third script is not
    return before != right, after != right


def _same_template(parent: ProbeAnswers, candidate: ProbeAnswers) -> CheckResult:
    of_parent, of_candidate = (
        {rendering.shape: rendering for rendering in answers.renderings}
        for answers in (parent, candidate)
    )
    shapes = list(dict.fromkeys([*of_parent, *of_candidate]))
    changed = [
        shape
        for shape in shapes
        if shape not in of_parent
        or shape not in of_candidate
        or of_parent[shape].ids != of_candidate[shape].ids
    ]
    if changed:
        refused = [of_candidate[shape] for shape in changed if shape in of_candidate]
        why = f"other tokens than its parent's for: {'; '.join(changed)}" + "".join(
            f"; it refuses {rendering.shape}: {rendering.refused}"
            for rendering in refused
            if rendering.refused
        )
    else:
        why = f"{len(shapes)} shapes of conversation give the same tokens"
    return CheckResult(
        name="chat template",
        n=len(shapes),
        parent_failures=sum(bool(rendering.refused) for rendering in of_parent.values()),
        candidate_failures=len(changed),
        new_failures=len(changed),
        passed=not changed if shapes else None,
        why=why,
    )


def _calls(parent: ProbeAnswers, candidate: ProbeAnswers) -> CheckResult:
    name = "function call"
    if not parent.tools:
        return _not_applicable(
            name, 0, "the parent's chat template does not offer functions to the model"
        )
    if not candidate.tools:
        return CheckResult(
            name=name,
            n=len(parent.tools),
            parent_failures=0,
            candidate_failures=len(parent.tools),
            passed=False,
            new_failures=len(parent.tools),
            why="the candidate's chat template does not offer functions, its parent's does",
        )
    return _ability(
        name,
        parent.tools,
        candidate.tools,
        lambda text: calls_well(text, TOOLS),
        "a call with arguments that fit the JSON schema",
    )


def _ability(
    name: str,
    parent: Sequence[ProbeAnswer],
    candidate: Sequence[ProbeAnswer],
    well: Callable[[str], bool],
    what: str,
) -> CheckResult:
    """A check of what not every model can do: the parent's failure makes it not applicable, the
    candidate's fails it."""
    pairs = list(zip(parent, candidate, strict=True))
    found = [(not well(before.text), not well(after.text)) for before, after in pairs]
    if all(before for before, _ in found):
        return _not_applicable(
            name,
            len(pairs),
            f"the parent does not give {what} either",
            candidate_failures=sum(after for _, after in found),
        )
    return _result(name, pairs, found, 0)


def _not_applicable(name: str, n: int, why: str, *, candidate_failures: int = 0) -> CheckResult:
    return CheckResult(
        name=name,
        n=n,
        parent_failures=n,
        candidate_failures=candidate_failures,
        new_failures=0,
        passed=None,
        why=why,
    )


def _result(name: str, pairs: Pairs, found: Failures, tolerated: int | None) -> CheckResult:
    """The decision about pairs: up to `tolerated` new failures, or None for the rule of chance."""
    new = [pair for pair, (before, after) in zip(pairs, found, strict=True) if after and not before]
    mended = sum(before and not after for before, after in found)
    if not found:
        passed = None
    elif tolerated is None:
        passed = _may_be_chance(len(new), mended, len(found))
    else:
        passed = len(new) <= tolerated
    return CheckResult(
        name=name,
        n=len(found),
        parent_failures=sum(before for before, _ in found),
        examples=tuple(_example(*pair) for pair in new[:SHOWN]),
        passed=passed,
        candidate_failures=sum(after for _, after in found),
        new_failures=len(new),
        why=(
            f"{len(new)} new, {mended} mended of {len(found)}"
            if found
            else "no answer could be judged"
        ),
    )


def _example(parent: ProbeAnswer, candidate: ProbeAnswer) -> Example:
    return Example(
        prompt=parent.prompt[:LONGEST],
        parent=parent.text[:LONGEST],
        candidate=candidate.text[:LONGEST],
    )


def _may_be_chance(new: int, mended: int, n: int) -> bool:
    more = new - mended
    return more <= 1 or (more <= TOLERATED_SHARE * n and mcnemar(new, mended)[1] > ALPHA)
