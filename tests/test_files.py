"""Files: read strictly, written whole, numbers that stay numbers."""

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from hrm.errors import FileError, SchemaError
from hrm.files import atomic_writer, check_output, from_plain, read_json, read_yaml, to_plain, write_json, write_yaml
from hrm.hardware import HardwareProfile, bundled_profiles, load_profile
from hrm.units import GIB, format_bytes, format_s
from tests.machines import machine, machines


def edited(tmp_path, edit):
    """Write the case study's profile after an edit of its text."""
    (source,) = (path for path in bundled_profiles() if path.stem == "l4-case-study")
    before = source.read_text()
    after = edit(before)
    assert after != before
    path = tmp_path / "machine.yaml"
    path.write_text(after)
    return path


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("1.6e+10", "1.6e10", "links.h2d.bytes_per_s.peak: input should be a valid number, got '1.6e10' (YAML reads"),
        ("1.6e+10", "1e12", "write 1.000000e+12"),
        ("1.6e+10", "'16 GB/s'", "got '16 GB/s'"),
        ("1.6e+10", ".nan", "links.h2d.bytes_per_s.peak"),
        ("1.6e+10", ".inf", "links.h2d.bytes_per_s.peak"),
        ("1.6e+10", "-1", "greater than 0"),
        ("{peak: 1.6e+10}", "{}", "needs `peak`, `measured` or both"),
        ("{peak: 1.6e+10}", "{speed: 1.6e+10}", "links.h2d.bytes_per_s.speed: unknown key"),
        ("source: cpu", "source: host", "'host' is no level (levels: ['cpu', 'gpu'])"),
        ("d2h: {", "down: {", "needs the links h2d and d2h"),
        ("usable_bytes: 197880360960", "usable_bytes: 297880360960", "exceeds capacity_bytes"),
        ("usable_bytes: 197880360960", "usable_bytes: true", "levels.cpu.usable_bytes"),
        ("name: l4-case-study", "title: l4", "title: unknown key"),
        ("schema_version: 1", "schema_version: 7", "schema_version"),
        ("  cpu:\n", "  host:\n", "levels.cpu: required level is missing"),
        ("float16: {peak: 2.42", "half: {peak: 2.42", "levels.gpu.compute_flop_per_s"),
    ],
)
def test_a_wrong_profile_is_refused_in_one_line(tmp_path, old, new, said):
    path = edited(tmp_path, lambda text: text.replace(old, new, 1))

    with pytest.raises(SchemaError) as caught:
        load_profile(path)

    assert str(caught.value).startswith(str(path))
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("read", [read_yaml, read_json])
def test_unreadable_files_are_refused_by_name(tmp_path, read):
    broken, listed, binary = (tmp_path / name for name in ("broken", "listed", "binary"))
    broken.write_text("{a: [1")
    listed.write_text("[1, 2]")
    binary.write_bytes(b"\xff\xfe\x00")
    said = {tmp_path / "none": "no such file", tmp_path: "is a directory", broken: "not valid", listed: "holds list"}

    for path, text in (said | {binary: "cannot be read"}).items():
        with pytest.raises(FileError) as caught:
            read(path)

        assert str(path) in str(caught.value)
        assert text in str(caught.value)
        assert "\n" not in str(caught.value)


def test_an_unknown_machine_lists_the_bundled_ones():
    with pytest.raises(FileError, match=r"--hardware l5: no bundled profile.*l4-case-study"):
        load_profile("l5")


@pytest.mark.parametrize("path", list(bundled_profiles()), ids=lambda path: path.stem)
def test_bundled_profiles_load_and_say_where_their_numbers_come_from(path):
    profile = load_profile(path)
    fields = [f"levels.{name}.{field}" for name in profile.levels for field in ("capacity_bytes", "read_bytes_per_s")]
    fields += [f"links.{name}.bytes_per_s" for name in profile.links]

    assert profile.name == path.stem
    for field in fields:
        assert any(f"{named}.".startswith(f"{field}.") for named in profile.provenance)


@given(machines())
def test_a_profile_comes_back_from_plain_data(hardware):
    assert from_plain(HardwareProfile, to_plain(hardware), where="here") == hardware


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_yaml_reads_written_numbers_as_numbers(tmp_path_factory, number):
    path = tmp_path_factory.mktemp("yaml") / "number.yaml"
    write_yaml(path, {"number": number})
    back = read_yaml(path)["number"]

    assert isinstance(back, float | int)
    assert back == pytest.approx(number, rel=1e-5)


def test_what_cannot_be_a_number_is_null_in_json(tmp_path):
    write_json(tmp_path / "a.json", {"rate": float("inf"), "machine": machine()})

    assert read_json(tmp_path / "a.json")["rate"] is None
    assert read_json(tmp_path / "a.json")["machine"] == to_plain(machine())


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "out.yaml"
    write_yaml(path, {"a": 1})

    with pytest.raises(TypeError), atomic_writer(path) as stream:
        stream.writelines(["a: 2\n", b"not text"])

    assert yaml.safe_load(path.read_text()) == {"a": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_an_output_that_cannot_be_written_is_refused_before_the_work(tmp_path):
    check_output(tmp_path / "new.yaml")
    for path, said in ((tmp_path / "no" / "x.yaml", "does not exist"), (tmp_path, "is a folder")):
        with pytest.raises(FileError, match=said):
            check_output(path)


def test_units_are_printed_with_their_names():
    assert (format_bytes(24 * GIB), format_s(2e-6)) == ("24 GiB", "2 us")
