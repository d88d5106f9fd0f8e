"""The configuration: what is refused and in which words, what is the default, what never shows."""

import re
import tomllib
from datetime import UTC, datetime, time, timedelta
from ipaddress import ip_network
from pathlib import Path

import pytest
from pydantic import TypeAdapter, ValidationError
from pydantic_core import PydanticUndefined

from gateway import config
from gateway.config.file import MAX_FILE
from gateway.config.sections import NAMED, SECTIONS, keys
from gateway.config.values import Surroundings
from gateway.errors import ConfigurationError

ROOT = Path(__file__).parents[2]
BAD_CONFIGS = ROOT / "tests" / "bad_configs"
SAMPLE = ROOT / "config" / "gateway.toml"
LEAST = ROOT / "config" / "gateway.min.toml"
MANUAL = ROOT / "docs" / "configuration.md"

GATEWAY = """
[gateway]
name = "gw.hospital.example"
postmaster = "pacs-team@hospital.example"
data = "data"
"""

INBOUND = """
[smtp]
listen = "127.0.0.1:2525"

[ae.pacs]
title = "PACS"
host = "127.0.0.1"
port = 11112

[partner.clinic-a]
address = "dicom@clinic-a.example"
accept = "any"
peers = ["127.0.0.1"]

[[route]]
name = "in"
from = "clinic-a"
store = ["pacs"]
issuer = "CLINIC-A"
"""

OUTBOUND = """
[storescp]
title = "DICOMMAIL"
listen = "0.0.0.0:11112"

[relay]
host = "relay.hospital.example"
sender = "dicom@hospital.example"

[[route]]
name = "out"
called = "OPINION"
mail = ["clinic-a"]
"""


def load(folder: Path, text: str) -> config.Configuration:
    path = folder / "gateway.toml"
    path.write_text(text, encoding="utf-8")
    return config.load(path)


def refusal(folder: Path, text: str) -> str:
    with pytest.raises(ConfigurationError) as caught:
        load(folder, text)
    return str(caught.value)


def advice_keys(configuration: config.Configuration) -> list[str]:
    return [advice.key for advice in config.advice(configuration)]


# What is refused


@pytest.mark.parametrize("case", sorted(BAD_CONFIGS.glob("*.toml")), ids=lambda case: case.stem)
def test_bad_configuration_is_refused_in_the_expected_words(case: Path) -> None:
    """One line for each problem: file, key, value, what is expected, the nearest known name (R32)."""
    expected = case.with_suffix(".expected").read_text(encoding="utf-8").replace("FOLDER", str(BAD_CONFIGS))
    with pytest.raises(ConfigurationError) as caught:
        config.load(case)
    assert caught.value.exit_code == 2
    assert str(caught.value).splitlines() == [f"{case}: {line}" for line in expected.splitlines()]
    assert "CANARY" not in str(caught.value)
    assert caught.value.__cause__ is None


def test_bad_configurations_are_all_there() -> None:
    """Each case has its expected words, and there are many."""
    cases = {case.stem for case in BAD_CONFIGS.glob("*.toml")}
    assert cases == {case.stem for case in BAD_CONFIGS.glob("*.expected")}
    assert len(cases) >= 40


def test_missing_file_is_named(tmp_path: Path) -> None:
    """The path and how to name another one."""
    with pytest.raises(ConfigurationError, match=r"no\.toml: no such file; name one with --config"):
        config.load(tmp_path / "no.toml")


def test_folder_is_no_configuration(tmp_path: Path) -> None:
    """A folder is said to be one."""
    with pytest.raises(ConfigurationError, match="cannot be read: Is a directory"):
        config.load(tmp_path)


def test_name_with_nul_is_no_file_name() -> None:
    """No exception of the operating system gets through."""
    with pytest.raises(ConfigurationError, match="NUL"):
        config.load(Path("a\0b"))


def test_huge_file_is_refused_unread(tmp_path: Path) -> None:
    """Every external input has a limit."""
    path = tmp_path / "huge.toml"
    path.write_bytes(b"#" * (MAX_FILE + 1))
    with pytest.raises(ConfigurationError, match="longer than 1 MiB"):
        config.load(path)


def test_number_too_long_for_a_number_is_no_toml(tmp_path: Path) -> None:
    """Python's own limit on digits becomes a clear line."""
    assert "not TOML: Exceeds the limit" in refusal(tmp_path, f"x = {'9' * 5000}")


def test_byte_order_mark_of_windows_editors_is_taken(tmp_path: Path) -> None:
    """Notepad's mark is no part of the first key."""
    path = tmp_path / "gateway.toml"
    path.write_bytes(b"\xef\xbb\xbf" + GATEWAY.lstrip().encode())
    assert config.load(path).gateway.name == "gw.hospital.example"


def test_file_that_may_not_be_read_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The user that runs the gateway must be able to read what it is told to use."""
    (tmp_path / "tls.pem").touch()
    (tmp_path / "tls.key").touch()
    monkeypatch.setattr("gateway.config.values.os.access", lambda path, mode: path.suffix != ".key")  # noqa: ARG005 - os.access's own signature
    text = GATEWAY + '[smtp]\ncertificate = "tls.pem"\nkey_file = "tls.key"\n'
    assert refusal(tmp_path, text).endswith(f"this user may not read {tmp_path}/tls.key")


# What is loaded


def test_paths_are_absolute_and_relative_to_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It does not matter where the command is started."""
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc" / "gateway.toml").write_text(GATEWAY, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    loaded = config.load(Path("etc/gateway.toml"))
    assert loaded.gateway.data == tmp_path / "etc" / "data"
    assert loaded.source == tmp_path / "etc" / "gateway.toml"


def test_secrets_come_from_the_credentials_folder_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What LoadCredential= hands over wins, the folder of the configuration is second."""
    credentials = tmp_path / "credentials"
    credentials.mkdir()
    for place in (tmp_path, credentials):
        (place / "tls.key").touch()
    (tmp_path / "tls.pem").touch()
    text = GATEWAY + '[smtp]\ncertificate = "tls.pem"\nkey_file = "tls.key"\nusers_file = "users"\n'
    smtp = load(tmp_path, text).smtp
    assert smtp is not None
    assert smtp.key_file == tmp_path / "tls.key"
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(credentials))
    smtp = load(tmp_path, text).smtp
    assert smtp is not None
    assert smtp.key_file == credentials / "tls.key"
    assert smtp.users_file == tmp_path / "users"


def test_values_have_their_types(tmp_path: Path) -> None:
    """Durations, sizes, addresses and networks are no texts any more."""
    text = GATEWAY + INBOUND.replace("[smtp]", '[smtp]\nallow = ["10.0.0.0/8", "::1"]').replace(
        "127.0.0.1:2525", "[::1]:0"
    )
    text = text.replace("[ae.pacs]", '[ae.pacs]\ndowntime = ["Sat-Mon 22:00-24:00", "04:00-04:30"]\ncalling = " GW "')
    loaded = load(tmp_path, text + '[limits]\nmessage = "35 MB"\nheader = "1.5 KiB"\nstop = "0s"\ngive_up = "1.5h"\n')
    assert loaded.limits.message == 35_000_000
    assert loaded.limits.header == 1536
    assert loaded.limits.stop == timedelta()
    assert loaded.limits.give_up == timedelta(minutes=90)
    assert loaded.smtp is not None
    assert loaded.smtp.allow == (ip_network("10.0.0.0/8"), ip_network("::1"))
    assert loaded.smtp.listen == config.Listen("::1", 0)
    assert str(loaded.smtp.listen) == "[::1]:0"
    assert loaded.smtp.listen.loopback
    assert loaded.ae["pacs"].calling == "GW"
    assert loaded.ae["pacs"].downtime == (
        config.Downtime(frozenset({5, 6, 0}), time(22), time(0)),
        config.Downtime(frozenset(range(7)), time(4), time(4, 30)),
    )


def test_absent_sections_are_shut_doors(tmp_path: Path) -> None:
    """Only limits and log are there by themselves."""
    loaded = load(tmp_path, GATEWAY)
    assert (loaded.smtp, loaded.storescp, loaded.relay, loaded.smime) == (None, None, None, None)
    assert (loaded.console, loaded.metrics, loaded.notice) == (None, None, None)
    assert (loaded.imap, loaded.pop3, loaded.ae, loaded.partner, loaded.route) == ({}, {}, {}, {}, ())
    assert loaded.limits == config.Limits()
    assert loaded.log.level == "info"


@pytest.mark.parametrize(
    ("extra", "late"),
    [("", 15), ("urgent = true", 5), ('late = "2m"\nurgent = true', 2)],
    ids=["store", "urgent", "as set"],
)
def test_late_depends_on_the_kind_of_route(tmp_path: Path, extra: str, late: int) -> None:
    """15 minutes to a PACS, 5 when urgent."""
    loaded = load(tmp_path, GATEWAY + INBOUND + extra)
    assert loaded.route[0].late == timedelta(minutes=late)


def test_late_of_a_mail_route_is_half_an_hour(tmp_path: Path) -> None:
    """30 minutes to a mailbox."""
    assert load(tmp_path, GATEWAY + INBOUND + OUTBOUND).route[1].late == timedelta(minutes=30)


def test_ports_follow_tls(tmp_path: Path) -> None:
    """993 and 995 with implicit TLS, 143 and 110 without."""
    (tmp_path / "password").write_text("x")
    mailbox = 'host = "mail"\nuser = "dicom-in"\npassword_file = "password"\n'
    text = GATEWAY + "".join(
        f'[{kind}.{kind}-{tls}]\ntls = "{tls}"\n{mailbox}'
        for kind in ("imap", "pop3")
        for tls in ("implicit", "starttls")
    )
    loaded = load(tmp_path, text)
    assert [mailbox.port for mailbox in loaded.imap.values()] == [993, 143]
    assert [mailbox.port for mailbox in loaded.pop3.values()] == [995, 110]
    assert loaded.imap["imap-implicit"].address == "dicom-in"
    assert loaded.pop3["pop3-implicit"].address == "dicom-in"


def test_several_nodes_need_no_data_folder_of_their_own(tmp_path: Path) -> None:
    """With database and blobs, data is scratch and has its default."""
    text = GATEWAY.replace('data = "data"', 'database = "postgresql://gw:CANARY@db/gw"\nblobs = "file:///shared"')
    loaded = load(tmp_path, text)
    assert loaded.gateway.data == Path("/var/lib/dicom-mail")
    assert loaded.gateway.database is not None
    assert loaded.gateway.database.get_secret_value() == "postgresql://gw:CANARY@db/gw"


def test_free_space_is_the_smaller_of_5_gib_and_a_tenth() -> None:
    """The default follows the disk (R5)."""
    assert config.Limits().free_space_floor(10 << 30) == 1 << 30
    assert config.Limits().free_space_floor(1 << 50) == 5 << 30
    assert config.Limits(free_space=7).free_space_floor(1 << 50) == 7


def test_configuration_never_shows_what_may_be_secret(tmp_path: Path) -> None:
    """URLs with tokens and passwords are in no repr and no dump."""
    text = GATEWAY + 'database = "postgresql://gw:CANARY@db/gw"\nblobs = "s3://CANARY/x"\n'
    loaded = load(tmp_path, text + '[notice]\nwebhook = "https://hooks.example/CANARY"\n')
    assert "CANARY" not in repr(loaded)
    assert "CANARY" not in str(loaded.model_dump())
    assert "CANARY" not in loaded.model_dump_json()


def test_configuration_is_frozen(tmp_path: Path) -> None:
    """A running gateway changes its configuration only as a whole."""
    loaded = load(tmp_path, GATEWAY)
    with pytest.raises(ValidationError, match="frozen"):
        loaded.gateway.name = "other"  # type: ignore[misc]  # that it cannot be set is what is tested


def test_find_prefers_option_then_environment_then_etc() -> None:
    """--config, else $DICOM_MAIL_CONFIG, else /etc/dicom-mail/gateway.toml."""
    assert config.find(Path("a"), {"DICOM_MAIL_CONFIG": "b"}) == Path("a")
    assert config.find(None, {"DICOM_MAIL_CONFIG": "b"}) == Path("b")
    assert config.find(None, {"DICOM_MAIL_CONFIG": ""}) == config.DEFAULT_PATH
    assert config.find(None, {}) == Path("/etc/dicom-mail/gateway.toml")


# Downtime


@pytest.mark.parametrize(
    ("moment", "end"),
    [
        ("2026-11-22T23:59", None),
        ("2026-11-23T22:00", "2026-11-24T05:00"),  # Monday
        ("2026-11-24T04:59", "2026-11-24T05:00"),
        ("2026-11-24T05:00", None),
        ("2026-11-28T04:59", "2026-11-28T05:00"),  # Saturday, of what began on Friday
        ("2026-11-28T22:00", None),
    ],
)
def test_downtime_passes_midnight(moment: str, end: str | None) -> None:
    """What begins on a named day ends on the next one."""
    downtime = config.Downtime(frozenset(range(5)), time(22), time(5))
    expected = None if end is None else datetime.fromisoformat(end).replace(tzinfo=UTC)
    assert downtime.until(datetime.fromisoformat(moment).replace(tzinfo=UTC)) == expected


def test_downtime_ends_on_its_own_day() -> None:
    """Two hours on Sunday are two hours."""
    downtime = config.Downtime(frozenset({6}), time(2), time(4))
    assert downtime.until(datetime(2026, 11, 22, 3, tzinfo=UTC)) == datetime(2026, 11, 22, 4, tzinfo=UTC)
    assert downtime.until(datetime(2026, 11, 22, 4, tzinfo=UTC)) is None


# Samples and manual


def sample_with_everything(folder: Path) -> config.Configuration:
    """The sample with every setting that is commented out set, beside the files it names."""
    text = re.sub(r"^#(?=[\[a-z])", "", SAMPLE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    text = text.replace("/usr/local/bin/page", "page")
    for name in re.findall(r'"((?:partners/)?[\w-]+\.(?:pem|key|txt)|page|[\w-]+-(?:password|secret|token))"', text):
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.touch(mode=0o700)
    return load(folder, text)


def test_least_configuration_runs_as_it_is() -> None:
    """Ten lines, nothing in the way of run."""
    lines = [line for line in LEAST.read_text(encoding="utf-8").splitlines() if line and not line.startswith("#")]
    assert len(lines) <= 10
    assert not [advice for advice in config.advice(config.load(LEAST)) if advice.level == "problem"]


def test_sample_runs_as_it_is() -> None:
    """What is copied to /etc is valid before anything is changed."""
    assert not [advice for advice in config.advice(config.load(SAMPLE)) if advice.level == "problem"]


@pytest.mark.parametrize("section", SECTIONS)
def test_sample_shows_every_key_of_every_section(section: str) -> None:
    """Whoever reads the sample has seen all there is."""
    text = SAMPLE.read_text(encoding="utf-8")
    for key in keys(SECTIONS[section]):
        assert re.search(rf"\b{key} = |\.{key}\]", text), f"{section}.{key}"


def test_sample_with_everything_set_is_valid_and_shows_the_defaults(tmp_path: Path) -> None:
    """Every key that has a default is shown with it."""
    loaded = sample_with_everything(tmp_path)
    shown = {"accept", "trust", "crls", "receipt", "oauth", "identities"}
    for kind in type(loaded).model_fields:
        value = getattr(loaded, kind)
        assert value, f"[{kind}] is not in the sample"
        for section in value.values() if kind in NAMED else value if kind == "route" else [value]:
            for name, field in type(section).model_fields.items():
                default = field.get_default()
                if name in section.model_fields_set - shown and default not in (None, PydanticUndefined, ()):
                    assert getattr(section, name) == default or (kind, name) == ("gateway", "data"), f"{kind}.{name}"


def test_sample_with_everything_set_leaves_no_key_out(tmp_path: Path) -> None:
    """Each key is really set where it stands, not only spelled somewhere."""
    loaded = sample_with_everything(tmp_path)
    for kind in type(loaded).model_fields:
        value = getattr(loaded, kind)
        sections = list(value.values() if kind in NAMED else value if kind == "route" else [value])
        seen = set().union(*(section.model_fields_set for section in sections))
        left_out = set(type(sections[0]).model_fields) - seen
        assert left_out <= ({"oauth"} if kind == "relay" else set()), kind


def manual_rows() -> dict[str, dict[str, str]]:
    """Key and default of every row of the manual, by section."""
    rows: dict[str, dict[str, str]] = {}
    for block in re.split(r"^## ", MANUAL.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]:
        section = block.splitlines()[0].strip("[]")
        rows[section] = dict(re.findall(r"^\| `(\w+)` \| (.*?) \|", block, flags=re.MULTILINE))
    return rows


@pytest.mark.parametrize("section", SECTIONS)
def test_manual_has_a_row_for_every_key_with_its_default(section: str, tmp_path: Path) -> None:
    """The manual cannot fall behind the models."""
    rows, model = manual_rows()[section], SECTIONS[section]
    assert set(rows) == set(keys(model))
    around = Surroundings(Path("/"), None, {})
    for name, field in model.model_fields.items():
        cell = rows[field.alias or name]
        if field.is_required():
            assert cell == "required", name
        elif field.default is None:
            assert cell == "absent", name
        elif field.default_factory is None and name not in {"trust", "crls"}:
            value = tomllib.loads(f"x = {cell.strip('`')}")["x"]
            adapter: TypeAdapter[object] = TypeAdapter(field.rebuild_annotation())
            assert adapter.validate_python(value, context=around) == field.default, name
    del tmp_path


# Advice


def test_clean_configuration_needs_no_advice_but_for_the_disk(tmp_path: Path) -> None:
    """A quiet check is worth something only if it can be quiet."""
    loaded = load(tmp_path, GATEWAY + INBOUND)
    assert set(advice_keys(loaded)) <= {"gateway.data"}
    assert config.unbuilt(loaded) == ()


@pytest.mark.parametrize(
    ("text", "key"),
    [
        (INBOUND.replace('peers = ["127.0.0.1"]', ""), "partner.clinic-a.accept"),
        (INBOUND.replace('"any"', '"signed"'), "partner.clinic-a.accept"),
        (INBOUND.replace("127.0.0.1:2525", "0.0.0.0:2525"), "smtp.certificate"),
        (INBOUND.replace('host = "127.0.0.1"', 'host = "10.0.0.5"'), "ae.pacs.tls"),
        (INBOUND.replace('issuer = "CLINIC-A"', ""), 'route "in".issuer'),
        (INBOUND.replace("peers =", 'smtp_user = "a"\npeers ='), "partner.clinic-a.smtp_user"),
        (INBOUND.replace('[smtp]\nlisten = "127.0.0.1:2525"', ""), "route"),
        ('[smtp]\nlisten = "127.0.0.1:2525"', "route"),
        ("", "gateway"),
        (INBOUND + OUTBOUND, "storescp.addresses"),
        (INBOUND + OUTBOUND.replace("[relay]", 'callers = ["CT1"]\n[relay]'), "storescp.addresses"),
        (INBOUND + OUTBOUND, "storescp.tls"),
        (INBOUND + OUTBOUND.replace("sender", 'tls = "none"\nsender'), "relay.tls"),
        (INBOUND.replace("accept", 'send = "plain"\naccept'), "partner.clinic-a.send"),
        ('[console]\nlisten = "0.0.0.0:8080"\nbehind_proxy = true', "console.behind_proxy"),
        ('[pop3.x]\nhost = "mail"\nuser = "u"\npassword_file = "gateway.toml"\ntls = "none"', "pop3.x.tls"),
        ('[imap.x]\nhost = "mail"\nuser = "u"\npassword_file = "gateway.toml"\ntls = "none"', "imap.x.tls"),
        ('[pop3.x]\nhost = "mail"\nuser = "u"\npassword_file = "gateway.toml"\nother = "move"', "pop3.x.other"),
        (INBOUND + '[imap.x]\nhost = "mail"\nuser = "u"\npassword_file = "gateway.toml"', "partner.clinic-a"),
    ],
)
def test_what_stands_open_is_named(tmp_path: Path, text: str, key: str) -> None:
    """Each open door, clear hop and foreign identity has its line."""
    assert key in advice_keys(load(tmp_path, GATEWAY + text))


SECOND = '[[route]]\nname = "too"\nfrom = "clinic-a"\nto = "b@gw.hospital.example"\nstore = ["pacs"]\n'


@pytest.mark.parametrize(
    ("first", "second", "clash"),
    [
        ("", 'patient_id = "prefix:B-"\n', True),
        ("", 'issuer = "CLINIC-A"\n', False),
        ('to = "b@gw.hospital.example"\n', 'patient_id = "prefix:B-"\n', False),
        ("", 'mailbox = "x"\npatient_id = "prefix:B-"\n', False),
    ],
)
def test_routes_that_would_change_one_mail_differently_are_named(
    tmp_path: Path, first: str, second: str, clash: bool
) -> None:
    """Such a mail is held, so somebody should know before it comes."""
    mailbox = '[imap.x]\nhost = "localhost"\nuser = "u"\npassword_file = "gateway.toml"\n'
    found = [a.what for a in config.advice(load(tmp_path, GATEWAY + INBOUND + first + SECOND + second + mailbox))]
    assert ('a mail that takes route "in" too is held: their rules for patients differ' in found) is clash


@pytest.mark.parametrize(
    ("one", "other", "clash"),
    [("clinic-a", "clinic-b", False), ("clinic-a", "*", True), ("*@x.example", "clinic-b", True)],
)
def test_routes_of_two_partners_never_share_a_mail(tmp_path: Path, one: str, other: str, clash: bool) -> None:
    """A mail has one sender."""
    partner = '[partner.clinic-b]\naddress = "b@clinic-b.example"\n'
    text = INBOUND.replace('from = "clinic-a"', f'from = "{one}"')
    text += SECOND.replace('from = "clinic-a"', f'from = "{other}"') + 'patient_id = "prefix:B-"\n' + partner
    assert any("rules for patients differ" in a.what for a in config.advice(load(tmp_path, GATEWAY + text))) is clash


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ('issuer = "Größe"', "expected 1 to 64 ASCII characters without backslash"),
        ('issuer = " A"', "expected 1 to 64 ASCII characters without backslash"),
        ('issuer = ""', "expected 1 to 64 ASCII characters without backslash"),
        ('patient_id = "prefix:Ä-"', "a prefix of 1 to 32 ASCII characters"),
        ('patient_id = "prefix:"', "a prefix of 1 to 32 ASCII characters"),
    ],
)
def test_what_is_written_into_a_data_set_is_the_same_in_every_character_set(
    tmp_path: Path, setting: str, said: str
) -> None:
    """The data set may be in any (PS3.5 6.1.2.1)."""
    assert said in refusal(tmp_path, GATEWAY + INBOUND.replace('issuer = "CLINIC-A"', setting))


def test_tls_that_is_not_required_is_named(tmp_path: Path) -> None:
    """A certificate alone keeps nobody from sending in the clear; users without a file cannot log in."""
    for name in ("tls.pem", "tls.key"):
        (tmp_path / name).touch(mode=0o600)
    smtp = '[smtp]\nlisten = "0.0.0.0:25"\ncertificate = "tls.pem"\nkey_file = "tls.key"\nusers_file = "users"\n'
    assert {"smtp.require_tls", "smtp.users_file"} <= set(advice_keys(load(tmp_path, GATEWAY + smtp)))


def test_open_storescp_with_a_mail_route_blocks_run(tmp_path: Path) -> None:
    """Anybody could have images mailed out: run refuses, callers or addresses allow it."""
    open_door = load(tmp_path, GATEWAY + INBOUND + OUTBOUND)
    assert "storescp.addresses" in {advice.key for advice in config.advice(open_door) if advice.blocks}
    bound = load(tmp_path, GATEWAY + INBOUND + OUTBOUND.replace("[relay]", 'addresses = ["10.0.0.0/8"]\n[relay]'))
    assert "storescp.addresses" not in advice_keys(bound)
    local = load(tmp_path, GATEWAY + INBOUND + OUTBOUND.replace("0.0.0.0", "127.0.0.1"))
    assert "storescp.addresses" not in advice_keys(local)


def test_files_that_others_can_read_are_named(tmp_path: Path) -> None:
    """Secrets and the data folder are for one user."""
    (tmp_path / "password").touch()
    (tmp_path / "password").chmod(0o644)
    (tmp_path / "data").mkdir(mode=0o755)
    mailbox = '[imap.x]\nhost = "localhost"\nuser = "u"\npassword_file = "password"\n'
    loaded = load(tmp_path, GATEWAY + mailbox)
    found = {advice.key: advice for advice in config.advice(loaded)}
    assert found["imap.x.password_file"].do == f"chmod o=,g-w {tmp_path}/password"
    assert any("others may look into" in advice.what for advice in config.advice(loaded))
    (tmp_path / "password").chmod(0o640)
    (tmp_path / "data").chmod(0o700)
    assert "imap.x.password_file" not in advice_keys(loaded)
    assert not any("others may" in advice.what for advice in config.advice(loaded))


def test_secret_files_in_inline_tables_are_looked_at(tmp_path: Path) -> None:
    """A key in tls = {…} or identities = [{…}] is as secret as any."""
    for name in ("a.pem", "a.key"):
        (tmp_path / name).touch()
        (tmp_path / name).chmod(0o644)
    pair = '{ certificate = "a.pem", key_file = "a.key" }'
    text = INBOUND.replace("[partner", f"tls = {pair}\n[partner") + f"\n[smime]\nidentities = [{pair}]\n"
    assert {"ae.pacs.tls.key_file", "smime.identities[1].key_file"} <= set(advice_keys(load(tmp_path, GATEWAY + text)))


@pytest.mark.parametrize("uuid", ["CRYPT-LUKS2-0", "LVM-0"])
def test_encrypted_volume_is_known_through_what_it_is_built_on(tmp_path: Path, uuid: str) -> None:
    """LVM on dm-crypt is encrypted, LVM on a disk is not."""
    from gateway.config.review import _encrypted

    device = tmp_path.stat().st_dev
    volume = tmp_path / f"{device >> 8 & 0xFFF}:{device & 0xFF | device >> 12 & ~0xFF}"
    for block in (volume, volume / "slaves" / "dm-1"):
        (block / "dm").mkdir(parents=True)
    (volume / "dm" / "uuid").write_text("LVM-1")
    (volume / "slaves" / "dm-1" / "dm" / "uuid").write_text(uuid)
    assert _encrypted(tmp_path / "not" / "there", devices=tmp_path) == uuid.startswith("CRYPT-")


# Not built yet


@pytest.mark.parametrize(
    ("text", "key", "blocks"),
    [
        (INBOUND.replace("accept", 'receipt = "15m"\naccept') + OUTBOUND, "partner.clinic-a.receipt", True),
        (INBOUND.replace("accept", 'receipt = "15m"\naccept'), "partner.clinic-a.receipt", False),
    ],
)
def test_what_is_not_built_is_named_and_blocks_what_depends_on_it(
    tmp_path: Path, text: str, key: str, blocks: bool
) -> None:
    """Validated, named by check, and refused by run where a route depends on it."""
    found = {advice.key: advice for advice in config.unbuilt(load(tmp_path, GATEWAY + text))}
    assert found[key].blocks is blocks
    assert found[key].level == ("problem" if blocks else "warning")


@pytest.mark.parametrize("used", [True, False])
def test_commitment_needs_a_door_for_its_reports(tmp_path: Path, used: bool) -> None:
    """A PACS reports on an association of its own (SC-3); without a listener nothing would ever be delivered."""
    spare = '[ae.spare]\ntitle = "B"\nhost = "127.0.0.1"\nport = 1\nconfirm = "commitment"\n'
    text = INBOUND.replace("[partner", 'confirm = "commitment"\n[partner') if used else INBOUND + spare
    found = {one.key: one for one in config.advice(load(tmp_path, GATEWAY + text))}
    assert found["ae.pacs.confirm" if used else "ae.spare.confirm"].blocks is used
    opened = text + '[storescp]\ntitle = "GW"\nlisten = "127.0.0.1:0"\n'
    assert not [one for one in config.advice(load(tmp_path, GATEWAY + opened)) if one.key.endswith(".confirm")]


def test_clear_text_leaves_only_where_a_partner_says_so(tmp_path: Path) -> None:
    """The default protects, and this release cannot: run refuses; so it does where nobody can be mailed at (R21)."""

    def blocking(text: str) -> set[str]:
        return {one.key for one in config.advice(load(tmp_path, GATEWAY + text + OUTBOUND)) if one.blocks}

    assert "partner.clinic-a.send" in blocking(INBOUND)
    assert "partner.clinic-a.send" in blocking(INBOUND.replace("accept", 'send = "signed"\naccept'))
    assert "partner.clinic-a.send" not in blocking(INBOUND.replace("accept", 'send = "plain"\naccept'))
    assert "partner.clinic-a.address" in blocking(INBOUND.replace("dicom@clinic-a", "*@clinic-a"))


def test_several_nodes_block_run(tmp_path: Path) -> None:
    """A database that is not used would look like one that is."""
    text = GATEWAY + 'database = "postgresql://db/gw"\nblobs = "s3://b/p"\n' + INBOUND
    assert [a.key for a in config.unbuilt(load(tmp_path, text)) if a.blocks][:2] == [
        "gateway.database",
        "gateway.blobs",
    ]


@pytest.mark.parametrize(
    "setting",
    ['confirm = "find"', 'transcode = "lossless"', 'downtime = ["Sun 02:00-04:00"]'],
)
def test_what_is_built_already_is_not_named(tmp_path: Path, setting: str) -> None:
    """A key that is set to what happens anyway is no news."""
    rules = 'patient_id = "prefix:A-"\naccession = "clear"\npatient_mismatch = "accept"\n'
    text = INBOUND.replace("[partner", f"{setting}\n[partner") + rules + "bare_dicom = true\nuuencode = true\n"
    assert config.unbuilt(load(tmp_path, GATEWAY + text)) == ()


def test_every_row_of_what_is_not_built_names_a_real_key() -> None:
    """A key that was renamed would silently count as built."""
    from gateway.config.review import _UNBUILT

    known = {*SECTIONS, *(f"{section}.{key}" for section, model in SECTIONS.items() for key in keys(model))}
    assert {row.key for row in _UNBUILT} <= known


def test_manual_says_what_is_not_built() -> None:
    """Every key that does nothing yet is named where people look it up."""
    from gateway.config.review import _UNBUILT

    paragraph = MANUAL.read_text(encoding="utf-8").partition("Not acted upon yet:")[2].partition("\n\n")[0]
    named = {word.split(" = ")[0].rpartition(".")[2] for word in re.findall(r"`([^`]+)`", paragraph)}
    assert {row.key.removesuffix(".NAME").rpartition(".")[2] for row in _UNBUILT} == named - {"store"}


# Reload


def test_reload_takes_over_routes_and_names_the_rest(tmp_path: Path) -> None:
    """Routes, partners, AEs, SCP titles, certificates and users; any other change needs a restart."""
    old = load(tmp_path, GATEWAY + INBOUND + OUTBOUND)
    text = GATEWAY + INBOUND.replace("11112", "104").replace('"in"', '"to the PACS"') + OUTBOUND
    assert config.restart_needed(old, old) == ()
    assert config.restart_needed(old, load(tmp_path, text.replace('"DICOMMAIL"', '"OTHER"'))) == ()
    changed = (
        text.replace(":2525", ":2526").replace("gw.hospital", "gateway.hospital") + '[limits]\nstop = "5s"\n[console]\n'
    )
    assert config.restart_needed(old, load(tmp_path, changed)) == (
        "gateway.name",
        "limits.stop",
        "smtp.listen",
        "console",
    )


def test_what_needs_a_restart_stays_as_it_was_until_then(tmp_path: Path) -> None:
    """No part of the gateway goes by another data folder, relay or limit than the rest; each reload says so again."""
    relay = '[relay]\nhost = "old.test"\nport = 587\nsender = "gw@hospital.test"\n'
    old = load(tmp_path, GATEWAY + INBOUND + '[storescp]\ntitle = "A"\nlisten = "127.0.0.1:11112"\n' + relay)
    text = GATEWAY.replace("gw.hospital", "gateway.hospital") + INBOUND.replace("11112", "104")
    more = '[storescp]\ntitle = "B"\nlisten = "127.0.0.1:104"\n[limits]\nstop = "5s"\n[console]\n'
    new = load(tmp_path, text + more)
    held = config.in_force(old, new)
    assert (held.gateway, held.limits, held.relay, held.console) == (old.gateway, old.limits, old.relay, None)
    assert (held.ae, held.source) == (new.ae, new.source)
    assert held.storescp is not None
    assert old.storescp is not None
    assert (held.storescp.title, held.storescp.listen) == ("B", old.storescp.listen)
    needed = config.restart_needed(old, new)
    assert needed == ("gateway.name", "limits.stop", "storescp.listen", "relay", "console")
    assert config.restart_needed(held, new) == needed
    assert config.restart_needed(old, held) == ()
    assert config.in_force(old, old) == old
    assert {one.key for one in config.advice(held)} == {one.key for one in config.advice(old)}


def test_reload_takes_over_the_dicom_door(tmp_path: Path) -> None:
    """All of it but where it listens; and only that is named."""
    door = '[storescp]\ntitle = "A"\nlisten = "127.0.0.1:11112"\n'
    old = load(tmp_path, GATEWAY + INBOUND + door)
    more = (
        'callers = ["B"]\naddresses = ["10.0.0.0/8"]\nassociations = 3\nmax_pdu = 32768\nunknown_classes = "refuse"\n'
    )
    assert config.restart_needed(old, load(tmp_path, GATEWAY + INBOUND + door + more)) == ()
    moved = load(tmp_path, GATEWAY + INBOUND + (door + more).replace("11112", "11113"))
    assert config.restart_needed(old, moved) == ("storescp.listen",)


def test_reload_takes_over_certificates(tmp_path: Path) -> None:
    """A new certificate under a new name is still a certificate."""
    for name in ("a.pem", "b.pem"):
        (tmp_path / name).touch()
    text = GATEWAY + INBOUND.replace("[ae", 'certificate = "a.pem"\nkey_file = "a.pem"\n[ae')
    assert config.restart_needed(load(tmp_path, text), load(tmp_path, text.replace("a.pem", "b.pem"))) == ()


def test_what_a_door_begins_or_ends_with_needs_a_restart(tmp_path: Path) -> None:
    """Logins, and TLS of the console; the relay is checked with the anchors of its start."""
    for name in ("a.pem", "b.pem"):
        (tmp_path / name).touch()
    smtp = INBOUND.replace("[ae", 'certificate = "a.pem"\nkey_file = "a.pem"\n[ae')
    relay = '[relay]\nhost = "relay.test"\nsender = "gw@hospital.test"\nca = "a.pem"\n[console]\n'
    text = GATEWAY + smtp + relay
    old = load(tmp_path, text)
    assert config.restart_needed(load(tmp_path, GATEWAY + INBOUND + relay), old) == ()
    users = load(tmp_path, text.replace("[ae", 'users_file = "u"\n[ae') + 'users_file = "u"\n')
    assert config.restart_needed(old, users) == ("smtp.users_file", "console.users_file")
    assert config.restart_needed(users, old) == ("smtp.users_file", "console.users_file")
    assert config.restart_needed(old, load(tmp_path, GATEWAY + INBOUND + relay)) == (
        "smtp.certificate",
        "smtp.key_file",
    )
    secured = load(tmp_path, text + 'certificate = "a.pem"\nkey_file = "a.pem"\n')
    assert config.restart_needed(old, secured) == ("console.certificate", "console.key_file")
    other = load(tmp_path, text.replace('ca = "a.pem"', 'ca = "b.pem"'))
    assert config.restart_needed(old, other) == ("relay.ca",)
