// What this browser can run, asked before anything is loaded. Answers are sentences for the person.

/** Why no model can run here, or undefined. nsnquant itself would do without SIMD; ONNX Runtime does not. */
export function missingWebAssembly(): string | undefined {
  const works = 'Chrome or Edge 105, Firefox 121, Safari 16.4 and newer will work';
  if (typeof WebAssembly === 'undefined') return `This browser has no WebAssembly; ${works}.`;
  // (module (func (result v128) (v128.const i64x2 0 0)))
  const module = Uint8Array.of(
    0,
    97,
    115,
    109,
    1,
    0,
    0,
    0,
    1,
    5,
    1,
    96,
    0,
    1,
    123,
    3,
    2,
    1,
    0,
    10,
    22,
    1,
    20,
    0,
    253,
    12,
    ...new Array<number>(16).fill(0),
    11
  );
  return WebAssembly.validate(module) ? undefined : `This browser's WebAssembly has no SIMD, which ONNX Runtime needs; ${works}.`;
}

export type Gpu =
  | { readonly usable: false; readonly reason: string }
  | { readonly usable: true; readonly software: boolean; readonly name: string };

const PATIENCE_MS = 10_000;

/** Asks for an adapter only: whether it computes rightly shows when it is chosen. */
export async function findGpu(): Promise<Gpu> {
  const missing = (reason: string): Gpu => ({ usable: false, reason });
  const { gpu } = navigator as { gpu?: GPU };
  if (!gpu) return missing(isSecureContext ? 'not in this browser' : 'only over https or from this machine');
  const late = new Promise<null>(resolve => {
    setTimeout(resolve, PATIENCE_MS, null);
  });
  try {
    const adapter = await Promise.race([gpu.requestAdapter({ powerPreference: 'high-performance' }), late]);
    if (!adapter) return missing('no adapter here');
    const { vendor, architecture, description, isFallbackAdapter } = adapter.info;
    const name = [vendor, architecture, description].filter(Boolean).join(' ');
    return { usable: true, software: isFallbackAdapter || /swiftshader|llvmpipe|basic render/i.test(name), name };
  } catch (error) {
    return missing((error as Error).message);
  }
}
