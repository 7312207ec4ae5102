// Where Chromium is, and the GPU in software that it brings.
import { existsSync, realpathSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';

export const chromiumPath = process.env['CHROMIUM_PATH'] ?? '/usr/bin/chromium';

/** Whether WebGPU runs on the adapter that this machine has: a real GPU, it is hoped. SwiftShader is the same everywhere. */
export const ownAdapter = process.env['NSN_ADAPTER'] === 'own';

/**
 * Points Dawn in Node and wgpu in Deno at SwiftShader, which every Chromium brings for Linux, and at the Vulkan loader beside it:
 * the same adapter wherever the tests run. Where another is asked for, or none is found, nothing is changed.
 */
export function softwareVulkan(): NodeJS.ProcessEnv {
  if (ownAdapter || process.env['VK_DRIVER_FILES'] || process.env['VK_ICD_FILENAMES']) return {};
  // Beside the executable, unless that is a script of the distribution's.
  const folders = ['/usr/lib/chromium', '/usr/lib64/chromium-browser', '/usr/lib/chromium-browser', '/opt/google/chrome'];
  if (existsSync(chromiumPath)) folders.unshift(dirname(realpathSync(chromiumPath)));
  const folder = folders.find(folder => existsSync(join(folder, 'vk_swiftshader_icd.json')));
  if (folder === undefined) return {};
  return {
    VK_ICD_FILENAMES: join(folder, 'vk_swiftshader_icd.json'),
    XDG_RUNTIME_DIR: process.env['XDG_RUNTIME_DIR'] ?? tmpdir(), // the loader complains where there is none
    LD_LIBRARY_PATH: [folder, process.env['LD_LIBRARY_PATH']].filter(Boolean).join(':')
  };
}
