"""Reads the file of a sequence by the words of docs/format.md: what decode() gives, of every layer. Needs numpy.

python3 examples/read.py FILE > NUMBERS    f32 [layers, 2 (keys, values), tokens, kvHeads, headDim]
"""
import base64, json, pathlib, re, sys, zlib
import numpy as np

source = (pathlib.Path(__file__).parent.parent / 'src/format/codebook.ts').read_text()
books = {name: (np.frombuffer(base64.b64decode(''.join(re.findall("'(.*?)'", text))), '<f2').reshape(256, -1).astype(float), checksum)
         for name, checksum, text in re.findall(r'(nsn\d): \{.*?0x(\w+),.*?base64:(.*?)\n  \}', source, re.S)}

def read(path):
    file = pathlib.Path(path).read_bytes()
    begin = 8 + int.from_bytes(file[:8], 'little')
    header = json.loads(file[8:begin])
    about = header['__metadata__']
    assert about['format'] == '2', 'another format'
    assert about['checksum'] == f"{zlib.crc32(file[:37] + b'00000000' + file[45:]):08x}", 'damaged'
    assert all(books[name][1] == checksum for name, checksum in (book.split(':') for book in about['codebooks'].split())), 'other codebooks'
    heads, d, length = int(about['kvHeads']), int(about['headDim']), int(about['length'])
    rope = None if about['rope'] == 'unknown' else json.loads(about['rope'])
    def tensor(name):
        entry = header[name]
        return np.frombuffer(file[begin:][slice(*entry['data_offsets'])], {'U8': 'u1', 'F16': '<f2'}[entry['dtype']]).reshape(entry['shape'])
    def layer(n, codecs):
        # [rows, heads, 2, tokens, d] to [2, all tokens, heads, d], in the order of tokens; the last raw window is not full
        rows = [tensor(f'layers.{n}.sinks'), pages(tensor(f'layers.{n}.pages'), [books[name][0] for name in codecs.split('/')], heads, d, rope), tensor(f'layers.{n}.raw')]
        return np.concatenate([row.transpose(2, 0, 3, 1, 4).reshape(2, -1, heads, d) for row in rows], 1)[:, :length]
    return np.stack([layer(n, codecs) for n, codecs in enumerate(about['codecs'].split())]).astype('<f4')

def pages(page, codebooks, heads, d, rope):
    blocks, at = [], 16
    for side in [0, 1] * heads:
        tokens, size = block(page[:, at:], codebooks[side], d, rope if side == 0 else None)
        blocks, at = blocks + [tokens], at + size
    return np.stack(blocks, 1).reshape(len(page), heads, 2, 64, d)

def block(b, codebook, d, rope):
    """Decoded tokens [pages, 64, d] of blocks that begin at b[:, 0], and the bytes of one."""
    up = lambda size, to: -(-size // to) * to
    codes, groups, h = d // codebook.shape[1], -(-d // 32), d & -d
    row = up(codes, 4)
    s2, s1, scales = 64 * row, 64 * row + 128, 64 * row + 160
    o = scales + up(4 * (1 + groups), 16)
    half = lambda begin, count: np.ascontiguousarray(b[:, begin:begin + 2 * count]).view('<f2').astype(float)
    nibbles = lambda begin, count: np.stack([b[:, begin:begin + count // 2] & 15, b[:, begin:begin + count // 2] >> 4], -1).reshape(-1, count)
    scale, least = half(scales, 2 * (1 + groups)).reshape(-1, 1 + groups, 2).transpose(2, 1, 0)[..., None]
    norms = nibbles(s1, 64) * scale[0] + least[0]
    channels = np.arange(d) // 32 + 1
    mean = nibbles(o, d) * scale[channels, :, 0].T + least[channels, :, 0].T
    hadamard = np.ones((1, 1))
    while len(hadamard) < h: hadamard = np.kron([[1, 1], [1, -1]], hadamard)
    x = codebook[b[:, :64 * row].reshape(-1, 64, row)[..., :codes]].reshape(-1, 64, d) * half(s2, 64)[..., None]
    x = (x.reshape(-1, 64, d // h, h) @ hadamard / h ** 0.5).reshape(-1, 64, d)
    mean = np.repeat(mean[:, None], 64, 1)
    if rope:
        pairs = np.arange(len(rope['invFreq']))
        i, j = (2 * pairs, 2 * pairs + 1) if rope['interleaved'] else (pairs, pairs + len(pairs))
        angle = (np.arange(64) - 31.5)[:, None] * rope['invFreq']
        mean[..., i], mean[..., j] = (mean[..., i] * np.cos(angle) - mean[..., j] * np.sin(angle),
                                      mean[..., i] * np.sin(angle) + mean[..., j] * np.cos(angle))
    return norms[..., None] * (x + mean), o + up(d // 2, 16)

if __name__ == '__main__':
    sys.stdout.buffer.write(read(sys.argv[1]).tobytes())
