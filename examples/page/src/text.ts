// Numbers and errors as the page writes them.

export function mebibytes(bytes: number): string {
  const value = bytes / 2 ** 20;
  return `${value < 10 ? value.toFixed(2) : value < 100 ? value.toFixed(1) : Math.round(value).toLocaleString('en-US')} MiB`;
}

export function count(value: number, noun = ''): string {
  return `${value.toLocaleString('en-US')}${noun && ` ${noun}${value === 1 ? '' : 's'}`}`;
}

export function duration(ms: number): string {
  return ms < 1000 ? `${Math.round(ms)} ms` : `${(ms / 1000).toFixed(1)} s`;
}

/** Tokens a second. */
export function rate(tokens: number, ms: number): string {
  const value = (tokens / ms) * 1000;
  return value < 10 ? value.toFixed(1) : `${Math.round(value)}`;
}

/** Errors made for people say all there is to say; of others the kind helps too. ONNX Runtime throws numbers where memory ends. */
export function sentence(error: unknown): string {
  if (!(error instanceof Error))
    return `The model's engine failed with ${String(error)}, perhaps for want of memory; a smaller model will work`;
  if (/memory|alloc/i.test(error.message))
    return `Expected enough memory in this tab, got: ${error.message}; less room for context, or a smaller model, will work`;
  const text = error.message.replace(/^expected /, 'Expected '); // others begin with names
  return ['InputError', 'BackendError', 'RangeError', 'Error'].includes(error.name) ? text : `${error.name}: ${text}`;
}
