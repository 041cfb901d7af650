"""Layers made once for all that are alike: as if each had been made by itself."""

from hypothesis import given, settings

from hrm.schedule.catalog import build_schedule
from hrm.schedule.task import Phase
from hrm.schedule.templates import Book, PassKind
from tests.schedules import models, policies

KINDS = (
    PassKind(Phase.PREFILL, None, last=False),
    PassKind(Phase.PREFILL, None, last=True),
    PassKind(Phase.DECODE, Phase.PREFILL, last=False),
    PassKind(Phase.DECODE, Phase.DECODE, last=False),
    PassKind(Phase.DECODE, Phase.DECODE, last=True),
)


def plain(template):
    """What a template says, without names of layers and the order of needs."""
    tasks = [[(task.kind, task.part, task.for_next_pass) for task in lane] for lane in template.tasks]
    needs = [
        [{(template.sources[one.source], one.lane, one.tasks) for one in task} for task in lane]
        for lane in template.needs
    ]
    return tasks, needs, template.counted


@given(policies(), models(max_layers=12))
@settings(max_examples=100, deadline=None)
def test_layers_that_are_alike_give_the_same_and_need_the_same(policy, model):
    """What the simulator leaves out rests on it: as far back, the same lanes, as many tasks into them."""
    schedule = build_schedule(policy, model)
    shared, single = Book(schedule, exact=False), Book(schedule, exact=True)
    for kind in KINDS:
        for layer in range(model.num_layers):
            assert plain(shared.template(kind, layer)) == plain(single.template(kind, layer))
