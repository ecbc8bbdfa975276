"""`docs/protocol.md` against the code: its bytes, its tables, its limits.

Run as a script it prints the worked example's blocks as the code makes them, for whoever changes the page.

Longer than 350 lines, because the worked example and the checks of the page belong together.
"""

import json
import re
import sys
import zlib
from dataclasses import MISSING, fields, replace
from importlib import import_module
from pathlib import Path
from typing import Final

import independent_client as independent
import independent_codecs as codecs
import msgpack
import numpy as np
import pytest
from fedmq.aggregator.admission import AdmissionSettings
from fedmq.aggregator.decision import Arrival
from fedmq.aggregator.engine import Engine
from fedmq.aggregator.ledger import Ledger
from fedmq.aggregator.pruning import KEPT_MASKS
from fedmq.aggregator.publisher import Publisher, PublishSettings
from fedmq.aggregator.settings import AggregatorSettings
from fedmq.aggregator.strategy import FoldSettings, init, make_rule
from fedmq.edge_agent.download import WINDOW
from fedmq.edge_agent.feedback import encode_with_feedback
from fedmq.edge_agent.session import PULL_SECONDS, RECEIPT_GRACE
from fedmq.edge_agent.upload import MIN_CHUNK_BYTES

from fedmq import encoding, envelope, wire
from fedmq.chunks import checksum, split
from fedmq.codecs import BUILT_IN, Geometry, parse_pipeline, splitmix
from fedmq.connection import ConnectionSettings
from fedmq.envelope import HEADER_BYTES, Kind
from fedmq.errors import WireError
from fedmq.layout import ParamLayout, Segment, SegmentKind
from fedmq.mask import Mask
from fedmq.plan import DEFAULT_CHUNK_BYTES, DEFAULT_MAX_UPDATE_BYTES, Plan
from fedmq.share import Share
from fedmq.topics import Topics
from fedmq.types import (
    Chunk,
    ClientId,
    ModelUpdate,
    ModelVersion,
    ParamVector,
    Presence,
    PresenceState,
    Refusal,
    Rejection,
    UpdateId,
)

TEXT: Final = (Path(__file__).parents[2] / "docs" / "protocol.md").read_text(encoding="utf-8")
CODEC: Final = "topk(0.4) | ternary | rice"
LAYOUT: Final = ParamLayout(
    (
        Segment(name="linear.weight", shape=(1, 4)),
        Segment(name="linear.bias", shape=(1,)),
        Segment(name="norm.mean", shape=(1,), kind=SegmentKind.BUFFER),
    )
)
CLIENT: Final = ClientId("ada")
EPOCH, OUTBOX = 1001, 2002
#: Of the client's second update.
LATER: Final = np.array([0.4, 0.0, 0.0, 0.0, -0.4, 0.25], np.float32)


def _update(seq: int, floor: int, model_epoch: int, base: ParamVector, delta: ParamVector) -> bytes:
    encoded = encode_with_feedback(LAYOUT, parse_pipeline(CODEC), delta, None)
    return wire.pack_update(
        ModelUpdate(
            id=UpdateId(client=CLIENT, epoch=OUTBOX, seq=seq),
            floor=floor,
            model_epoch=model_epoch,
            base_version=ModelVersion(0),
            fingerprint=LAYOUT.fingerprint,
            num_examples=32,
            local_steps=4,
            codec=CODEC,
            payload=encoded.payload,
            metrics=(("loss", 0.5),),
        )
    )


def worked_example() -> dict[str, bytes]:
    """Every message of the page's worked example, made by the parts that make them in production."""
    vector = np.array([0.1, 0.5, -0.25, 0.75, 1.0, 0.0], np.float32)
    rule = make_rule(FoldSettings(strategy="fedasync", staleness="constant", learning_rate=1.0))
    engine = Engine(
        epoch=EPOCH,
        layout=LAYOUT,
        rule=rule,
        state=init(rule, vector),
        ledger=Ledger(),
        admission=AdmissionSettings(),
        max_update_bytes=67_108_864,
    )
    publisher = Publisher(
        PublishSettings(
            keyframe_codec="float16",
            frame_codec=CODEC,
            delta_codec="topk(0.4) | int8 | rice",
            frame_versions=2,
        )
    )
    # With six scalars a second frame does not pay.
    publisher._stacking.place = lambda _version, frames, _size, _most: len(frames)  # type: ignore[method-assign]
    first = publisher.publish(engine.model)
    ((_, (keyframe,)),) = first.objects
    base = encoding.decode(LAYOUT, parse_pipeline("float16"), keyframe).to_dense()
    delta = np.array([0.02, 0.3, -0.01, -0.2, 0.05, 0.5], np.float32)
    update = _update(1, 1, EPOCH, base, delta)
    refused = _update(3, 1, 999, base, delta)

    receipts = []
    for message in (update, refused):
        engine.commit(engine.offer([Arrival(client=CLIENT, message=message)]))
        receipts.append(wire.pack_receipt(engine.ledger.get(CLIENT, OUTBOX)))
    second = publisher.publish(engine.model)
    engine.commit(engine.offer([Arrival(client=CLIENT, message=_update(2, 1, EPOCH, base, LATER))]))
    third = publisher.publish(engine.model)
    ((_, (frame,)),) = third.objects
    pieces = split(update, 100)
    chunk = Chunk(
        id=UpdateId(client=CLIENT, epoch=OUTBOX, seq=1),
        index=1,
        count=len(pieces),
        size=len(update),
        digest=checksum(update),
        data=pieces[1],
    )

    def presence(kind: Kind, state: PresenceState, boot: int, epoch: int) -> bytes:
        return wire.pack_presence(kind, Presence(state=state, boot=boot, epoch=epoch, software="fedmq 0.1.0"))

    return {
        "layout": msgpack.packb([[s.name, list(s.shape), s.dtype, str(s.kind)] for s in LAYOUT.shared]),
        "fingerprint": LAYOUT.fingerprint,
        "aggregator": presence(Kind.AGGREGATOR, PresenceState.ONLINE, 4004, EPOCH),
        "client": presence(Kind.CLIENT, PresenceState.ONLINE, 3003, OUTBOX),
        "will": presence(Kind.CLIENT, PresenceState.OFFLINE, 3003, OUTBOX),
        "plan": wire.pack_plan(
            Plan(
                epoch=EPOCH,
                layout=LAYOUT,
                trainer="linear",
                trainer_settings=(("learning_rate", 0.1),),
                codec=CODEC,
            )
        ),
        "keyframe": keyframe,
        "head": wire.pack_head(first.head),
        "base": base.astype("<f4").tobytes(),
        "update": update,
        "payload": wire.unpack_update(update).payload,
        "chunk": wire.pack_chunk(chunk),
        "receipt": receipts[0],
        "refusal": receipts[1],
        "share": wire.pack_share(
            Share(boot=4004, local_steps=40, codec="topk(0.2) | ternary | rice", wait=2.5, jitter=5.0)
        ),
        "head-1": wire.pack_head(second.head),
        "frame": frame,
        "head-2": wire.pack_head(third.head),
    }


def render(value: object, indent: str = "") -> str:
    """A decoded body as the page writes it: bytes as h'…', one entry of the outer map a line."""
    match value:
        case dict() if not indent:
            lines = [f"  {json.dumps(key)}: {render(entry, '  ')}" for key, entry in value.items()]
            return "{\n" + ",\n".join(lines) + "\n}"
        case dict():
            return "{" + ", ".join(f"{json.dumps(k)}: {render(v, indent)}" for k, v in value.items()) + "}"
        case list():
            return "[" + ", ".join(render(entry, indent) for entry in value) + "]"
        case bytes():
            return f"h'{value.hex()}'"
        case _:
            return json.dumps(value)


def blocks(kind: str) -> dict[str, str]:
    """The page's fenced blocks of one kind, by what follows the kind on the fence's line."""
    return dict(re.findall(rf"^```{kind} ([^\n]+)\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL))


def tables(heading: str) -> list[list[list[str]]]:
    """The tables between a heading and the next one: rows of cells, without the heads."""
    section = re.search(rf"^#+ {re.escape(heading)}\n(.*?)(?=^#|\Z)", TEXT, re.MULTILINE | re.DOTALL)
    assert section is not None, f"docs/protocol.md has no heading {heading!r}"
    found = re.findall(r"^\|.*\n\|[-|]+\n((?:\|.*\n)+)", section[1], re.MULTILINE)
    return [[[c.strip() for c in row.strip("|").split("|")] for row in rows.splitlines()] for rows in found]


def codes(cell: str) -> list[str]:
    """What stands between backticks in a cell."""
    return re.findall(r"`([^`]+)`", cell)


def body_of(message: bytes) -> dict[str, object]:
    """The map in an envelope."""
    body: dict[str, object] = msgpack.unpackb(message[HEADER_BYTES:])
    return body


def sealed(message: bytes, body: dict[str, object]) -> bytes:
    """Another body in the same envelope, its CRC right."""
    return envelope.pack(envelope.kind_of(message), body)


EXAMPLE: Final = worked_example()
HEX: Final = blocks("hex")
MAPS: Final = blocks("map")
CODECS: Final = blocks("codec")
WORDS: Final = blocks("words")


@pytest.mark.parametrize("name", EXAMPLE)
def test_each_message_of_the_worked_example_is_what_the_code_makes(name: str) -> None:
    """Run this file as a script to print the blocks anew."""
    page = bytes.fromhex(HEX[name])

    assert EXAMPLE[name] == page


def test_the_page_shows_no_other_bytes() -> None:
    """A block that nothing checks could rot."""
    assert EXAMPLE.keys() == HEX.keys()


@pytest.mark.parametrize("name", MAPS)
def test_each_decoded_map_is_what_its_bytes_hold(name: str) -> None:
    """The page's two forms of one message agree."""
    page = " ".join(MAPS[name].split())

    assert " ".join(render(body_of(EXAMPLE[name])).split()) == page


def test_the_decoded_models_of_the_page_are_right() -> None:
    """The vectors in the prose: the first head's, and those of the later ones but for the rounding of float16."""
    base = encoding.decode(LAYOUT, parse_pipeline("float16"), EXAMPLE["keyframe"]).to_dense()
    heads = {name: wire.unpack_head(EXAMPLE[name]) for name in ("head-1", "head-2")}
    vectors = {name: base.copy() for name in heads}
    delta = heads["head-1"].delta
    assert delta is not None
    assert isinstance(delta.content, bytes)
    encoding.decode(LAYOUT, parse_pipeline(delta.codec), delta.content).add_to(vectors["head-1"])
    encoding.decode(LAYOUT, parse_pipeline(CODEC), EXAMPLE["frame"]).add_to(vectors["head-2"])

    assert [0.0999755859375, 0.5, -0.25, 0.75, 1.0, 0.0] == base.tolist()
    for name, head in heads.items():
        assert head.digest == encoding.digest(vectors[name])
        assert head.digest == independent.digest(vectors[name].tolist())
    np.testing.assert_allclose([0.1, 0.75, -0.25, 0.5, 1.0, 0.5], vectors["head-1"], atol=1e-4)
    np.testing.assert_allclose([0.5, 0.5, -0.25, 0.75, 0.6, 0.75], vectors["head-2"], atol=1e-4)


def test_the_independent_client_assembles_each_head_of_the_page() -> None:
    """With nothing but the page's bytes: plan, objects, heads."""
    layout = independent.read_layout(body_of(EXAMPLE["plan"])["l"])  # type: ignore[arg-type]
    objects = {encoding.object_id(EXAMPLE[name]): EXAMPLE[name] for name in ("keyframe", "frame")}

    for name in ("head", "head-1", "head-2"):
        head = independent.unseal(independent.MODEL, EXAMPLE[name])
        assert wire.unpack_head(EXAMPLE[name]).digest == independent.digest(
            independent.assemble(layout, head, objects)
        )


@pytest.mark.parametrize("text", CODECS)
def test_each_codec_example_holds_for_the_code_and_for_the_independent_client(text: str) -> None:
    """Both encode the page's vector to the page's bytes, and both decode these to the page's values.

    What the independent client only decodes, or encodes in a way of its own, is left out there.
    """
    lines = dict(line.split(":") for line in CODECS[text].splitlines())
    vector, decoded = ([float(number) for number in lines[key].split()] for key in ("vector", "decoded"))
    payload = bytes.fromhex(lines["payload"])
    pipeline, own = parse_pipeline(text), codecs.parse(text)
    sides = [matrix.split("x") for matrix in lines.get("matrices", f"1x{len(vector)}").split()]
    geometry = Geometry(tuple((int(rows), int(columns)) for rows, columns in sides))

    assert payload == pipeline.encode(np.array(vector, np.float32), geometry)
    if not {"lowrank", "deadzone", "rows", "range"} & {stage.id for stage in pipeline.stages}:
        assert payload == codecs.encode_codec(own, vector, list(geometry.shapes))
    expected = np.array(decoded, np.float32)
    assert expected.tolist() == pipeline.decode(payload, geometry).to_dense().tolist()
    values = codecs.decode_codec(own, payload, list(geometry.shapes))
    assert expected.tolist() == [values.get(index, 0.0) for index in range(len(vector))]


@pytest.mark.parametrize("seed", WORDS)
def test_the_random_words_of_the_page_are_those_of_the_code_and_of_the_independent_client(seed: str) -> None:
    """The first ones of a seed."""
    words = [int(number, 16) for number in WORDS[seed].split()]

    assert words == splitmix.draw_words(int(seed), len(words)).tolist()
    assert words == [codecs.word(int(seed), index) for index in range(len(words))]


NOTICE: Final = wire.pack_receipt(
    replace(
        wire.unpack_receipt(EXAMPLE["refusal"]), notice=Refusal(reason=Rejection.UNREADABLE, detail="cut off")
    )
)
MASK: Final = Mask.of(LAYOUT, np.array([False, True, False, False, True]))
PRUNED: Final = {
    "plan": wire.pack_plan(replace(wire.unpack_plan(EXAMPLE["plan"]), mask=MASK.encoded, clip_norm=1.5)),
    "update": wire.pack_update(replace(wire.unpack_update(EXAMPLE["update"]), mask=MASK.digest)),
}
MESSAGES: Final[dict[tuple[str, int], list[bytes]]] = {
    ("plan", 0): [EXAMPLE["plan"], PRUNED["plan"]],
    ("model", 0): [EXAMPLE["head"], EXAMPLE["head-1"], EXAMPLE["head-2"]],
    ("update", 0): [EXAMPLE["update"], PRUNED["update"]],
    ("update", 1): [EXAMPLE["chunk"]],
    ("receipt", 0): [EXAMPLE["refusal"], NOTICE],
    ("task", 0): [EXAMPLE["share"]],
    ("client and aggregator", 0): [EXAMPLE["client"], EXAMPLE["aggregator"]],
}
TYPES: Final[dict[str, type]] = {
    "integer": int,
    "truth value": bool,
    "float": float,
    "bytes": bytes,
    "map": dict,
    "list": list,
    "`[reason, detail]`": list,
    "name": str,
    "text": str,
}


@pytest.mark.parametrize(("heading", "place"), MESSAGES)
def test_each_table_of_keys_says_which_there_are_of_which_type_and_which_are_required(
    heading: str, place: int
) -> None:
    """Keys and types against what the code writes, `optional` and unknown keys against what it reads."""
    rows = tables(heading)[place]
    messages = MESSAGES[heading, place]
    bodies = [body_of(message) for message in messages]
    assert {key for body in bodies for key in body} == {codes(row[0])[0] for row in rows}
    for cell, kind, bounds, _ in rows:
        (key,) = codes(cell)
        wanted = next(found for word, found in TYPES.items() if kind.startswith(word))
        for message, body in zip(messages, bodies, strict=True):
            reader = wire.READERS[envelope.kind_of(message)]
            if key in body:
                assert wanted is type(body[key])
            without = sealed(message, {name: value for name, value in body.items() if name != key})
            if "optional" in bounds:
                reader(without)
                reader(sealed(message, body | {key: None}))
            else:
                with pytest.raises(WireError):
                    reader(without)
            reader(sealed(message, body | {"zz": 1}))


def test_the_tables_of_frame_and_delta_name_their_keys() -> None:
    """The maps within the head: a frame that says its codec and one that does not."""
    _, frame, delta = tables("model")
    keys = [codes(row[0])[0] for row in frame]
    first, second, *others = body_of(EXAMPLE["head-2"])["k"]  # type: ignore[misc]

    assert not others
    assert set(keys) == set(first)
    assert {key for key, row in zip(keys, frame, strict=True) if "optional" in row[2]} == {"q"}
    assert [codes(row[0])[0] for row in delta] == list(body_of(EXAMPLE["head-1"])["d"])  # type: ignore[call-overload]
    assert set(keys) == set(second)
    like_the_first = body_of(EXAMPLE["head-2"]) | {"k": [first, second | {"q": None}]}
    (head_codec, frame_codec) = [
        f.codec for f in wire.unpack_head(sealed(EXAMPLE["head-2"], like_the_first)).frames
    ]
    assert head_codec == frame_codec


def test_the_table_of_kinds_is_complete() -> None:
    """Number and topic of each."""
    page = {int(number): codes(topic)[0].split("/")[0] for number, _, topic in tables("3. The envelope")[1]}
    renamed = {"chunk": "update"}

    assert {kind.value: renamed.get(kind.name.lower(), kind.name.lower()) for kind in Kind} == page


def test_the_table_of_topics_is_complete() -> None:
    """Against the one file that spells them."""
    topics = Topics("f")
    ours = (
        topics.plan,
        topics.model,
        topics.object("<id>", 7).replace("/7", "/<i>"),
        topics.update("<shard>", "<client>"),
        topics.receipt("<client>"),
        topics.client("<client>"),
        topics.aggregator("<shard>"),
        topics.stats("<name>"),
        topics.task("<client>"),
    )

    assert sorted(ours) == sorted(f"fedmq/v1/f/{codes(row[0])[0]}" for row in tables("4. Topics")[0])


def test_the_table_of_reasons_is_complete() -> None:
    """Each once; `unknown` is never sent."""
    assert sorted(set(Rejection) - {Rejection.UNKNOWN}) == sorted(
        codes(row[0])[0] for row in tables("Reasons")[0]
    )


def test_the_states_of_presence_are_those_of_the_code() -> None:
    """In the table of its keys."""
    (row,) = (row for row in tables("client and aggregator")[0] if codes(row[0]) == ["t"])

    assert list(PresenceState) == codes(row[2])


def test_the_table_of_codecs_is_complete_and_gives_the_defaults() -> None:
    """Each built-in codec as its usage says."""
    rows = tables("Pipelines")[0]

    assert [codec.usage() for codec in BUILT_IN.values()] == [codes(row[0])[0] for row in rows]
    for row in rows:
        arguments = fields(BUILT_IN[codes(row[0])[0].partition("(")[0]])
        defaults = ["none" if field.default is MISSING else str(field.default) for field in arguments]
        assert defaults == row[3].split()


@pytest.mark.parametrize("row", tables("10. Limits and hostile input")[0], ids=lambda row: codes(row[2])[0])
def test_each_limit_of_the_page_is_the_code_s(row: list[str]) -> None:
    """The row names the constant."""
    module, _, name = codes(row[2])[0].rpartition(".")

    assert getattr(import_module(module), name) == int(row[1].replace(",", ""))


FIGURES: Final = (
    f"`123456789` it is `{zlib.crc32(b'123456789'):08x}`",
    f"`o` = {DEFAULT_CHUNK_BYTES:,} and `z` = {DEFAULT_MAX_UPDATE_BYTES:,}",
    f"`spool_bytes` ({AggregatorSettings().spool_bytes >> 20} MiB by default)",
    f"above the aggregator's limit ({AdmissionSettings().max_examples:,} by default)",
    f"above the aggregator's limit ({AdmissionSettings().max_norm:g} by default)",
    f"at most {envelope.ALLOCATED_PER_BYTE} bytes per byte of input",
    f"{envelope.ALLOCATED_PER_VALUE} bytes per announced value",
    f"and {envelope.ALLOCATED_ALWAYS} bytes besides",
    f"content `{MASK.encoded.content.hex()}` and the digest `{MASK.digest.hex()}`",
    f"or of one of the {KEPT_MASKS} before it",
    f"does so after {PULL_SECONDS:g} seconds in which",
    f"fedmq's agent waits for at most {WINDOW}.",
    f"more than {encoding.MODEL_BYTES_PER_SCALAR} · N + {encoding.MODEL_BYTES_ALWAYS:,} bytes",
    f"more than {wire.MAX_CHUNKS:,} chunks.",
    f"waits {RECEIPT_GRACE:g} second for the retained receipt",
    f"makes no chunks below {MIN_CHUNK_BYTES} bytes",
    f"half the keep-alive ({ConnectionSettings().keepalive} s by default)",
    f"bytes per second times {ConnectionSettings().keepalive // 2}.",
)


@pytest.mark.parametrize("figure", FIGURES)
def test_the_figures_in_the_text_are_the_code_s(figure: str) -> None:
    """Bounds and defaults that stand in sentences."""
    assert figure in " ".join(TEXT.split())


if __name__ == "__main__":
    for name, message in EXAMPLE.items():
        sys.stdout.write(f"\n{name}\n{message.hex()}\n")
        if name in MAPS:
            sys.stdout.write(render(body_of(message)) + "\n")
