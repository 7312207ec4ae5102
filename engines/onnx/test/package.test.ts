// The package as npm would install it.
import { build } from 'esbuild';
import * as assert from 'uvu/assert';
import { group } from '../../../tools/group.ts';

group('package', test => {
  test('its name leads to what is built', async () => {
    assert.ok(Object.keys(await import('@nsnquant/onnx')).length > 0);
  });

  test('only its entry transformers loads transformers.js', async () => {
    const loads = async (name: string): Promise<boolean> => {
      const { metafile } = await build({
        stdin: { contents: `import '${name}';`, resolveDir: import.meta.dirname },
        bundle: true,
        format: 'esm',
        ignoreAnnotations: true,
        metafile: true,
        write: false,
        external: ['@huggingface/transformers', 'nsnquant', 'onnxruntime-*']
      });
      return Object.values(metafile.outputs).some(({ imports }) => imports.some(({ path }) => path === '@huggingface/transformers'));
    };
    assert.is(await loads('@nsnquant/onnx'), false);
    assert.is(await loads('@nsnquant/onnx/transformers'), true);
  });
});
