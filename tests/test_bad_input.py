"""Whatever is handed in is used, or refused with an error that says what to mend: property tests.

The number of inputs tried is printed at the end of all tests.
"""

import contextlib
import gzip
import math
import tempfile
import typing
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from starec_ray.agent.agent import Agent
from starec_ray.agent.formats import FORMATS
from starec_ray.agent.tasks import RankTask, ReflectTask
from starec_ray.config.fields import SECTIONS, known_fields
from starec_ray.config.recipe import build, load_recipe, resolved_sections
from starec_ray.data.dataset import Dataset, load_targets
from starec_ray.data.prepare import prepare
from starec_ray.errors import ConfigError, DataError
from starec_ray.schemas import TRACES
from starec_ray.training.traces import read_traces
from tests.conftest import INPUTS_TRIED
from tests.data.conftest import SMALL
from tests.data.test_amazon import NEW_REVIEWS, lines
from tests.data.test_movielens import GOOD
from tests.data.test_recbole import INTER, ITEMS
from tests.small_world import NAMES, TARGET
from tests.tiny_recipe import tiny_recipe

tried: Counter[str] = Counter()
refused: Counter[str] = Counter()

many = settings(
    max_examples=100,
    phases=[Phase.explicit, Phase.generate],  # as found: shrinking would take minutes
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@pytest.fixture(autouse=True)
def told(record_property):
    """What each test has tried, for `pytest_terminal_summary`."""
    before, refused_before = tried.copy(), refused.copy()
    yield
    for what in tried - before:
        counts = tried[what] - before[what], refused[what] - refused_before[what]
        record_property(INPUTS_TRIED, [what, *counts])


@contextlib.contextmanager
def trying(what: str, error: type[Exception]):
    """A refusal must be of this type and say something."""
    tried[what] += 1
    try:
        yield
    except error as refusal:
        assert len(str(refusal)) > 10
        refused[what] += 1


# --- recipes ---------------------------------------------------------------------------------

scalars = (
    st.none()
    | st.booleans()
    | st.integers(-3, 10**9)
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["1e-5", "grades", "tiers", "~", "0"])
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=4,
)
known_keys = {section: sorted(fields) for section, fields in known_fields().items()}
sections = st.dictionaries(
    st.sampled_from([*SECTIONS, "run"]), st.just(None), min_size=1, max_size=3
).flatmap(
    lambda names: st.fixed_dictionaries(
        {
            name: st.dictionaries(st.sampled_from(known_keys[name]), values, max_size=3)
            for name in names
        }
    )
)
anything = st.one_of(sections, st.dictionaries(st.text(max_size=6), values, max_size=3), values)


@many
@given(recipe=anything)
def test_a_recipe_of_any_content_is_read_or_refused(recipe):
    with tempfile.TemporaryDirectory() as folder, trying("recipes", ConfigError):
        path = Path(folder) / "recipe.yaml"
        path.write_text(yaml.safe_dump(recipe, allow_unicode=True), encoding="utf-8")
        resolved_sections(load_recipe(path))


@many
@given(content=st.binary(max_size=60))
def test_a_file_of_any_bytes_is_no_recipe_or_one(content):
    with tempfile.TemporaryDirectory() as folder, trying("files as recipes", ConfigError):
        path = Path(folder) / "recipe.yaml"
        path.write_bytes(content)
        load_recipe(path)


@many
@given(
    override=st.text(max_size=20)
    | st.builds("{}={}".format, st.text(max_size=8), values)
    | st.builds("training.{}={}".format, st.sampled_from(known_keys["training"]), st.integers(1, 9))
)
def test_an_override_of_any_text_is_taken_or_refused(override, tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text("run: {iterations: 1}")
    with trying("overrides", ConfigError):
        load_recipe(path, [override])


def number_fields() -> list[tuple[str, str]]:
    """Section and key of every number of a recipe."""
    return [
        (section, key)
        for section, fields in known_fields().items()
        for key, kind in fields.items()
        if {int, float} & {kind, *typing.get_args(kind)}
    ]


NO_NUMBERS = [math.nan, math.inf, -math.inf, -1, -0.5, "many", "nan", None, True, [math.nan], {}]


@settings(many, max_examples=len(number_fields()) * len(NO_NUMBERS))  # each with each
@given(field=st.sampled_from(number_fields()), value=st.sampled_from(NO_NUMBERS))
def test_what_is_no_amount_is_refused_by_name_for_every_number_of_a_recipe(field, value):
    section, key = field
    tried["numbers of recipes"] += 1
    with pytest.raises(ConfigError, match=rf"\b{key} is "):
        build({section: {key: value}})
    refused["numbers of recipes"] += 1


# --- data files ------------------------------------------------------------------------------

METADATA = lines(
    [
        {"parent_asin": str(n), "title": f"Film {n}", "store": "Queen", "categories": ["A", "Pop"]}
        for n in range(1, 5)
    ]
)
PUBLISHED: list[tuple[str, dict[str, str | bytes]]] = [
    ("movielens-1m", dict(GOOD)),
    ("recbole", {"ml.inter": INTER, "ml.item": ITEMS}),
    ("amazon", {"Films.jsonl": NEW_REVIEWS, "meta_Films.jsonl": METADATA}),
    (
        "amazon",
        {
            "Films.jsonl.gz": gzip.compress(NEW_REVIEWS.encode()),
            "meta_Films.jsonl.gz": gzip.compress(METADATA.encode()),
        },
    ),
]
damages = st.tuples(
    st.integers(0, 10**6), st.integers(0, 12), st.binary(max_size=6) | st.just(b"\n")
)


def damaged(content: str | bytes, damage: tuple[int, int, bytes]) -> bytes:
    """Some bytes replaced by others."""
    raw = content if isinstance(content, bytes) else content.encode()
    place, length, new = damage
    place %= len(raw) + 1
    return raw[:place] + new + raw[place + length :]


@many
@given(
    published=st.sampled_from(PUBLISHED),
    number=st.integers(0, 2),
    damage=damages,
    skip=st.booleans(),
)
def test_damaged_data_files_are_read_or_refused_and_nothing_is_left(
    published, number, damage, skip
):
    with tempfile.TemporaryDirectory() as scratch:
        folder, out = Path(scratch) / "published", Path(scratch) / "out"
        folder.mkdir()
        source, contents = published[0], dict(published[1])
        name = sorted(contents)[number % len(contents)]
        contents[name] = damaged(contents[name], damage)
        for each, content in contents.items():
            raw = content if isinstance(content, bytes) else content.encode()
            (folder / each).write_bytes(raw)
        with trying("data files", DataError):
            try:
                protocol = {**SMALL, "negatives": 1}
                prepare(source, out, folder=folder, skip_bad_rows=skip, **protocol)
            except DataError:
                assert [path.name for path in Path(scratch).iterdir()] == ["published"]
                raise
            dataset, targets = Dataset.load(out), load_targets(out)
            for case_id in dataset.case_ids("train"):
                shown = {item.item_id for item in dataset.case(case_id).candidates}
                assert targets[case_id] in shown


@many
@given(name=st.sampled_from(["catalog", "cases", "users", "manifest"]), damage=damages)
def test_a_damaged_data_folder_is_read_or_refused(name, damage, small_world):
    with tempfile.TemporaryDirectory() as scratch, trying("data folders", DataError):
        for path in Path(small_world).iterdir():
            content = path.read_bytes()
            if path.stem == name:
                content = damaged(content, damage)
            (Path(scratch) / path.name).write_bytes(content)
        dataset = Dataset.load(scratch)
        for case_id in dataset.case_ids("train"):
            dataset.case(case_id)


# --- replies and traces ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def agents(small_world):
    dataset = Dataset.load(small_world)
    config = tiny_recipe(small_world, small_world, None).config
    return {
        name: Agent.from_config(config.copy().model(reply_format=name), dataset) for name in FORMATS
    }


words = st.sampled_from([*NAMES, "<think>", "</think>", "\n", ": ", "9", "0", "1. ", "\u0000"])
replies = st.text(max_size=200) | st.lists(words, max_size=30).map("".join)


@many
@given(reply=replies, reply_format=st.sampled_from(sorted(FORMATS)), reflecting=st.booleans())
def test_a_reply_of_any_text_leaves_a_whole_ranking_or_a_summary(
    reply, reply_format, reflecting, agents
):
    tried["replies"] += 1
    task = ReflectTask("u0/0", "Likes Alpha.", ("0", "1", "2", "3"), TARGET)
    read = agents[reply_format].read(task if reflecting else RankTask("u0/0", ""), reply)
    if reflecting:
        assert read["summary"] and "\n" not in read["summary"]
        return
    assert sorted(read["ranking"]) == ["0", "1", "2", "3"]
    faults = read["missing"] + read["repeated"] + read["invented"]
    assert faults == 0 or read["malformed"]


traces = st.fixed_dictionaries(
    {
        "trace_id": st.text(max_size=3),
        "kind": st.sampled_from(["rank", "reflect", "summarize", "muse"]),
        "case_id": st.sampled_from(["u0/0", "u1/1", "u2/0", "nobody/0"]),
        "teacher": st.just("chance"),
        "summary_before": st.text(max_size=5),
        "rationale": st.text(max_size=5),
        "ranking": st.none() | st.permutations(["0", "1", "2", "3"]) | st.just(["0", "0"]),
        "grades": st.none() | st.lists(st.integers(-1, 12), max_size=5),
        "predicted": st.none() | st.permutations(["0", "1", "2", "3"]) | st.just(["7"]),
        "chosen": st.none() | st.sampled_from(["3", "7"]),
        "summary": st.none() | st.text(max_size=5),
    }
)


@many
@given(rows=st.lists(traces, max_size=3), damage=st.none() | damages)
def test_a_trace_table_is_learned_from_or_refused(rows, damage, agents):
    with tempfile.TemporaryDirectory() as folder, trying("trace tables", DataError):
        path = Path(folder) / "traces.parquet"
        pq.write_table(pa.Table.from_pylist(rows, schema=TRACES), path)
        if damage:
            path.write_bytes(damaged(path.read_bytes(), damage))
        read_traces(path, agents["grades"])
