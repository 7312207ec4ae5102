"""Reads the file of a sequence by the words of docs/format.md, with numpy: what decode() gives, of every layer.

python3 examples/read.py FILE > NUMBERS    of every layer keys f32 [tokens, kvHeads, headDim], then values; tokens that are there, in the order of positions
"""
import base64, json, pathlib, re, sys, zlib
import numpy as np

TEXT = (pathlib.Path(__file__).parent.parent / 'src/format/codebook.ts').read_text()
CODEBOOKS = {  # by channels: the checksum, and f64 [256, channels]
    int(channels): (checksum, np.frombuffer(base64.b64decode(''.join(re.findall("'(.*?)'", text))), '<f2').reshape(256, -1).astype(float))
    for channels, checksum, text in re.findall(r'(\d): \{.*?0x(\w+),.*?base64:(.*?)\n  \}', TEXT, re.S)
}
PLAIN = {'nsn1': [(8, 1)], 'nsn2': [(4, 1)], 'nsn3': [(4, 1), (8, 0.3125)], 'nsn4': [(2, 1)]}


def segments_of(codec, d, balanced):
    """Of every segment its channels, and of its stages the codebook's channels and scale."""
    if not balanced:
        return [(d, PLAIN[codec])]
    b = d // 8
    if codec == 'nsn1':
        two, four = 2 * ((b + 1) // 8), 2 * int(b / 4 + 0.5)
        codes = {2: two, 4: four, 8: b - two - four}
    elif codec == 'nsn2':
        eight = max(2, 2 * int(d / 64 + 0.5))
        codes = {2: 2 * eight, 4: 2 * b - 3 * eight, 8: eight}
    else:
        codes = {'nsn3': {2: 2 * b, 4: b}, 'nsn4': {2: 4 * b}}[codec]
    return [(channels * count, [(channels, 1)]) for channels, count in codes.items() if count]


def up(size, to):
    return -(-size // to) * to


def read(path):
    file = pathlib.Path(path).read_bytes()
    begin = 8 + int.from_bytes(file[:8], 'little')
    header = json.loads(file[8:begin])
    about = header['__metadata__']
    assert about['format'] == '2', 'file expected format 2, got ' + about['format']
    assert about['checksum'] == f"{zlib.crc32(file[:37] + b'00000000' + file[45:]):08x}", 'file is damaged or cut off'
    for channels, checksum in (book.split(':') for book in about['codebooks'].split()):
        assert CODEBOOKS[int(channels)][0] == checksum, f'file was made with another codebook of {channels} channels'
    length, sinks, ropes = int(about['length']), int(about['sinks']), json.loads(about['ropes'])

    def tensor(name):
        entry = header[name]
        first, end = entry['data_offsets']
        return np.frombuffer(file[begin + first : begin + end], {'U8': 'u1', 'F16': '<f2', 'F32': '<f4'}[entry['dtype']]).reshape(entry['shape'])

    def layer(n, shape, codecs, rope, coded):
        heads, d, dv = (int(number) for number in re.split('[×/]', shape))
        held = length - 64 * (int(coded) - len(tensor(f'layers.{n}.pages')))
        balance = tensor(f'layers.{n}.balance')
        orders = [order_of(head, d, rope) for head in balance[0]] if len(balance) else [None] * heads
        pages = decode_pages(tensor(f'layers.{n}.pages'), codecs.split('/'), orders, d, dv, rope)
        for side, channels in enumerate((d, dv)):
            sides = lambda raw, tokens: np.split(raw, [tokens * d], -1)[side].reshape(len(raw), heads, tokens, channels)
            rows = [sides(tensor(f'layers.{n}.sinks'), sinks), pages[side], sides(tensor(f'layers.{n}.raw'), 64)]
            yield np.concatenate([row.transpose(0, 2, 1, 3).reshape(-1, heads, channels) for row in rows])[:held].astype('<f4')

    layers = zip(about['heads'].split(), about['codecs'].split(), about['rope'].split(), about['coded'].split())
    return [side for n, (shape, codecs, rope, coded) in enumerate(layers) for side in layer(n, shape, codecs, ropes[int(rope)], coded)]


def order_of(balance, d, rope):
    """A head's channels in the order in which they are coded, and what they were multiplied by."""
    keys, queries = (balance & 15).astype(int), (balance >> 4).astype(int)
    pairs = np.arange(d).reshape(-1, 2)
    if rope and not rope['interleaved']:
        rotated = len(rope['invFreq'])
        pairs[:rotated] = np.stack([np.arange(rotated), np.arange(rotated, 2 * rotated)], 1)
    order = np.argsort(keys + queries, kind='stable')
    return pairs[order].ravel(), np.repeat(2.0 ** ((keys - queries)[order] / 8), 2)


def decode_pages(pages, codecs, orders, d, dv, rope):
    """Keys, f64 [pages, heads, 64, d], and values, f64 [pages, heads, 64, dv]."""
    sides, at = ([], []), 0
    for order in orders:
        for side, blocks in enumerate(sides):
            keys = side == 0
            tokens, size = decode_block(pages[:, at:], codecs[side], d if keys else dv, keys, order if keys else None, rope if keys else None)
            blocks.append(tokens)
            at += size
    return [np.stack(blocks, 1) for blocks in sides]


def decode_block(b, codec, d, keys, order, rope):
    """Tokens, f64 [pages, 64, d], of the blocks that begin at b[:, 0]; and how many bytes one takes."""
    segments, groups = segments_of(codec, d, order is not None), -(-d // 32)
    row = up(sum(channels // width for channels, stages in segments for width, _ in stages), 4)
    s1 = 64 * row + 64 * len(segments)
    o, scales = s1 + 32, s1 + 32 + (d if keys else d // 2)
    exponents = scales + 4 * (1 + groups)
    nibbles = lambda at, count: np.stack([b[:, at : at + count // 2] & 15, b[:, at : at + count // 2] >> 4], -1).reshape(-1, count)
    half = np.ascontiguousarray(b[:, scales:exponents]).view('<f2').astype(float)
    scale, least = half.reshape(-1, 1 + groups, 2).transpose(2, 0, 1)
    norms = nibbles(s1, 64) * scale[:, :1] + least[:, :1]
    group = 1 + np.arange(d) // 32
    mean = np.repeat(((b[:, o : o + d] if keys else nibbles(o, d)) * scale[:, group] + least[:, group])[:, None], 64, 1)
    if rope:
        pairs = np.arange(len(rope['invFreq']))
        i, j = (2 * pairs, 2 * pairs + 1) if rope['interleaved'] else (pairs, pairs + len(pairs))
        angle = (np.arange(64) - 31.5)[:, None] * rope['invFreq']
        p, q = mean[..., i], mean[..., j]
        mean[..., i], mean[..., j] = p * np.cos(angle) - q * np.sin(angle), p * np.sin(angle) + q * np.cos(angle)
    codes, y, column, channel = b[:, : 64 * row].reshape(-1, 64, row), np.zeros(mean.shape), 0, 0
    for n, (channels, stages) in enumerate(segments):
        x = 0
        for width, factor in stages:
            chosen = codes[..., column : column + channels // width]
            x, column = x + factor * CODEBOOKS[width][1][chosen].reshape(-1, 64, channels), column + channels // width
        small = b[:, 64 * row + 64 * n : 64 * row + 64 * (n + 1)].astype('<u4')
        s2 = np.where(small > 0, (32 * b[:, exponents + n, None].astype('<u4') + small) << 18, 0).astype('<u4').view('<f4')
        y[..., channel : channel + channels] = hadamard(x * s2[..., None])
        channel += channels
    if order:
        x = np.zeros(y.shape)
        x[..., order[0]] = y / order[1]
        y = x
    return norms[..., None] * (y + mean), up(exponents + len(segments), 4)


def hadamard(x):
    """By blocks of the powers of two that the channels are the sum of, the largest first."""
    n = x.shape[-1]
    if n == 0:
        return x
    h, matrix = 1 << (n.bit_length() - 1), np.ones((1, 1))
    while len(matrix) < h:
        matrix = np.kron([[1, 1], [1, -1]], matrix)
    return np.concatenate([x[..., :h] @ matrix / h**0.5, hadamard(x[..., h:])], -1)


if __name__ == '__main__':
    sys.stdout.buffer.write(b''.join(numbers.tobytes() for numbers in read(sys.argv[1])))
