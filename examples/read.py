"""Reads the file of a sequence by the words of docs/format.md, with numpy: what decode() gives, of every layer.

python3 examples/read.py FILE > NUMBERS    f32 [layers, 2 (keys, values), tokens, kvHeads, headDim]
"""
import base64, json, pathlib, re, sys, zlib
import numpy as np

TEXT = (pathlib.Path(__file__).parent.parent / 'src/format/codebook.ts').read_text()
CODEBOOKS = {  # by name: the checksum, and f64 [256, channels]
    name: (checksum, np.frombuffer(base64.b64decode(''.join(re.findall("'(.*?)'", text))), '<f2').reshape(256, -1).astype(float))
    for name, checksum, text in re.findall(r'(nsn\d): \{.*?0x(\w+),.*?base64:(.*?)\n  \}', TEXT, re.S)
}


def up(size, to):
    return -(-size // to) * to


def read(path):
    file = pathlib.Path(path).read_bytes()
    begin = 8 + int.from_bytes(file[:8], 'little')
    header = json.loads(file[8:begin])
    about = header['__metadata__']
    assert about['format'] == '2', 'file expected format 2, got ' + about['format']
    assert about['checksum'] == f"{zlib.crc32(file[:37] + b'00000000' + file[45:]):08x}", 'file is damaged or cut off'
    for name, checksum in (book.split(':') for book in about['codebooks'].split()):
        assert CODEBOOKS[name][0] == checksum, 'file was made with another codebook ' + name
    heads, d, length = int(about['kvHeads']), int(about['headDim']), int(about['length'])
    rope = None if about['rope'] == 'unknown' else json.loads(about['rope'])

    def tensor(name):
        entry = header[name]
        first, end = entry['data_offsets']
        return np.frombuffer(file[begin + first : begin + end], {'U8': 'u1', 'F16': '<f2'}[entry['dtype']]).reshape(entry['shape'])

    def layer(n, codecs):
        pages = decode_pages(tensor(f'layers.{n}.pages'), codecs.split('/'), heads, d, rope)
        rows = [tensor(f'layers.{n}.sinks'), pages, tensor(f'layers.{n}.raw')]  # each [rows, heads, 2, tokens, d]
        return np.concatenate([row.transpose(2, 0, 3, 1, 4).reshape(2, -1, heads, d) for row in rows], 1)[:, :length]

    return np.stack([layer(n, codecs) for n, codecs in enumerate(about['codecs'].split())]).astype('<f4')


def decode_pages(pages, codecs, heads, d, rope):
    blocks, at = [], 16  # behind the page header
    for side in [0, 1] * heads:
        tokens, size = decode_block(pages[:, at:], CODEBOOKS[codecs[side]][1], d, rope if side == 0 else None)
        blocks.append(tokens)
        at += size
    return np.stack(blocks, 1).reshape(-1, heads, 2, 64, d)


def decode_block(b, codebook, d, rope):
    """Tokens, f64 [pages, 64, d], of the blocks that begin at b[:, 0]; and how many bytes one takes."""
    codes, groups, h = d // codebook.shape[1], -(-d // 32), d & -d
    row = up(codes, 4)
    s2, s1, scales = 64 * row, 64 * row + 128, 64 * row + 160
    o = scales + up(4 * (1 + groups), 16)
    half = lambda at, count: np.ascontiguousarray(b[:, at : at + 2 * count]).view('<f2').astype(float)
    nibbles = lambda at, count: np.stack([b[:, at : at + count // 2] & 15, b[:, at : at + count // 2] >> 4], -1).reshape(-1, count)
    scale, least = half(scales, 2 + 2 * groups).reshape(-1, 1 + groups, 2).transpose(2, 0, 1)
    norms = nibbles(s1, 64) * scale[:, :1] + least[:, :1]
    group = 1 + np.arange(d) // 32
    mean = np.repeat((nibbles(o, d) * scale[:, group] + least[:, group])[:, None], 64, 1)
    if rope:
        pairs = np.arange(len(rope['invFreq']))
        i, j = (2 * pairs, 2 * pairs + 1) if rope['interleaved'] else (pairs, pairs + len(pairs))
        angle = (np.arange(64) - 31.5)[:, None] * rope['invFreq']
        p, q = mean[..., i], mean[..., j]
        mean[..., i], mean[..., j] = p * np.cos(angle) - q * np.sin(angle), p * np.sin(angle) + q * np.cos(angle)
    hadamard = np.ones((1, 1))
    while len(hadamard) < h:
        hadamard = np.kron([[1, 1], [1, -1]], hadamard)
    x = codebook[b[:, : 64 * row].reshape(-1, 64, row)[..., :codes]].reshape(-1, 64, d) * half(s2, 64)[..., None]
    x = (x.reshape(-1, 64, d // h, h) @ hadamard / h**0.5).reshape(-1, 64, d)
    return norms[..., None] * (x + mean), o + up(d // 2, 16)


if __name__ == '__main__':
    sys.stdout.buffer.write(read(sys.argv[1]).tobytes())
