"""The wire format: what goes in comes out, its size is known beforehand, and nothing hostile gets through."""

import contextlib
import json
import struct
import zlib

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from laconic.errors import PacketError
from laconic.packet import (
    ALIGN,
    DTYPES,
    FRAME,
    MAGIC,
    VERSION,
    Packet,
    check_shape,
    from_bytes,
    message_nbytes,
    need,
    shape_of,
    to_bytes,
)

SHAPES = st.lists(st.integers(0, 5), max_size=4)


def filled(dtype, shape, seed=0):
    """A tensor with all its bytes drawn at random (0 or 1 for booleans)."""
    if dtype == torch.bool:
        return torch.randint(0, 2, shape, generator=torch.Generator().manual_seed(seed)).bool()
    count = torch.Size(shape).numel() * dtype.itemsize
    raw = torch.randint(0, 256, (count,), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
    return raw.view(dtype).reshape(shape)


def same_bits(a, b):
    return a.dtype == b.dtype and a.shape == b.shape and bytes_of(a) == bytes_of(b)


def bytes_of(tensor):
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


@pytest.mark.parametrize("code", DTYPES)
@pytest.mark.parametrize("shape", [(), (0,), (1,), (7,), (3, 5), (2, 0, 3), (1, 1, 1, 9)])
def test_every_dtype_and_shape_comes_back_bit_for_bit(code, shape):
    tensor = filled(DTYPES[code], shape, seed=len(shape))
    (packet,) = from_bytes(to_bytes([Packet({"x": tensor}, {"k": 1})]))
    assert same_bits(packet.tensors["x"], tensor)
    assert packet.header == {"k": 1}


@given(
    packets=st.lists(
        st.dictionaries(st.text(max_size=6), st.tuples(st.sampled_from(sorted(DTYPES)), SHAPES), max_size=4), max_size=4
    ),
    header=st.dictionaries(
        st.text(max_size=5), st.integers() | st.text(max_size=5) | st.none() | st.lists(st.booleans(), max_size=2)
    ),
)
def test_nbytes_is_what_crosses_and_meta_tensors_cost_the_same(packets, header):
    message = [Packet({n: filled(DTYPES[c], s) for n, (c, s) in p.items()}, header) for p in packets]
    on_meta = [Packet({n: t.to("meta") for n, t in p.tensors.items()}, p.header) for p in message]
    raw = to_bytes(message)
    assert raw.numel() == message_nbytes(message) == message_nbytes(on_meta)
    assert raw.numel() == FRAME.size + sum(p.nbytes for p in message)
    back = from_bytes(raw)
    assert [p.header for p in back] == [p.header for p in message]
    for a, b in zip(message, back, strict=True):
        assert list(a.tensors) == list(b.tensors)
        assert all(same_bits(a.tensors[n], b.tensors[n]) for n in a.tensors)


def test_tensors_that_are_not_contiguous_are_sent_in_the_order_of_their_indices():
    x = torch.arange(24.0).reshape(4, 6)
    views = {"t": x.T, "strided": x[:, ::2], "expanded": torch.ones(1).expand(5), "flipped": x.flip(0)}
    (packet,) = from_bytes(to_bytes([Packet(views)]))
    for name, view in views.items():
        assert torch.equal(packet.tensors[name], view), name


def test_tensors_read_back_lie_inside_the_message_and_on_aligned_places():
    raw = to_bytes([Packet({"a": torch.ones(3, dtype=torch.uint8), "b": torch.ones(2, dtype=torch.float64)})])
    (packet,) = from_bytes(raw)
    for tensor in packet.tensors.values():
        inside = tensor.data_ptr() - raw.data_ptr()
        assert 0 <= inside <= raw.numel() - tensor.numel() * tensor.element_size()
        assert inside % ALIGN == 0


def test_bytes_and_tensors_read_alike():
    raw = to_bytes([Packet({"x": torch.arange(5)})])
    for form in (raw, bytes(raw.numpy()), bytearray(raw.numpy())):
        assert torch.equal(from_bytes(form)[0].tensors["x"], torch.arange(5))


def test_the_wire_format_is_the_one_in_the_golden_file(golden):
    message = [Packet({}, {})]
    for code, dtype in DTYPES.items():
        tensor = torch.tensor([0, 1, 2, 3, 5], dtype=torch.float64).to(dtype)
        message.append(Packet({code: tensor, "empty": tensor[:0].reshape(0, 3)}, {"shape": [5], "name": "é", "n": -1}))
    golden("message.bin", bytes(to_bytes(message).numpy()))


def test_a_dtype_without_a_code_is_refused_by_name():
    with pytest.raises(PacketError, match=r"'z' has dtype torch\.complex64"):
        to_bytes([Packet({"z": torch.zeros(2, dtype=torch.complex64)})])


def sealed(body, count=1, **frame):
    """A message with a right checksum around any body, so that a test reaches what lies behind the checksum."""
    given = {"magic": MAGIC, "version": VERSION, "zero": 0, "count": count, "crc": zlib.crc32(body), "n": len(body)}
    return FRAME.pack(*(given | frame).values()) + body


def body_of(text, tail=b""):
    raw = text if isinstance(text, bytes) else json.dumps(text).encode()
    lead = struct.pack("<I", len(raw)) + raw
    return lead.ljust(-(-len(lead) // ALIGN) * ALIGN, b"\0") + tail


GOOD = body_of([{}, [["x", "f32", [2]]]], bytes(8))


def test_the_hand_made_message_that_the_next_tests_damage_is_a_good_one():
    (packet,) = from_bytes(sealed(GOOD))
    assert torch.equal(packet.tensors["x"], torch.zeros(2))


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        (b"", "0 bytes are fewer"),
        (sealed(GOOD)[:20], "fewer than the 24"),
        (sealed(GOOD, magic=b"HTTP"), "is the other end laconic"),
        (sealed(GOOD, zero=1), "is the other end laconic"),
        (sealed(GOOD, version=VERSION + 1), "run one laconic version everywhere"),
        (sealed(GOOD, n=len(GOOD) + 1), "were declared"),
        (sealed(GOOD)[:-1], "were declared"),
        (sealed(GOOD, crc=1), "checksum"),
        (sealed(GOOD, count=2), "ends before its header"),
        (sealed(GOOD, count=0), "follow the last packet"),
        (sealed(GOOD + bytes(8)), "follow the last packet"),
        (sealed(struct.pack("<I", 1 << 31) + bytes(4)), "runs past the message"),
        (sealed(body_of(b"\xff\xfe{")), "cannot be read"),
        (sealed(body_of(b"[" * 5000)), "cannot be read"),
        (sealed(body_of(5)), "cannot be read"),
        (sealed(body_of(None)), "cannot be read"),
        (sealed(body_of([1, 2, 3])), "cannot be read"),
        (sealed(body_of([[], []])), "not an object and a layout"),
        (sealed(body_of(b'[{"a":NaN},[]]')), "cannot be read"),
        (sealed(body_of(b'[{"a":1e999},[]]')), "cannot be read"),
        (sealed(body_of([{}, {}])), "not an object and a layout"),
        (sealed(body_of([{}, [5]])), "does not describe a tensor"),
        (sealed(body_of([{}, [["x", "f32"]]])), "does not describe a tensor"),
        (sealed(body_of([{}, [[1, "f32", [0]]]])), "does not describe a tensor"),
        (sealed(body_of([{}, [["x", "c64", [0]]]])), "does not describe a tensor"),
        (sealed(body_of([{}, [["x", ["f32"], [0]]]])), "does not describe a tensor"),
        (sealed(body_of([{}, [["x", "f32", [-1]]]])), "does not describe a tensor"),
        (sealed(body_of([{}, [["x", "f32", [True]]]])), "does not describe a tensor"),
        (sealed(body_of([{}, [["x", "f32", [1.0]]]])), "does not describe a tensor"),
        (sealed(body_of([{}, [["x", "f32", 3]]])), "does not describe a tensor"),
        (sealed(body_of([{}, [["x", "f32", [0] * 65]]])), "does not describe a tensor"),
        (sealed(body_of([{}, [["x", "f32", [1 << 48]]]])), "does not describe a tensor"),
        (sealed(body_of([{}, [["x", "f64", [1 << 47, 1 << 47]]]])), "does not describe a tensor"),
        (sealed(body_of([{}, [["x", "f32", [0, (1 << 48) - 1, (1 << 48) - 1]]]])), "does not describe a tensor"),
        (sealed(body_of([{}, [["x", "f64", [1 << 47]]]])), "runs past the message"),
        (sealed(body_of([{}, [["x", "f32", [3]]]], bytes(8))), "runs past the message"),
    ],
)
def test_what_to_bytes_did_not_write_is_refused_in_words(raw, says):
    with pytest.raises(PacketError, match=says):
        from_bytes(raw)


def sample():
    tensors = {"values": torch.arange(6.0), "places": torch.arange(6, dtype=torch.int32), "b": torch.ones(3).bool()}
    return bytes(to_bytes([Packet(tensors, {"shape": [2, 3], "dtype": "f32"}), Packet({}, {"weight": 2.0})]).numpy())


def refused_or_read(raw):
    """Read bytes that may be anything: a PacketError, or tensors that are no larger than the bytes."""
    try:
        message = from_bytes(raw)
    except PacketError:
        return False
    # Layout entries may share a name, so what is kept can be less than what was there, never more.
    assert sum(t.numel() * t.element_size() for p in message for t in p.tensors.values()) <= len(raw)
    for packet in message:
        with contextlib.suppress(PacketError):
            shape_of(packet)
            need(packet, "values", (torch.float32,), 6)
    return True


@given(flips=st.lists(st.tuples(st.integers(0, len(sample()) - 1), st.integers(1, 255)), min_size=1, max_size=4))
@settings(max_examples=150)
def test_changed_bytes_are_refused_by_the_checksum_or_the_frame(flips):
    raw = bytearray(sample())
    for at, change in flips:
        raw[at] ^= change
    if raw != sample():
        with pytest.raises(PacketError):
            from_bytes(raw)


@given(
    flips=st.lists(st.tuples(st.integers(FRAME.size, len(sample()) - 1), st.integers(1, 255)), max_size=4),
    cut=st.integers(0, len(sample())),
    tail=st.binary(max_size=16),
    count=st.integers(0, 3),
)
@settings(max_examples=400)
def test_changed_cut_and_lengthened_messages_with_a_right_checksum_are_refused_or_decode(flips, cut, tail, count):
    raw = bytearray(sample())
    for at, change in flips:
        raw[at] ^= change
    body = bytes(raw[FRAME.size :])
    body = body[: len(body) - cut] + tail if cut % 2 else body + tail
    refused_or_read(sealed(body, count=count))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 1 << 50) | st.floats() | st.text(max_size=3) | st.sampled_from(["f32"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=12,
)


@given(header=JSON, layout=JSON | st.lists(st.tuples(JSON, st.sampled_from(sorted(DTYPES)), JSON), max_size=3))
@settings(max_examples=300)
def test_any_json_in_the_header_is_refused_or_decodes(header, layout):
    refused_or_read(sealed(body_of([header, layout], bytes(32))))


@pytest.mark.parametrize("sign", ["", "-"])
def test_a_whole_number_that_no_float_holds_is_refused(sign):
    assert from_bytes(to_bytes([Packet({}, {"n": int(f"{sign}{2**62}")})]))[0].header == {"n": int(f"{sign}{2**62}")}
    with pytest.raises(PacketError, match="more digits than"):
        from_bytes(to_bytes([Packet({}, {"n": int(f"{sign}1{'0' * 400}")})]))


def test_a_shape_is_checked_before_anything_is_allocated_for_it():
    packet = Packet({}, {"shape": [1 << 40]})
    with pytest.raises(PacketError, match="the tensor here has"):
        check_shape(packet, torch.zeros(3))
    check_shape(Packet({}, {"shape": [3]}), torch.zeros(3))


def test_need_says_what_is_missing_and_what_came_instead():
    packet = Packet({"values": torch.zeros(3)})
    with pytest.raises(PacketError, match="lacks 'places', and has"):
        need(packet, "places", (torch.int32,))
    with pytest.raises(PacketError, match=r"'values' is f32\[3\], wanted f16 or bf16\[4\]"):
        need(packet, "values", (torch.float16, torch.bfloat16), 4)
    assert need(packet, "values", (torch.float32,), 3) is packet.tensors["values"]


@pytest.mark.parametrize("shape", [[6.0, 4], [True, 4], [6, 4.0], (6, 4), None, "64", [[6], 4]])
def test_what_equals_a_shape_but_is_no_list_of_sizes_is_refused(shape):
    like = torch.empty(1 if isinstance(shape, list) and shape[0] is True else 6, 4)
    with pytest.raises(PacketError, match="wanted a list of sizes"):
        check_shape(Packet({}, {"shape": shape}), like)
