"""The search for garbage while a schedule runs."""

import gc

from executor.garbage import old_objects_left_alone


def test_old_objects_are_left_alone_for_a_while():
    with old_objects_left_alone():
        during = gc.get_freeze_count()

    assert during > 0
    assert gc.get_freeze_count() == 0
