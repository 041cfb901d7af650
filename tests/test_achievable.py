"""The defaults: each that may be asked for is there, with a range and what it rests on."""

import pytest

from hrm.achievable import DEFAULTS, DeviceClass, Trait, default

CPUS = {DeviceClass.SERVER_CPU, DeviceClass.DESKTOP_CPU}
PROCESSORS = set(DeviceClass) - {DeviceClass.DISK}
GPUS = PROCESSORS - CPUS
ASKED_OF = {
    Trait.READ: set(DeviceClass),
    Trait.GEMM: PROCESSORS,
    Trait.MATRIX_UNIT: CPUS,
    Trait.EXPERT_GEMM: PROCESSORS,
    Trait.QUANTIZED_GEMM: PROCESSORS,
    Trait.PREFILL_ATTENTION: PROCESSORS,
    Trait.DECODE_ATTENTION: PROCESSORS,
    Trait.FEW_ROWS: PROCESSORS,
    Trait.LINK: set(DeviceClass),
    Trait.STAGING: CPUS,
    Trait.LAUNCH: PROCESSORS,
    Trait.LATENCY: set(DeviceClass),
}
"""What rates may ask of a class: a link asks its faster end, staging is done by the host."""
IN_UNITS = {Trait.STAGING, Trait.LAUNCH, Trait.LATENCY}


EVERY = [(trait, device_class) for trait in Trait for device_class in sorted(ASKED_OF[trait])]


def test_what_each_trait_is_asked_of_is_stated():
    assert set(ASKED_OF) == set(Trait)


@pytest.mark.parametrize(("trait", "device_class"), EVERY)
def test_every_default_lies_in_its_range_and_has_evidence(trait, device_class):
    found = default(trait, device_class)

    assert 0 < found.low <= found.value <= found.high
    assert len(found.evidence.split()) >= 5


@pytest.mark.parametrize(("trait", "device_class"), [one for one in EVERY if one[0] not in IN_UNITS])
def test_shares_of_a_peak_are_shares(trait, device_class):
    assert default(trait, device_class).high <= 1


@pytest.mark.parametrize("trait", Trait)
@pytest.mark.parametrize("device_class", DeviceClass)
def test_a_class_has_no_default_of_what_it_does_not_do(trait, device_class):
    """A disk multiplies no matrices: rather no number than that of another device."""
    if device_class in ASKED_OF[trait]:
        return
    with pytest.raises(KeyError):
        default(trait, device_class)


def test_what_a_class_states_goes_before_what_its_kind_of_device_does():
    for (trait, device_class), stated in DEFAULTS.items():
        assert default(trait, device_class) is stated
