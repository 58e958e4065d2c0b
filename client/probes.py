"""Questions about probes at a hospital: read, held to the budget of the approval, checked before answers leave."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flwr.app import Message

from modaltune.data.preprocessing import Preprocessing
from modaltune.errors import ConfigError, MessageRefused, ReplyRefused
from modaltune.evaluation.probes.fit import ProbeQuestion
from modaltune.federation.probe_query import (
    Arrays,
    ProbeQuery,
    probes_of,
    problem_with_sums,
    problem_with_tally,
    question_bytes,
    question_of,
    tally_of,
)
from modaltune.federation.study import Study
from modaltune.federation.wire import Packed, unseal

if TYPE_CHECKING:
    from client.approvals import Approval
    from client.questions import Question
    from client.usage import Usage

TALLY, PROBE = "query.tally", "query.probe"
TALLIES, SUMS, QUESTION, PROBES = "tally", "sums", "question", "probes"
"""Records of the two answers, of a question, and of fitted probes."""
MODEL = "probed model"
_HEADER = 65536  # bytes of the names in a record


def check_allowed(study: Study) -> None:
    """Refuse what a study without probes does not answer."""
    if not study.probes.questions:
        raise MessageRefused("QuestionRefused", f"study {study.name} allows no probes: probes.questions is 0")


def read_probe(message: Message, study: Study) -> ProbeQuery:
    """The probe question in a message.

    Raises:
        MessageRefused: the study does not allow it.
        ReplyRefused, KeyError, TypeError, ValueError: it is no probe question.
    """
    check_allowed(study)
    config = message.content.config_records["study"]
    found, derivatives, model = _arrays(message, QUESTION, study), config["derivatives"], str(config["model"])
    if not isinstance(derivatives, bool):
        raise TypeError
    try:
        task = study.task(str(config["task"]))
        groups = 2 if task.kind == "survival" else len(task.labels)
        question = question_of(found, task, study, groups, derivatives=derivatives)
    except ConfigError as problem:
        raise MessageRefused("QuestionRefused", str(problem)) from None
    return ProbeQuery(task=task.name, model=model, question=question)


def read_probes(message: Message, study: Study, preprocessing: Preprocessing) -> dict[str, ProbeQuestion]:
    """The fitted probes that an evaluation scores, by task; raises as :func:`read_probe`."""
    try:
        return probes_of(_arrays(message, PROBES, study), study, preprocessing)
    except ConfigError as problem:
        raise MessageRefused("QuestionRefused", str(problem)) from None


def _arrays(message: Message, record: str, study: Study) -> Packed:
    return unseal(message.content.array_records[record], "the server", question_bytes(study) + _HEADER, _HEADER)


def count_probe(usage: Usage, approval: Approval, query: ProbeQuery) -> None:
    """Take a question from the budget of its task under an approval; one that was counted before is free.

    Raises:
        MessageRefused: it is one too many.
    """
    if MODEL not in usage.counts.agreed.get(approval.digest, {}):
        raise MessageRefused("QuestionRefused", "probe questions come after the tally, and none was answered")
    budget = approval.study.probes.questions
    tasks = usage.counts.probes.setdefault(approval.digest, {})
    asked = tasks.get(query.task, [])
    if query.digest in asked:
        return
    if len(asked) >= budget:
        raise MessageRefused("LimitReached", f"probes.questions = {budget}; approve again to allow more")
    tasks[query.task] = [*asked, query.digest]
    usage.write()


def check_tally(question: Question, approval: Approval, tally: Arrays) -> None:
    """Whether a tally may leave.

    Raises:
        ReplyRefused: they count too few cases, or are none of cases.
    """
    for task in question.study.tasks:
        if problem := problem_with_tally(task.name, tally_of(tally, task.name), approval.minimum, approval.cases.train):
            raise ReplyRefused(approval.site, problem)


def check_sums(approval: Approval, sums: Arrays) -> None:
    """Whether sums may leave.

    Raises:
        ReplyRefused: no likelihood has them.
    """
    if problem := problem_with_sums(sums):
        raise ReplyRefused(approval.site, problem)


def disclosed(study: Study) -> str:
    """What probes would make leave, for who approves."""
    spec = study.probes
    if not spec.questions:
        return "none"
    largest = max(task.probe_rows for task in study.tasks) * (study.model.output_width + 1)
    return (
        "once, for each task: training cases by class (or deaths and survivors), mean and squared distances of their"
        f" embeddings; then for at most {spec.questions} sets of coefficients a task (none beyond {spec.largest:g}):"
        f" likelihood, its gradient and curvature, at most {largest * (largest + 3) // 2 + 1} numbers, summed over"
        " training cases; nothing of a task with a class of too few cases, no sums where too few cases carry weight"
    )
